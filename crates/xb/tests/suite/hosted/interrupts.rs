//! Ctrl-C and SIGTERM at each step, and waits with a time limit.

use super::support::{DAEMONS, TestHost};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

/// Returns the daemons that the creation of a guest may wait for.
fn awaited_daemons() -> impl Iterator<Item = &'static str> {
    DAEMONS.into_iter().filter(|daemon| *daemon != "devd")
}

/// Interrupts a program as Ctrl-C does.
fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

/// Returns the signals of a process in one line of its `status`.
fn signals(child: &Child, which: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let bits = text.lines().find_map(|line| line.strip_prefix(which))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

/// Waits until a program catches Ctrl-C.
fn until_it_catches(host: &TestHost, child: &Child) {
    let interrupt = 1 << (Signal::INT.as_raw() - 1);
    host.until("it catches Ctrl-C", || (signals(child, "SigCgt:")? & interrupt != 0).then_some(()));
}

/// Waits until a program sleeps, as it does for as long as a daemon is stopped.
fn until_it_waits(host: &TestHost, child: &Child) {
    let stat = format!("/proc/{}/stat", child.id());
    let asleep = || {
        let stat = std::fs::read_to_string(&stat).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.to_owned();
        // With its processor time: a program that only waits for a processor continues.
        (state == "S").then(|| fields.nth(10).map(str::to_owned))
    };
    let mut last = None;
    host.until("it waits", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = asleep();
        let same = now.is_some() && now == last;
        last = now;
        same.then_some(())
    });
}

/// Ends `create` by SIGTERM while one daemon does not answer: it ends at once, and the others clean
/// up.
fn ended_at(host: &TestHost, args: &[&str], daemon: &str) {
    let nodes = host.nodes();
    let stopped = host.pid(daemon).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    let mut command = host.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until_it_waits(host, &child);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::TERM.as_raw()), "{daemon}");
    kill_process(stopped, Signal::CONT).unwrap();
    host.until_alone();
    host.until("no node is left", || (host.nodes() == nodes).then_some(()));
}

#[test]
fn sigterm_ends_create_at_once_and_leaves_nothing() {
    let host = TestHost::up("term-create");
    let image = host.image("a.img", 1 << 20);
    let disk = format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\"");
    let with_disk = host.config("with", &disk);
    for daemon in awaited_daemons() {
        ended_at(&host, &["create", &with_disk], daemon);
        ended_at(&host, &["create", &with_disk, "--wait"], daemon);
        if daemon != "xen-blockd" {
            ended_at(&host, &["create", &with_disk, "--paused"], daemon);
        }
    }
    // Its name and image are free; guests that were created before stay when their creator is gone.
    host.ok(&["create", &with_disk]);
    let without = host.config("without", "extra = \"exec sleep 1000\"");
    host.ok(&["create", &without, "--paused"]);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 3);
}

