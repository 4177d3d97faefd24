//! Tests of watches, permissions, quotas and the life of domains.

use crate::common::TestStore;
use xenstore_core::server::{Config, ConnId, DomId, EndReason, Notice, Orphans};
use xenstore_core::wire::{Header, MsgType};

fn refused<T>(name: &str) -> Result<T, String> {
    Err(name.to_owned())
}

/// Returns a store with a guest, 7, that owns its home.
fn with_guest() -> (TestStore, ConnId, ConnId) {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = home(&mut store, dom0, 7);
    (store, dom0, guest)
}

fn home(store: &mut TestStore, dom0: ConnId, domid: u16) -> ConnId {
    let conn = store.guest(domid);
    let path = format!("/local/domain/{domid}");
    store.mkdir(dom0, 0, &path).unwrap();
    store.set_perms(dom0, 0, &path, &[&format!("n{domid}")]).unwrap();
    conn
}

#[test]
fn a_removal_is_told_to_those_above_at_and_below() {
    let (mut store, dom0, _) = with_guest();
    store.write(dom0, 0, "/a/b/c", "").unwrap();
    for path in ["/", "/a", "/a/b", "/a/b/c", "/a/b/c/d", "/x"] {
        store.watch(dom0, path, "t").unwrap();
    }
    assert_eq!(store.events(dom0).len(), 6);
    store.rm(dom0, 0, "/a").unwrap();
    let mut events = store.events(dom0);
    events.sort();
    // Watches at and above the node get the removed path; watches below get their own path. There
    // is no event for a node that did not exist.
    assert_eq!(
        events,
        ["/a t", "/a t", "/a/b t", "/a/b/c t"]
            .map(String::from)
            .to_vec()
            .into_iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn relative_watches_are_told_relative_paths() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "data", "t").unwrap();
    assert_eq!(store.events(guest), ["data t"]);
    store.write(dom0, 0, "/local/domain/7/data/x", "").unwrap();
    assert_eq!(store.events(guest), ["data/x t"]);
}

#[test]
fn who_may_not_read_is_not_told() {
    let (mut store, dom0, guest) = with_guest();
    store.write(dom0, 0, "/secret/x", "").unwrap();
    store.write(dom0, 0, "/open", "").unwrap();
    store.set_perms(dom0, 0, "/open", &["n0", "r7"]).unwrap();
    store.watch(guest, "/secret", "s").unwrap();
    store.watch(guest, "/open", "o").unwrap();
    store.events(guest);
    store.write(dom0, 0, "/secret/x", "1").unwrap();
    store.rm(dom0, 0, "/secret").unwrap();
    store.write(dom0, 0, "/open", "1").unwrap();
    assert_eq!(store.events(guest), ["/open o"]);
    // Losing the right to read causes one event, and then no more.
    store.set_perms(dom0, 0, "/open", &["n0"]).unwrap();
    assert_eq!(store.events(guest), ["/open o"]);
    store.write(dom0, 0, "/open", "2").unwrap();
    assert!(store.events(guest).is_empty());
}

#[test]
fn identical_pending_events_are_one() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "x", "t").unwrap();
    store.events(guest);
    for _ in 0..1000 {
        store.write(dom0, 0, "/local/domain/7/x", "v").unwrap();
    }
    store.write(dom0, 0, "/local/domain/7/x/y", "v").unwrap();
    assert_eq!(store.events(guest), ["x t", "x/y t"]);
    assert_eq!(store.server.counters().events_merged, 999);
}

#[test]
fn after_unwatch_no_event_comes() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "x", "t").unwrap();
    store.events(guest);
    store.write(dom0, 0, "/local/domain/7/x", "v").unwrap();
    let payload = b"x\0t\0";
    store.call(guest, MsgType::Unwatch, 0, payload).unwrap();
    assert!(store.events(guest).is_empty());
    assert_eq!(store.call(guest, MsgType::Unwatch, 0, payload), refused("ENOENT"));
    assert_eq!(store.watch(guest, "x", "t"), Ok(()));
    assert_eq!(store.watch(guest, "x", "t"), refused("EEXIST"));
}

