//! Further consoles of guests, which are devices of the bus.

use crate::scene::{Scene, WatchingClient, open_terminal, read_until, readable, text_line};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use testhost::{Guest, until};
use xen::DomId;
use xen::gnttab::{OfferedPage, PageAccess};
use xen_console::bus_front::{BusConsole, KIND};
use xen_console::log::{IndexEvent, read_index};
use xen_console::pty::open_far_end;
use xen_console::serve::further::NUMBER_MAX;
use xen_console::service::wire::{ClientAccess, OutputStart};
use xen_driver::Channel;
use xen_driver::frontend::Platform;
use xen_driver::process::guest::GuestConnections;
use xen_io::console::offset;
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Id, Side, State};
use xenstore::{Client, Perm, Store};

/// The name of the guest's part.
const PART: &str = "consoles";
/// The variable of a guest that connects its consoles by hand.
const BY_HAND: &str = "CONSOLES_BY_HAND";

/// A guest with further consoles. Each line of its input is a command; the first word behind the
/// command is the number of a console.
pub(crate) fn guest() {
    let GuestConnections { domid, mut store, platform, .. } = GuestConnections::hosted().unwrap();
    let make = {
        let platform = platform.clone();
        move |_| BusConsole::new(platform.clone())
    };
    let evtchn = std::rc::Rc::clone(&platform.evtchn);
    let is_raw = std::env::var_os(BY_HAND).is_some();
    let bus =
        Bus::start(&mut store, Side::Frontend, domid, if is_raw { "none" } else { KIND }, make);
    let bus = bus.unwrap();
    let mut guest = BusGuest {
        domid,
        guest: xen_driver::Guest::new(store, evtchn),
        bus,
        platform,
        forged: BTreeMap::new(),
        poured: 0,
    };
    let commands = commands();
    loop {
        let line = match commands.try_recv() {
            Ok(line) => line,
            Err(std::sync::mpsc::TryRecvError::Empty) => {
                guest.turn();
                continue;
            }
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
        };
        let mut words = line.splitn(3, ' ');
        let command = words.next().unwrap_or_default().to_owned();
        let number = words.next().map_or(0, |number| number.parse().unwrap());
        guest.act(&command, number, words.next().unwrap_or_default());
        println!("> done {command}");
    }
}

/// Returns the lines of standard input.
fn commands() -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The state of the guest's part.
struct BusGuest {
    domid: DomId,
    guest: xen_driver::Guest,
    bus: Bus<BusConsole>,
    platform: Platform,
    /// Rings that were made by hand.
    forged: BTreeMap<u32, (OfferedPage, Channel)>,
    /// The consoles up to this number are flooded all the time.
    poured: u32,
}

impl BusGuest {
    fn turn(&mut self) {
        let bytes = text_line(0).repeat(64);
        for number in 1..=self.poured {
            let id = self.id(number);
            if let Some(console) = self.bus.driver(id) {
                while console.write(bytes.as_bytes()).unwrap() > 0 {}
            }
        }
        self.guest.turn(&mut [&mut self.bus], Duration::from_millis(2), &[]).unwrap();
    }

    fn id(&self, number: u32) -> Id {
        Id { frontend: self.domid, devid: number }
    }

