//! Grants, requests to the store, and the event channels of [`bounce`], each beside its reference.

use crate::bounce;
use crate::host::{MeasuredHost, WITHIN, run};
use crate::result::Result;
use crate::table::{Extent, Goal, Row, fastest_tenth, median};
use crate::talker::Talker;
use conformance::PeersPurpose;
use conformance::daemon::{Daemon, DaemonKind, Options};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;
use xen::GrantRef;
use xen::domctl::DomainControl;
use xen::gnttab::{GrantMap, PageAccess};
use xenstore::Store;
use xenstore_core::wire::{MsgType, split_message};

/// Runs all of these measurements.
pub(crate) fn all(extent: &Extent) -> Result<Vec<Row>> {
    let host = MeasuredHost::start(extent.limit)?;
    let mut rows = bounce::rows(&host, extent)?;
    rows.push(grants(&host, extent)?);
    rows.extend(requests(&host, extent)?);
    Ok(rows)
}

fn grants(host: &MeasuredHost, extent: &Extent) -> Result<Row> {
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
            drop(grants.map(of, GrantRef(first + at), PageAccess::ReadWrite)?);
        }
        times.push(begin.elapsed().as_nanos() as f64 / f64::from(pages));
    }
    control.destroy(of)?;
    let ns = median(&mut times);
    let text = format!("{pages} pages in turn, in ns");
    Ok(Row::new("map and unmap of a granted page", text, ns, Goal::AtMost(200.0)))
}

/// Returns the processor time that a process has used, in ns.
fn cpu_ns(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Reads `path` `count` times over the socket, `depth` requests in flight; returns the time in
/// seconds.
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

fn requests(host: &MeasuredHost, extent: &Extent) -> Result<Vec<Row>> {
    let per_round = extent.per_round;
    let mut rows = Vec::new();
    let (mut control, mut client) = (host.control()?, host.client()?);
    let store = host.store.as_ref().map_or(0, std::process::Child::id);
    let measured = Options { purpose: PeersPurpose::Use, ..Options::default() };
    let c = Daemon::start_with(DaemonKind::C, &measured);
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
            ring.push(guest.hear()? as f64 / 1e9 / per_round as f64);
            ring_cpu.push((cpu_ns(store)? - at) / per_round as f64);
            let at = cpu_ns(store)?;
            socket.push(over_socket(&host.socket(), &name, per_round, depth)? / per_round as f64);
            socket_cpu.push((cpu_ns(store)? - at) / per_round as f64);
            if let Some(c) = &c {
                let at = cpu_ns(c.pid())?;
                over_socket(&c.socket(), "/name", per_round, depth)?;
                c_cpu.push((cpu_ns(c.pid())? - at) / per_round as f64);
            }
        }
        let [ring, socket] = [ring, socket].map(|mut all| 1.0 / fastest_tenth(&mut all));
        let [ring_cpu, socket_cpu, c_cpu] =
            [ring_cpu, socket_cpu, c_cpu].map(|mut all| median(&mut all));
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
