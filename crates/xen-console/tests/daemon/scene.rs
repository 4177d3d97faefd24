//! The host with a daemon, and the part of a guest.

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use testhost::{Guest, Host, Program, until};
use xen::domctl::DomainControl;
use xen::evtchn::{EventChannels, SharedEventChannels};
use xen::{DomId, Port};
use xen_console::client::ConsoleClient;
use xen_console::pty::open_far_end;
use xen_console::service::wire::{ClientAccess, DaemonFrame, OutputStart};
use xen_io::console::{ConsoleFrontRing, offset};
use xenstore::{Client, Perm, Store};

/// A frontend of the first console. Each line of its input is a command.
pub(crate) fn guest() {
    let platform = xen_hosted::Platform::guest().unwrap();
    let mut channels = SharedEventChannels::new(platform.channels().unwrap()).unwrap();
    let mut offers = platform.offers();
    let (page, port) = platform.console_ring(&mut offers).unwrap();
    let (raw, _) = platform.console_ring(&mut offers).unwrap();
    let ring = ConsoleFrontRing::new(page);
    let send = |channels: &mut GuestChannels, bytes: &[u8]| send_all(&ring, channels, port, bytes);
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "say" => send(&mut channels, format!("{argument}\n").as_bytes()),
            "flood" => {
                for number in 0..argument.parse::<u32>().unwrap() {
                    send(&mut channels, text_line(number).as_bytes());
                }
            }
            "echo" => {
                // Answers each line that is typed, until `quit`.
                let mut typed = Vec::new();
                while typed != b"quit\n" {
                    let mut bytes = [0; 256];
                    let count = ring.read(&mut bytes).unwrap();
                    if count == 0 {
                        wait(&mut channels);
                        continue;
                    }
                    let _ = channels.notify(port);
                    if typed.ends_with(b"\n") {
                        typed.clear();
                    }
                    typed.extend_from_slice(&bytes[..count]);
                    send(&mut channels, &bytes[..count]);
                }
            }
            "break" => {
                raw.store_u32(offset::OUT_PROD, argument.parse().unwrap()).unwrap();
                let _ = channels.notify(port);
            }
            "events" => {
                // Each chunk waits for its event; those that come afterwards are counted, too.
                let mut events = 0;
                for chunk in 1..=argument.parse().unwrap() {
                    send(&mut channels, b"a chunk\n");
                    until("the daemon notifies", || {
                        events += wait(&mut channels);
                        events >= chunk
                    });
                }
                events += (0..10).map(|_| wait(&mut channels)).sum::<usize>();
                println!("> events {events}");
            }
            "sleep" => {
                // Until an event comes without any act of the guest.
                println!("> asleep");
                until("the daemon notifies", || wait(&mut channels) > 0);
            }
            "forge" => {
                let (page, port) = platform.store_ring(&mut offers).unwrap();
                let store = Client::over_ring(page, port, Box::new(channels.clone()));
                forge_nodes(store, platform.domid().0);
            }
            _ => print_as_told(command, argument),
        }
        println!("> done {command}");
    }
}

/// Does a command about the standard error output.
fn print_as_told(command: &str, argument: &str) {
    match command {
        "print" => print(format!("{argument}\n").as_bytes()),
        "last" => {
            print(format!("{argument}\n").as_bytes());
            std::process::exit(0);
        }
        "spill" => {
            for number in 0..argument.parse::<u32>().unwrap() {
                print(text_line(number).as_bytes());
            }
        }
        "trickle" => {
            for number in 0..argument.parse::<u32>().unwrap() {
                text_line(number).bytes().for_each(|byte| print(&[byte]));
            }
        }
        "hush" => {
            // The last that has the FIFO open for writing.
            rustix::stdio::dup2_stderr(std::io::stdin()).unwrap();
        }
        _ => panic!("{command}"),
    }
}

/// Prints bytes to the standard error output, which may be a FIFO that the daemon reads.
fn print(bytes: &[u8]) {
    std::io::stderr().write_all(bytes).unwrap();
}

/// Writes all bytes to the console, as it has room.
fn send_all(ring: &ConsoleFrontRing, channels: &mut GuestChannels, port: Port, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let count = ring.write(bytes).unwrap();
        bytes = &bytes[count..];
        if count == 0 {
            wait(channels);
        } else {
            // The daemon may be gone: it looks at the ring when it comes again.
            let _ = channels.notify(port);
        }
    }
}

/// The event channels of the guest, for its console and for its connection to the store.
type GuestChannels = SharedEventChannels<xen_hosted::evtchn::Channels>;