#[test]
fn special_watches_tell_the_domid_to_those_who_ask_for_it() {
    let (mut store, dom0, _) = with_guest();
    let watch = |store: &mut TestStore, payload: &str| {
        store.call(dom0, MsgType::Watch, 0, payload.as_bytes()).unwrap()
    };
    watch(&mut store, "@introduceDomain\0plain\0");
    watch(&mut store, "@introduceDomain\0deep\x001\0");
    watch(&mut store, "@releaseDomain\0plain\0");
    watch(&mut store, "@releaseDomain/9\0nine\0");
    watch(&mut store, "@releaseDomain/8\0eight\0");
    store.events(dom0);
    home(&mut store, dom0, 9);
    assert_eq!(store.events(dom0), ["@introduceDomain plain", "@introduceDomain/9 deep"]);
    store.server.domain_shutdown(DomId(9), 0, &mut store.machine);
    store.server.domain_shutdown(DomId(9), 0, &mut store.machine);
    assert_eq!(store.events(dom0), ["@releaseDomain plain", "@releaseDomain/9 nine"]);
    store.dies(9);
    assert_eq!(store.events(dom0), ["@releaseDomain plain", "@releaseDomain/9 nine"]);
}

#[test]
fn guests_are_told_of_release_but_not_of_introduction() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "@introduceDomain", "i").unwrap();
    store.watch(guest, "@releaseDomain", "r").unwrap();
    store.events(guest);
    home(&mut store, dom0, 9);
    store.dies(9);
    assert_eq!(store.events(guest), ["@releaseDomain r"]);
    store.set_perms(dom0, 0, "@introduceDomain", &["n0", "r7"]).unwrap();
    home(&mut store, dom0, 9);
    assert_eq!(store.events(guest), ["@introduceDomain i"]);
}

#[test]
fn refusals_are_counted_explained_and_logged_once() {
    let (mut store, dom0, guest) = with_guest();
    for at in 0..999 {
        store.write(guest, 0, &format!("{}/{}", at / 100, at), "").unwrap_or_else(|error| {
            assert_eq!((error.as_str(), at), ("ENOSPC", 989));
        });
        if at == 989 {
            break;
        }
    }
    for _ in 0..5 {
        assert_eq!(store.write(guest, 0, "more", ""), refused("ENOSPC"));
    }
    let lines: Vec<String> =
        store.warnings().into_iter().filter(|line| line.contains("quota nodes is 1000")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("domain 7"), "{lines:?}");
    let text = store.call(dom0, MsgType::Control, 0, b"quota\x007\0").unwrap();
    let text = String::from_utf8(text).unwrap();
    let nodes = text.lines().find(|line| line.starts_with("nodes")).unwrap();
    assert!(nodes.contains("1000 (max") && nodes.contains("limit     1000"), "{nodes}");
    assert!(nodes.contains("refused 6 times"), "{nodes}");
    store.check();
}

#[test]
fn a_soft_quota_is_a_warning_now_and_then() {
    let (mut store, dom0, guest) = with_guest();
    store.call(dom0, MsgType::SetQuota, 0, b"7\0memory\x00100000\0").unwrap();
    store.call(dom0, MsgType::Control, 0, b"quota-soft\0set\0memory\x002000\0").unwrap();
    for at in 0..20 {
        store.write(guest, 0, &at.to_string(), &"v".repeat(200)).unwrap();
    }
    let lines: Vec<String> =
        store.warnings().into_iter().filter(|line| line.contains("soft quota")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("domain 7 is above its soft quota: memory is 2000"), "{lines:?}");
}

#[test]
fn the_time_of_the_last_refusal_is_shown() {
    let (mut store, dom0, guest) = with_guest();
    assert_eq!(store.write(guest, 0, "big", &"v".repeat(3000)), refused("ENOSPC"));
    store.pass(5_000_000);
    let text = store.call(dom0, MsgType::Control, 0, b"quota\x007\0").unwrap();
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find(|line| line.starts_with("node-size")).unwrap();
    assert!(line.contains("refused 1 times, last 5 s ago"), "{line}");
}

