//! Tests that a store continues from the stream of another.

use super::{GLOBAL, control, dump, dump_again, dump_with, full, lasting, restore, taken_over};
use crate::common::model::{Choices, FinalState, SeededChoices, reach, request};
use crate::common::{StoreReply, TestStore};
use std::collections::BTreeMap;
use xenstore_core::limits::HOLD_MAX_US;
use xenstore_core::server::{ConnId, DomId, EndReason};
use xenstore_core::stream::TransportState;
use xenstore_core::wire::{Header, MsgType, split_message};

/// The result of random operations is unchanged after it was written and read.
#[test]
fn a_state_comes_back_as_it_was() {
    for seed in 0..60 {
        let FinalState { mut store, .. } =
            reach(SeededChoices::new(seed, 300 + 10 * seed as usize));
        let stream = dump(&store.server);
        let again = dump_again(&restore(&stream).unwrap());
        assert!(lasting(stream.clone()) == lasting(again), "seed {seed}");
        let (mut other, _) = taken_over(&store, &stream);
        other.check();
        store.check();
    }
}

/// Two stores that get the same requests.
struct Twins {
    stores: [TestStore; 2],
    conns: Vec<[ConnId; 2]>,
    open: Vec<(usize, u32)>,
}

impl Twins {
    fn new(mut reached: FinalState) -> Self {
        let (mut other, names) = taken_over(&reached.store, &dump(&reached.store.server));
        // Transactions end with their store; another test checks the reply to them.
        for (conn, tx) in &reached.open {
            reached.store.abort(*conn, *tx).unwrap();
            other.abort(names[conn], *tx).unwrap();
        }
        let conns = reached.conns.iter().map(|conn| [*conn, names[conn]]).collect();
        let mut twins = Self { stores: [reached.store, other], conns, open: Vec::new() };
        // The contested paths are forgotten.
        twins.each(|store, _| store.pass(2_000_000));
        twins
    }

    fn each<T>(&mut self, mut ask: impl FnMut(&mut TestStore, usize) -> T) -> [T; 2] {
        let [one, two] = &mut self.stores;
        [ask(one, 0), ask(two, 1)]
    }

    /// Sends a request to both stores, and expects the same answer and the same events.
    fn ask(&mut self, at: usize, kind: MsgType, tx: u32, payload: &str) -> StoreReply {
        let conns = self.conns.clone();
        let [one, two] = self.each(|store, twin| {
            let conn = conns[at][twin];
            let id = store.send(conn, kind, tx, payload.as_bytes());
            let reply = (0..8).find_map(|_| {
                let reply = store.reply(conn, id);
                if reply.is_none() {
                    store.pass(HOLD_MAX_US);
                }
                reply
            });
            let events: Vec<_> = conns.iter().map(|conns| store.events(conns[twin])).collect();
            (reply.expect("no turn lasts so long"), events)
        });
        assert_eq!(one, two, "{kind:?} {payload:?}");
        one.0
    }

    fn step(&mut self, choices: &mut dyn Choices) -> Option<()> {
        let at = choices.below(self.conns.len())?;
        match choices.below(10)? {
            0 => {
                let id = self.ask(at, MsgType::TransactionStart, 0, "\0");
                // A guest may have only a limited number of them.
                if let Ok(id) = id.map(|id| String::from_utf8(id).unwrap()) {
                    self.open.push((at, id.trim_end_matches('\0').parse().unwrap()));
                }
            }
            1 if !self.open.is_empty() => {
                let (at, tx) = self.open.remove(choices.below(self.open.len())?);
                let _ = self.ask(at, MsgType::TransactionEnd, tx, "T\0");
            }
            2..=4 if !self.open.is_empty() => {
                let (at, tx) = self.open[choices.below(self.open.len())?];
                let (kind, payload) = request(choices)?;
                let _ = self.ask(at, kind, tx, &payload);
            }
            _ => {
                let (kind, payload) = request(choices)?;
                let _ = self.ask(at, kind, 0, &payload);
            }
        }
        Some(())
    }
}

