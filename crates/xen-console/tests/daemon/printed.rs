//! The FIFOs that guests print into.

use crate::repeats::repeats;
use crate::scene::{Scene, WatchingClient, open_terminal, read_until, readable, text_line};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;
use testhost::{Guest, until};
use xen::domctl::{DomainControl, RunState};
use xen_console::fifo::CHUNK_MAX;
use xen_console::service::wire::{ClientAccess, OutputStart};
use xenstore::Store;

/// The option of the daemon.
const GUESTS: &str = "--guests=guests";

fn start(test: &str) -> Option<Scene> {
    Scene::start(test, &[GUESTS])
}

/// Returns the number of lines about a domain's FIFO in the daemon's log.
fn refusals(scene: &Scene, guest: &Guest) -> usize {
    let words = format!("domid={} msg=\"console: the FIFO that it prints into is not", guest.domid);
    scene.host.log("consoled.log").matches(&words).count()
}

fn lines(count: u32) -> Vec<u8> {
    (0..count).flat_map(|number| text_line(number).into_bytes()).collect()
}

#[test]
fn what_is_printed_and_what_the_ring_has_are_one_console() {
    let Some(mut scene) = start("console_printed") else { return };
    let mut guest = scene.printing_guest("web");
    let mut client = WatchingClient::open(&scene, &guest, ClientAccess::Type, OutputStart::Oldest);
    guest.tell("print one");
    scene.logged("web", "one\n");
    guest.tell("say two");
    scene.logged("web", "two\n");
    guest.tell("print three");
    scene.logged("web", "three\n");
    assert_eq!(std::fs::read(scene.log("web")).unwrap(), b"one\ntwo\nthree\n");
    client.sees("one\ntwo\nthree\n");
    let path = scene.terminal(&guest);
    let mut terminal = open_terminal(&path);
    read_until(&mut terminal, "one\ntwo\nthree\n");
    // What is typed goes to the ring alone.
    guest.tell("echo");
    terminal.write_all(b"quit\n").unwrap();
    guest.heard("done echo");
    scene.logged("web", "three\nquit\n");
    assert_eq!(scene.host.log("consoled.log").matches("console: served").count(), 1);
}

#[test]
fn without_the_option_no_fifo_is_read_and_nothing_is_said() {
    let Some(mut scene) = Scene::start("console_no_option", &[]) else { return };
    let mut guest = scene.printing_guest("web");
    guest.tell("print for nobody");
    guest.tell("say for all");
    scene.logged("web", "for all\n");
    assert_eq!(std::fs::read(scene.log("web")).unwrap(), b"for all\n");
    assert!(!scene.host.log("consoled.log").contains("FIFO"));
}

#[test]
fn a_folder_that_is_not_there_costs_the_fifos_alone() {
    let Some(mut scene) = Scene::start("console_no_folder", &["--guests=elsewhere"]) else {
        return;
    };
    let mut guest = scene.printing_guest("web");
    guest.tell("say well");
    scene.logged("web", "well\n");
    let log = scene.host.log("consoled.log");
    assert_eq!(log.matches("no FIFO of a guest is read: elsewhere: ").count(), 1, "{log}");
}

#[test]
fn a_daemon_that_is_killed_while_a_guest_prints_loses_nothing() {
    let Some(mut scene) = start("console_printed_kills") else { return };
    let mut guest = scene.printing_guest("db");
    let count = 60_000;
    guest.tell(&format!("spill {count}"));
    let kills = 10;
    for round in 0..kills {
        std::thread::sleep(Duration::from_millis(20 + 7 * round));
        scene.daemon.kill_and_restart();
        scene.terminal(&guest);
    }
    guest.heard("done spill");
    scene.logged("db", &text_line(count - 1));
    let log = std::fs::read(scene.log("db")).unwrap();
    let twice = repeats(&log, &lines(count), CHUNK_MAX);
    assert!(twice <= kills as usize, "{twice} chunks are there twice");
    // Both ways work with the new daemon.
    guest.tell("say on the ring");
    scene.logged("db", "on the ring\n");
    guest.tell("print in the FIFO");
    scene.logged("db", "in the FIFO\n");
}