#[test]
fn one_domain_can_be_given_more_than_the_others() {
    let (mut store, dom0, guest) = with_guest();
    let other = home(&mut store, dom0, 8);
    store.call(dom0, MsgType::SetQuota, 0, b"7\0watches\x00200\0").unwrap();
    assert_eq!(store.call(dom0, MsgType::GetQuota, 0, b"7\0watches\0"), Ok(b"200\0".to_vec()));
    assert_eq!(store.call(dom0, MsgType::GetQuota, 0, b"watches\0"), Ok(b"128\0".to_vec()));
    let watches = |store: &mut TestStore, conn| {
        (0..300).take_while(|at| store.watch(conn, "x", &at.to_string()).is_ok()).count()
    };
    assert_eq!(watches(&mut store, guest), 200);
    assert_eq!(watches(&mut store, other), 128);
    assert_eq!(store.call(guest, MsgType::GetQuota, 0, b""), refused("EACCES"));
}

#[test]
fn the_sizes_of_nodes_and_permission_lists_are_bounded_for_guests_only() {
    let (mut store, dom0, guest) = with_guest();
    assert_eq!(store.write(guest, 0, "big", &"v".repeat(2048)), refused("ENOSPC"));
    assert_eq!(store.write(guest, 0, "big", &"v".repeat(1900)), Ok(()));
    assert_eq!(store.write(dom0, 0, "/big", &"v".repeat(4000)), Ok(()));
    let many = ["n7", "r0", "r0", "r0", "r0", "r0"];
    assert_eq!(store.set_perms(guest, 0, "big", &many), refused("ENOSPC"));
    assert_eq!(store.set_perms(guest, 0, "big", &many[..5]), Ok(()));
    assert_eq!(store.read(guest, 0, &format!("/{}", "p".repeat(2048))), refused("EINVAL"));
    assert_eq!(store.read(guest, 0, &format!("/{}", "p".repeat(2047))), refused("EACCES"));
    assert_eq!(store.write(dom0, 0, &format!("/{}", "p".repeat(3000)), ""), Ok(()));
    store.check();
}

#[test]
fn a_guest_that_does_not_read_is_no_longer_served_after_the_timeout() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "x", "t").unwrap();
    store.events(guest);
    store.write(dom0, 0, "/local/domain/7/x", "v").unwrap();
    assert!(!store.server.output(guest).is_empty());
    store.server.consume_output(guest, 0, store.now);
    assert_eq!(store.server.deadline(), Some(20_000_000));
    store.pass(19_999_999);
    assert!(store.ended().is_empty());
    store.pass(1);
    assert_eq!(store.ended(), [(guest, EndReason::Unread)]);
    assert!(!store.server.wants_input(guest));
    assert_eq!(store.server.deadline(), None);
    // A reset of its ring, or another INTRODUCE, makes it usable again.
    store.server.reset(guest, store.now, &mut store.machine);
    assert_eq!(store.read(guest, 0, "x").unwrap(), "v");
}

#[test]
fn unread_events_of_a_socket_are_bounded() {
    let mut store = TestStore::new();
    let (writer, sleeper) = (store.socket(), store.socket());
    store.watch(sleeper, "/", &"t".repeat(500)).unwrap();
    let mut at = 0;
    while store.ended().is_empty() {
        store.write(writer, 0, &format!("/n{at}"), "").unwrap();
        at += 1;
        assert!(at < 20_000, "nothing stops the daemon from growing");
    }
    assert!(at > 10_000, "ended after {at} events already");
    assert_eq!(store.ended(), [(sleeper, EndReason::Unread)]);
    store.check();
}

#[test]
fn a_guest_with_many_unread_replies_is_not_asked_for_more() {
    let (mut store, _, guest) = with_guest();
    for at in 0..20 {
        assert!(store.server.wants_input(guest), "{at}");
        store.send(guest, MsgType::Read, 0, b"x\0");
    }
    assert!(!store.server.wants_input(guest));
    store.receive(guest);
    assert!(store.server.wants_input(guest));
}

