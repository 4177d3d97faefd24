//! Consoles of hosted guests, through `xenconsoled`: from a key to its echo, beside a bare pseudoterminal and beside a
//! guest that prints without end; idle consoles; and a new start of the daemon. Prints a table with each figure beside
//! its aim.
//!
//! `cargo xtask bench console` makes 100 guests, with `--quick` 10, with `--long` 1000, whose daemon is looked at for a
//! minute. `--into FILE` puts the table between the two lines `<!-- console table -->` of FILE.

mod support;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{BenchHost, Result, head, processor_time, publish, quantile, row};
use xen_console::client::ConsoleClient;
use xen_console::service::wire::{ClientAccess, DaemonFrame, OutputStart};

/// The line before and behind the table.
const MARK: &str = "<!-- console table -->";
/// A program that echoes each byte at once.
const ECHO: &str = "stty raw -echo; echo ready; exec cat";
/// The longest time that anything may take.
const WITHIN: Duration = Duration::from_secs(60);

/// The far end of a terminal that echoes.
trait EchoingTerminal {
    /// Types a byte, and waits for its echo.
    fn echo(&mut self) -> Result<()>;
}

/// A pseudoterminal with the program at its other end, and nothing in between.
struct BareTerminal {
    master: File,
    child: Child,
}

impl BareTerminal {
    fn open() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        let (input, output) = (Stdio::from(peer.try_clone()?), Stdio::from(peer));
        let mut shell = Command::new("/bin/sh");
        let child = shell.args(["-c", ECHO]).stdin(input).stdout(output).spawn()?;
        let mut bare = Self { master: master.into(), child };
        let mut line = [0; 6];
        bare.master.read_exact(&mut line)?;
        Ok(bare)
    }
}

impl EchoingTerminal for BareTerminal {
    fn echo(&mut self) -> Result<()> {
        self.master.write_all(b"x")?;
        Ok(self.master.read_exact(&mut [0])?)
    }
}

impl Drop for BareTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The console of a guest that runs the program.
struct GuestTerminal(ConsoleClient);

impl GuestTerminal {
    fn open(host: &BenchHost, name: &str) -> Result<Self> {
        host.create(name, &format!("extra = \"{ECHO}\""));
        let socket = host.path("h/host/xenconsoled/socket");
        let (access, start) = (ClientAccess::Type, OutputStart::Oldest);
        let mut terminal =
            Self(ConsoleClient::open(&socket, name.as_bytes(), access, start).map_err(told)?);
        terminal.take(b"ready")?;
        Ok(terminal)
    }

    /// Waits until these bytes have come.
    fn take(&mut self, wanted: &[u8]) -> Result<()> {
        let (end, mut came) = (Instant::now() + WITHIN, Vec::new());
        while Instant::now() < end {
            while let Some(frame) = self.0.next_frame().map_err(told)? {
                if let DaemonFrame::Output(bytes) = frame {
                    came.extend_from_slice(bytes);
                }
            }
            if came.windows(wanted.len()).any(|part| part == wanted) {
                return Ok(());
            }
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None)?;
            self.0.receive().map_err(told)?;
        }
        Err("nothing comes".into())
    }
}