    fn act(&mut self, command: &str, number: u32, argument: &str) {
        match command {
            "say" => self.send(number, format!("{argument}\n").as_bytes()),
            "send" => self.send(number, argument.as_bytes()),
            "flood" => {
                for line in 0..argument.parse().unwrap() {
                    self.send(number, text_line(line).as_bytes());
                }
            }
            "echo" => self.echo(number),
            "pour" => self.poured = number,
            "connected" => {
                self.until(|guest| guest.bus.state(guest.id(number)) == Some(State::Connected));
            }
            "leave" => {
                let id = self.id(number);
                self.bus.leave(self.guest.store(), id).unwrap();
                self.until(|guest| guest.bus.state(id) == Some(State::Closed));
            }
            "again" => self.write(number, "state", "1"),
            "offer" => {
                let mut grants = self.platform.grants.borrow_mut();
                let page = grants.offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
                drop(grants);
                let channel = Channel::offer(&self.platform.evtchn, DomId::DOM0).unwrap();
                self.write(number, "ring-ref", &page.grant().to_string());
                self.write(number, "port", &channel.port().to_string());
                self.forged.insert(number, (page, channel));
            }
            "put" => {
                let (page, channel) = &self.forged[&number];
                let (word, value) = argument.split_once(' ').unwrap();
                page.page().store_u32(word.parse().unwrap(), value.parse().unwrap()).unwrap();
                let _ = channel.notify();
            }
            "write" => {
                let (node, value) = argument.split_once(' ').unwrap();
                self.write(number, node, value);
            }
            "forge" => {
                // A test host lets the guest make the folder anew, as no host of libxl's does.
                let folder = xenbus::path::frontend(KIND, self.id(number));
                let nodes = [("type", "xenconsoled"), ("backend-id", "0"), ("tty", argument)];
                let perms = [format!("n{}", self.domid), "r0".to_owned()];
                let perms = perms.map(|perm| Perm::parse(perm.as_bytes()).unwrap());
                let store = self.guest.store();
                let _ = store.write(format!("{folder}/tty"), argument).unwrap_err();
                store.rm(&folder).unwrap();
                store
                    .transaction(|tx| {
                        for (node, value) in nodes.iter().chain(&[("state", "1")]) {
                            tx.write(format!("{folder}/{node}"), value)?;
                            tx.set_perms(format!("{folder}/{node}"), &perms)?;
                        }
                        Ok(())
                    })
                    .unwrap();
            }
            "remove" => {
                let folder = xenbus::path::frontend(KIND, self.id(number));
                self.guest.store().rm(folder).unwrap();
            }
            _ => panic!("{command}"),
        }
    }

    /// Writes one of the console's own nodes.
    fn write(&mut self, number: u32, node: &str, value: &str) {
        let folder = xenbus::path::frontend(KIND, self.id(number));
        self.guest.store().write(format!("{folder}/{node}"), value).unwrap();
    }

    fn until(&mut self, mut so: impl FnMut(&mut Self) -> bool) {
        until("the guest has what it waits for", || {
            self.turn();
            so(self)
        });
    }

    /// Writes all bytes, as the ring has room.
    fn send(&mut self, number: u32, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let id = self.id(number);
            let console = self.bus.driver(id);
            let count = console.map_or(0, |console| console.write(bytes).unwrap());
            bytes = &bytes[count..];
            if count == 0 {
                self.turn();
            }
        }
    }

    /// Answers each line that is typed, until `quit`.
    fn echo(&mut self, number: u32) {
        let (id, mut typed) = (self.id(number), Vec::new());
        while typed != b"quit\n" && !typed.ends_with(b"\nquit\n") {
            let mut bytes = [0; 256];
            let console = self.bus.driver(id);
            let count = console.map_or(0, |console| console.read(&mut bytes).unwrap());
            if count == 0 {
                self.turn();
                continue;
            }
            if typed.ends_with(b"\n") {
                typed.clear();
            }
            typed.extend_from_slice(&bytes[..count]);
            self.send(number, &bytes[..count]);
        }
    }
}

impl Scene {
    /// Makes a guest that plays the part with further consoles.
    pub(crate) fn bus_guest(&mut self, name: &str) -> Guest {
        let guest =
            Guest::create(&mut self.host, "part", |config| testhost::set_part(config, PART));
        self.host.tool.write(format!("/local/domain/{}/name", guest.domid), name).unwrap();
        self.write_nodes(&guest);
        guest
    }

    /// Makes such a guest that connects no console by itself.
    fn hand_guest(&mut self, name: &str) -> Guest {
        let guest = Guest::create(&mut self.host, "part", |config| {
            testhost::set_part(config, PART);
            config.env.push(format!("{BY_HAND}=1").into());
        });
        self.host.tool.write(format!("/local/domain/{}/name", guest.domid), name).unwrap();
        guest
    }

    /// Adds a console to a guest as libxl does, with these nodes of the backend besides.
    pub(crate) fn add_console(
        &mut self,
        guest: &Guest,
        number: u32,
        kind: &str,
        nodes: &[(&str, &str)],
    ) -> NewDevice {
        let device = console_device(guest, number, kind, nodes);
        toolstack::add(&mut self.host.tool, &device).unwrap();
        device
    }