/// Unread replies and waiting requests are shown, and their highest number.
#[test]
fn outstanding_requests_are_shown() {
    let (mut store, dom0, guest) = with_guest();
    let shown = |store: &mut TestStore| {
        let reply = store.call(dom0, MsgType::Control, 0, b"quota\x007\0").unwrap();
        let text = String::from_utf8(reply).unwrap();
        let line = text.lines().find(|line| line.starts_with("outstanding")).unwrap();
        let numbers = line.split(|sign: char| !sign.is_ascii_digit());
        let mut numbers = numbers.filter(|digits| !digits.is_empty());
        (numbers.next().unwrap().to_owned(), numbers.next().unwrap().to_owned())
    };
    assert_eq!(shown(&mut store), ("0".to_owned(), "0".to_owned()));
    for _ in 0..5 {
        store.send(guest, MsgType::Read, 0, b"x\0");
    }
    assert_eq!(shown(&mut store), ("5".to_owned(), "5".to_owned()));
    store.receive(guest);
    store.send(guest, MsgType::Read, 0, b"x\0");
    assert_eq!(shown(&mut store), ("1".to_owned(), "5".to_owned()));
}

#[test]
fn orphans_can_be_kept() {
    let mut store = TestStore::with(Config { orphans: Orphans::Keep, ..Config::default() });
    let dom0 = store.socket();
    let guest = home(&mut store, dom0, 7);
    store.write(guest, 0, "a/b", "v").unwrap();
    store.dies(7);
    assert_eq!(store.read(dom0, 0, "/local/domain/7/a/b").unwrap(), "v");
    assert_eq!(store.perms(dom0, 0, "/local/domain/7/a/b").unwrap(), "n0");
    store.check();
}

#[test]
fn set_target_lends_rights_while_the_target_lives() {
    let (mut store, dom0, guest) = with_guest();
    let stub = home(&mut store, dom0, 9);
    store.write(guest, 0, "x", "v").unwrap();
    assert_eq!(store.read(stub, 0, "/local/domain/7/x"), refused("EACCES"));
    store.call(dom0, MsgType::SetTarget, 0, b"9\x007\0").unwrap();
    assert_eq!(store.read(stub, 0, "/local/domain/7/x").unwrap(), "v");
    store.write(stub, 0, "/local/domain/7/x", "w").unwrap();
    store.dies(7);
    home(&mut store, dom0, 7);
    assert_eq!(store.write(stub, 0, "/local/domain/7/x", "w"), refused("EACCES"));
    assert_eq!(store.call(dom0, MsgType::SetTarget, 0, b"9\x0044\0"), refused("ENOENT"));
}

#[test]
fn features_can_be_withheld_before_introduction_only() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    store.machine.existing.insert(7);
    store.call(dom0, MsgType::SetFeature, 0, b"7\x002\0").unwrap();
    assert_eq!(store.call(dom0, MsgType::SetFeature, 0, b"7\x0099\0"), refused("EINVAL"));
    assert_eq!(store.call(dom0, MsgType::SetFeature, 0, b"8\x002\0"), refused("ENOENT"));
    let guest = store.guest(7);
    assert_eq!(store.call(dom0, MsgType::SetFeature, 0, b"7\x003\0"), refused("EBUSY"));
    assert_eq!(store.call(guest, MsgType::GetFeature, 0, b""), Ok(b"2\0".to_vec()));
    assert_eq!(store.call(guest, MsgType::GetFeature, 0, b"7\0"), refused("EACCES"));
    assert_eq!(store.call(guest, MsgType::Watch, 0, b"x\0t\x001\0"), refused("EINVAL"));
}

#[test]
fn domid_any_holds_for_every_guest_that_has_the_feature() {
    let (mut store, dom0, guest) = with_guest();
    store.write(dom0, 0, "/all", "v").unwrap();
    store.set_perms(dom0, 0, "/all", &["n0", "r32757"]).unwrap();
    assert_eq!(store.read(guest, 0, "/all").unwrap(), "v");
    assert_eq!(store.perms(dom0, 0, "/all").unwrap(), "n0 r32757");
}

