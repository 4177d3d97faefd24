//! Consoles with rings and terminals.

use crate::scene::{Scene, open_terminal, read_until, readable, text_line};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testhost::{Guest, Host, until};
use xen::domctl::DomainControl;
use xen_console::log::{LogPiece, LogReader};
use xenstore::Store;

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
    assert_eq!(
        perms,
        readable(guest.domid),
        "a guest that wrote tty would choose what a client opens (XSA-57)"
    );
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
    // One life over all kills, and a time of each byte.
    let mut reader = LogReader::open(&scene.logs, OsStr::new("guest-db.log")).unwrap();
    let lives: Vec<_> = reader.lives().unwrap().iter().map(|life| life.domid).collect();
    assert_eq!(lives, [Some(guest.domid.0)]);
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while let Some(piece) = reader.next(&mut buffer, u64::MAX).unwrap() {
        if let LogPiece::Output { bytes, time_us: Some(_) } = piece {
            read.extend_from_slice(bytes);
        }
    }
    assert!(read == log.as_bytes(), "{} bytes of {}", read.len(), log.len());
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
        scene.destroy(&guest);
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
    let Some(mut scene) = Scene::start_on_small_disk("console_full_disk", &[]) else { return };
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