    /// Adds a console that is for the daemon, and waits until it is connected.
    pub(crate) fn connect_console(&mut self, guest: &mut Guest, number: u32) -> NewDevice {
        let device = self.add_console(guest, number, "xenconsoled", &[]);
        guest.tell(&format!("connected {number}"));
        guest.heard("done connected");
        device
    }

    /// Returns the path of a console's terminal, once there is one that can be opened.
    pub(crate) fn terminal_of(&mut self, device: &NewDevice) -> PathBuf {
        let node = format!("{}/tty", device.frontend_path());
        let mut path = PathBuf::new();
        until("the console has a terminal", || {
            let value = self.host.tool.read(&node).unwrap();
            path = String::from_utf8(value).unwrap().into();
            open_far_end(&path).is_ok()
        });
        path
    }

    /// Waits until the backend of a device has a state.
    pub(crate) fn backend_is(&mut self, device: &NewDevice, state: State) {
        let node = format!("{}/state", device.backend_path());
        let (path, tool) = (device.backend_path(), &mut self.host.tool);
        until(&format!("{path} is {state}"), || {
            let value = tool.try_read(&node).unwrap().unwrap_or_default();
            State::parse(&value) == state
        });
    }

    /// Takes a console away, as a toolstack does.
    pub(crate) fn remove_console(&mut self, device: &NewDevice) {
        toolstack::detach(&mut self.host.tool, device).unwrap();
        self.backend_is(device, State::Closed);
        toolstack::forget(&mut self.host.tool, device).unwrap();
    }

    /// Waits until the daemon has said these words.
    pub(crate) fn daemon_says(&self, words: &str) {
        until(words, || self.host.log("consoled.log").contains(words));
    }
}

/// A console with libxl's nodes.
fn console_device(guest: &Guest, number: u32, kind: &str, nodes: &[(&str, &str)]) -> NewDevice {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let id = Id { frontend: guest.domid, devid: number };
    let mut device = NewDevice::new(KIND, id, DomId::DOM0);
    device.frontend_nodes = vec![pair(&("protocol", "vt100"))];
    let fixed = [("limit", "1048576"), ("type", kind), ("output", "pty"), ("tty", "")];
    device.frontend_fixed = fixed.iter().map(pair).collect();
    device.backend_nodes = std::iter::once(&("protocol", "vt100")).chain(nodes).map(pair).collect();
    device
}

/// Returns all nodes below a path, with their values.
fn nodes(tool: &mut Client, path: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(value) = tool.read(&path) else { continue };
        let children = tool.directory(&path).unwrap();
        left.extend(
            children.iter().map(|name| format!("{path}/{}", String::from_utf8_lossy(name))),
        );
        found.insert(path, value);
    }
    found
}

#[test]
fn two_consoles_of_a_guest_go_both_ways_and_into_their_logs() {
    let Some(mut scene) = Scene::start("further_both_ways", &[]) else { return };
    let mut guest = scene.bus_guest("web");
    let mut terminals = Vec::new();
    for number in [1, 2] {
        let device = scene.connect_console(&mut guest, number);
        guest.tell(&format!("say {number} words of {number}"));
        scene.logged(&format!("web.console-{number}"), &format!("words of {number}\n"));
        let node = format!("{}/tty", device.frontend_path());
        let perms = scene.host.tool.get_perms(&node).unwrap();
        assert_eq!(perms, readable(guest.domid), "what a client opens is not the guest's to say");
        terminals.push(open_terminal(&scene.terminal_of(&device)));
    }
    for (number, terminal) in (1..).zip(&mut terminals) {
        let shown = read_until(terminal, &format!("words of {number}\n"));
        assert_eq!(shown, format!("words of {number}\n"), "and none of the other");
        guest.tell(&format!("echo {number}"));
        for line in ["id", "quit"] {
            terminal.write_all(format!("{line}\n").as_bytes()).unwrap();
            read_until(terminal, &format!("{line}\n"));
        }
        guest.heard("done echo");
    }
    // Clients of the socket say which one they want; without a number it is the first one.
    let mut first = WatchingClient::open(&scene, &guest, ClientAccess::Type, OutputStart::Oldest);
    let mut second = WatchingClient::open_numbered(
        &scene,
        (&guest.domid.to_string(), 2),
        ClientAccess::Type,
        OutputStart::Oldest,
    );
    let mut named =
        WatchingClient::open_numbered(&scene, ("web", 1), ClientAccess::Watch, OutputStart::Oldest);
    second.sees("quit\n");
    named.sees("quit\n");
    assert!(second.seen.starts_with(b"words of 2\n") && named.seen.starts_with(b"words of 1\n"));
    guest.tell("echo 2");
    second.client.type_in(b"typed\nquit\n").unwrap();
    guest.heard("done echo");
    second.sees("typed\nquit\n");
    first.look();
    assert!(first.opened && first.seen.is_empty());
}