#[test]
fn long_lists_come_in_parts_to_everybody() {
    let (mut store, dom0, guest) = with_guest();
    let names: Vec<String> = (0..1000).map(|at| format!("child-{at:04}")).collect();
    for name in &names {
        store.write(dom0, 0, &format!("/big/{name}"), "").unwrap();
    }
    store.set_perms(dom0, 0, "/big", &["n0", "r7"]).unwrap();
    assert_eq!(store.list(guest, 0, "/big"), refused("E2BIG"));
    let (mut got, mut generations) = (Vec::new(), Vec::new());
    while got.last() != Some(&Vec::new()) {
        let offset: usize = got.iter().map(|name: &Vec<u8>| name.len() + 1).sum();
        let reply = store
            .call(guest, MsgType::DirectoryPart, 0, format!("/big\0{offset}\0").as_bytes())
            .unwrap();
        assert!(reply.len() <= 4096);
        let mut parts =
            reply.strip_suffix(b"\0").unwrap().split(|byte| *byte == 0).map(<[u8]>::to_vec);
        generations.push(parts.next().unwrap());
        got.extend(parts);
    }
    got.pop();
    assert_eq!(got, names.iter().map(|name| name.clone().into_bytes()).collect::<Vec<_>>());
    generations.dedup();
    assert_eq!(generations.len(), 1);
}

#[test]
fn a_subtree_can_be_read_in_few_requests() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let mut expected = vec![String::new()];
    for dir in 0..30 {
        expected.push(format!("d{dir:02}"));
        for node in 0..20 {
            store.write(dom0, 0, &format!("/t/d{dir:02}/n{node:02}"), "value").unwrap();
            expected.push(format!("d{dir:02}/n{node:02}"));
        }
    }
    let (mut cursor, mut got, mut requests) = (Vec::new(), Vec::new(), 0);
    loop {
        let payload = [b"subtree\0/t\0", &cursor[..], b"\0"].concat();
        let reply = store.call(dom0, MsgType::Control, 0, &payload).unwrap();
        requests += 1;
        let end = reply.iter().position(|byte| *byte == 0).unwrap();
        cursor = reply[..end].to_vec();
        let mut records = reply[end + 1..].to_vec();
        while !records.is_empty() {
            let mut fields = records.splitn(4, |byte| *byte == 0);
            let (path, perms, len) =
                (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            let len: usize = String::from_utf8(len.to_vec()).unwrap().parse().unwrap();
            let rest = fields.next().unwrap();
            assert_eq!(perms, b"n0");
            got.push(String::from_utf8(path.to_vec()).unwrap());
            records = rest[len..].to_vec();
        }
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(got, expected);
    assert!(requests <= 6, "{requests} requests");
}

#[test]
fn unknown_types_are_no_system_calls() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    for kind in [15, 16, 20, 27, 0xffff, u32::MAX] {
        let header = Header { kind, req_id: 900, tx_id: 0, len: 0 };
        store.server.request(dom0, &header, b"", 0, &mut store.machine);
        assert_eq!(store.reply(dom0, 900), Some(refused("ENOSYS")), "{kind}");
    }
}

#[test]
fn a_failed_introduction_leaves_nothing() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    store.machine.existing.insert(7);
    store.machine.refuse_attach = Some(xenstore_core::wire::Error::Inval);
    assert_eq!(store.call(dom0, MsgType::Introduce, 0, b"7\x001\x001\0"), refused("EINVAL"));
    assert_eq!(store.call(dom0, MsgType::IsDomainIntroduced, 0, b"7\0"), Ok(b"F\0".to_vec()));
    store.machine.refuse_attach = None;
    store.call(dom0, MsgType::Introduce, 0, b"7\x001\x001\0").unwrap();
    assert_eq!(store.call(dom0, MsgType::IsDomainIntroduced, 0, b"7\0"), Ok(b"T\0".to_vec()));
}

/// A domain's death costs in proportion to its own nodes, not to the whole store: otherwise this
/// takes minutes.
#[test]
fn many_domains_come_and_go() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    for domid in 1..=3000 {
        let guest = home(&mut store, dom0, domid);
        store.write(guest, 0, "data/x", "v").unwrap();
    }
    for domid in 1..=3000 {
        store.dies(domid);
    }
    assert_eq!(store.list(dom0, 0, "/local/domain").unwrap(), Vec::<String>::new());
    store.check();
}