/// Tries to change the nodes of the guest's own console, in each way.
fn forge_nodes(mut store: Client, domid: u16) {
    let home = format!("/local/domain/{domid}");
    let own = Perm::parse(format!("n{domid}").as_bytes()).unwrap();
    store.write(format!("{home}/own"), "1").expect("the guest may write elsewhere");
    for node in ["", "/tty", "/type", "/limit", "/port", "/ring-ref", "/output"] {
        let path = format!("{home}/console{node}");
        let outcomes = [
            store.write(&path, "/etc/shadow"),
            store.rm(&path),
            store.set_perms(&path, std::slice::from_ref(&own)),
        ];
        for outcome in outcomes {
            let errno = outcome.as_ref().map_err(xenstore::Error::errno);
            let refused = errno == Err(rustix::io::Errno::ACCESS.raw_os_error());
            println!("> {} {path}", if refused { "refused" } else { "error not refused:" });
        }
    }
}

/// Waits for events, or a moment: the daemon may be away. Returns the number of events.
fn wait(channels: &mut GuestChannels) -> usize {
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let fd = channels.fd();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
    let mut events = 0;
    while let Some(port) = channels.pending().unwrap() {
        channels.unmask(port).unwrap();
        events += 1;
    }
    events
}

pub(crate) fn text_line(number: u32) -> String {
    format!("{number:08} {:x}\n", u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A host with a daemon that logs guests.
pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) daemon: Program,
    pub(crate) logs: PathBuf,
    /// The folder of the guests, relative to which the daemon has `--guests=guests`.
    pub(crate) guests: PathBuf,
}

impl Scene {
    pub(crate) fn start(test: &str, options: &[&str]) -> Option<Self> {
        Self::start_by(test, Command::new(env!("CARGO_BIN_EXE_xenconsoled")), options)
    }

    /// Starts a daemon whose logs are on a file system of 1 MiB, which nobody else sees. None if
    /// this process may not mount one.
    pub(crate) fn start_on_small_disk(test: &str, options: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            conformance::skip(test, "only root can have mounts of its own");
            return None;
        }
        let mut command = Command::new("unshare");
        // The last word is the folder of the logs, as `start_by` puts it.
        let script = "for logs; do :; done; logs=${logs#*=}; mkdir $logs && \
                      mount -t tmpfs -o size=1m none $logs && \
                      head -c 700000 /dev/zero > $logs/other && exec \"$0\" \"$@\"";
        command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_xenconsoled")]);
        Self::start_by(test, command, options)
    }

    fn start_by(test: &str, mut command: Command, options: &[&str]) -> Option<Self> {
        let host = Host::start(test)?;
        let (logs, guests) = (host.dir.path().join("logs"), host.dir.path().join("guests"));
        std::fs::create_dir(&guests).unwrap();
        // The folder of the logs stays the last word.
        command.current_dir(host.dir.path()).args(options);
        command.args(["-i", "-v", "--log=guest"]).arg(format!("--log-dir={}", logs.display()));
        let daemon = host.program("consoled", command);
        Some(Self { host, daemon, logs, guests })
    }

    /// Makes a guest with the console nodes that libxl writes.
    pub(crate) fn guest(&mut self, name: &str) -> Guest {
        let guest = Guest::create(&mut self.host, "part", |_| {});
        self.host.tool.write(format!("/local/domain/{}/name", guest.domid), name).unwrap();
        self.write_nodes(&guest);
        guest
    }

    /// Makes the folder of a guest with the FIFO that it prints into, open for reading and writing.
    pub(crate) fn fifo(&self, name: &str) -> File {
        let folder = self.guests.join(name);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("output");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Makes a guest as `xb` does: it prints into its FIFO, and runs once its console is served.
    pub(crate) fn printing_guest(&mut self, name: &str) -> Guest {
        let fifo = self.fifo(name);
        self.printing_guest_into(name, &fifo)
    }

    /// Makes such a guest, which prints into this file.
    pub(crate) fn printing_guest_into(&mut self, name: &str, output: &File) -> Guest {
        let prepare = |host: &mut Host, domid: DomId, port: Port| {
            let home = format!("/local/domain/{domid}");
            host.tool.write(format!("{home}/name"), name).unwrap();
            host.tool.set_perms(format!("{home}/name"), &readable(domid)).unwrap();
            write_nodes(&mut host.tool, domid, port);
            open_when_served(&mut host.tool, domid);
        };
        Guest::create_printing(&mut self.host, "part", output.as_fd(), |_| {}, prepare)
    }

    /// Writes the nodes of a guest's console.
    pub(crate) fn write_nodes(&mut self, guest: &Guest) {
        write_nodes(&mut self.host.tool, guest.domid, guest.console_port);
    }

    /// Returns the path of the guest's terminal, once there is one that can be opened.
    pub(crate) fn terminal(&mut self, guest: &Guest) -> PathBuf {
        open_when_served(&mut self.host.tool, guest.domid)
    }

    /// Ends a guest as the toolstack does.
    pub(crate) fn destroy(&mut self, guest: &Guest) {
        self.host.control.destroy(guest.domid).unwrap();
        // The broker's word may have released it already.
        let _ = self.host.tool.release(guest.domid.0);
        self.host.tool.rm(format!("/local/domain/{}", guest.domid)).unwrap();
    }

    pub(crate) fn log(&self, guest: &str) -> PathBuf {
        self.logs.join(format!("guest-{guest}.log"))
    }

    /// Waits until the guest's log ends with these words.
    pub(crate) fn logged(&self, guest: &str, words: &str) {
        let path = self.log(guest);
        until("the log has the words", || {
            std::fs::read_to_string(&path).is_ok_and(|log| log.ends_with(words))
        });
    }
}