#[test]
fn a_killed_daemon_loses_and_doubles_nothing_of_further_consoles() {
    let Some(mut scene) = Scene::start("further_killed", &[]) else { return };
    let (mut one, mut other) = (scene.bus_guest("one"), scene.bus_guest("other"));
    let device = scene.connect_console(&mut one, 1);
    scene.connect_console(&mut other, 3);
    let lines = 30_000;
    one.tell(&format!("flood 1 {lines}"));
    other.tell(&format!("flood 3 {lines}"));
    let served =
        |scene: &Scene| scene.host.log("consoled.log").matches("console 1: served").count();
    for round in 0..10_u8 {
        // A daemon that is killed before it has come to serve shows nothing.
        until("the console is served", || served(&scene) == usize::from(round) + 1);
        std::thread::sleep(Duration::from_millis(20 + 7 * u64::from(round)));
        scene.daemon.kill_and_restart();
    }
    let expected: String = (0..lines).map(text_line).collect();
    for (guest, log) in [(&mut one, "one.console-1"), (&mut other, "other.console-3")] {
        guest.heard("done flood");
        scene.logged(log, &text_line(lines - 1));
        let log = std::fs::read_to_string(scene.log(log)).unwrap();
        assert!(log == expected, "{} bytes of {}", log.len(), expected.len());
    }
    // The new daemon's terminal is shown and served.
    one.tell("echo 1");
    let path = scene.terminal_of(&device);
    open_terminal(&path).write_all(b"quit\n").unwrap();
    one.heard("done echo");
    assert_eq!(served(&scene), 11);
}

#[test]
fn a_frontend_that_closes_and_comes_back_goes_on_where_it_was() {
    let Some(mut scene) = Scene::start("further_reopened", &[]) else { return };
    let mut guest = scene.bus_guest("web");
    let device = scene.connect_console(&mut guest, 1);
    let path = scene.terminal_of(&device);
    let mut terminal = open_terminal(&path);
    let mut expected = String::new();
    for round in 0..6 {
        // Each ring begins at the same index, with the same reference and port.
        let words = format!("round {round}\n");
        guest.tell(&format!("say 1 round {round}"));
        expected.push_str(&words);
        scene.logged("web.console-1", &expected);
        read_until(&mut terminal, &words);
        if round % 2 == 1 {
            scene.daemon.kill_and_restart();
            scene.daemon_says(&format!("domid={}", guest.domid));
            terminal = open_terminal(&scene.terminal_of(&device));
        }
        guest.tell("leave 1");
        guest.heard("done leave");
        guest.tell("again 1");
        guest.tell("connected 1");
        guest.heard("done connected");
    }
    assert_eq!(std::fs::read_to_string(scene.log("web.console-1")).unwrap(), expected);
    let index = File::open(scene.logs.join("guest-web.console-1.log.index")).unwrap();
    let inode = std::fs::metadata(scene.log("web.console-1")).unwrap().ino();
    let records = read_index(index, inode).unwrap().unwrap();
    let lives = records.iter().filter(|record| matches!(record.event, IndexEvent::Life(_)));
    assert_eq!(lives.count(), 1, "all is of one life of the guest");
}

