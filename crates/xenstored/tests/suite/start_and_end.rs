//! The start of a daemon, competing daemons, and the files left after its end.

use crate::common::*;
use rustix::process::Signal;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Output, Stdio};
use tempfile::TempDir;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A daemon in the background, which is ended when this is dropped.
struct Background {
    output: Output,
    pid: i32,
    dir: TempDir,
}

impl Background {
    fn start(change: impl FnOnce(&TempDir, &mut std::process::Command)) -> Self {
        let dir = dir();
        let mut command = xenstored(&dir.path().join("socket"));
        command.arg("--pid-file").arg(dir.path().join("pid"));
        change(&dir, &mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let pid =
            std::fs::read_to_string(dir.path().join("pid")).expect("there when the parent ends");
        Self { output, pid: pid.trim().parse().unwrap(), dir }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if is_alive(self.pid) {
            send_signal(self.pid, Signal::KILL);
        }
    }
}

#[test]
fn the_parent_ends_when_the_daemon_serves() {
    let daemon = Background::start(|_, command| {
        command.arg("-P");
    });
    assert_eq!(text(&daemon.output.stdout).trim(), daemon.pid.to_string(), "-P prints the pid");
    let socket = daemon.dir.path().join("socket");
    Client::connect(&socket).write("/a", b"1");
    let metadata = std::fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    for fd in 0..3 {
        let to = std::fs::read_link(format!("/proc/{}/fd/{fd}", daemon.pid)).unwrap();
        assert_eq!(to.to_str(), Some("/dev/null"), "descriptor {fd}");
    }
    let name = std::fs::read_to_string(format!("/proc/{}/comm", daemon.pid)).unwrap();
    assert_eq!(name, "xenstored\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");

    send_signal(daemon.pid, Signal::TERM);
    wait_for("the end of the daemon", || !is_alive(daemon.pid));
    let left: Vec<_> = std::fs::read_dir(daemon.dir.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn without_xen_one_line_says_that_there_are_no_domains() {
    if xen_linux::machine() == xen_linux::Machine::Control {
        conformance::skip("a daemon without Xen", "this is domain 0 of a Xen host");
        return;
    }
    let daemon = Daemon::start(&[]);
    daemon.client().write("/a", b"1");
    let log = daemon.log();
    let about: Vec<&str> = log.lines().filter(|line| line.contains("omain")).collect();
    let [line] = about[..] else { panic!("not one line: {log}") };
    assert!(line.contains("Xen") && line.contains("serving the socket only, no domains"), "{line}");
}

#[test]
fn nothing_is_kept_that_is_not_needed() {
    let daemon = Background::start(|_, _| {});
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2", "a filter");
}

#[test]
fn the_service_manager_is_told() {
    let manager = dir();
    let path = manager.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let daemon = Background::start(|_, command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut bytes = [0; 200];
    let len = socket.recv(&mut bytes).unwrap();
    let state = text(&bytes[..len]);
    assert!(state.starts_with(&format!("READY=1\nMAINPID={}\n", daemon.pid)), "{state}");
}

#[test]
fn a_daemon_that_cannot_start_says_why_to_its_starter() {
    let dir = dir();
    let socket = dir.path().join("socket");
    std::fs::write(&socket, "precious").unwrap();
    let output = xenstored(&socket).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is no socket"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused() {
    let first = Daemon::start(&[]);
    for args in [&["-N"][..], &[]] {
        let output = xenstored(&first.socket).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains("another xenstored serves"), "{said}");
    }
    first.client().write("/still", b"here");
}

#[test]
fn a_daemon_that_knows_no_lock_is_not_pushed_aside() {
    let dir = dir();
    let socket = dir.path().join("socket");
    let other = UnixListener::bind(&socket).unwrap();
    let output = xenstored(&socket).arg("-N").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("another xenstored serves"));
    drop(other);
}

#[test]
fn a_stale_socket_is_taken_over() {
    let mut first = Daemon::start(&[]);
    first.signal(Signal::KILL);
    first.wait();
    assert!(first.socket.exists() && first.pid_file.exists(), "a killed daemon cleans nothing");
    let old = first.pid();
    let mut second = xenstored(&first.socket);
    let mut second =
        second.args(["-N", "-F"]).arg(&first.pid_file).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the new pid", || first.pid() != old);
    first.client().write("/a", b"1");
    send_signal(i32::try_from(second.id()).unwrap(), Signal::TERM);
    assert!(second.wait().unwrap().success());
}

#[test]
fn of_many_that_start_at_once_one_serves() {
    let dir = dir();
    let socket = dir.path().join("socket");
    // A stale socket, which each of them tries to remove.
    drop(UnixListener::bind(&socket).unwrap());
    let start = || xenstored(&socket).arg("-N").stderr(Stdio::null()).spawn().unwrap();
    let mut all: Vec<_> = (0..8).map(|_| start()).collect();
    wait_for("seven refusals", || {
        let ended = |child: &mut std::process::Child| child.try_wait().unwrap().is_some();
        all.iter_mut().map(ended).filter(|ended| *ended).count() >= 7
    });
    Client::connect(&socket).write("/a", b"1");
    let alive = |child: &mut std::process::Child| child.try_wait().unwrap().is_none();
    let at = (0..all.len()).find(|at| alive(&mut all[*at])).expect("one serves");
    let winner = &mut all[at];
    send_signal(i32::try_from(winner.id()).unwrap(), Signal::INT);
    assert!(winner.wait().unwrap().success());
}

/// An init script that does not know the daemon starts it again at an upgrade. The status says that
/// one runs.
#[test]
fn a_second_daemon_with_the_same_pid_file_ends_and_the_first_goes_on() {
    let first = Daemon::start(&[]);
    for socket in [first.socket.clone(), first.dir.path().join("other")] {
        for args in [&["-N"][..], &[]] {
            let mut second = xenstored(&socket);
            let output = second.args(args).arg("-F").arg(&first.pid_file).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{args:?}");
            let said = text(&output.stderr);
            assert!(said.contains(&format!("pid {}", first.pid())), "{said}");
            assert!(said.contains("goes on") && said.lines().count() == 1, "{said}");
            assert_eq!(first.pid(), i32::try_from(first.child.id()).unwrap());
        }
    }
    assert!(!first.dir.path().join("other").exists());
    first.client().write("/still", b"here");
}

#[test]
fn a_second_daemon_with_another_pid_file_is_refused() {
    let first = Daemon::start(&[]);
    let other = first.dir.path().join("other.pid");
    for args in [&["-N"][..], &[]] {
        let output = xenstored(&first.socket).args(args).arg("-F").arg(&other).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains("another xenstored serves"), "{said}");
        assert!(!other.exists());
    }
}

#[test]
fn sigterm_and_sigint_end_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        let mut client = daemon.client();
        client.write("/a", b"1");
        daemon.signal(signal);
        assert!(daemon.wait().success());
        assert!(!daemon.socket.exists() && !daemon.pid_file.exists());
        assert_eq!(client.receive(), None);
    }
}

#[test]
fn sighup_opens_the_trace_file_again() {
    let dir = dir();
    let trace = dir.path().join("trace");
    let daemon = Daemon::start(&["-T", trace.to_str().unwrap()]);
    let mut client = daemon.client();
    client.write("/before", b"1");
    std::fs::rename(&trace, dir.path().join("old")).unwrap();
    daemon.signal(Signal::HUP);
    wait_for("the new trace file", || trace.exists());
    client.write("/after", b"\x01\\");
    let lines = || std::fs::read_to_string(&trace).unwrap();
    wait_for("the trace", || lines().contains("OUT"));
    assert!(lines().contains(r"WRITE req=1 tx=0 (/after \x01\\)"), "{}", lines());
    assert!(!lines().contains("/before"));
    assert!(std::fs::read_to_string(dir.path().join("old")).unwrap().contains("/before"));

    client.control(&["log", "off"]);
    client.write("/quiet", b"1");
    client.control(&["log", "on"]);
    client.write("/loud", b"1");
    wait_for("the trace", || lines().contains("/loud"));
    assert!(!lines().contains("/quiet"));
}