#[test]
fn the_last_words_of_a_guest_that_dies_at_once_are_kept() {
    let Some(mut scene) = start("console_printed_last") else { return };
    for number in 0..20 {
        let name = format!("short{number}");
        let mut guest = scene.printing_guest(&name);
        let mut client =
            WatchingClient::open(&scene, &guest, ClientAccess::Watch, OutputStart::Oldest);
        if number % 2 == 0 {
            guest.tell("print last words");
            guest.heard("done print");
        } else {
            guest.tell("last last words");
            until("the guest has ended", || {
                let state = scene.host.control.info(guest.domid).unwrap().state;
                matches!(state, RunState::Shutdown(_))
            });
        }
        scene.destroy(&guest);
        scene.logged(&name, "last words\n");
        until("the client is told of the end", || {
            client.look();
            client.ended
        });
        assert_eq!(client.seen, b"last words\n");
    }
}

#[test]
fn all_that_a_dead_guest_has_printed_is_logged() {
    let Some(mut scene) = start("console_printed_full") else { return };
    // Nobody reads while the guest prints and ends.
    let pid = Pid::from_raw(scene.daemon.id().cast_signed()).unwrap();
    let count = 2000;
    let mut guest = scene.printing_guest("full");
    kill_process(pid, Signal::STOP).unwrap();
    guest.tell(&format!("spill {count}"));
    guest.heard("done spill");
    scene.destroy(&guest);
    kill_process(pid, Signal::CONT).unwrap();
    scene.logged("full", &text_line(count - 1));
    assert!(std::fs::read(scene.log("full")).unwrap() == lines(count));
}

#[test]
fn what_is_printed_after_the_end_of_a_domain_is_logged() {
    let Some(mut scene) = start("console_printed_late") else { return };
    let mut writer = scene.fifo("late");
    let mut guest = scene.printing_guest_into("late", &writer);
    guest.tell("print before");
    scene.logged("late", "before\n");
    scene.destroy(&guest);
    let words = format!("domid={} msg=\"console: the domain is gone", guest.domid);
    until("the daemon has seen the end", || scene.host.log("consoled.log").contains(&words));
    // As a process that has not ended yet.
    writer.write_all(b"after\n").unwrap();
    scene.logged("late", "before\nafter\n");
    // The next life of the name has the FIFO, with what is in it.
    let mut guest = scene.printing_guest_into("late", &writer);
    drop(writer);
    guest.tell("print again");
    scene.logged("late", "after\nagain\n");
    assert_eq!(refusals(&scene, &guest), 0);
}