/// Returns the permissions of a node that a domain may read.
pub(crate) fn readable(domid: DomId) -> [Perm; 2] {
    let perms = ["n0".to_owned(), format!("r{domid}")];
    perms.map(|perm| Perm::parse(perm.as_bytes()).unwrap())
}

/// Writes the nodes of a domain's console, as libxl does.
fn write_nodes(tool: &mut Client, domid: DomId, port: Port) {
    let home = format!("/local/domain/{domid}");
    let perms = readable(domid);
    let port = port.0.to_string();
    let nodes = [
        ("", ""),
        ("/type", "xenconsoled"),
        ("/limit", "1048576"),
        ("/tty", ""),
        ("/port", &*port),
        ("/ring-ref", "0"),
    ];
    tool.transaction(|tx| {
        for (node, value) in nodes {
            tx.write(format!("{home}/console{node}"), value)?;
            tx.set_perms(format!("{home}/console{node}"), &perms)?;
        }
        Ok(())
    })
    .unwrap();
}

/// Returns the path of a domain's terminal, once there is one that can be opened.
fn open_when_served(tool: &mut Client, domid: DomId) -> PathBuf {
    let node = format!("/local/domain/{domid}/console/tty");
    let mut path = PathBuf::new();
    until("the console has a terminal", || {
        let value = tool.read(&node).unwrap();
        path = String::from_utf8(value).unwrap().into();
        open_far_end(&path).is_ok()
    });
    path
}

/// Opens a terminal and reads it until it has shown `words`.
pub(crate) fn read_until(terminal: &mut File, words: &str) -> String {
    let mut seen = Vec::new();
    until("the terminal shows the words", || {
        let mut bytes = [0; 4096];
        if let Ok(count) = terminal.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8_lossy(&seen).contains(words)
    });
    String::from_utf8_lossy(&seen).into_owned()
}

pub(crate) fn open_terminal(path: &Path) -> File {
    File::from(open_far_end(path).unwrap())
}

/// A client of the daemon's socket, and what it has seen.
pub(crate) struct WatchingClient {
    pub(crate) client: ConsoleClient,
    pub(crate) seen: Vec<u8>,
    pub(crate) missed: u64,
    pub(crate) opened: bool,
    pub(crate) ended: bool,
}

impl WatchingClient {
    pub(crate) fn open(
        scene: &Scene,
        guest: &Guest,
        access: ClientAccess,
        start: OutputStart,
    ) -> Self {
        Self::open_numbered(scene, (&guest.domid.to_string(), 0), access, start)
    }

    pub(crate) fn open_numbered(
        scene: &Scene,
        (domain, number): (&str, u32),
        access: ClientAccess,
        start: OutputStart,
    ) -> Self {
        let socket = scene.host.dir.path().join("host/xenconsoled/socket");
        let console = (domain.as_bytes(), number);
        let client = ConsoleClient::open_numbered(&socket, console, access, start).unwrap();
        Self { client, seen: Vec::new(), missed: 0, opened: false, ended: false }
    }

    pub(crate) fn look(&mut self) {
        while self.client.receive().unwrap() {
            while let Some(frame) = self.client.next_frame().unwrap() {
                match frame {
                    DaemonFrame::Opened { .. } => self.opened = true,
                    DaemonFrame::Output(bytes) => self.seen.extend_from_slice(bytes),
                    DaemonFrame::Missed(count) => self.missed += count,
                    DaemonFrame::Ended => {
                        self.ended = true;
                        return;
                    }
                    DaemonFrame::Refused(why) => panic!("{}", String::from_utf8_lossy(why)),
                }
            }
        }
    }

    pub(crate) fn sees(&mut self, words: &str) {
        until("the client sees the words", || {
            self.look();
            self.seen.windows(words.len()).any(|seen| seen == words.as_bytes())
        });
    }
}
