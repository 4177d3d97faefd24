//! Channels: consoles that programs of domain 0 use.

use crate::scene::{Scene, WatchingClient, open_terminal, read_until, text_line};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use testhost::{Guest, WITHIN, until};
use xen::DomId;
use xen_console::bus_front::KIND;
use xen_console::service::wire::{ClientAccess, OutputStart};
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Id, State};
use xenstore::{Perm, Store};

impl Scene {
    /// Adds a channel with a socket, as libxl does.
    fn add_channel(&mut self, guest: &Guest, number: u32, path: &Path) -> NewDevice {
        let path = path.to_str().unwrap();
        let nodes = [("connection", "socket"), ("path", path), ("name", "org.example.agent")];
        self.add_console(guest, number, "xenconsoled", &nodes)
    }

    /// Returns the error of a device's backend.
    fn error_of(&mut self, device: &NewDevice) -> String {
        let error = self.host.tool.read(format!("{}/error", device.backend_path())).unwrap();
        String::from_utf8(error).unwrap()
    }

    fn agent(&self) -> PathBuf {
        self.host.dir.path().join("agent")
    }
}

/// Connects to a channel, once it is there.
fn connect(path: &Path) -> UnixStream {
    let mut client = None;
    until("the channel takes a client", || {
        client = UnixStream::connect(path).ok();
        client.is_some()
    });
    let client = client.unwrap();
    client.set_read_timeout(Some(WITHIN)).unwrap();
    client
}

/// Reads exactly these bytes.
fn reads(client: &mut UnixStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    client.read_exact(&mut read).unwrap();
    assert!(read == bytes, "{:?}", String::from_utf8_lossy(&read));
}

#[test]
fn a_socket_channel_carries_bytes_both_ways_for_one_client_at_a_time() {
    let Some(mut scene) = Scene::start("channel_socket", &[]) else { return };
    let mut guest = scene.bus_guest("vm");
    let path = scene.agent();
    let device = scene.add_channel(&guest, 1, &path);
    // Before the guest is there: what is sent waits for it.
    let mut first = connect(&path);
    first.write_all(b"early\n").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    guest.tell("connected 1");
    guest.heard("done connected");
    guest.tell("echo 1");
    reads(&mut first, b"early\n");
    // All bytes, in both directions: no terminal is in between.
    let mut all: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').cycle().take(5000).collect();
    all.push(b'\n');
    let mut writer = first.try_clone().unwrap();
    let sent = all.clone();
    let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    reads(&mut first, &all);
    sender.join().unwrap();
    let mut second = connect(&path);
    second.write_all(b"second\n").unwrap();
    first.write_all(b"first\n").unwrap();
    reads(&mut first, b"first\n");
    drop(first);
    reads(&mut second, b"second\n");
    second.write_all(b"quit\n").unwrap();
    reads(&mut second, b"quit\n");
    guest.heard("done echo");
    drop(second);
    // The next one gets what comes while nobody is there.
    guest.tell("say 1 for whoever comes");
    guest.heard("done say");
    let mut third = connect(&path);
    reads(&mut third, b"for whoever comes\n");
    // A client of the daemon's own socket sees it as well, and a channel has no log.
    let mut client =
        WatchingClient::open_numbered(&scene, ("vm", 1), ClientAccess::Watch, OutputStart::Oldest);
    client.sees("for whoever comes\n");
    assert!(!scene.log("vm.console-1").exists());
    assert_eq!(scene.host.tool.read(format!("{}/tty", device.frontend_path())).unwrap(), b"");
    scene.remove_console(&device);
    until("the socket is removed", || !path.exists());
    let mut rest = Vec::new();
    third.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "its end is the end of the channel");
}

#[test]
fn a_guest_waits_for_a_client_that_does_not_read_and_for_none_other() {
    let Some(mut scene) = Scene::start("channel_slow", &[]) else { return };
    let mut guest = scene.bus_guest("vm");
    let path = scene.agent();
    scene.add_channel(&guest, 1, &path);
    guest.tell("connected 1");
    guest.heard("done connected");
    let mut client = connect(&path);
    guest.tell("send 1 x");
    reads(&mut client, b"x");
    // Much more than the backlog and the sockets hold.
    guest.tell("flood 1 60000");
    let mut all = Vec::new();
    let expected: String = (0..60_000).map(text_line).collect();
    while all.len() < expected.len() {
        let mut bytes = [0; 8192];
        let count = client.read(&mut bytes).unwrap();
        all.extend_from_slice(&bytes[..count]);
    }
    assert!(all == expected.as_bytes(), "nothing is missing");
    guest.heard("done flood");
    drop(client);
    // Without a client it does not wait, and the newest bytes are kept.
    guest.tell("flood 1 60000");
    guest.heard("done flood");
    let mut client = connect(&path);
    let mut kept = Vec::new();
    while !kept.ends_with(text_line(59_999).as_bytes()) {
        let mut bytes = [0; 8192];
        let count = client.read(&mut bytes).unwrap();
        kept.extend_from_slice(&bytes[..count]);
    }
    assert!(expected.as_bytes().ends_with(&kept), "bytes of the guest, and no other");
}

#[test]
fn a_guest_that_reads_nothing_has_its_next_client_all_the_same() {
    let Some(mut scene) = Scene::start("channel_deaf", &[]) else { return };
    let mut guest = scene.bus_guest("vm");
    let path = scene.agent();
    scene.add_channel(&guest, 1, &path);
    guest.tell("connected 1");
    guest.heard("done connected");
    // More than its ring holds.
    let mut first = connect(&path);
    first.write_all(&[b'x'; 5000]).unwrap();
    guest.tell("send 1 y");
    reads(&mut first, b"y");
    drop(first);
    let mut second = connect(&path);
    guest.tell("say 1 for the second");
    reads(&mut second, b"for the second\n");
}