#[test]
fn a_guest_that_has_closed_its_output_costs_no_time() {
    let Some(mut scene) = start("console_printed_hush") else { return };
    let mut guest = scene.printing_guest("quiet");
    guest.tell("print before");
    scene.logged("quiet", "before\n");
    guest.tell("hush");
    guest.heard("done hush");
    let path = format!("/proc/{}/schedstat", scene.daemon.id());
    let time = || {
        let text = std::fs::read_to_string(&path).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    until("the daemon sleeps", || {
        let before = time();
        std::thread::sleep(Duration::from_millis(50));
        time() == before
    });
    guest.tell("say well");
    scene.logged("quiet", "before\nwell\n");
    // The FIFO is served again once somebody writes into it.
    let mut writer = File::options().write(true).open(scene.guests.join("quiet/output")).unwrap();
    writer.write_all(b"again\n").unwrap();
    scene.logged("quiet", "well\nagain\n");
}

#[test]
fn nothing_but_a_fifo_of_the_guest_is_read() {
    let Some(mut scene) = start("console_printed_links") else { return };
    let mut other = scene.printing_guest("other");
    let folder = |scene: &Scene, name: &str| -> PathBuf {
        let folder = scene.guests.join(name);
        std::fs::create_dir(&folder).unwrap();
        folder.join("output")
    };
    std::fs::write(folder(&scene, "file"), "not this\n").unwrap();
    symlink("../other/output", folder(&scene, "link")).unwrap();
    symlink("/dev/zero", folder(&scene, "device")).unwrap();
    symlink("other", scene.guests.join("elsewhere")).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let names = [
        "file",
        "link",
        "device",
        "elsewhere",
        "absent",
        "..",
        "../guests/other",
        ".hidden",
        "./other",
        "other/",
    ];
    for name in names {
        let mut guest = scene.printing_guest_into(name, &null);
        guest.tell(&format!("say the ring of {name}"));
        let served = format!("domid={} msg=\"console: served", guest.domid);
        until("its ring is served", || scene.host.log("consoled.log").contains(&served));
        assert_eq!(refusals(&scene, &guest), 1, "{name}");
    }
    let mut taker = scene.printing_guest_into("other", &null);
    taker.tell("say the name of another");
    scene.logged(&format!("other.{}", taker.domid), "the name of another\n");
    assert_eq!(refusals(&scene, &taker), 1);
    other.tell("print mine");
    scene.logged("other", "mine\n");
    assert_eq!(std::fs::read(scene.log("other")).unwrap(), b"mine\n");
    for name in ["file", "link", "device", "elsewhere", "absent"] {
        scene.logged(name, &format!("the ring of {name}\n"));
        assert_eq!(std::fs::read_to_string(scene.log(name)).unwrap().lines().count(), 1, "{name}");
    }
}

#[test]
fn a_guest_that_may_change_its_name_has_no_fifo() {
    let Some(mut scene) = start("console_printed_name") else { return };
    let _fifo = scene.fifo("own");
    // The node belongs to the guest.
    let mut guest = scene.guest("own");
    guest.tell("say well");
    scene.logged("own", "well\n");
    assert_eq!(refusals(&scene, &guest), 1);
}

#[test]
fn a_domain_with_another_name_keeps_its_fifo_and_gets_no_others() {
    let Some(mut scene) = start("console_printed_rename") else { return };
    let mut guest = scene.printing_guest("first");
    guest.tell("print one");
    scene.logged("first", "one\n");
    // Of a guest that is not there yet.
    let mut other = scene.fifo("second");
    other.write_all(b"of another\n").unwrap();
    let name = format!("/local/domain/{}/name", guest.domid);
    scene.host.tool.write(&name, "second").unwrap();
    scene.write_nodes(&guest);
    guest.tell("print two");
    scene.logged("first", "one\ntwo\n");
    // The next daemon knows it by the name alone.
    scene.daemon.kill_and_restart();
    scene.terminal(&guest);
    until("the daemon says so", || refusals(&scene, &guest) == 1);
    guest.tell("say on the ring");
    scene.logged("second", "on the ring\n");
    assert_eq!(std::fs::read(scene.log("second")).unwrap(), b"on the ring\n");
    // Under its first name the one after it finds what it has printed meanwhile.
    guest.tell("print three");
    guest.heard("done print");
    scene.host.tool.write(&name, "first").unwrap();
    scene.daemon.kill_and_restart();
    scene.logged("first", "one\ntwo\nthree\n");
    assert_eq!(std::fs::read(scene.log("second")).unwrap(), b"on the ring\n");
}

#[test]
fn a_broken_ring_leaves_the_fifo() {
    let Some(mut scene) = start("console_printed_broken") else { return };
    let mut guest = scene.printing_guest("bad");
    let mut client = WatchingClient::open(&scene, &guest, ClientAccess::Type, OutputStart::Oldest);
    guest.tell("say before");
    scene.logged("bad", "before\n");
    guest.tell("break 4096");
    let words = format!("domid={} msg=\"console: its ring: impossible", guest.domid);
    let said = |scene: &Scene| scene.host.log("consoled.log").matches(&words).count();
    until("the daemon says so", || said(&scene) == 1);
    guest.tell("print in the FIFO");
    scene.logged("bad", "before\nin the FIFO\n");
    client.sees("before\nin the FIFO\n");
    // What is typed is lost, and holds nothing up.
    for _ in 0..10 {
        client.client.type_in(&[b'x'; 1000]).unwrap();
    }
    guest.tell("print still");
    client.sees("still\n");
    assert_eq!(said(&scene), 1, "once");
    // Also for a daemon that finds it broken.
    scene.daemon.kill_and_restart();
    let path = scene.terminal(&guest);
    guest.tell("print to the next");
    scene.logged("bad", "still\nto the next\n");
    read_until(&mut open_terminal(&path), "to the next\n");
    assert_eq!(said(&scene), 2);
}

#[test]
fn a_flood_of_one_guest_leaves_the_others_their_turns() {
    let Some(mut scene) = start("console_printed_flood") else { return };
    // Without end, in long writes and in short ones.
    let mut floods: Vec<Guest> = Vec::new();
    for (name, words) in [("long", "spill 4000000000"), ("short", "trickle 4000000000")] {
        let mut guest = scene.printing_guest(name);
        guest.tell(words);
        floods.push(guest);
    }
    let mut quiet = scene.printing_guest("quiet");
    let mut expected = String::new();
    for number in 0..50 {
        let (ring, fifo) = (format!("ring {number}\n"), format!("fifo {number}\n"));
        quiet.tell(&format!("say {}", ring.trim_end()));
        expected.push_str(&ring);
        scene.logged("quiet", &ring);
        quiet.tell(&format!("print {}", fifo.trim_end()));
        expected.push_str(&fifo);
        scene.logged("quiet", &fifo);
    }
    assert_eq!(std::fs::read_to_string(scene.log("quiet")).unwrap(), expected);
    for name in ["long", "short"] {
        assert!(std::fs::metadata(scene.log(name)).unwrap().len() > 0, "{name} is served");
    }
    for guest in floods {
        scene.destroy(&guest);
    }
}

#[test]
fn a_flood_on_the_ring_leaves_the_same_guests_fifo_its_turns() {
    // One log has all that is waited for.
    let Some(mut scene) = Scene::start("console_printed_both", &[GUESTS, "--log-max=1000000000"])
    else {
        return;
    };
    let mut guest = scene.printing_guest("both");
    let mut writer = File::options().write(true).open(scene.guests.join("both/output")).unwrap();
    guest.tell("flood 4000000000");
    let log = scene.log("both");
    for number in 0..20 {
        let words = format!("printed {number}\n");
        writer.write_all(words.as_bytes()).unwrap();
        until("the log has the words", || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains(&words))
        });
    }
    until("both are served", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains(&text_line(1000)))
    });
    scene.destroy(&guest);
}