impl EchoingTerminal for GuestTerminal {
    fn echo(&mut self) -> Result<()> {
        self.0.type_in(b"x").map_err(told)?;
        self.take(b"x")
    }
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Times echoes.
fn echoes(
    terminal: &mut dyn EchoingTerminal,
    count: usize,
    times: &mut Vec<Duration>,
) -> Result<()> {
    for _ in 0..count {
        let begin = Instant::now();
        terminal.echo()?;
        times.push(begin.elapsed());
    }
    Ok(())
}

/// From a key to its echo: a bare terminal and a guest's console in alternation, then the console
/// beside a guest that prints without end and without it, in alternation.
fn measure_echo(host: &BenchHost, rounds: usize) -> Result<String> {
    const ROUND: usize = 200;
    let mut bare = BareTerminal::open()?;
    let mut quiet = GuestTerminal::open(host, "quiet")?;
    let (mut of_bare, mut of_guest) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        echoes(&mut bare, ROUND, &mut of_bare)?;
        echoes(&mut quiet, ROUND, &mut of_guest)?;
    }
    let (direct, through) = (quantile(&of_bare, 0.5), quantile(&of_guest, 0.5));
    let mut table =
        row("key to echo of a guest, median, against a bare pty", through / direct, 4.0, "x");
    host.create("loud", "extra = \"exec yes\"");
    // Its burst is spent first.
    std::thread::sleep(Duration::from_secs(5));
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        echoes(&mut quiet, ROUND, &mut beside)?;
        host.xb(&["pause", "loud"]);
        echoes(&mut quiet, ROUND, &mut alone)?;
        host.xb(&["unpause", "loud"]);
    }
    let (calm, disturbed) = (quantile(&alone, 0.99), quantile(&beside, 0.99));
    table += &row(
        "the same beside a flooding guest, 99th percentile, against without",
        disturbed / calm,
        1.5,
        "x",
    );
    host.xb(&["destroy", "loud"]);
    println!(
        "echo: bare pty {direct:.3} ms, console {through:.3} ms; p99 {calm:.3} ms, beside a flood {disturbed:.3} ms"
    );
    Ok(table)
}

/// Idle guests, and a new start of the daemon.
fn measure_many(host: &BenchHost, guests: usize, idle: Duration) -> Result<String> {
    for number in 0..guests {
        host.create(&format!("g{number}"), "extra = \"exec sleep 100000\"");
    }
    std::thread::sleep(Duration::from_secs(2));
    let daemon = host.pid("xenconsoled");
    let before = processor_time(daemon);
    std::thread::sleep(idle);
    let used = (processor_time(daemon) - before).as_secs_f64() * 1e3;
    let idle = idle.as_secs();
    let work = format!("processor time of the daemon in {idle} s, {guests} idle consoles");
    let mut table = row(&work, used, 0.0, "ms");
    let mut store = xenstore::Client::connect(host.path("h/store"))?;
    let mut left = HashSet::new();
    for domid in xenstore::Store::list(&mut store, "/local/domain")? {
        let node = format!("/local/domain/{domid}/console/tty");
        if xenstore::Store::exists(&mut store, &node)? {
            store.watch(&node, &node)?;
            left.insert(node.into_bytes());
        }
    }
    // The first event of a watch comes at once.
    let mut first = left.clone();
    while !first.is_empty() {
        let event = store.next_event(Some(WITHIN))?.ok_or("no first event")?;
        first.remove(&event.token[..]);
    }
    let pid = std::fs::read_to_string(host.path("h/run/xenconsoled.pid"))?;
    let pid =
        pid.split(' ').next().and_then(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?));
    rustix::process::kill_process(pid.ok_or("a pid")?, rustix::process::Signal::KILL)?;
    let count = left.len();
    let begin = Instant::now();
    let folder = host.path("h");
    let up = std::thread::spawn(move || {
        Command::new(env!("CARGO_BIN_EXE_xb"))
            .arg("--host")
            .arg(folder)
            .args(["host", "up"])
            .output()
    });
    while !left.is_empty() {
        let event = store.next_event(Some(WITHIN))?.ok_or("a console is not served again")?;
        left.remove(&event.token[..]);
    }
    let took = begin.elapsed();
    up.join().map_err(|_| "xb host up has failed")??;
    let work =
        format!("`xb host up` after the daemon was killed, until {count} consoles are served");
    table += &row(&work, took.as_secs_f64() * 1e3, 50.0, "ms");
    Ok(table)
}

fn main() -> Result<()> {
    let has = |option: &str| std::env::args().any(|argument| argument == option);
    let (rounds, guests, idle) = match (has("--quick"), has("--long")) {
        (true, _) => (2, 10, 2),
        (_, true) => (20, 1000, 60),
        _ => (20, 100, 10),
    };
    let host = BenchHost::up();
    let mut table = head(&format!("{guests} guests"));
    table += &measure_echo(&host, rounds)?;
    table += &measure_many(&host, guests, Duration::from_secs(idle))?;
    publish(MARK, &table)
}