#[test]
fn a_frontend_that_is_hostile_costs_itself_alone() {
    let Some(mut scene) = Scene::start("further_hostile", &[]) else { return };
    let mut good = scene.bus_guest("good");
    scene.connect_console(&mut good, 1);
    let mut bad = scene.hand_guest("bad");
    let mut number = 0;
    let mut well = |scene: &mut Scene| {
        number += 1;
        good.tell(&format!("say 1 {number}"));
        scene.logged("good.console-1", &format!("{number}\n"));
        assert!(scene.daemon.is_running());
    };
    // Rings and ports that are none, or another's.
    let values = ["0", "1", "4294967295", "4294967296", "-1", "x", ""];
    for (ring, port) in values.iter().flat_map(|value| [(Some(value), None), (None, Some(value))]) {
        let device = scene.add_console(&bad, 2, "xenconsoled", &[]);
        scene.backend_is(&device, State::InitWait);
        bad.tell("offer 2");
        for (node, value) in [("ring-ref", ring), ("port", port)] {
            if let Some(value) = value {
                bad.tell(&format!("write 2 {node} {value}"));
            }
        }
        bad.tell("write 2 state 3");
        bad.heard("done write");
        // The pages with the numbers 0 and 1 are the guest's own, of its first console and its store.
        let own = ring.is_some_and(|value| ["0", "1"].contains(value));
        scene.backend_is(&device, if own { State::Connected } else { State::Closing });
        well(&mut scene);
        let error = scene.host.tool.try_read(format!("{}/error", device.backend_path())).unwrap();
        assert_eq!(error.is_some(), !own, "{ring:?} {port:?}: {error:?}");
        toolstack::detach(&mut scene.host.tool, &device).unwrap();
        toolstack::forget(&mut scene.host.tool, &device).unwrap();
    }
    // Indices that are impossible.
    for (word, value) in [
        (offset::OUT_PROD, 2049_u32),
        (offset::OUT_PROD, u32::MAX),
        (offset::OUT_CONS, 7),
        (offset::IN_CONS, 9),
        (offset::IN_PROD, 0x8000_0000),
    ] {
        let device = scene.add_console(&bad, 3, "xenconsoled", &[]);
        bad.tell("offer 3");
        bad.tell(&format!("put 3 {word} {value}"));
        bad.tell("write 3 state 4");
        bad.heard("done write");
        let is_input = word < offset::OUT_CONS;
        if is_input {
            // Nothing is typed yet, so that nothing is looked at: it may be connected.
            scene.terminal_of(&device);
        } else {
            scene.backend_is(&device, State::Closing);
        }
        well(&mut scene);
        toolstack::detach(&mut scene.host.tool, &device).unwrap();
        toolstack::forget(&mut scene.host.tool, &device).unwrap();
    }
    // States in no order.
    let device = scene.add_console(&bad, 4, "xenconsoled", &[]);
    scene.backend_is(&device, State::InitWait);
    for state in ["4", "9", "7", "3", "x", "8", "2", "0", "6", "5", "1", "3", "4", "1", "6"] {
        bad.tell(&format!("write 4 state {state}"));
        bad.heard("done write");
        well(&mut scene);
    }
}

#[test]
fn a_frontend_as_linux_has_it_is_served_and_a_broken_ring_is_given_up() {
    let Some(mut scene) = Scene::start("further_linux", &[]) else { return };
    let mut guest = scene.hand_guest("lin");
    let device = scene.add_console(&guest, 5, "xenconsoled", &[]);
    // It looks at no state before Connected.
    guest.tell("offer 5");
    guest.tell("write 5 state 3");
    scene.backend_is(&device, State::Connected);
    guest.tell("write 5 state 4");
    guest.heard("done write");
    guest.tell(&format!("put 5 {} 0", offset::OUT_PROD));
    guest.tell(&format!("put 5 {} 4096", offset::OUT_PROD));
    scene.backend_is(&device, State::Closing);
    let words = "console 5: its ring: impossible";
    scene.daemon_says(words);
    assert_eq!(scene.host.log("consoled.log").matches(words).count(), 1, "once");
    guest.tell("write 5 state 6");
    scene.backend_is(&device, State::Closed);
    toolstack::forget(&mut scene.host.tool, &device).unwrap();
    scene.daemon_says("console 5: its device is gone");
}

