//! The daemon on a real hosted host: guests write and read their consoles, the daemon is killed, its
//! files are moved, its disk is full. Tests of advisories have the advisory's name.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testhost::{Guest, Host, Program, until};
use xen::Port;
use xen::domctl::DomainControl;
use xen::evtchn::{EventChannels, SharedEventChannels};
use xen_console::client::ConsoleClient;
use xen_console::pty::open_far_end;
use xen_console::service::wire::{ClientAccess, DaemonFrame, OutputStart};
use xen_io::console::{ConsoleFrontRing, offset};
use xenstore::{Client, Perm, Store};

/// Plays the guest, where the environment says so; not a test of its own.
#[test]
fn part() {
    testhost::play(&[("guest", guest)]);
}

/// A frontend of the first console. Each line of its input is a command.
fn guest() {
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
            _ => panic!("{line}"),
        }
        println!("> done {command}");
    }
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

fn text_line(number: u32) -> String {
    format!("{number:08} {:x}\n", u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A host with a daemon that logs guests.
struct Scene {
    host: Host,
    daemon: Program,
    logs: PathBuf,
}

impl Scene {
    fn start(test: &str, options: &[&str]) -> Option<Self> {
        Self::start_by(test, Command::new(env!("CARGO_BIN_EXE_xenconsoled")), options)
    }

    /// Starts a daemon whose logs are on a file system of 1 MiB, which nobody else sees. None if
    /// this process may not mount one.
    fn start_on_small_disk(test: &str) -> Option<Self> {
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
        Self::start_by(test, command, &[])
    }

    fn start_by(test: &str, mut command: Command, options: &[&str]) -> Option<Self> {
        let host = Host::start(test)?;
        let logs = host.dir.path().join("logs");
        command.args(options);
        command.args(["-i", "-v", "--log=guest"]).arg(format!("--log-dir={}", logs.display()));
        let daemon = host.program("consoled", command);
        Some(Self { host, daemon, logs })
    }

    /// Makes a guest with the console nodes that libxl writes.
    fn guest(&mut self, name: &str) -> Guest {
        let guest = Guest::create(&mut self.host, "part", |_| {});
        self.host.tool.write(format!("/local/domain/{}/name", guest.domid), name).unwrap();
        self.write_nodes(&guest);
        guest
    }

    /// Writes the nodes of a guest's console.
    fn write_nodes(&mut self, guest: &Guest) {
        let home = format!("/local/domain/{}", guest.domid);
        let perms = ["n0".to_owned(), format!("r{}", guest.domid)];
        let perms = perms.map(|perm| Perm::parse(perm.as_bytes()).unwrap());
        let port = guest.console_port.0.to_string();
        let nodes = [
            ("", ""),
            ("/type", "xenconsoled"),
            ("/limit", "1048576"),
            ("/tty", ""),
            ("/port", &*port),
            ("/ring-ref", "0"),
        ];
        let tool = &mut self.host.tool;
        tool.transaction(|tx| {
            for (node, value) in nodes {
                tx.write(format!("{home}/console{node}"), value)?;
                tx.set_perms(format!("{home}/console{node}"), &perms)?;
            }
            Ok(())
        })
        .unwrap();
    }

    /// Returns the path of the guest's terminal, once there is one that can be opened.
    fn terminal(&mut self, guest: &Guest) -> PathBuf {
        let node = format!("/local/domain/{}/console/tty", guest.domid);
        let mut path = PathBuf::new();
        until("the console has a terminal", || {
            let value = self.host.tool.read(&node).unwrap();
            path = String::from_utf8(value).unwrap().into();
            open_far_end(&path).is_ok()
        });
        path
    }

    fn log(&self, guest: &str) -> PathBuf {
        self.logs.join(format!("guest-{guest}.log"))
    }

    /// Waits until the guest's log ends with these words.
    fn logged(&self, guest: &str, words: &str) {
        let path = self.log(guest);
        until("the log has the words", || {
            std::fs::read_to_string(&path).is_ok_and(|log| log.ends_with(words))
        });
    }
}

/// Opens a terminal and reads it until it has shown `words`.
fn read_until(terminal: &mut File, words: &str) -> String {
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

fn open_terminal(path: &Path) -> File {
    File::from(open_far_end(path).unwrap())
}

#[test]
fn words_go_both_ways_and_into_the_log() {
    let Some(mut scene) = Scene::start("console_both_ways", &[]) else { return };
    let mut guest = scene.guest("web");
    guest.tell("say first words");
    guest.heard("done say");
    scene.logged("web", "first words\n");
    // Nobody has read yet, and nothing is lost for want of a reader.
    let path = scene.terminal(&guest);
    let mut terminal = open_terminal(&path);
    read_until(&mut terminal, "first words\n");
    guest.tell("echo");
    for line in ["id", "uname -a", "quit"] {
        terminal.write_all(format!("{line}\n").as_bytes()).unwrap();
        read_until(&mut terminal, &format!("{line}\n"));
    }
    guest.heard("done echo");
    // A reader that goes leaves the console as it is.
    drop(terminal);
    guest.tell("say afterwards");
    guest.heard("done say");
    read_until(&mut open_terminal(&path), "afterwards\n");
    let node = format!("/local/domain/{}/console/tty", guest.domid);
    let perms = scene.host.tool.get_perms(&node).unwrap();
    let expected = ["n0".to_owned(), format!("r{}", guest.domid)];
    let expected = expected.map(|perm| Perm::parse(perm.as_bytes()).unwrap());
    assert_eq!(perms, expected, "a guest that wrote tty would choose what a client opens (XSA-57)");
}

#[test]
fn a_daemon_that_is_killed_loses_and_doubles_nothing() {
    let Some(mut scene) = Scene::start("console_killed", &[]) else { return };
    let mut guest = scene.guest("db");
    let first = scene.terminal(&guest);
    let lines = 60_000;
    guest.tell(&format!("flood {lines}"));
    for round in 0..10_u64 {
        std::thread::sleep(Duration::from_millis(20 + 7 * round));
        scene.daemon.kill_and_restart();
        scene.terminal(&guest);
    }
    guest.heard("done flood");
    let expected: String = (0..lines).map(text_line).collect();
    scene.logged("db", &text_line(lines - 1));
    let log = std::fs::read_to_string(scene.log("db")).unwrap();
    assert!(log == expected, "{} bytes of {}", log.len(), expected.len());
    let _ = first;
    // The new daemon's terminal is served.
    guest.tell("echo");
    let path = scene.terminal(&guest);
    let mut terminal = open_terminal(&path);
    terminal.write_all(b"quit\n").unwrap();
    guest.heard("done echo");
}

#[test]
fn a_hang_up_opens_logs_again_and_a_terminate_ends() {
    let Some(mut scene) = Scene::start("console_signals", &[]) else { return };
    let mut guest = scene.guest("a");
    guest.tell("say one");
    scene.logged("a", "one\n");
    let kept = scene.logs.join("kept");
    std::fs::rename(scene.log("a"), &kept).unwrap();
    let pid = Pid::from_raw(i32::try_from(scene.daemon.id()).unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    let log = scene.log("a");
    until("the log is there again", || log.exists());
    guest.tell("say two");
    scene.logged("a", "two\n");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "two\n");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "one\n");
    kill_process(pid, Signal::TERM).unwrap();
    until("the daemon has ended", || !scene.daemon.is_running());
}

#[test]
fn a_broken_ring_costs_its_own_guest_alone() {
    let Some(mut scene) = Scene::start("console_broken", &[]) else { return };
    let mut good = scene.guest("good");
    for index in [4096, 0x8000_0000_u32, u32::MAX] {
        let name = format!("bad{index}");
        let mut bad = scene.guest(&name);
        bad.tell("say before");
        scene.logged(&name, "before\n");
        bad.tell(&format!("break {index}"));
        bad.heard("done break");
        let words = format!("domid={} msg=\"console: its ring: impossible", bad.domid);
        until("the daemon says so", || scene.host.log("consoled.log").contains(&words));
        let said = scene.host.log("consoled.log").matches(&words).count();
        assert_eq!(said, 1, "once");
        good.tell(&format!("say {index}"));
        scene.logged("good", &format!("{index}\n"));
    }
}

#[test]
fn the_last_words_of_a_guest_that_ends_are_logged() {
    let Some(mut scene) = Scene::start("console_last_words", &[]) else { return };
    for number in 0..20 {
        let name = format!("short{number}");
        let mut guest = scene.guest(&name);
        scene.terminal(&guest);
        guest.tell("say last words");
        guest.heard("done say");
        scene.host.control.destroy(guest.domid).unwrap();
        // The broker's word may have released it already.
        let _ = scene.host.tool.release(guest.domid.0);
        scene.host.tool.rm(format!("/local/domain/{}", guest.domid)).unwrap();
        scene.logged(&name, "last words\n");
    }
}

#[test]
fn a_second_daemon_says_that_another_serves() {
    let Some(mut scene) = Scene::start("console_second", &[]) else { return };
    let guest = scene.guest("a");
    scene.terminal(&guest);
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenconsoled"));
    command.arg("-i");
    let mut second = scene.host.program("second", command);
    until("it has ended", || !second.is_running());
    let log = scene.host.log("second.log");
    assert!(log.contains("another xenconsoled serves the consoles here"), "{log}");
}

#[test]
fn an_idle_reader_is_told_of_what_it_has_missed() {
    let Some(mut scene) = Scene::start("console_missed", &[]) else { return };
    let mut guest = scene.guest("a");
    let path = scene.terminal(&guest);
    let mut terminal = open_terminal(&path);
    // More than `limit` and what the kernel's terminal holds.
    guest.tell("flood 60000");
    guest.heard("done flood");
    scene.logged("a", &text_line(59_999));
    let shown = read_until(&mut terminal, &text_line(59_999));
    assert!(shown.contains(" bytes of output were not read]"), "it is told");
    assert!(shown.starts_with(&text_line(0)) && shown.len() < 1_500_000, "{}", shown.len());
    let _ = terminal.as_fd();
}

#[test]
fn logs_of_ended_guests_go_where_there_are_too_many() {
    let Some(mut scene) = Scene::start("console_many_logs", &["--log-count=3"]) else { return };
    let mut lasting = scene.guest("lasting");
    lasting.tell("say here");
    scene.logged("lasting", "here\n");
    for number in 0..6 {
        let name = format!("short{number}");
        let mut guest = scene.guest(&name);
        guest.tell("say gone");
        scene.logged(&name, "gone\n");
        scene.host.control.destroy(guest.domid).unwrap();
        let words = format!("domid={} msg=\"console: the domain is gone", guest.domid);
        until("the daemon has seen it", || scene.host.log("consoled.log").contains(&words));
    }
    let logs = std::fs::read_dir(&scene.logs).unwrap().map_while(Result::ok);
    let logs = logs.filter(|entry| entry.file_name().to_string_lossy().ends_with(".log")).count();
    assert_eq!(logs, 3);
    assert!(scene.log("lasting").exists(), "its guest runs");
}

#[test]
fn lines_have_times_where_that_is_asked_for() {
    let options = ["--timestamp=guest", "--replace-escape"];
    let Some(mut scene) = Scene::start("console_stamps", &options) else { return };
    let mut guest = scene.guest("a");
    guest.tell("say red \x1b[31m");
    scene.logged("a", "] red .[31m\n");
    let log = std::fs::read_to_string(scene.log("a")).unwrap();
    assert!(log.lines().next().is_some_and(|line| line.ends_with("] Logfile Opened")), "{log}");
}

#[test]
fn a_hundred_consoles_are_served_again_by_the_next_daemon() {
    let Some(mut scene) = Scene::start("console_hundred", &[]) else { return };
    let guests: Vec<Guest> = (0..100).map(|number| scene.guest(&format!("g{number}"))).collect();
    let served = |scene: &Scene| scene.host.log("consoled.log").matches("console: served").count();
    until("all are served", || served(&scene) == guests.len());
    let begin = std::time::Instant::now();
    scene.daemon.kill_and_restart();
    while served(&scene) < 2 * guests.len() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} are served", served(&scene));
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("100 consoles are served again after {} ms", begin.elapsed().as_millis());
    for mut guest in guests {
        guest.tell("say again");
        guest.heard("done say");
    }
    for number in 0..100 {
        scene.logged(&format!("g{number}"), "again\n");
    }
}

#[test]
fn in_the_background_it_has_a_pid_file_while_it_runs() {
    let Some(host) = Host::start("console_background") else { return };
    let pid_file = host.dir.path().join("consoled.pid");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenconsoled"));
    command.arg(format!("--pid-file={}", pid_file.display()));
    let mut starter = host.program("starter", command);
    until("the starter has ended", || !starter.is_running());
    // It ends once the daemon serves.
    let text = std::fs::read_to_string(&pid_file).unwrap_or_else(|error| {
        panic!("{error}; {}", host.log("starter.log"));
    });
    let pid = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
    let process = format!("/proc/{}", text.trim());
    let name = std::fs::read_to_string(format!("{process}/comm")).unwrap();
    assert_eq!(name, "xenconsoled\n", "start-stop-daemon --name looks for it");
    kill_process(pid, Signal::HUP).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    until("the pid file is removed", || !pid_file.exists());
    until("the daemon has ended", || !Path::new(&process).exists());
}

#[test]
fn nodes_that_go_and_come_again_keep_the_terminal() {
    let Some(mut scene) = Scene::start("console_nodes_again", &[]) else { return };
    let mut guest = scene.guest("a");
    let path = scene.terminal(&guest);
    let mut terminal = open_terminal(&path);
    for round in 0..3 {
        let nodes = format!("/local/domain/{}/console", guest.domid);
        scene.host.tool.rm(&nodes).unwrap();
        // Another guest's console is looked at afterwards.
        let other = scene.guest(&format!("other{round}"));
        scene.terminal(&other);
        scene.write_nodes(&guest);
        assert_eq!(scene.terminal(&guest), path);
        guest.tell(&format!("say round {round}"));
        guest.heard("done say");
        read_until(&mut terminal, &format!("round {round}\n"));
    }
    guest.tell("echo");
    terminal.write_all(b"quit\n").unwrap();
    guest.heard("done echo");
    assert!(scene.daemon.is_running());
}

#[test]
fn a_hypervisor_that_cannot_be_read_costs_its_log_alone() {
    // A hosted host has none.
    let Some(mut scene) = Scene::start("console_no_hypervisor", &["--log=hv"]) else { return };
    let mut guest = scene.guest("a");
    scene.terminal(&guest);
    guest.tell("say well");
    scene.logged("a", "well\n");
    let log = scene.host.log("consoled.log");
    assert_eq!(log.matches("the hypervisor's console is not logged: ").count(), 1, "{log}");
    assert!(scene.daemon.is_running());
}

#[test]
fn xsa_57_a_guest_cannot_write_its_console_nodes() {
    let Some(mut scene) = Scene::start("console_xsa_57", &[]) else { return };
    let mut guest = scene.guest("a");
    let path = scene.terminal(&guest);
    guest.tell("forge");
    guest.heard("done forge");
    assert_eq!(scene.terminal(&guest), path);
    guest.tell("say served as before");
    scene.logged("a", "served as before\n");
}

#[test]
fn xsa_180_a_flood_fills_no_disk() {
    let log_max = 1 << 16;
    let options = [format!("--log-max={log_max}")];
    let Some(mut scene) = Scene::start("console_xsa_180", &options.each_ref().map(|one| &**one))
    else {
        return;
    };
    let mut guest = scene.guest("a");
    // 5 MiB, which is below the rate at which a guest waits.
    guest.tell("flood 200000");
    guest.heard("done flood");
    guest.tell("say afterwards");
    scene.logged("a", "afterwards\n");
    let files = std::fs::read_dir(&scene.logs).unwrap().map_while(Result::ok);
    let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 4, "the log, the one before it, and their indices");
    let bytes = sizes.iter().sum::<u64>();
    assert!(bytes > log_max && bytes <= 3 * log_max + (128 << 10), "{sizes:?}");
}