#[test]
fn a_killed_daemon_leaves_a_socket_that_the_next_one_replaces() {
    let Some(mut scene) = Scene::start("channel_killed", &[]) else { return };
    let mut guest = scene.bus_guest("vm");
    let path = scene.agent();
    scene.add_channel(&guest, 1, &path);
    guest.tell("connected 1");
    guest.heard("done connected");
    for round in 0..3 {
        let mut client = connect(&path);
        guest.tell(&format!("say 1 round {round}"));
        reads(&mut client, format!("round {round}\n").as_bytes());
        scene.daemon.kill();
        assert!(path.exists());
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0, "the client is told");
        scene.daemon.kill_and_restart();
    }
    let mut client = connect(&path);
    guest.tell("echo 1");
    client.write_all(b"quit\n").unwrap();
    reads(&mut client, b"quit\n");
    guest.heard("done echo");
    // In order, it is removed.
    let pid = rustix::process::Pid::from_raw(scene.daemon.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("the daemon has ended", || !scene.daemon.is_running());
    assert!(!path.exists());
}

#[test]
fn no_socket_is_made_where_a_guest_or_another_program_says() {
    let Some(mut scene) = Scene::start("channel_refused", &[]) else { return };
    let mut guest = scene.bus_guest("vm");
    let dir = scene.host.dir.path().to_owned();
    let _listener = UnixListener::bind(dir.join("used")).unwrap();
    std::fs::write(dir.join("file"), "mine").unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let rest = 107 - dir.as_os_str().len();
    let long = path(&"x".repeat(rest));
    for (path, why) in [
        (&*path("used"), "EBUSY: another program listens"),
        (&*path("file"), "is there and is no socket"),
        (&*path("absent/agent"), "no socket can be made"),
        ("agent", "is no absolute path"),
        (&*long, "is no absolute path"),
        ("", "is no absolute path"),
    ] {
        let device = scene.add_channel(&guest, 1, Path::new(path));
        scene.backend_is(&device, State::Closed);
        let error = scene.error_of(&device);
        assert!(error.contains(why), "{error}");
        toolstack::forget(&mut scene.host.tool, &device).unwrap();
    }
    // A path that the guest may have written.
    scene.connect_console(&mut guest, 3);
    for (number, perms) in [(4, "n0 b1"), (5, "n1"), (6, "w0")] {
        let node = path(&format!("agent-{number}"));
        let id = Id { frontend: guest.domid, devid: number };
        let device = NewDevice::new(KIND, id, DomId::DOM0);
        let (front, back) = (device.frontend_path(), device.backend_path());
        let perms = perms.replace('1', &guest.domid.to_string());
        let perms: Vec<Perm> =
            perms.split(' ').map(|word| Perm::parse(word.as_bytes()).unwrap()).collect();
        let domid = guest.domid.to_string();
        let nodes = [
            (format!("{front}/type"), "xenconsoled"),
            (format!("{front}/backend-id"), "0"),
            (format!("{front}/state"), "1"),
            (format!("{back}/connection"), "socket"),
            (format!("{back}/path"), &*node),
            (format!("{back}/frontend"), &*front),
            (format!("{back}/frontend-id"), &*domid),
            (format!("{back}/online"), "1"),
            (format!("{back}/state"), "1"),
        ];
        let tool = &mut scene.host.tool;
        tool.transaction(|tx| {
            nodes.iter().try_for_each(|(path, value)| tx.write(path, value))?;
            tx.set_perms(format!("{back}/path"), &perms)
        })
        .unwrap();
        scene.backend_is(&device, State::Closed);
        let error = scene.error_of(&device);
        assert!(error.contains("so no socket is made there"), "{error}");
        assert!(!Path::new(&node).exists());
    }
    // The guest is served all the same.
    guest.tell("say 3 well");
    scene.logged("vm.console-3", "well\n");
    assert_eq!(std::fs::read(dir.join("file")).unwrap(), b"mine");
}

#[test]
fn a_pty_channel_has_a_terminal_with_the_bytes_of_the_guest_alone() {
    let Some(mut scene) = Scene::start("channel_pty", &["--log-channels"]) else { return };
    let mut guest = scene.bus_guest("vm");
    let nodes = [("connection", "pty"), ("name", "org.example.agent")];
    let device = scene.add_console(&guest, 1, "xenconsoled", &nodes);
    // The path is there before the guest is.
    let mut terminal = open_terminal(&scene.terminal_of(&device));
    guest.tell("connected 1");
    guest.heard("done connected");
    guest.tell("echo 1");
    terminal.write_all(b"\x01\x03\x04quit\n").unwrap();
    read_until(&mut terminal, "\x01\x03\x04quit\n");
    terminal.write_all(b"quit\n").unwrap();
    guest.heard("done echo");
    read_until(&mut terminal, "quit\n");
    // More than is kept: the oldest bytes go without a word.
    guest.tell("flood 1 60000");
    guest.heard("done flood");
    let shown = read_until(&mut terminal, &text_line(59_999));
    assert!(shown.starts_with(&text_line(0)) && !shown.contains('['), "no words of the daemon");
    // Logged, as that was asked for.
    scene.logged("vm.console-1", &text_line(59_999));
}