#[test]
fn consoles_of_qemu_are_left_alone_in_every_state() {
    let Some(mut scene) = Scene::start("further_ioemu", &[]) else { return };
    let (mut guest, mut fence) = (scene.hand_guest("hvm"), scene.bus_guest("fence"));
    let theirs = scene.add_console(&guest, 2, "ioemu", &[("connection", "pty"), ("name", "x")]);
    let other = scene.add_console(&guest, 3, "else", &[]);
    // Of the first console, the backend's folder alone is one of a device.
    let first = format!("/local/domain/0/backend/console/{}/0", guest.domid);
    let front = format!("/local/domain/{}/console", guest.domid);
    for (node, value) in [("frontend", &*front), ("frontend-id", "1"), ("online", "1")] {
        scene.host.tool.write(format!("{first}/{node}"), value).unwrap();
    }
    scene.host.tool.write(format!("{first}/state"), "1").unwrap();
    let folders = [&theirs, &other].map(|device| [device.frontend_path(), device.backend_path()]);
    let folders = [folders.concat(), vec![first]].concat();
    let mut untouched = |scene: &mut Scene| {
        let look = |scene: &mut Scene| -> Vec<_> {
            let tool = &mut scene.host.tool;
            folders.iter().map(|folder| nodes(tool, folder)).collect()
        };
        let before = look(scene);
        // What the daemon has to do for an event before this one is done then.
        let device = scene.connect_console(&mut fence, 1);
        scene.remove_console(&device);
        assert_eq!(before, look(scene), "a node has changed");
    };
    for state in ["1", "2", "3", "4", "5", "6", "0"] {
        for device in [&theirs, &other] {
            scene.host.tool.write(format!("{}/state", device.frontend_path()), state).unwrap();
            scene.host.tool.write(format!("{}/state", device.backend_path()), state).unwrap();
        }
        untouched(&mut scene);
    }
    scene.host.tool.write(format!("{}/online", theirs.backend_path()), "0").unwrap();
    untouched(&mut scene);
    scene.daemon.kill_and_restart();
    untouched(&mut scene);
    // The guest may remove the folder, and with it the word on whose console it is.
    guest.tell("remove 2");
    guest.heard("done remove");
    scene.host.tool.write(format!("{}/state", theirs.backend_path()), "4").unwrap();
    untouched(&mut scene);
    scene.daemon.kill_and_restart();
    untouched(&mut scene);
    let log = scene.host.log("consoled.log");
    assert!(!log.contains("console 2") && !log.contains("console 3"), "{log}");
}

#[test]
fn xsa_57_a_terminal_that_a_guest_has_forged_is_replaced() {
    let Some(mut scene) = Scene::start("further_xsa_57", &[]) else { return };
    let mut guest = scene.hand_guest("a");
    let device = scene.add_console(&guest, 1, "xenconsoled", &[]);
    let path = scene.terminal_of(&device);
    let node = format!("{}/tty", device.frontend_path());
    for is_restarted in [false, true] {
        guest.tell("forge 1 /etc/shadow");
        guest.heard("done forge");
        assert!(open_far_end("/etc/shadow".as_ref()).is_err(), "no client of ours opens it");
        if is_restarted {
            scene.daemon.kill_and_restart();
        } else {
            guest.tell("offer 1");
            guest.tell("write 1 state 3");
        }
        let again = scene.terminal_of(&device);
        assert!(is_restarted || again == path);
        assert_eq!(scene.host.tool.get_perms(&node).unwrap(), readable(guest.domid));
    }
}

#[test]
fn the_last_words_of_a_console_that_goes_are_logged_and_reach_its_clients() {
    let Some(mut scene) = Scene::start("further_last_words", &[]) else { return };
    let mut guest = scene.bus_guest("a");
    for round in 0..5 {
        let device = scene.connect_console(&mut guest, 1);
        let mut client = WatchingClient::open_numbered(
            &scene,
            ("a", 1),
            ClientAccess::Watch,
            OutputStart::Oldest,
        );
        until("the client is open", || {
            client.look();
            client.opened
        });
        guest.tell(&format!("say 1 last words {round}"));
        guest.heard("done say");
        scene.remove_console(&device);
        scene.logged("a.console-1", &format!("last words {round}\n"));
        until("the client is told of the end", || {
            client.look();
            client.ended
        });
        assert_eq!(client.seen, format!("last words {round}\n").as_bytes());
        assert!(
            !scene
                .host
                .dir
                .path()
                .join("host/xenconsoled")
                .join(format!("{}.1", guest.domid))
                .exists()
        );
    }
}

