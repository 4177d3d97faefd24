//! Event channels, grants and requests to the store, each beside what it is measured by.

use crate::Result;
use crate::guest::pin;
use crate::host::{Host, WITHIN, run};
use crate::table::{Extent, Goal, Row};
use conformance::daemon::{Daemon, Kind};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use xen::domctl::DomainControl;
use xen::gnttab::{Access, GrantMap};
use xen::{DomId, GrantRef};
use xen_hosted::domain::{Config, Files};
use xen_hosted::domctl::{Control, Created, Descriptors};
use xenstore::Store;
use xenstore_core::wire::{MsgType, split_message};

/// A domain of this program with a pipe to talk to.
struct Talker {
    created: Created,
    input: PipeWriter,
    output: BufReader<PipeReader>,
}

impl Talker {
    fn create(control: &mut Control, args: &[&str]) -> Result<Self> {
        let (read_in, input) = std::io::pipe()?;
        let (output, write_out) = std::io::pipe()?;
        let mut config = Config::default();
        config.files = Files::System;
        config.args = ["guest"].iter().chain(args).map(Into::into).collect();
        let program = File::open(std::env::current_exe()?)?;
        let error = std::io::stderr();
        let descriptors = Descriptors {
            program: program.as_fd(),
            input: read_in.as_fd(),
            output: write_out.as_fd(),
            error: error.as_fd(),
        };
        let created = control.create(&config, descriptors)?;
        Ok(Self { created, input, output: BufReader::new(output) })
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    fn hear(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim().parse().map_err(|_| format!("a domain of the bench says {line:?}").into())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All of it.
pub(crate) fn all(extent: &Extent) -> Result<Vec<Row>> {
    let host = Host::start()?;
    let mut rows = channels(&host, extent)?;
    rows.push(grants(&host, extent)?);
    rows.extend(requests(&host, extent)?);
    Ok(rows)
}

/// The other process of the measure: waits at standard input, answers at standard output.
pub(crate) fn bounce() -> Result<()> {
    pin()?;
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let mut count = [0; 8];
    loop {
        rustix::io::read(&input, &mut count)?;
        if u64::from_ne_bytes(count) > 1 {
            return Ok(());
        }
        rustix::io::write(&output, &1_u64.to_ne_bytes())?;
    }
}

fn channels(host: &Host, extent: &Extent) -> Result<Vec<Row>> {
    let mut control = host.control()?;
    let per_round = extent.per_round.to_string();
    let next = |control: &mut Control| -> Result<u16> {
        Ok(control.list()?.last().map_or(0, |last| last.domid.0) + 1)
    };
    let first = next(&mut control)?;
    let mut pong = Talker::create(&mut control, &["pong", &(first + 1).to_string()])?;
    let mut ping = Talker::create(&mut control, &["ping", &first.to_string(), &per_round])?;
    if (pong.created.domid, ping.created.domid) != (DomId(first), DomId(first + 1)) {
        return Err("the domains have other numbers than they were told".into());
    }
    control.unpause(pong.created.domid)?;
    let port = pong.hear()?;
    control.unpause(ping.created.domid)?;
    ping.tell(&port.to_string())?;

    let flags = EventfdFlags::CLOEXEC;
    let (there, back) = (eventfd(0, flags)?, eventfd(0, flags)?);
    let mut bouncer = Command::new(std::env::current_exe()?)
        .arg("bounce")
        .stdin(Stdio::from(there.try_clone()?))
        .stdout(Stdio::from(back.try_clone()?))
        .spawn()?;
    let mut boxed = Boxed::create(&mut control, &per_round)?;
    let (mut plain, mut sandboxed, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..extent.rounds {
        plain.push(bounce_round(&there, &back, extent.per_round)?);
        sandboxed.push(boxed.round()?);
        ping.tell("go")?;
        ours.push(ping.hear()? as f64 / extent.per_round as f64);
    }
    rustix::io::write(&there, &2_u64.to_ne_bytes())?;
    bouncer.wait()?;
    let [plain, sandboxed, ours] = [plain, sandboxed, ours].map(|mut rounds| median(&mut rounds));
    let [first, second] = boxed.domids;
    for domid in [pong.created.domid, ping.created.domid, first, second] {
        control.destroy(domid)?;
    }
    let text = format!("{ours:.0} ns; eventfds of two processes {plain:.0} ns");
    let boxed = format!("{ours:.0} ns; eventfds of two domains {sandboxed:.0} ns");
    Ok(vec![
        Row::new("event channel round trip", text, ours / plain, Goal::AtMost(1.1)),
        Row::new("the same, within the sandboxes", boxed, ours / sandboxed, Goal::None),
    ])
}

/// The measure in the sandboxes of two domains: their standard input and output are its eventfds.
struct Boxed {
    domids: [DomId; 2],
    go: OwnedFd,
    times: BufReader<PipeReader>,
}

impl Boxed {
    fn create(control: &mut Control, per_round: &str) -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC;
        let (there, back) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let (times, error) = std::io::pipe()?;
        let program = File::open(std::env::current_exe()?)?;
        let mut create = |role: &str, input: &OwnedFd, output: &OwnedFd| -> Result<DomId> {
            let mut config = Config::default();
            config.files = Files::System;
            config.args = ["guest", role, per_round].map(Into::into).to_vec();
            let descriptors = Descriptors {
                program: program.as_fd(),
                input: input.as_fd(),
                output: output.as_fd(),
                error: error.as_fd(),
            };
            let domid = control.create(&config, descriptors)?.domid;
            control.unpause(domid)?;
            Ok(domid)
        };
        let domids = [create("bounce", &there, &back)?, create("bounced", &back, &there)?];
        Ok(Self { domids, go: back, times: BufReader::new(times) })
    }

    fn round(&mut self) -> Result<f64> {
        rustix::io::write(&self.go, &1_u64.to_ne_bytes())?;
        let mut line = String::new();
        self.times.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

/// Its first domain: a round whenever its eventfd says so; the time of each goes to standard error.
pub(crate) fn bounced(count: &str) -> Result<()> {
    pin()?;
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let count = count.parse()?;
    loop {
        rustix::io::read(&input, &mut [0; 8])?;
        eprintln!("{}", round(&output, &input, count)?);
    }
}

/// One round: its time for each round trip, in ns.
fn round(there: impl AsFd, back: impl AsFd, trips: usize) -> rustix::io::Result<f64> {
    let mut count = [0; 8];
    let begin = Instant::now();
    for _ in 0..trips {
        rustix::io::write(&there, &1_u64.to_ne_bytes())?;
        rustix::io::read(&back, &mut count)?;
    }
    Ok(begin.elapsed().as_nanos() as f64 / trips as f64)
}

/// One round of the measure, on the CPU where the domains are.
fn bounce_round(there: &OwnedFd, back: &OwnedFd, trips: usize) -> Result<f64> {
    let (there, back) = (there.try_clone()?, back.try_clone()?);
    let thread = std::thread::spawn(move || -> std::result::Result<f64, String> {
        pin().map_err(|error| error.to_string())?;
        round(there, back, trips).map_err(|error| error.to_string())
    });
    Ok(thread.join().map_err(|_| "the bouncing thread has panicked")??)
}

fn grants(host: &Host, extent: &Extent) -> Result<Row> {
    let mut control = host.control()?;
    let pages: u32 = 512;
    let mut guest = Talker::create(&mut control, &["offer", &pages.to_string()])?;
    let of = guest.created.domid;
    control.unpause(of)?;
    let first = u32::try_from(guest.hear()?)?;
    let platform = host.backend()?;
    let mut grants = platform.grants();
    let mut times = Vec::new();
    for _ in 0..extent.rounds * 100 {
        let begin = Instant::now();
        for at in 0..pages {
            drop(grants.map(of, GrantRef(first + at), Access::ReadWrite)?);
        }
        times.push(begin.elapsed().as_nanos() as f64 / f64::from(pages));
    }
    control.destroy(of)?;
    let ns = median(&mut times);
    let text = format!("{pages} pages in turn, in ns");
    Ok(Row::new("map and unmap of a granted page", text, ns, Goal::AtMost(200.0)))
}

/// Processor time of a process so far, in ns.
fn cpu_ns(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Reads `path` so many times over the socket, `depth` at once; the seconds that it took.
fn over_socket(socket: &Path, path: &str, count: usize, depth: usize) -> Result<f64> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WITHIN))?;
    let mut request = Vec::new();
    for word in [MsgType::Read as usize, 1, 0, path.len() + 1] {
        request.extend_from_slice(&u32::try_from(word)?.to_ne_bytes());
    }
    request.extend_from_slice(path.as_bytes());
    request.push(0);
    let (mut begun, mut done) = (0, 0);
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    let begin = Instant::now();
    while done < count {
        let room = (count - begun).min(depth - (begun - done));
        if room > 0 {
            stream.write_all(&request.repeat(room))?;
            begun += room;
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err("the store has hung up".into());
        }
        got.extend_from_slice(&buffer[..read]);
        let mut rest = got.as_slice();
        while let Ok(Some((_, _, next))) = split_message(rest) {
            done += 1;
            rest = next;
        }
        let left = rest.len();
        got.drain(..got.len() - left);
    }
    Ok(begin.elapsed().as_secs_f64())
}

fn requests(host: &Host, extent: &Extent) -> Result<Vec<Row>> {
    let per_round = extent.per_round;
    let mut rows = Vec::new();
    let (mut control, mut client) = (host.control()?, host.client()?);
    let store = host.store.as_ref().map_or(0, std::process::Child::id);
    let c = Daemon::start(Kind::C);
    if let Some(c) = &c {
        xenstore::Client::connect(c.socket())?.write("/name", "guest")?;
    }
    for depth in [1, 8] {
        let args = ["requests", &per_round.to_string(), &depth.to_string()];
        let mut guest = Talker::create(&mut control, &args)?;
        let name = format!("/local/domain/{}/name", guest.created.domid);
        client.write(&name, "guest")?;
        let perm = xenstore::Perm::parse(format!("n{}", guest.created.domid).as_bytes());
        client.set_perms(&name, &[perm.ok_or("no such permission")?])?;
        run(&mut control, &mut client, &guest.created)?;
        let [mut ring, mut ring_cpu, mut socket, mut socket_cpu, mut c_cpu] =
            [const { Vec::new() }; 5];
        for _ in 0..extent.rounds {
            let at = cpu_ns(store)?;
            guest.tell("go")?;
            ring.push(per_round as f64 / (guest.hear()? as f64 / 1e9));
            ring_cpu.push((cpu_ns(store)? - at) / per_round as f64);
            let at = cpu_ns(store)?;
            socket.push(per_round as f64 / over_socket(&host.socket(), &name, per_round, depth)?);
            socket_cpu.push((cpu_ns(store)? - at) / per_round as f64);
            if let Some(c) = &c {
                let at = cpu_ns(c.pid())?;
                over_socket(&c.socket(), "/name", per_round, depth)?;
                c_cpu.push((cpu_ns(c.pid())? - at) / per_round as f64);
            }
        }
        let [ring, ring_cpu, socket, socket_cpu, c_cpu] =
            [ring, ring_cpu, socket, socket_cpu, c_cpu].map(|mut all| median(&mut all));
        let text = format!("{ring:.0}/s; through the socket {socket:.0}/s");
        let name = format!("reads through a ring, {depth} in flight");
        rows.push(Row::new(&name, text, ring / socket, Goal::AtLeast(1.0)));
        let most = if depth == 1 { 0.5 } else { 0.15 };
        let text = format!("{ring_cpu:.0} ns; socket {socket_cpu:.0} ns; C's socket {c_cpu:.0} ns");
        rows.push(Row::new(
            "  processor time for each",
            text,
            ring_cpu / c_cpu,
            Goal::AtMost(most),
        ));
        control.destroy(guest.created.domid)?;
    }
    Ok(rows)
}