#[test]
fn who_waits_for_a_guest_takes_it_along_whatever_ends_it() {
    let host = TestHost::up("term-wait");
    let image = host.image("a.img", 1 << 20);
    let disk = format!("disk = [\"{image},,xvda,w\"]\non_reboot = \"restart\"");
    let nodes = host.nodes();
    for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
        let config = host.config("waited", &format!("{disk}\nextra = \"exec sleep 1000\""));
        let mut command = host.command(&["create", &config, "--wait"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut line, mut again) = (String::new(), String::new());
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut notes = BufReader::new(child.stderr.take().unwrap());
        let domid = host.json(&["list"])[1]["domid"].clone();
        assert_eq!(line, format!("waited is domain {domid}\n"));
        if signal == Signal::HUP {
            // It is held after a restart, too.
            host.ok(&["reboot", "waited", "--wait"]);
            while !again.contains("waited runs again") {
                assert_ne!(notes.read_line(&mut again).unwrap(), 0, "{again}");
            }
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        host.until_alone();
        host.until("no node is left", || (host.nodes() == nodes).then_some(()));
    }
}

/// The waiting command dies while the keeper starts the guest again, when neither guest exists.
#[test]
fn who_waits_takes_a_guest_along_that_is_being_started_again() {
    let host = TestHost::up("wait-again");
    let image = host.image("a.img", 1 << 20);
    let nodes = host.nodes();
    let config = host
        .config("waited", &format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\""));
    let mut command = host.command(&["create", &config, "--wait"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let backend = host.pid("xen-blockd").unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    host.ok(&["reboot", "waited"]);
    host.until("the keeper waits for its disk", || {
        let alone = host.json(&["list"]).as_array()?.len() == 1;
        (alone && host.log_of("keeper").contains("reboot, exit status")).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    kill_process(backend, Signal::CONT).unwrap();
    host.until("the keeper is done", || {
        host.log_of("keeper").contains("waited runs again").then_some(())
    });
    host.until_alone();
    host.until("no node is left", || (host.nodes() == nodes).then_some(()));
}

/// Interrupts `create` while one daemon does not answer, and continues the daemon once `create` has
/// noticed.
fn interrupted_at(host: &TestHost, args: &[&str], daemon: &str) {
    let nodes = host.nodes();
    let stopped = host.pid(daemon).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    let mut command = host.command(args);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until_it_catches(host, &child);
    until_it_waits(host, &child);
    interrupt(&child);
    host.until("the signal is taken", || (signals(&child, "ShdPnd:")? == 0).then_some(()));
    kill_process(stopped, Signal::CONT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{daemon}: {said}");
    assert!(said.contains("interrupted"), "{daemon}: {said}");
    host.until_alone();
    assert_eq!(host.nodes(), nodes, "{daemon}");
}

#[test]
fn ctrl_c_at_each_step_of_create_leaves_nothing() {
    let host = TestHost::up("ctrl-c-create");
    let image = host.image("a.img", 1 << 20);
    let disk = format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\"");
    let with_disk = host.config("with", &disk);
    let without = host.config("without", "extra = \"exec sleep 1000\"");
    for daemon in awaited_daemons() {
        interrupted_at(&host, &["create", &with_disk], daemon);
        interrupted_at(&host, &["create", &with_disk, "--wait"], daemon);
        if daemon != "xen-blockd" {
            interrupted_at(&host, &["create", &without], daemon);
            interrupted_at(&host, &["create", &without, "--paused"], daemon);
        }
    }
    // It is complete, and waited for: it ends with the waiting command.
    let child = host.command(&["create", &with_disk, "--wait"]).spawn().unwrap();
    host.until("it runs", || {
        (host.json(&["disk", "list"])[0]["frontend_state"] == "Connected (4)").then_some(())
    });
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    host.until_alone();
    // Its name and image are free.
    host.ok(&["create", &with_disk]);
}

#[test]
fn ctrl_c_at_each_step_of_the_demo_leaves_nothing() {
    // As many rounds as lines, and one more: then it has ended by itself.
    for lines in 0..20 {
        let host = TestHost::down(&format!("ctrl-c-{lines}"));
        let mut child =
            host.command(&["demo"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        for _ in 0..lines {
            output.read_line(&mut seen).unwrap();
        }
        interrupt(&child);
        output.read_to_string(&mut seen).unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        // The signal may come before a handler is set, when there is nothing to undo; or after all
        // steps.
        let at_once = status.signal() == Some(Signal::INT.as_raw()) && seen.is_empty();
        let done = status.success() && seen.contains("all is taken down");
        let interrupted = status.code() == Some(130) && said.contains("interrupted");
        assert!(at_once || done || interrupted, "after {lines} lines: {status}, {seen}{said}");
        host.nothing_is_left();
        if done {
            break;
        }
    }
}

#[test]
fn a_wait_has_an_end() {
    let host = TestHost::up("timeout");
    let image = host.image("a.img", 1 << 20);
    let config = host.config(
        "web",
        &format!("disk = [\"{image},,xvda\"]\nextra = \"trap '' TERM; echo deaf; while :; do sleep 1; done\""),
    );
    host.ok(&["create", &config]);
    host.until_log("web", "deaf");
    host.fails(
        &["shutdown", "web", "--wait", "--timeout", "0.2"],
        3,
        "web ends: not within 200 ms",
    );
    let backend = host.pid("xen-blockd").unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    host.fails(&["disk", "detach", "web", "xvda", "--timeout", "0.2"], 3, "is let go of");
    kill_process(backend, Signal::CONT).unwrap();
    host.ok(&["destroy", "web"]);
}

#[test]
fn a_store_that_does_not_answer_is_waited_for_with_an_end() {
    let host = TestHost::up("stopped");
    let store = host.pid("xenstored").unwrap();
    kill_process(store, Signal::STOP).unwrap();
    host.fails(&["list", "--timeout", "1"], 3, "the store's reply: Connection timed out");
    // The first Ctrl-C is for waits that can be undone, the second ends the process.
    let mut child = host.command(&["list"]).spawn().unwrap();
    until_it_catches(&host, &child);
    interrupt(&child);
    host.until("the first is taken", || (signals(&child, "ShdPnd:")? == 0).then_some(()));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    kill_process(store, Signal::CONT).unwrap();
    host.ok(&["list"]);
}

/// The undoing of a creation whose disk does not connect takes as long again, and no longer.
#[test]
fn undoing_is_bounded_by_the_timeout() {
    let host = TestHost::up("undoing");
    let nodes = host.nodes();
    let disks = "disk = [\"vdev=xvda,target=memory:1048576\", \"vdev=xvdb,target=memory:1048576\"]";
    let config = host.config("web", &format!("{disks}\nextra = \"exec sleep 1000\""));
    let backend = host.pid("xen-blockd").unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    let begin = std::time::Instant::now();
    host.fails(&["create", &config, "--timeout", "1.5"], 3, "disk xvda of domain 1 connects");
    // Ten seconds for the undoing alone were the rule before.
    let took = begin.elapsed();
    assert!(took < std::time::Duration::from_secs(8), "{took:?}");
    assert_eq!(host.nodes(), nodes);
    kill_process(backend, Signal::CONT).unwrap();
}