#[test]
fn a_full_disk_costs_the_log_and_no_guest_that_prints() {
    let Some(mut scene) = Scene::start_on_small_disk("console_printed_disk", &[GUESTS]) else {
        return;
    };
    let mut guest = scene.printing_guest("a");
    guest.tell("spill 40000");
    guest.heard("done spill");
    let shown = read_until(&mut open_terminal(&scene.terminal(&guest)), &text_line(39_999));
    assert!(shown.contains(&text_line(39_998)), "the newest lines");
    let lost = format!("domid={} msg=\"console: its log cannot be written", guest.domid);
    assert_eq!(scene.host.log("consoled.log").matches(&lost).count(), 1, "once");
}

#[test]
fn output_that_is_kept_for_its_reader_is_whole() {
    let Some(mut scene) = Scene::start("console_printed_keep", &[GUESTS, "--overflow-data=keep"])
    else {
        return;
    };
    let mut guest = scene.printing_guest("a");
    let mut terminal = open_terminal(&scene.terminal(&guest));
    // More than the backlog, the FIFO and the kernel's terminal hold, and on the ring, too.
    guest.tell("spill 60000");
    guest.tell("flood 60000");
    guest.tell("say all of it");
    let shown = read_until(&mut terminal, "all of it\n");
    let twice = [lines(60_000), lines(60_000), b"all of it\n".to_vec()].concat();
    // The end of the one and the beginning of the other may be in either order.
    assert_eq!(shown.len(), twice.len());
    assert!(!shown.contains("were not read"));
    assert!(std::fs::read(scene.log("a")).unwrap() == shown.as_bytes());
}

#[test]
fn nodes_that_go_and_come_again_keep_the_fifo() {
    let Some(mut scene) = start("console_printed_nodes") else { return };
    let mut guest = scene.printing_guest("a");
    let mut expected = String::new();
    for round in 0..3 {
        scene.host.tool.rm(format!("/local/domain/{}/console", guest.domid)).unwrap();
        // Another guest's console is looked at afterwards.
        scene.printing_guest(&format!("other{round}"));
        guest.tell(&format!("print round {round}"));
        guest.heard("done print");
        scene.write_nodes(&guest);
        expected.push_str(&format!("round {round}\n"));
        scene.logged("a", &expected);
    }
    assert_eq!(std::fs::read_to_string(scene.log("a")).unwrap(), expected);
    let name = format!("/local/domain/{}/name", guest.domid);
    assert_eq!(scene.host.tool.get_perms(&name).unwrap(), readable(guest.domid));
    // Without nodes, too, what it has printed is logged at its end.
    scene.host.tool.rm(format!("/local/domain/{}/console", guest.domid)).unwrap();
    guest.tell("print last");
    guest.heard("done print");
    scene.destroy(&guest);
    expected.push_str("last\n");
    scene.logged("a", &expected);
}