#[test]
fn xsa_391_no_event_without_progress() {
    let Some(mut scene) = Scene::start("console_xsa_391", &[]) else { return };
    let mut guest = scene.guest("a");
    scene.terminal(&guest);
    for chunks in [0, 1, 50, 0] {
        guest.tell(&format!("events {chunks}"));
        guest.heard(&format!("events {chunks}"));
    }
    // A killed daemon may have moved an index without its event, so the next one sends one.
    guest.tell("sleep");
    guest.heard("asleep");
    scene.daemon.kill_and_restart();
    guest.heard("done sleep");
    guest.tell("events 3");
    guest.heard("events 3");
}

#[test]
fn a_full_disk_costs_the_log_and_no_guest() {
    let Some(mut scene) = Scene::start_on_small_disk("console_full_disk") else { return };
    let mut guest = scene.guest("a");
    guest.tell("flood 40000");
    guest.heard("done flood");
    // The reader of the terminal gets all the same.
    let shown = read_until(&mut open_terminal(&scene.terminal(&guest)), &text_line(39_999));
    assert!(shown.contains(&text_line(39_998)), "the newest lines");
    let lost = format!("domid={} msg=\"console: its log cannot be written", guest.domid);
    assert_eq!(scene.host.log("consoled.log").matches(&lost).count(), 1, "once");
    // The mount is of the daemon alone.
    let root = PathBuf::from(format!("/proc/{}/root", scene.daemon.id()));
    let logs = root.join(scene.logs.strip_prefix("/").unwrap());
    let log = logs.join("guest-a.log");
    let before = std::fs::metadata(&log).unwrap().len();
    assert!(before > 0 && before < 1 << 20);
    std::fs::remove_file(logs.join("other")).unwrap();
    guest.tell("say there is room again");
    until("the log goes on", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.ends_with("there is room again\n"))
    });
    let whole: usize = (0..40_000).map(|number| text_line(number).len()).sum();
    let lost = format!("its log is written again; it lacks {} bytes", whole as u64 - before);
    until("the daemon says how much is lost", || scene.host.log("consoled.log").contains(&lost));
}

