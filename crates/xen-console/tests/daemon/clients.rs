//! Clients of the daemon's socket.

use crate::scene::{Scene, WatchingClient, open_terminal, read_until, readable, text_line};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use testhost::until;
use xen::domctl::DomainControl;
use xen_console::service::wire::{ClientAccess, OutputStart};
use xenstore::Store;

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

/// mirage/mirage 270: a client that comes after the end is shown the last words, too.
#[test]
fn a_client_that_comes_after_the_end_sees_the_last_words() {
    let Some(mut scene) = Scene::start("console_client_late", &[]) else { return };
    let mut guest = scene.guest("brief");
    scene.terminal(&guest);
    guest.tell("say last words");
    guest.heard("done say");
    scene.host.control.destroy(guest.domid).unwrap();
    until("the daemon knows of the end", || {
        scene.host.log("consoled.log").contains("console: the domain is gone")
    });
    for _ in 0..2 {
        let mut client =
            WatchingClient::open(&scene, &guest, ClientAccess::Watch, OutputStart::Oldest);
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

#[test]
fn the_size_of_a_clients_window_reaches_the_guest() {
    let Some(mut scene) = Scene::start("console_window", &[]) else { return };
    let mut guest = scene.guest("a");
    scene.terminal(&guest);
    let open =
        |scene: &Scene| WatchingClient::open(scene, &guest, ClientAccess::Type, OutputStart::Now);
    let (mut first, mut second) = (open(&scene), open(&scene));
    let node = format!("/local/domain/{}/console/window", guest.domid);
    let served = |client: &mut WatchingClient| {
        until("the client is open", || {
            client.look();
            client.opened
        });
    };
    served(&mut first);
    served(&mut second);
    // Without a node none is made.
    first.client.set_size(90, 30).unwrap();
    guest.tell("echo");
    first.client.type_in(b"quit\n").unwrap();
    guest.heard("done echo");
    assert!(!scene.host.tool.exists(&node).unwrap());
    scene.host.tool.write(&node, "").unwrap();
    scene.host.tool.set_perms(&node, &readable(guest.domid)).unwrap();
    let reads = |scene: &mut Scene, words: &str| {
        until("the node has the size", || scene.host.tool.read(&node).unwrap() == words.as_bytes());
    };
    first.client.set_size(132, 50).unwrap();
    reads(&mut scene, "132x50");
    second.client.set_size(u16::MAX, 1).unwrap();
    reads(&mut scene, "65535x1");
    assert_eq!(scene.host.tool.get_perms(&node).unwrap(), readable(guest.domid));
    // A window of no columns or no rows is none.
    for (columns, rows) in [(0, 24), (80, 0), (0, 0)] {
        second.client.set_size(columns, rows).unwrap();
    }
    second.client.set_size(81, 24).unwrap();
    reads(&mut scene, "81x24");
    // A flood of sizes is ten writes a second, and the last one arrives.
    scene.host.tool.watch(&node, "window").unwrap();
    let begin = Instant::now();
    for rows in 1..=5000 {
        first.client.set_size(100, rows).unwrap();
    }
    until("all sizes are sent", || {
        first.client.flush().unwrap();
        !first.client.has_unsent()
    });
    reads(&mut scene, "100x5000");
    let mut writes = 0;
    while scene.host.tool.poll_event().unwrap().is_some() {
        writes += 1;
    }
    let most = 3 + begin.elapsed().as_millis() / 100;
    assert!(u128::try_from(writes).unwrap() <= most, "{writes} writes, {most} are the most");
}