/// A store and the one restored from its stream give the same answers from then on.
#[test]
fn both_go_on_alike() {
    for seed in 0..60 {
        let mut twins = Twins::new(reach(SeededChoices::new(seed, 200 + 10 * seed as usize)));
        let mut choices = SeededChoices::new(seed + 1000, 400);
        while twins.step(&mut choices).is_some() {}
        // A difference in an incarnation, an account or an owner would show here.
        twins.each(|store, _| [1, 2].map(|domid| store.dies(domid)));
        let conns = twins.conns.clone();
        let left = twins.each(|store, twin| {
            let conn = conns.last().expect("the watcher")[twin];
            let events = store.events(conn);
            store.check();
            (events, control(store, conn, "subtree\0/\0"))
        });
        assert_eq!(left[0], left[1], "seed {seed}");
    }
}

#[test]
fn everything_that_a_domain_has_comes_back() {
    let (mut store, guest) = full();
    let dom0 = store.socket();
    store.call(dom0, MsgType::SetTarget, 0, b"8\x007\0").unwrap();
    store.machine.existing.insert(11);
    store.call(dom0, MsgType::SetFeature, 0, b"11\x003\0").unwrap();
    store.call(dom0, MsgType::SetQuota, 0, b"11\0nodes\x005\0").unwrap();
    store.server.domain_shutdown(DomId(8), store.now, &mut store.machine);
    assert_eq!(store.events(guest), ["@releaseDomain special"]);
    let stream = dump(&store.server);
    let (mut other, names) = taken_over(&store, &stream);
    assert_eq!(dump(&other.server).len(), stream.len());
    for (command, shows) in [
        ("quota\x007", ["nodes            :        1", "watches          :        2"]),
        ("weight\x007", ["512", ""]),
        ("quota-soft", ["memory           :  1000000", ""]),
    ] {
        let answers = [(&mut store, dom0), (&mut other, names[&dom0])]
            .map(|(store, conn)| control(store, conn, command));
        for (answer, part) in answers.iter().flat_map(|answer| shows.map(|part| (answer, part))) {
            assert!(answer.contains(part), "{command}: {answer}");
        }
    }
    // Guest 8 was introduced directly after guest 7.
    let [dom0, guest, stub] = [dom0, guest, ConnId(guest.0 + 1)].map(|conn| names[&conn]);
    let memory = |text: String| {
        text.lines().find(|line| line.starts_with("memory")).map(|line| line[..30].to_owned())
    };
    assert_eq!(
        memory(control(&mut other, dom0, "quota\x007")),
        memory(control(&mut store, dom0, "quota\x007")),
    );
    let perms = "n7 r8 w9 r32757";
    assert_eq!(other.perms(dom0, 0, "/local/domain/7").unwrap(), perms);
    assert_eq!(other.perms(guest, 0, "@introduceDomain").unwrap(), "n0 r7");
    assert_eq!(other.read(dom0, 0, "/bytes").unwrap(), "\u{1}\0\u{2}");
    let get =
        |store: &mut TestStore, kind, payload: &[u8]| store.call(dom0, kind, 0, payload).unwrap();
    assert_eq!(get(&mut other, MsgType::GetFeature, b"11\0"), b"3\0");
    assert_eq!(get(&mut other, MsgType::GetQuota, b"11\0nodes\0"), b"5\0");
    // The watches have their original form: relative, with a depth, on a special path.
    other.write(dom0, 0, "/local/domain/7/x", "new").unwrap();
    assert_eq!(other.events(guest), ["x relative"]);
    // The first socket watches everything, and the nodes one name below `/local`.
    assert_eq!(other.events(names[&ConnId(0)]), ["/local/domain/7/x all"]);
    other.write(dom0, 0, "/local/new", "").unwrap();
    assert_eq!(other.events(names[&ConnId(0)]), ["/local/new all", "/local/new near"]);
    // The guest has the rights of its target, until that has died and its number is another
    // domain's. The event for its shutdown was sent before, and is not sent again.
    other.server.domain_shutdown(DomId(8), other.now, &mut other.machine);
    other.write(stub, 0, "/local/domain/7/y", "as 7").unwrap();
    assert_eq!(other.events(guest), Vec::<String>::new());
    other.dies(8);
    assert_eq!(other.events(guest), ["@releaseDomain special"]);
    other.guest(9);
    assert_eq!(other.perms(dom0, 0, "/local/domain/7").unwrap(), "n7 w9 r32757");
    // The domain need not have had a ring.
    other.machine.lives.insert(11, 1);
    other.guest(11);
    assert_eq!(get(&mut other, MsgType::GetQuota, b"11\0nodes\0"), b"1000\0");
    other.check();
}