/// The daemon gets the notice of an end before the connection's id is another's, or not at all.
#[test]
fn no_end_is_told_of_a_connection_that_has_begun_anew() {
    let (mut store, dom0, guest) = with_guest();
    store.server.end(guest, EndReason::Protocol, 0, &mut store.machine);
    store.call(dom0, MsgType::Release, 0, b"7\0").unwrap();
    let successor = home(&mut store, dom0, 9);
    assert_eq!(successor, guest, "the name is used again");
    assert!(store.ended().is_empty());
    store.server.end(successor, EndReason::Protocol, 0, &mut store.machine);
    store.server.reset(successor, 0, &mut store.machine);
    assert!(store.ended().is_empty());
    store.server.end(successor, EndReason::Protocol, 0, &mut store.machine);
    assert_eq!(store.ended(), [(successor, EndReason::Protocol)]);
}

/// A change causes events for the domains that may read the node: by an entry, by the default
/// access, as its owner, or with such a domain as target. Other domains get no event.
#[test]
fn a_change_is_told_to_those_who_may_see_it() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guests: Vec<ConnId> = (5..9).map(|domid| store.guest(domid)).collect();
    for conn in [dom0].into_iter().chain(guests.iter().copied()) {
        store.watch(conn, "/", "t").unwrap();
        store.events(conn);
    }
    let mut told = |perms: &[&str], targets: &[(u16, u16)]| {
        store.mkdir(dom0, 0, "/x").unwrap();
        store.set_perms(dom0, 0, "/x", perms).unwrap();
        for (domid, target) in targets {
            let payload = format!("{domid}\0{target}\0");
            store.call(dom0, MsgType::SetTarget, 0, payload.as_bytes()).unwrap();
        }
        for conn in [dom0].iter().chain(&guests) {
            store.events(*conn);
        }
        store.write(dom0, 0, "/x", "1").unwrap();
        assert_eq!(store.events(dom0), ["/x t"]);
        let told: Vec<u16> = (5..9)
            .zip(&guests)
            .filter(|(_, conn)| !store.events(**conn).is_empty())
            .map(|(domid, _)| domid)
            .collect();
        told
    };
    assert_eq!(told(&["n0"], &[]), []);
    assert_eq!(told(&["n0", "r6", "w7"], &[]), [6]);
    assert_eq!(told(&["r0", "n6"], &[]), [5, 7, 8]);
    assert_eq!(told(&["n0", "r32757"], &[]), [5, 6, 7, 8]);
    assert_eq!(told(&["w8", "b5"], &[]), [5, 8]);
    assert_eq!(told(&["n0", "r6"], &[(5, 6), (8, 7)]), [5, 6]);
    assert_eq!(told(&["n0", "r7"], &[(8, 6)]), [7]);
    assert_eq!(told(&["n0", "r6"], &[]), [5, 6, 8]);
}

/// A guest whose unread events were removed with their watch has nothing left to read, and is not
/// ended for it.
#[test]
fn a_guest_that_unwatches_what_it_has_not_read_is_served_on() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "/local/domain/7", "t").unwrap();
    store.events(guest);
    for at in 0..100 {
        let path = format!("/local/domain/7/{at}\0v");
        store.send(dom0, MsgType::Write, 0, path.as_bytes());
    }
    let some = store.server.output(guest).len();
    store.server.consume_output(guest, some, store.now);
    store.send(guest, MsgType::Unwatch, 0, b"/local/domain/7\0t\0");
    store.receive(guest);
    store.pass(60_000_000);
    assert_eq!(store.ended(), []);
    assert_eq!(store.server.unread(guest), 0);
    store.check();
}

/// The client leaves so many events unread that its own write ends it.
#[test]
fn who_is_ended_by_its_own_request_gets_no_reply() {
    let mut store = TestStore::new();
    let conn = store.socket();
    let token = "t".repeat(3000);
    for at in 0..3000 {
        store.watch(conn, "/a", &format!("{token}{at}")).unwrap();
    }
    store.events(conn);
    store.send(conn, MsgType::Write, 0, b"/a\0v");
    assert_eq!(store.server.output(conn).len(), 0);
    store.receive(conn);
    let ended =
        |notice: &Notice| matches!(notice, Notice::Ended { conn: told, .. } if *told == conn);
    assert!(store.notices.iter().any(ended), "{:?}", store.notices);
}
