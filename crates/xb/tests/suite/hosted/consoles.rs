//! Consoles of hosted guests: a terminal on both sides, with a guest's program at one end and a user
//! at the other.

use super::support::{TestHost, WITHIN};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A user at a terminal, in which a command runs.
struct TerminalUser {
    /// The terminal's other end.
    master: File,
    terminal: OwnedFd,
    /// The terminal's mode before the command ran, to be compared.
    before: String,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl TerminalUser {
    fn run(host: &TestHost, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let before = mode(&terminal);
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let mut command = host.command(args);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let (master, shown) = (File::from(master), Arc::new(Mutex::new(Vec::new())));
        let (mut reader, all) = (master.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails once nobody has the terminal any more.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                all.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { master, terminal, before, child, shown }
    }

    fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
        // The command has no controlling terminal, so the kernel tells nobody.
        self.signal(rustix::process::Signal::WINCH);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until the terminal shows these words. Returns all that it shows.
    fn sees(&self, words: &str) -> String {
        let end = Instant::now() + WITHIN;
        loop {
            let text = self.text();
            if text.contains(words) {
                return text;
            }
            assert!(Instant::now() < end, "no {words:?} in {text:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the command has ended, and checks that the terminal is as it was.
    fn ends(&mut self) -> ExitStatus {
        let end = Instant::now() + WITHIN;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "still there: {:?}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(self.mode(), self.before);
        status
    }

    fn mode(&self) -> String {
        mode(&self.terminal)
    }
}

/// Returns a terminal's mode, to be compared.
fn mode(terminal: &OwnedFd) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

/// Creates a guest that runs this shell script.
fn guest(host: &TestHost, name: &str, script: &str) {
    host.ok(&["create", &host.config(name, &format!("extra = {script:?}"))]);
}

/// True if the sandboxes of this machine have terminals.
fn has_terminals(host: &TestHost, test: &str) -> bool {
    let config = host.config("probe", "extra = \"test -t 0\"");
    let has = host.run(&["create", &config, "--wait"]).status.success();
    if !has {
        eprintln!("{test}: skipped, as guests have no terminals on this machine");
    }
    has
}

#[test]
fn a_guests_program_has_a_terminal_with_jobs_and_a_window() {
    let host = TestHost::up("terminal");
    if !has_terminals(&host, "a_guests_program_has_a_terminal_with_jobs_and_a_window") {
        return;
    }
    guest(&host, "web", "test -t 1 && test -t 2 && stty size && echo whole; exec sh -i");
    let mut user = TerminalUser::run(&host, &["console", "web"]);
    assert!(user.sees("whole").contains("24 80"), "{}", user.text());
    // A job in the foreground is interrupted, and the shell goes on.
    user.types(b"sleep 1000\n");
    user.sees("sleep 1000");
    std::thread::sleep(Duration::from_millis(200));
    user.types(b"\x03");
    user.types(b"echo st$((40 + 2))ll here\n");
    user.sees("st42ll here");
    // The guest's window is that of its user.
    user.resize(132, 43);
    let end = Instant::now() + WITHIN;
    while !user.text().contains("43 132") {
        assert!(Instant::now() < end, "{}", user.text());
        user.types(b"stty size\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    user.types(b"\x1d");
    assert!(user.ends().success(), "{}", user.text());
    host.ok(&["shutdown", "web", "--wait"]);
}

#[test]
fn the_terminal_is_as_it_was_after_every_end_of_a_console() {
    let host = TestHost::up("restored");
    if !has_terminals(&host, "the_terminal_is_as_it_was_after_every_end_of_a_console") {
        return;
    }
    guest(&host, "web", "echo ready; exec cat");
    for (signal, code) in
        [(rustix::process::Signal::TERM, 143), (rustix::process::Signal::HUP, 129)]
    {
        let mut user = TerminalUser::run(&host, &["console", "web"]);
        user.sees("ready");
        assert_ne!(user.mode(), user.before, "it is raw");
        user.signal(signal);
        assert_eq!(user.ends().code(), Some(code));
    }
    let mut user = TerminalUser::run(&host, &["console", "web", "--escape", "~"]);
    let mut watcher = TerminalUser::run(&host, &["console", "web", "--read-only"]);
    user.sees("ready");
    watcher.sees("ready");
    // Who watches types nothing; both see what is typed and what is answered.
    watcher.types(b"not typed\n");
    user.types(b"to be seen\n");
    user.sees("to be seen\r\nto be seen");
    assert!(!watcher.sees("to be seen\r\nto be seen").contains("not typed"));
    user.types(b"~");
    assert!(user.ends().success());
    watcher.types(b"\x1d");
    assert!(watcher.ends().success());
    let mut user = TerminalUser::run(&host, &["console", "web"]);
    user.sees("ready");
    host.ok(&["destroy", "web"]);
    user.sees("web has ended");
    assert!(user.ends().success());
}

/// mirage/mirage 270, lxc/incus 3355: the first words of a guest that dies at once are shown.
#[test]
fn the_first_words_of_a_guest_that_dies_at_once_are_shown_at_every_call() {
    let host = TestHost::up("first-words");
    if !has_terminals(&host, "the_first_words_of_a_guest_that_dies_at_once_are_shown_at_every_call")
    {
        return;
    }
    let config = host.config("brief", "extra = \"echo first and last words\"");
    for _ in 0..5 {
        let mut user = TerminalUser::run(&host, &["create", &config, "--console"]);
        user.sees("first and last words");
        user.sees("brief has ended");
        assert!(user.child.wait().unwrap().success());
        assert!(host.ok(&["log", "brief"]).contains("first and last words"));
        host.until_alone();
    }
}

#[test]
fn a_console_outlives_its_daemon() {
    let host = TestHost::up("daemon-killed");
    if !has_terminals(&host, "a_console_outlives_its_daemon") {
        return;
    }
    guest(&host, "web", "echo ready; exec cat");
    let mut user = TerminalUser::run(&host, &["console", "web"]);
    user.sees("ready");
    host.kill("xenconsoled");
    // Nobody serves it: that is said at once.
    host.fails(&["console", "web", "--read-only"], 1, "nobody serves the console of web");
    user.sees("nobody serves the console of web now; waiting");
    host.ok(&["host", "up"]);
    user.types(b"and on\n");
    user.sees("and on\r\nand on");
    user.types(b"\x1d");
    assert!(user.ends().success());
    let log = host.ok(&["log", "web"]);
    assert_eq!(log.matches("and on").count(), 2, "{log}");
}

#[test]
fn a_guest_is_started_again_while_no_daemon_serves_its_console() {
    let host = TestHost::up("restart-alone");
    let config = host.config("web", "extra = \"echo a life; exec sleep 1000\"");
    host.ok(&["create", &config]);
    host.until_log("web", "a life");
    host.kill("xenconsoled");
    host.ok(&["reboot", "web", "--wait"]);
    assert_eq!(host.json(&["info", "web"])["state"], serde_json::json!("running"));
    let other = host.config("other", "extra = \"exec sleep 1000\"");
    host.fails(&["create", &other], 1, "nothing serves the console of other; xb --host ");
    host.ok(&["host", "up"]);
    // What it printed meanwhile is there, in a life of its own.
    host.until_log("web", "a life");
    assert!(host.ok(&["log", "web", "--previous"]).contains("a life"));
    host.ok(&["create", &other]);
}

/// A guest whose kernel opens no console, and nobody reads: what it prints is kept
/// (GaloisInc/FreeRTOS-Xen 3, cloud-hypervisor 4521).
#[test]
fn a_kernel_that_opens_no_console_is_logged() {
    let host = TestHost::up("no-console");
    let kernel = host.path("kernel.sh");
    std::fs::write(&kernel, "#!/bin/sh\necho from a pipe\nexec sleep 1000\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&kernel, mode).unwrap();
    host.ok(&["create", &host.config("web", &format!("kernel = {kernel:?}"))]);
    host.until_log("web", "from a pipe");
    let output = host.command(&["console", "web", "--read-only"]).stdout(Stdio::piped()).spawn();
    let mut child = output.unwrap();
    let mut bytes = [0; 11];
    child.stdout.take().unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from a pipe");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn bad_input_of_consoles_is_refused_in_a_sentence() {
    let host = TestHost::up("console-bad");
    guest(&host, "web", "exec sleep 1000");
    host.fails(&["console", "nobody"], 4, "there is no domain nobody");
    host.fails(&["console", "web"], 1, "standard input is no terminal");
    host.fails(&["console", "web", "--escape", "two"], 2, "a key is one character");
    host.fails(&["create", "x.cfg", "--console", "--wait"], 2, "cannot be used with");
    let second = std::process::Command::new(
        std::path::Path::new(super::support::XB).with_file_name("xenconsoled"),
    )
    .args(["-i", "--log=none"])
    .env("XEN_HOSTED_HOST", host.path("h/host"))
    .env("XENSTORED_PATH", host.path("h/store"))
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("another xenconsoled serves"), "{said}");
}
