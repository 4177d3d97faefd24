//! Tests of the effects of one domain on another: turns, their cost, weights.

use crate::common::TestStore;
use crate::time::Moment;
use xenstore_core::limits::{HOLD_COST_US, HOLD_MAX_US, SLICE_COST, WEIGHT_DEFAULT};
use xenstore_core::server::ConnId;
use xenstore_core::wire::{Header, MsgType};

/// Adds guests that own their homes and may read and write `/shared`.
fn guests(store: &mut TestStore, dom0: ConnId, count: u16) -> Vec<ConnId> {
    store.write(dom0, 0, "/shared/key", "0").unwrap();
    for path in ["/shared", "/shared/key"] {
        store.set_perms(dom0, 0, path, &["b0"]).unwrap();
    }
    let home = |domid: u16| {
        let conn = store.guest(domid);
        store.mkdir(dom0, 0, &format!("/local/domain/{domid}")).unwrap();
        store
            .set_perms(dom0, 0, &format!("/local/domain/{domid}"), &[&format!("n{domid}")])
            .unwrap();
        conn
    };
    (1..=count).map(home).collect()
}

/// Returns the costs of domain 0's requests, each answered at once.
fn costs(store: &mut TestStore, dom0: ConnId) -> Vec<u32> {
    let mut costs = Vec::new();
    for at in 0..200 {
        let requests = [
            (MsgType::Write, format!("/shared/key\0{at}")),
            (MsgType::Read, "/shared/key\0".to_owned()),
            (MsgType::Write, format!("/local/domain/{}/control\0{at}", 1 + at % 100)),
            (MsgType::Directory, "/shared\0".to_owned()),
        ];
        for (kind, payload) in requests {
            let header =
                Header { kind: kind.code(), req_id: 77, tx_id: 0, len: payload.len() as u32 };
            let (now, machine) = (store.now, &mut store.machine);
            costs.push(store.server.request(dom0, &header, payload.as_bytes(), now, machine));
            assert!(store.reply(dom0, 77).is_some(), "domain 0 was delayed");
        }
        store.now += 10;
    }
    costs
}

/// The conformance suite tests this through the whole daemon, by the clock.
#[test]
fn a_hundred_guests_with_ten_open_transactions_each_cost_domain_0_nothing() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests = guests(&mut store, dom0, 100);
    costs(&mut store, dom0);
    let before = costs(&mut store, dom0);
    for guest in &guests {
        // A refusal makes its next transactions take turns where they can. Turns that others hold
        // have to end first.
        while store.server.deadline().is_some() {
            store.pass(HOLD_MAX_US);
        }
        let tx = store.start(*guest);
        store.read(*guest, tx, "/shared/key").unwrap();
        store.write(*guest, tx, "own", "1").unwrap();
        store.write(dom0, 0, "/shared/key", &format!("{guest:?}")).unwrap();
        assert_eq!(store.commit(*guest, tx), Err("EAGAIN".to_owned()));
        for _ in 0..10 {
            let tx = store.start(*guest);
            for (kind, payload) in
                [(MsgType::Read, "/shared/key\0"), (MsgType::Write, "/shared/key\0mine")]
            {
                store.send(*guest, kind, tx, payload.as_bytes());
            }
        }
    }
    assert_eq!(costs(&mut store, dom0), before);
    store.check();
}

