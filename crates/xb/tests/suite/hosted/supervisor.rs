//! The supervisor of backends: a backend that was killed, or hangs, comes back by itself.

use super::support::{TestHost, XB};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Command;

/// The backend.
const BACKEND: &str = "xen-blockd";
/// The supervisor's node for a fault of the backend.
const FAULT: &str = "/local/domain/0/data/devd/fault/xen-blockd";
/// The pieces that a guest writes, and reads again.
const PIECES: u32 = 60;

/// Kills the backend, or stops it, and waits until another one serves.
fn replace(host: &TestHost, signal: Signal) -> Pid {
    let served = host.log_of(BACKEND).matches("xen-blockd: serving").count();
    let before = host.pid(BACKEND).unwrap();
    kill_process(before, signal).unwrap();
    host.until("another backend serves", || {
        let now = host.pid(BACKEND).filter(|now| *now != before)?;
        let serves = host.log_of(BACKEND).matches("xen-blockd: serving").count() > served;
        serves.then_some(now)
    })
}

/// Writes a configuration of a guest that writes pieces onto its disk, and compares each with what
/// it reads. It says when it is done with one.
pub(crate) fn verifying_guest(host: &TestHost, disk: &str) -> String {
    let program = format!(
        "i=0; while [ $i -lt {PIECES} ]; do head -c 65536 /dev/urandom > /tmp/piece; \
         dd if=/tmp/piece of=/dev/xvda bs=64k seek=$i conv=notrunc,fsync 2> /dev/null || exit 9; \
         dd if=/dev/xvda of=/tmp/read bs=64k skip=$i count=1 2> /dev/null || exit 8; \
         cmp /tmp/read /tmp/piece || exit 7; i=$((i + 1)); echo piece $i; done; \
         echo all pieces; exec sleep 1000"
    );
    host.config("web", &format!("disk = [\"{disk}\"]\nextra = \"{program}\""))
}

/// Returns a disk of an image of its own.
fn disk(host: &TestHost) -> String {
    format!("{},,xvda,w", host.image("a.img", 16 << 20))
}

/// Returns the number of pieces that the guest is done with.
pub(crate) fn pieces(host: &TestHost) -> u32 {
    let log = String::from_utf8(host.run(&["log", "web"]).stdout).unwrap();
    let counts = log.lines().filter_map(|line| line.strip_prefix("piece ")?.parse().ok());
    counts.max().unwrap_or(0)
}

#[test]
fn a_guest_sees_a_pause_when_its_backend_is_killed() {
    let host = TestHost::up("supervised");
    if !host.has_fuse("a_guest_sees_a_pause_when_its_backend_is_killed") {
        return;
    }
    host.ok(&["create", &verifying_guest(&host, &disk(&host))]);
    let mut done = 0;
    for _ in 0..3 {
        done = host.until("it goes on", || Some(pieces(&host)).filter(|now| *now > done));
        replace(&host, Signal::KILL);
    }
    host.until_log("web", "all pieces");
    let disk = &host.json(&["disk", "list", "web"])[0];
    assert_eq!(
        (&disk["backend_state"], &disk["backend_runs"]),
        (&"Connected (4)".into(), &true.into())
    );
    host.ok(&["disk", "attach", "web", "vdev=xvdb,target=memory:1048576"]);
}

/// A backend that is stopped makes no turn of its loop, like one that hangs.
#[test]
fn a_backend_without_a_sign_of_life_is_replaced() {
    let host = TestHost::down("silent");
    let up = host.command(&["host", "up"]).env("XB_BACKEND_SILENCE", "4").output().unwrap();
    assert!(up.status.success(), "{up:?}");
    let first = host.pid(BACKEND).unwrap();
    if host.has_fuse("a_backend_without_a_sign_of_life_is_replaced") {
        host.ok(&["create", &verifying_guest(&host, &disk(&host))]);
        replace(&host, Signal::STOP);
        host.until_log("web", "all pieces");
    } else {
        replace(&host, Signal::STOP);
    }
    let log = host.log_of("devd");
    let words =
        format!("xen-blockd (process {}) gives no sign of life for ", first.as_raw_nonzero());
    assert!(log.contains(&words), "{log}");
    // One that lives is left alone: none was ended but that one.
    assert_eq!(log.matches("no sign of life").count(), 1, "{log}");
}

#[test]
fn five_ends_in_a_minute_are_reported() {
    let host = TestHost::up("often");
    let image = host.image("a.img", 1 << 20);
    let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\"");
    host.ok(&["create", &host.config("web", &rest)]);
    let store = || xenstore::Client::connect(host.path("h/store")).unwrap();
    let fault = || xenstore::Store::try_read(&mut store(), FAULT).unwrap();
    for round in 0..5 {
        assert_eq!(fault(), None, "after {round} ends");
        replace(&host, Signal::KILL);
    }
    let said = host.until("it is reported", fault);
    let said = String::from_utf8(said).unwrap();
    let words = "xen-blockd has ended 5 times within a minute, last: ended by signal 9; ";
    assert!(said.starts_with(words) && said.ends_with("xen-blockd.log says more"), "{said}");
    assert!(host.log_of("devd").contains(words), "{}", host.log_of("devd"));
    let found = host.run(&["doctor", "web", "xvda", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    let finding = &found["findings"][0];
    assert_eq!(finding["cause"], "backend-keeps-ending", "{found}");
    assert!(finding["sentence"].as_str().unwrap().contains(words), "{found}");
}

/// A supervisor that has ended takes no backend with it, and the next one goes on with it.
#[test]
fn a_backend_outlives_its_supervisor() {
    let host = TestHost::up("outlives");
    let backend = replace(&host, Signal::KILL);
    host.kill("devd");
    assert_eq!(host.run(&["host", "status"]).status.code(), Some(4));
    host.ok(&["host", "up"]);
    assert_eq!(host.pid(BACKEND), Some(backend));
    // Started by neither of the two.
    host.kill_backend_for_good();
    host.ok(&["host", "up"]);
    host.kill("devd");
    host.ok(&["host", "up"]);
    replace(&host, Signal::KILL);
    assert_eq!(host.run(&["host", "status"]).status.code(), Some(0));
}

#[test]
fn a_supervisor_answers_with_the_number_that_it_is_asked() {
    let host = TestHost::up("asked");
    let mut store = xenstore::Client::connect(host.path("h/store")).unwrap();
    let nodes = "/local/domain/0/data/devd";
    for number in ["1", "18446744073709551615", "no number"] {
        xenstore::Store::write(&mut store, format!("{nodes}/asked"), number).unwrap();
        host.until("it answers", || {
            let answer = xenstore::Store::try_read(&mut store, format!("{nodes}/answered"));
            (answer.unwrap()? == number.as_bytes()).then_some(())
        });
    }
    host.until("it serves", || {
        let kinds = xenstore::Store::try_read(&mut store, format!("{nodes}/kinds"));
        (kinds.unwrap()? == b"qdisk vbd").then_some(())
    });
}

#[test]
fn a_supervisor_that_makes_no_sense_is_refused() {
    let host = TestHost::up("refused");
    host.fails(&["devd"], 1, "another xb devd runs here");
    host.ok(&["host", "down"]);
    host.fails(&["devd"], 4, "no host is up in");
    let output = Command::new(XB).arg("devd").env_remove("XB_HOST").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("this machine is no domain"), "{said}");
    host.fails(&["devd", "--timeout", "1"], 2, "--timeout has no effect");
}