/// A client that reads a list in parts sees that it has to restart: no list has a generation that
/// another had before.
#[test]
fn lists_of_children_get_new_generations() {
    let (mut store, _) = full();
    let dom0 = store.socket();
    for at in 0..100 {
        store.write(dom0, 0, "/busy", "").unwrap();
        store.rm(dom0, 0, "/busy").unwrap();
        store.write(dom0, 0, &format!("/list/{at}"), "").unwrap();
    }
    let generation = |store: &mut TestStore, conn| -> u64 {
        let part = store.call(conn, MsgType::DirectoryPart, 0, b"/list\x000\0").unwrap();
        let digits = part.split(|byte| *byte == 0).next().unwrap();
        std::str::from_utf8(digits).unwrap().parse().unwrap()
    };
    let before = generation(&mut store, dom0);
    let (mut other, names) = taken_over(&store, &dump(&store.server));
    assert!(generation(&mut other, names[&dom0]) > before);
}

/// The client gets the reply to try again, and none of its changes exist.
#[test]
fn open_transactions_are_refused_at_their_end() {
    let (mut store, guest) = full();
    let dom0 = store.socket();
    let transactions = [(guest, store.start(guest)), (dom0, store.start(dom0))];
    store.write(guest, transactions[0].1, "/local/domain/7/y", "lost").unwrap();
    let (mut other, names) = taken_over(&store, &dump(&store.server));
    for (conn, tx) in transactions {
        let conn = names[&conn];
        other.write(conn, tx, "/local/domain/7/z", "lost").unwrap();
        assert_eq!(other.commit(conn, tx), Err("EAGAIN".to_owned()));
        let tx = other.start(conn);
        assert!(transactions.iter().all(|(_, old)| *old != tx), "a number is used again");
        other.abort(conn, tx).unwrap();
    }
    assert_eq!(other.list(names[&dom0], 0, "/local/domain/7").unwrap(), ["x"]);
    let quota = control(&mut other, names[&dom0], "quota\x007");
    assert!(quota.contains("transactions     :        0"), "{quota}");
}

/// This covers partly sent output, waiting events, waiting requests, and input in the daemon.
#[test]
fn nothing_on_the_way_is_lost() {
    let (mut store, guest) = full();
    let dom0 = store.socket();
    let holder = store.socket();
    store.watch(dom0, "/busy", "t").unwrap();
    store.events(dom0);
    // A turn on the guest's node makes the guest's requests wait.
    store.set_perms(holder, 0, "/bytes", &["b0"]).unwrap();
    let tx = store.start(holder);
    store.read(holder, tx, "/bytes").unwrap();
    store.write(dom0, 0, "/bytes", "new").unwrap();
    store.write(holder, tx, "/bytes", "1").unwrap();
    assert_eq!(store.commit(holder, tx), Err("EAGAIN".to_owned()));
    let tx = store.start(holder);
    store.read(holder, tx, "/bytes").unwrap();
    let late = store.send(guest, MsgType::Write, 0, b"/bytes\0late");
    assert_eq!(store.reply(guest, late), None);
    // This is an answer of which 20 bytes have been sent, with an event after it.
    let unread = store.send(dom0, MsgType::Read, 0, b"/local/domain/7/x\0");
    store.write(holder, 0, "/busy", "").unwrap();
    let sent = store.server.output(dom0)[..20].to_vec();
    store.server.consume_output(dom0, 20, store.now);
    store.write(holder, 0, "/busy/more", "").unwrap();

    let more = Header { kind: MsgType::Mkdir.code(), req_id: 99, tx_id: 0, len: 6 };
    let held = [&more.to_bytes()[..], b"/hel"].concat();
    let stream = dump_with(&store.server, &BTreeMap::from([(guest, held.clone())]));
    let restored = restore(&stream).unwrap();
    let input = restored.connections.iter().find(|known| known.handle == guest.0).unwrap();
    let (header, payload, rest) = split_message(&input.input).unwrap().unwrap();
    assert_eq!((header.req_id, payload, rest), (late, &b"/bytes\0late"[..], &held[..]));

    let (mut other, names) = taken_over(&store, &stream);
    let output = [sent, other.server.output(names[&dom0]).to_vec()].concat();
    let (header, payload, mut rest) = split_message(&output).unwrap().unwrap();
    assert_eq!((header.req_id, payload), (unread, &b"value"[..]));
    let mut events = Vec::new();
    while let Some((header, payload, behind)) = split_message(rest).unwrap() {
        assert_eq!(header.kind, MsgType::WatchEvent.code());
        events.push(payload);
        rest = behind;
    }
    assert_eq!(events, [&b"/busy\0t\0"[..], b"/busy/more\0t\0"]);
    assert!(rest.is_empty());
    assert!(other.server.poll_ready().is_some());
    // The second restored store still knows that a message is partly sent.
    let (mut third, again) = taken_over(&other, &dump(&other.server));
    let conn = again[&names[&dom0]];
    assert_eq!(third.server.output(conn), other.server.output(names[&dom0]));
}