/// A hundred guests have as many waiting requests as they may have. Domain 0 does not search them
/// when its turn ends, and the guest that ends a turn pays for the search.
#[test]
fn what_guests_wait_for_is_not_looked_at_in_domain_0s_time() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests = guests(&mut store, dom0, 100);
    store.refuse(dom0, "/shared/key");
    let commit = |store: &mut TestStore, wait: bool| {
        let tx = store.start(dom0);
        store.read(dom0, tx, "/shared/key").unwrap();
        let mut delayed = Vec::new();
        for guest in &guests {
            for at in 0..19 {
                // The number of requests is the same in both cases, so that the processor's caches
                // are too: reads do not wait.
                if !wait {
                    let id = store.send(*guest, MsgType::Read, 0, b"own\0");
                    assert!(store.reply(*guest, id).is_some());
                    continue;
                }
                let payload = format!("/shared/key\0{at}");
                delayed.push((*guest, store.send(*guest, MsgType::Write, 0, payload.as_bytes())));
            }
        }
        let header = Header { kind: MsgType::TransactionEnd.code(), req_id: 9, tx_id: tx, len: 2 };
        let (now, began) = (store.now, Moment::now());
        let cost = store.server.request(dom0, &header, b"T\0", now, &mut store.machine);
        let took = began.elapsed();
        assert_eq!(store.server.deadline(), wait.then_some(0));
        for (guest, id) in delayed {
            assert_eq!(store.reply(guest, id), Some(Ok(b"OK\0".to_vec())));
        }
        (cost, took)
    };
    let fastest = |store: &mut TestStore, wait| (0..20).map(|_| commit(store, wait)).min().unwrap();
    let (alone, beside) = (fastest(&mut store, false), fastest(&mut store, true));
    eprintln!("alone {alone:?}, beside 1900 requests that wait {beside:?}");
    assert_eq!(alone.0, beside.0);
    assert!(beside.1 < 10 * alone.1, "alone {alone:?}, beside them {beside:?}");
    store.check();
}

/// Waiting requests of many guests are tried in rounds, none of which costs more than
/// [`SLICE_COST`] and the plan of the tries.
#[test]
fn requests_that_wait_are_tried_some_in_each_round() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests = guests(&mut store, dom0, 200);
    store.refuse(dom0, "/shared/key");
    let tx = store.start(dom0);
    store.read(dom0, tx, "/shared/key").unwrap();
    for guest in &guests {
        for at in 0..19 {
            store.send(*guest, MsgType::Write, 0, format!("/shared/key\0{at}").as_bytes());
        }
    }
    let waiting = 19 * guests.len();
    assert_eq!(store.server.counters().delayed, waiting as u64);
    store.commit(dom0, tx).unwrap();
    let mut answered = Vec::new();
    while store.server.deadline() == Some(0) {
        store.server.tick(store.now, &mut store.machine);
        let mut now = 0;
        for guest in &guests {
            let mut output = store.server.output(*guest).to_vec();
            while !output.is_empty() {
                store.server.consume_output(*guest, output.len(), store.now);
                // Each reply is the header and `OK`.
                now += output.len() / 19;
                output = store.server.output(*guest).to_vec();
            }
        }
        answered.push(now);
    }
    assert_eq!(answered.iter().sum::<usize>(), waiting);
    assert!(answered.iter().all(|now| *now <= SLICE_COST as usize), "{answered:?}");
    assert!(answered.len() >= waiting / SLICE_COST as usize, "{answered:?}");
    store.check();
}

/// A waiting request makes no other guest's request more expensive: only those of its own
/// connection are searched.
#[test]
fn what_others_wait_for_is_not_looked_at() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests = guests(&mut store, dom0, 200);
    store.refuse(dom0, "/shared/key");
    let tx = store.start(dom0);
    store.read(dom0, tx, "/shared/key").unwrap();
    let (first, others) = guests.split_first().unwrap();
    store.send(*first, MsgType::Write, 0, b"/shared/key\x001");
    let reads = |store: &mut TestStore| {
        let one = |_| {
            let began = Moment::now();
            for _ in 0..200 {
                let id = store.send(*first, MsgType::Read, 0, b"own\0");
                assert!(store.reply(*first, id).is_some());
            }
            began.elapsed()
        };
        (0..10).map(one).min().unwrap_or_default()
    };
    let alone = reads(&mut store);
    for guest in others {
        for at in 0..19 {
            store.send(*guest, MsgType::Write, 0, format!("/shared/key\0{at}").as_bytes());
        }
    }
    let beside = reads(&mut store);
    eprintln!("200 reads behind one that waits: {alone:?}, beside 3781 others' {beside:?}");
    assert!(beside < 3 * alone, "{alone:?} became {beside:?}");
}