#[test]
fn a_guest_with_the_most_consoles_has_no_more_of_the_daemon() {
    let Some(mut scene) = Scene::start("further_most", &[]) else { return };
    let mut quiet = scene.bus_guest("quiet");
    scene.connect_console(&mut quiet, 1);
    let mut guest = scene.bus_guest("many");
    for number in 1..=NUMBER_MAX {
        scene.connect_console(&mut guest, number);
    }
    let beyond = scene.add_console(&guest, NUMBER_MAX + 1, "xenconsoled", &[]);
    scene.backend_is(&beyond, State::Closed);
    let why = scene.host.tool.read(format!("{}/error", beyond.backend_path())).unwrap();
    let words = format!("console {} of domain {} is not served", NUMBER_MAX + 1, guest.domid);
    assert!(String::from_utf8_lossy(&why).contains(&words), "{why:?}");
    for number in 1..=NUMBER_MAX {
        guest.tell(&format!("say {number} here is {number}"));
        scene.logged(&format!("many.console-{number}"), &format!("here is {number}\n"));
    }
    // Beyond what is taken at once, on one of them.
    guest.tell("flood 2 500000");
    let log = scene.log("many.console-2");
    until("the flood is limited", || std::fs::metadata(&log).is_ok_and(|log| log.len() > 8 << 20));
    for round in 0..20 {
        quiet.tell(&format!("say 1 {round}"));
        scene.logged("quiet.console-1", &format!("{round}\n"));
    }
    guest.heard("done flood");
    scene.logged("many.console-2", &text_line(499_999));
}

#[test]
fn a_flood_on_one_console_leaves_the_others_of_its_guest_their_turns() {
    let Some(mut scene) = Scene::start("further_turns", &[]) else { return };
    let mut guest = scene.bus_guest("busy");
    for number in 1..=NUMBER_MAX {
        scene.connect_console(&mut guest, number);
    }
    // The daemon comes to the last one behind all others in each of its turns.
    let last = NUMBER_MAX;
    guest.tell(&format!("pour {}", last - 1));
    let logs: Vec<_> =
        (1..last).map(|number| scene.log(&format!("busy.console-{number}"))).collect();
    let len = || -> u64 {
        logs.iter().map(|log| std::fs::metadata(log).map_or(0, |log| log.len())).sum()
    };
    until("the flood is beyond what is taken at once", || len() > 9 << 20);
    let begin = len();
    for round in 0..10 {
        let before = len();
        guest.tell(&format!("say {last} {round}"));
        scene.logged(&format!("busy.console-{last}"), &format!("{round}\n"));
        until("the flood goes on", || len() > before);
    }
    // A turn of all is 32 KiB. Without turns, each word waits for some MiB.
    let passed = len() - begin;
    assert!(passed < 8 << 20, "{passed} bytes of the flood have passed before ten words");
    scene.destroy(&guest);
}

#[test]
fn logs_of_further_consoles_are_opened_again_and_are_not_removed_while_they_are_in_use() {
    let Some(mut scene) = Scene::start("further_logs", &["--log-count=2"]) else { return };
    let mut guest = scene.bus_guest("web");
    for number in 1..=4 {
        scene.connect_console(&mut guest, number);
        guest.tell(&format!("say {number} before"));
        scene.logged(&format!("web.console-{number}"), "before\n");
    }
    let mut ended = scene.bus_guest("ended");
    let device = scene.connect_console(&mut ended, 1);
    ended.tell("say 1 words");
    scene.logged("ended.console-1", "words\n");
    scene.remove_console(&device);
    scene.daemon_says("console 1: its device is gone");
    scene.connect_console(&mut ended, 2);
    let gone = scene.log("ended.console-1");
    until("the log of a console that is gone is removed", || !gone.exists());
    let moved = scene.logs.join("moved");
    std::fs::rename(scene.log("web.console-1"), &moved).unwrap();
    let pid = rustix::process::Pid::from_raw(scene.daemon.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let log = scene.log("web.console-1");
    until("the log is there again", || log.exists());
    for number in 1..=4 {
        guest.tell(&format!("say {number} after"));
        scene.logged(&format!("web.console-{number}"), "after\n");
    }
    assert_eq!(std::fs::read_to_string(moved).unwrap(), "before\n");
}