/// Output begins with a whole message even if much of it has been sent.
#[test]
fn a_part_of_an_answer_is_known_however_much_went_before() {
    let (mut store, _) = full();
    let dom0 = store.socket();
    store.write(dom0, 0, "/big", &"v".repeat(4000)).unwrap();
    for _ in 0..40 {
        store.send(dom0, MsgType::Read, 0, b"/big\0");
    }
    let (mut sent, mut taken) = (store.server.output(dom0).to_vec(), 0);
    for part in [70_000, 100, 3900, 65_536, 16] {
        taken += part;
        store.server.consume_output(dom0, part, store.now);
        let (mut other, names) = taken_over(&store, &dump(&store.server));
        assert_eq!(other.server.output(names[&dom0]), &sent[taken..]);
        other.server.consume_output(names[&dom0], sent.len() - taken, 0);
        assert_eq!(other.read(names[&dom0], 0, "/big").unwrap().len(), 4000);
    }
    sent.clear();
}

/// More input waits than CONNECTION_DATA can hold.
#[test]
fn much_input_comes_back_whole() {
    let (store, guest) = full();
    let message = |len: u32| {
        let header = Header { kind: MsgType::Write.code(), req_id: len, tx_id: 0, len };
        [&header.to_bytes()[..], &vec![b'x'; len as usize]].concat()
    };
    let mut input: Vec<u8> = (0..200).flat_map(|at| message(1000 + at)).collect();
    input.extend_from_slice(&message(4000)[..1234]);
    let stream = dump_with(&store.server, &BTreeMap::from([(guest, input.clone())]));
    let restored = restore(&stream).unwrap();
    let known = restored.connections.iter().find(|known| known.handle == guest.0).unwrap();
    assert!(known.input == input);
}

/// A connection that has ended remains ended.
#[test]
fn who_is_no_longer_served_is_not_served_by_the_next() {
    let (mut store, guest) = full();
    store.server.end(guest, EndReason::RingIndex, store.now, &mut store.machine);
    let restored = restore(&dump(&store.server)).unwrap();
    let known = restored.connections.iter().find(|known| known.handle == guest.0).unwrap();
    assert_eq!((known.ended, known.ring), (Some(EndReason::RingIndex), Some(DomId(7))));
    assert!(!restored.server.wants_input(known.conn));
}

/// The stream of a large store is not collected in memory.
#[test]
fn a_large_state_comes_in_small_pieces() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    for at in 0..20_000 {
        store.write(dom0, 0, &format!("/large/{at}"), &"v".repeat(32)).unwrap();
    }
    let (mut longest, mut all) = (0, 0);
    let link = |_| TransportState { handle: 0, input: &[] };
    let written: Result<(), ()> = store.server.dump(GLOBAL, link, |bytes| {
        longest = longest.max(bytes.len());
        all += bytes.len();
        Ok(())
    });
    assert_eq!(written, Ok(()));
    assert!(all > 1_000_000 && longest < 64 * 1024, "{longest} of {all}");
    // The state is not passed to a writer that has failed.
    let mut pieces = 0;
    let failed = store.server.dump(GLOBAL, link, |_| {
        pieces += 1;
        if pieces == 3 { Err("disk full") } else { Ok(()) }
    });
    assert_eq!((failed, pieces), (Err("disk full"), 3));
}