#[test]
fn a_guest_whose_turn_ends_pays_for_the_look_at_those_who_wait() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests = guests(&mut store, dom0, 50);
    store.refuse(guests[0], "/shared/key");
    let txs: Vec<(ConnId, u32)> =
        guests.iter().map(|guest| (*guest, store.start(*guest))).collect();
    for (guest, tx) in &txs {
        for _ in 0..10 {
            store.send(*guest, MsgType::Read, *tx, b"/shared/key\0");
        }
    }
    // The first has the turn; all others wait for one.
    let delayed = store.server.counters().delayed;
    assert_eq!(delayed, 49 * 10);
    let (holder, tx) = txs[0];
    let header = Header { kind: MsgType::TransactionEnd.code(), req_id: 9, tx_id: tx, len: 2 };
    let (now, machine) = (store.now, &mut store.machine);
    let cost = store.server.request(holder, &header, b"T\0", now, machine);
    assert!(u64::from(cost) > delayed / 4, "a look at {delayed} requests cost {cost}");
}

#[test]
fn a_guest_waits_ten_milliseconds_at_most_for_another_guests_turn() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests = guests(&mut store, dom0, 2);
    let (holder, other) = (guests[0], guests[1]);
    let tx = store.start(holder);
    store.read(holder, tx, "/shared/key").unwrap();
    store.write(holder, tx, "own", "1").unwrap();
    store.write(dom0, 0, "/shared/key", "1").unwrap();
    assert_eq!(store.commit(holder, tx), Err("EAGAIN".to_owned()));
    let tx = store.start(holder);
    store.read(holder, tx, "/shared/key").unwrap();
    let delayed = store.send(other, MsgType::Write, 0, b"/shared/key\x002");
    assert_eq!(store.reply(other, delayed), None);
    store.write(other, 0, "own", "meanwhile").unwrap();
    store.pass(HOLD_MAX_US);
    assert_eq!(store.reply(other, delayed), Some(Ok(b"OK\0".to_vec())));
    // The holder pays for the time with its next request.
    let header = Header { kind: MsgType::Read.code(), req_id: 9, tx_id: 0, len: 4 };
    let cost = store.server.request(holder, &header, b"own\0", store.now, &mut store.machine);
    assert!(u64::from(cost) > HOLD_MAX_US / HOLD_COST_US, "{cost}");
    let cost = store.server.request(holder, &header, b"own\0", store.now, &mut store.machine);
    assert!(cost < 10, "{cost}");
}

#[test]
fn weights_are_set_by_domain_0_alone() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = guests(&mut store, dom0, 1)[0];
    assert_eq!(store.server.weight(guest), WEIGHT_DEFAULT);
    assert_eq!(
        store.call(dom0, MsgType::Control, 0, b"weight\x001\x00512\0"),
        Ok(b"OK\0".to_vec())
    );
    assert_eq!(store.server.weight(guest), 512);
    assert_eq!(store.call(dom0, MsgType::Control, 0, b"weight\x001\0"), Ok(b"512\0".to_vec()));
    for bad in ["0", "65537", "x", "-1"] {
        let payload = format!("weight\x001\0{bad}\0");
        assert_eq!(
            store.call(dom0, MsgType::Control, 0, payload.as_bytes()),
            Err("EINVAL".to_owned())
        );
    }
    let refused = store.call(guest, MsgType::Control, 0, b"weight\x001\x00512\0");
    assert_eq!(refused, Err("EACCES".to_owned()));
}

/// Work that costs the store more costs the domain more.
#[test]
fn cost_follows_work() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let mut cost = |kind: MsgType, payload: &[u8]| {
        let header = Header { kind: kind.code(), req_id: 5, tx_id: 0, len: payload.len() as u32 };
        store.server.request(dom0, &header, payload, 0, &mut store.machine)
    };
    let small = cost(MsgType::Write, b"/a\0v");
    let big = cost(MsgType::Write, &[b"/a\0", &[b'v'; 4000][..]].concat());
    let deep = cost(MsgType::Write, b"/b/c/d/e/f\0v");
    for at in 0..100 {
        cost(MsgType::Write, format!("/many/{at}\0v").as_bytes());
    }
    let tree = cost(MsgType::Rm, b"/many\0");
    for at in 0..50 {
        cost(MsgType::Watch, format!("/w\0{at}\0").as_bytes());
    }
    let told = cost(MsgType::Write, b"/w\0v");
    assert!(big > small && deep > small, "{small} {big} {deep}");
    assert!(tree > 100 && told > 50, "{tree} {told}");
}