/// A client of the daemon's socket, and what it has seen.
struct WatchingClient {
    client: ConsoleClient,
    seen: Vec<u8>,
    missed: u64,
    opened: bool,
    ended: bool,
}

impl WatchingClient {
    fn open(scene: &Scene, guest: &Guest, access: ClientAccess, start: OutputStart) -> Self {
        let socket = scene.host.dir.path().join("host/xenconsoled/socket");
        let domain = guest.domid.to_string();
        let client = ConsoleClient::open(&socket, domain.as_bytes(), access, start).unwrap();
        Self { client, seen: Vec::new(), missed: 0, opened: false, ended: false }
    }

    fn look(&mut self) {
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

    fn sees(&mut self, words: &str) {
        until("the client sees the words", || {
            self.look();
            self.seen.windows(words.len()).any(|seen| seen == words.as_bytes())
        });
    }
}

#[test]
fn clients_of_the_socket_have_places_of_their_own() {
    let Some(mut scene) = Scene::start("console_clients", &[]) else { return };
    let mut guest = scene.guest("a");
    let path = scene.terminal(&guest);
    guest.tell("say first line");
    scene.logged("a", "first line\n");
    let open = |scene: &Scene, access, start| WatchingClient::open(scene, &guest, access, start);
    let mut early = open(&scene, ClientAccess::Watch, OutputStart::Oldest);
    let mut now = open(&scene, ClientAccess::Type, OutputStart::Now);
    let mut screen = open(&scene, ClientAccess::Watch, OutputStart::Screenful);
    early.sees("first line\n");
    screen.sees("first line\n");
    guest.tell("echo");
    until("the client is open", || {
        now.look();
        now.opened
    });
    now.client.type_in(b"id\n").unwrap();
    now.sees("id\n");
    now.client.type_in(b"quit\n").unwrap();
    guest.heard("done echo");
    for client in [&mut early, &mut now, &mut screen] {
        client.sees("quit\n");
        assert_eq!(client.missed, 0);
    }
    assert!(!String::from_utf8_lossy(&now.seen).contains("first line"), "it began later");
    // Who only watches types nothing.
    guest.tell("echo");
    early.client.type_in(b"not this\n").unwrap();
    now.client.type_in(b"quit\n").unwrap();
    guest.heard("done echo");
    early.look();
    assert!(!String::from_utf8_lossy(&early.seen).contains("not this"));
    // The terminal is one reader more.
    read_until(&mut open_terminal(&path), "quit\n");
}

#[test]
fn a_client_that_does_not_read_is_told_what_it_has_missed() {
    let Some(mut scene) = Scene::start("console_slow_client", &[]) else { return };
    let mut guest = scene.guest("a");
    scene.terminal(&guest);
    let mut slow = WatchingClient::open(&scene, &guest, ClientAccess::Watch, OutputStart::Oldest);
    slow.look();
    guest.tell("flood 120000");
    guest.heard("done flood");
    scene.logged("a", &text_line(119_999));
    slow.sees(&text_line(119_999));
    let all: usize = (0..120_000).map(|number| text_line(number).len()).sum();
    assert!(slow.missed > 0);
    assert_eq!(slow.missed + slow.seen.len() as u64, all as u64);
}

#[test]
fn the_last_words_of_a_domain_reach_its_clients() {
    let Some(mut scene) = Scene::start("console_client_ends", &[]) else { return };
    for number in 0..10 {
        let mut guest = scene.guest(&format!("short{number}"));
        scene.terminal(&guest);
        let mut client =
            WatchingClient::open(&scene, &guest, ClientAccess::Watch, OutputStart::Oldest);
        guest.tell("say last words");
        guest.heard("done say");
        scene.host.control.destroy(guest.domid).unwrap();
        until("the client is told of the end", || {
            client.look();
            client.ended
        });
        assert_eq!(client.seen, b"last words\n");
    }
}

#[test]
fn what_is_typed_before_the_console_is_there_reaches_the_guest() {
    let Some(mut scene) = Scene::start("console_typed_early", &[]) else { return };
    let mut guest = scene.guest("a");
    scene.terminal(&guest);
    let served = |scene: &Scene| scene.host.log("consoled.log").matches("console: served").count();
    until("it is served", || served(&scene) == 1);
    scene.host.tool.rm(format!("/local/domain/{}/console", guest.domid)).unwrap();
    // Another guest's console is looked at afterwards.
    let other = scene.guest("other");
    scene.terminal(&other);
    let mut client = WatchingClient::open(&scene, &guest, ClientAccess::Type, OutputStart::Now);
    client.client.set_size(132, 50).unwrap();
    assert_eq!(client.client.type_in(b"quit\n").unwrap(), 5);
    guest.tell("echo");
    scene.write_nodes(&guest);
    guest.heard("done echo");
    let terminal = open_terminal(&scene.terminal(&guest));
    let size = rustix::termios::tcgetwinsize(&terminal).unwrap();
    assert_eq!((size.ws_col, size.ws_row), (132, 50));
    until("it is open", || {
        client.look();
        client.opened
    });
}

#[test]
fn a_client_that_goes_while_the_guest_does_not_read_is_let_go() {
    let Some(mut scene) = Scene::start("console_client_goes", &[]) else { return };
    let guest = scene.guest("a");
    scene.terminal(&guest);
    let descriptors = format!("/proc/{}/fd", scene.daemon.id());
    let count = || std::fs::read_dir(&descriptors).unwrap().count();
    let before = count();
    let mut clients: Vec<WatchingClient> = (0..20)
        .map(|_| WatchingClient::open(&scene, &guest, ClientAccess::Type, OutputStart::Now))
        .collect();
    for client in &mut clients {
        // More than the guest's ring has room for.
        for _ in 0..4 {
            client.client.type_in(&[b'x'; 1000]).unwrap();
        }
    }
    until("they are served", || {
        clients.iter_mut().all(|client| {
            client.look();
            client.opened
        })
    });
    assert_eq!(count(), before + clients.len());
    drop(clients);
    until("they are let go", || count() == before);
}

#[test]
fn a_client_that_keeps_to_no_frame_is_sent_away() {
    let Some(mut scene) = Scene::start("console_bad_client", &[]) else { return };
    let mut guest = scene.guest("a");
    scene.terminal(&guest);
    let socket = scene.host.dir.path().join("host/xenconsoled/socket");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[1, 0, 255, 255], &[2, 0, 1, 0, 9]] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0)), "it is closed: {bytes:?}");
    }
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    guest.tell("say well");
    scene.logged("a", "well\n");
}
