//! The ends of guests, the actions that follow, and the messages about them.

use super::support::TestHost;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::process::Stdio;

#[test]
fn a_program_that_is_done_at_once_had_its_disk() {
    let host = TestHost::up("at-once");
    let image = host.image("a.img", 1 << 20);
    for (program, status) in [("true", 0), ("exit 3", 3)] {
        let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"{program}\"");
        let config = host.config("job", &rest);
        // The image is released each time, and the name with it.
        for _ in 0..10 {
            let output = host.run(&["create", &config, "--wait"]);
            assert_eq!(output.status.code(), Some(status), "{output:?}");
        }
    }
    host.until_alone();
    // All of it happens while create does not look: the backend waits until create is stopped.
    let config = host.config("job", &format!("disk = [\"{image},,xvda,w\"]\nextra = \"exit 3\""));
    let backend = host.pid("xen-blockd").unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    let child =
        host.command(&["create", &config, "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    host.until("it runs", || {
        (host.try_json(&["info", "job"])?["state"] == "running").then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
    kill_process(backend, Signal::CONT).unwrap();
    host.until_alone();
    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn an_end_before_the_host_came_up_anew_is_not_taken_for_this_one() {
    let host = TestHost::up("anew");
    let config = host.config("job", "extra = \"exit 5\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(5));
    let folder = host.path("h/guests/job");
    let (ended, domid) = (folder.join("ended"), folder.join("domid"));
    let noted = std::fs::read_to_string(&ended).unwrap();
    assert_eq!(noted, "1 crashed destroy 5\n");
    // Numbers begin anew with a broker, and the next one may have the number of the one before.
    std::fs::write(&ended, "2 shutdown preserve 0\n").unwrap();
    std::fs::write(&domid, "2").unwrap();
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(5));
}

#[test]
fn without_a_keeper_the_end_is_told_all_the_same() {
    let host = TestHost::up("no-keeper");
    let config = host
        .config("job", "extra = \"trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done\"");
    let child =
        host.command(&["create", &config, "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    host.until_log("job", "ready");
    host.kill("keeper");
    host.ok(&["shutdown", "job"]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    host.ok(&["host", "up"]);
    host.until_alone();
}

#[test]
fn a_guest_that_is_waited_for_is_followed_over_its_reboots() {
    let host = TestHost::up("followed");
    let program = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let config = host.config("web", &format!("extra = \"{program}\""));
    let child =
        host.command(&["create", &config, "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    host.until_log("web", "ready");
    // It is back when this returns.
    host.ok(&["reboot", "web", "--wait"]);
    assert_eq!(host.json(&["info", "web"])["domid"], json!(2));
    host.until_log("web", "ready");
    host.ok(&["shutdown", "web", "--wait"]);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("web runs again, as domain 2"), "{said}");
}

#[test]
fn who_destroys_a_guest_that_is_waited_for_is_told_of() {
    let host = TestHost::up("taken");
    let config = host.config("web", "extra = \"echo ready; exec sleep 1000\"");
    let child =
        host.command(&["create", &config, "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    host.until_log("web", "ready");
    host.ok(&["destroy", "web"]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("web was destroyed meanwhile"), "{said}");
}

#[test]
fn what_follows_an_end_is_as_the_configuration_says() {
    let host = TestHost::up("after");
    let config = host.config("kept", "on_crash = \"preserve\"\nextra = \"exit 1\"");
    host.ok(&["create", &config]);
    host.until("it has crashed", || {
        (host.json(&["info", "kept"])["state"] == "crashed").then_some(())
    });
    host.fails(&["shutdown", "kept"], 1, "kept has ended (crashed); xb destroy kept takes it down");
    host.ok(&["destroy", "kept"]);
    // A command that waited for it leaves it there, too.
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(1));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(host.json(&["info", "kept"])["state"], "crashed");
    host.ok(&["destroy", "kept"]);
    // It ends at once each time: it is not restarted for ever.
    let config = host.config("hasty", "on_poweroff = \"restart\"\nextra = \"true\"");
    host.ok(&["create", &config]);
    host.until_alone();
    assert!(host.log_of("keeper").contains("hasty has ended once after"));
    // Nor if it requests that: this is a program of its own, and its exit status says reboot.
    let config = host.config("looping", "kernel = \"/bin/sh\"\nextra = \"-c exit${IFS}65\"");
    let output = host.run(&["create", &config, "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let log = host.log_of("keeper");
    assert_eq!(log.matches("looping runs again").count(), 3, "{log}");
    assert!(log.contains("looping has ended 4 times after"), "{log}");
    host.until_alone();
}

#[test]
fn the_folders_of_guests_that_ended_long_ago_are_dropped() {
    let host = TestHost::up("many");
    let guests = host.path("h/guests");
    for number in 0..300 {
        let guest = guests.join(format!("old{number}"));
        std::fs::create_dir(&guest).unwrap();
        std::fs::write(guest.join("domid"), "32000").unwrap();
    }
    let config = host.config("web", "extra = \"exec sleep 1000\"");
    host.ok(&["create", &config]);
    host.until("the oldest are gone", || {
        (super::traces::entries(&guests).len() == 257).then_some(())
    });
    assert!(!guests.join("old0").exists() && guests.join("old299").exists());
    assert!(guests.join("web/config").exists(), "who runs keeps its folder");
}

#[test]
fn a_log_is_bounded_and_all_that_comes_is_shown() {
    let host = TestHost::up("chatty");
    let program =
        "for n in 1 2 3 4 5; do sleep 0.5; seq ${n}00000 ${n}80000; done; sleep 0.5; echo the end";
    let config = host.config("chatty", &format!("extra = \"{program}\""));
    host.ok(&["create", &config]);
    let mut follow =
        host.command(&["log", "chatty", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let output = follow.stdout.take().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(output)).map(Result::unwrap);
    let shown: Vec<String> = lines.take_while(|line| line != "the end").collect();
    let numbers: Vec<u32> = shown.iter().filter_map(|line| line.parse().ok()).collect();
    kill_process(Pid::from_child(&follow), Signal::INT).unwrap();
    assert_eq!(follow.wait().unwrap().code(), Some(130));
    // It was set aside twice meanwhile, at least half a second apart.
    let printed: Vec<u32> = (1..=5).flat_map(|n| n * 100_000..=n * 100_000 + 80_000).collect();
    assert!(numbers == printed, "{} of {} lines", numbers.len(), printed.len());
    let sizes = super::traces::entries(&host.path("h/console"));
    let all: u64 = sizes.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(all < 3 << 20, "{all} bytes of a log that was 2.8 MB");
    // On a terminal the log moves no cursor.
    let config = host.config("wild", "extra = \"printf '\\\\033[2Jred\\\\n'\"");
    host.ok(&["create", &config]);
    host.until_log("wild", "\u{1b}[2Jred\n");
    let line = format!("{} --host {} log wild", super::support::XB, host.path("h").display());
    let output =
        std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("?[2Jred") && !shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn an_exit_status_is_passed_on() {
    let host = TestHost::up("status");
    for status in [0, 3, 0x41, 255] {
        let config = host.config("job", &format!("extra = \"exit {status}\""));
        let output = host.run(&["create", &config, "--wait"]);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
    }
    let config = host.config("job", "extra = \"kill -9 $$\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(128 + 9));
    // A program of one's own instead of the guest init: its status is not reported, only the
    // reason.
    let config = host.config("own", "kernel = \"/bin/false\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(1));
    let config = host.config("own", "kernel = \"/bin/true\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(0));
    host.until_alone();
}

/// A guest that does not end is named, also by status, and ended once it can be.
#[test]
fn a_guest_that_does_not_end_is_told_of() {
    let freezer = std::path::PathBuf::from("/sys/fs/cgroup/freezer");
    let group = freezer.join(format!("xb-test-{}", std::process::id()));
    if std::fs::create_dir(&group).is_err() {
        // In version 2 a frozen process ends by SIGKILL.
        conformance::skip("a guest that does not end", "no freezer of version 1 may be used here");
        return;
    }
    let host = TestHost::up("stays");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let broker = host.pid("broker").unwrap().as_raw_nonzero();
    let children = format!("/proc/{broker}/task/{broker}/children");
    let pid = std::fs::read_to_string(children).unwrap().trim().to_owned();
    std::fs::write(group.join("cgroup.procs"), &pid).unwrap();
    let state = |word: &str| std::fs::write(group.join("freezer.state"), word).unwrap();
    state("FROZEN");
    host.fails(&["destroy", "web", "--timeout", "1"], 3, "domain 1 is gone (it is dying");
    assert_eq!(host.json(&["list"])[1]["state"], "dying");
    host.fails(
        &["host", "down"],
        1,
        &format!("of its guests is left: process {pid}, control group"),
    );
    assert!(host.path("h").exists(), "for another try");
    state("THAWED");
    assert!(host.ok(&["host", "down"]).contains("is down"));
    std::fs::remove_dir(&group).unwrap();
}

/// A broker that was killed leaves nothing, whichever program takes its host down, in whatever
/// folder it was started.
#[test]
fn a_host_whose_broker_was_killed_is_taken_down_whole() {
    let host = TestHost::up("broker-killed");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.kill("broker");
    assert!(host.ok(&["host", "down"]).contains("is down"));
    host.nothing_is_left();
}

/// A guest that crashes again and again is started again later each time, and who destroys it ends
/// that.
#[test]
fn a_loop_of_crashes_is_slowed_down() {
    let host = TestHost::up("loop");
    let config = host.config("bad", "on_crash = \"restart\"\nextra = \"exit 1\"");
    let begin = std::time::Instant::now();
    host.ok(&["create", &config]);
    let info = host.until("it waits for its third restart", || {
        let info = host.try_json(&["info", "bad"])?;
        (info["restarts"] == 2 && info["restarts_in_s"].is_number()).then_some(info)
    });
    // One second and two, and now four.
    assert!(begin.elapsed() >= std::time::Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(info["state"], "crashed");
    assert!((1.0..=4.0).contains(&info["restarts_in_s"].as_f64().unwrap()), "{info}");
    let table = host.ok(&["list"]);
    assert!(table.contains("crashed, restarts in "), "{table}");
    assert!(
        host.log_of("keeper").contains("bad (domain 2): crashed, exit status 1: restart in 2.0 s")
    );
    host.ok(&["destroy", "bad"]);
    host.until("the keeper knows", || {
        let ended = std::fs::read_to_string(host.path("h/guests/bad/ended")).ok()?;
        ended.starts_with("3 crashed destroy 1").then_some(())
    });
    host.until_alone();
}
