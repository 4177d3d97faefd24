//! The client's promises, tested on this project's daemon and on both of Debian's.

use crate::support::{Daemon, PATIENCE, each};
use conformance::DaemonKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use xenstore::transaction::{Retry, TransactionEnd};
use xenstore::walk::{Method, Options, walk};
use xenstore::{Client, Error, MsgType, Perm, Store, Ticket, TransactionId};
use xenstore_core::wire::{self, feature};

/// Runs a test on each daemon.
fn on_each(test: impl Fn(&Daemon)) {
    each(&DaemonKind::ALL).for_each(|daemon| test(&daemon));
}

/// Runs a test on the daemons that send a long listing in parts.
fn on_those_with_parts(test: impl Fn(&Daemon)) {
    each(&[DaemonKind::C, DaemonKind::Ours]).for_each(|daemon| test(&daemon));
}

/// Sends many requests and returns all replies.
fn submit_all(client: &mut Client, requests: &[(MsgType, String)]) -> Vec<Vec<u8>> {
    let sent: Vec<Ticket> = requests
        .iter()
        .map(|(kind, payload)| {
            client.submit(TransactionId::NONE, *kind, &[payload.as_bytes()]).unwrap()
        })
        .collect();
    sent.into_iter().map(|ticket| client.wait(ticket).unwrap()).collect()
}

#[test]
fn requests_about_nodes() {
    on_each(|daemon| {
        let mut client = daemon.client();
        client.write("/t/a", b"one\0two").unwrap();
        assert_eq!(client.read("/t/a").unwrap(), b"one\0two");
        client.mkdir("/t/b").unwrap();
        assert_eq!(client.directory("/t").unwrap(), [b"a", b"b"]);
        assert_eq!(client.directory("/t/a").unwrap(), Vec::<Vec<u8>>::new());
        let perms = ["n0", "r5"].map(|perm| Perm::parse(perm.as_bytes()).unwrap());
        client.set_perms("/t/a", &perms).unwrap();
        assert_eq!(client.get_perms("/t/a").unwrap(), perms);
        assert!(client.exists("/t/a").unwrap());
        client.rm("/t/a").unwrap();
        assert!(!client.exists("/t/a").unwrap());
        assert_eq!(client.read("/t/a").unwrap_err().refusal(), Some(wire::Error::NoEnt));
        assert!(matches!(client.read("/t\0/a"), Err(Error::NulByte { .. })));
        assert!(matches!(client.write("/t/a", [0; 4096]), Err(Error::TooLong { len: 4101, .. })));
        assert!(client.exists("/t/b").unwrap());
    });
}

#[test]
fn what_is_not_there_is_no_error() {
    on_each(|daemon| {
        let mut client = daemon.client();
        client.write("/there/child", "value").unwrap();
        assert_eq!(client.try_read("/there/child").unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(client.list("/there").unwrap(), ["child"]);
        client.remove("/there").unwrap();
        // Neither the node nor its parent exists.
        assert_eq!(client.try_read("/there/child").unwrap(), None);
        assert!(client.list("/there/child").unwrap().is_empty());
        client.remove("/there/child").unwrap();
        let refused = client.try_read("no//path").unwrap_err();
        assert_eq!(refused.refusal(), Some(wire::Error::Inval));
    });
}

#[test]
fn requests_about_domains() {
    on_each(|daemon| {
        let mut client = daemon.client();
        assert_eq!(client.get_domain_path(7).unwrap(), b"/local/domain/7");
        assert!(!client.is_domain_introduced(7).unwrap());
        client.introduce(7, 1234, 3).unwrap();
        assert!(client.is_domain_introduced(7).unwrap());
        client.introduce(8, 1235, 4).unwrap();
        client.set_target(8, 7).unwrap();
        client.resume(7).unwrap();
        // C's daemon keeps serving a domain that is another's target.
        client.release(8).unwrap();
        client.release(7).unwrap();
        assert!(!client.is_domain_introduced(7).unwrap());
        // These requests are newer than Debian's daemons.
        let ours = daemon.is_ours();
        assert_eq!(client.quota_names().is_ok(), ours);
        assert_eq!(client.get_feature(None).ok(), ours.then_some(feature::ALL));
        assert_eq!(client.get_feature(Some(7)).ok(), ours.then_some(feature::ALL));
        assert_eq!(client.get_quota(None, "nodes").ok(), ours.then_some(1000));
        client.watch("/t", "token").unwrap();
        client.reset_watches().unwrap();
        assert_eq!(client.unwatch("/t", "token").unwrap_err().refusal(), Some(wire::Error::NoEnt));
    });
}

#[test]
fn many_requests_in_flight() {
    on_each(|daemon| {
        let mut client = daemon.client();
        let writes: Vec<_> = (0..2000)
            .map(|at| (MsgType::Write, format!("/t/{}/{at}\0value {at}", at % 50)))
            .collect();
        submit_all(&mut client, &writes);
        let reads: Vec<_> =
            (0..2000).map(|at| (MsgType::Read, format!("/t/{}/{at}\0", at % 50))).collect();
        for (at, value) in submit_all(&mut client, &reads).into_iter().enumerate() {
            assert_eq!(value, format!("value {at}").into_bytes());
        }
        assert_eq!(client.in_flight(), 0);
    });
}

#[test]
fn replies_are_taken_in_any_order() {
    on_each(|daemon| {
        let mut client = daemon.client();
        client.write("/t/a", "a").unwrap();
        client.write("/t/b", "b").unwrap();
        let mut read = |path: &[u8]| client.submit(TransactionId::NONE, MsgType::Read, &[path]);
        let (a, absent, b) =
            (read(b"/t/a\0").unwrap(), read(b"/t/absent\0").unwrap(), read(b"/t/b\0").unwrap());
        assert_eq!(client.wait(b).unwrap(), b"b");
        assert!(client.is_ready(&a) && client.is_ready(&absent));
        client.forget(absent);
        assert_eq!(client.wait(a).unwrap(), b"a");
    });
}

#[test]
fn a_transaction_that_meets_a_conflict_is_run_again() {
    on_each(|daemon| {
        let (mut client, mut other) = (daemon.client(), daemon.client());
        client.write("/t/count", "0").unwrap();
        let mut attempts = 0;
        let result = client.transaction(|tx| {
            attempts += 1;
            let count: u32 = String::from_utf8(tx.read("/t/count")?).unwrap().parse().unwrap();
            if attempts < 4 {
                // Another client writes between the read and the commit.
                other.write("/t/count", (count + 10).to_string())?;
            }
            tx.write("/t/count", (count + 1).to_string())?;
            Ok(count + 1)
        });
        assert_eq!((result.unwrap(), attempts), (31, 4));
        assert_eq!(client.read("/t/count").unwrap(), b"31");
    });
}

#[test]
fn a_transaction_is_given_up_at_its_bound() {
    on_each(|daemon| {
        let (mut client, mut other) = (daemon.client(), daemon.client());
        client.write("/t/count", "0").unwrap();
        let mut attempts = 0;
        let retry = Retry { attempts_max: 5, pause_max: Duration::from_millis(1) };
        let error = client
            .transaction_retrying(retry, |tx| {
                attempts += 1;
                tx.read("/t/count")?;
                other.write("/t/count", attempts.to_string())?;
                tx.write("/t/count", "mine")
            })
            .unwrap_err();
        assert_eq!(attempts, 5);
        assert!(matches!(error, Error::Conflict { attempts: 5 }));
        let text = error.to_string();
        assert!(text.contains("5 times") && text.contains("other clients"), "{text}");
        assert_eq!(client.read("/t/count").unwrap(), b"5");
    });
}

#[test]
fn a_body_that_fails_aborts_its_transaction() {
    on_each(|daemon| {
        let mut client = daemon.client();
        let error = client
            .transaction(|tx| {
                tx.write("/t/never", "")?;
                tx.read("/t/absent").map(drop)
            })
            .unwrap_err();
        assert_eq!(error.refusal(), Some(wire::Error::NoEnt));
        assert!(!client.exists("/t/never").unwrap());
        // C allows a guest 10 open transactions. None may stay open here either.
        for _ in 0..100 {
            let id = client.transaction_start().unwrap();
            client.transaction_end(id, TransactionEnd::Abort).unwrap();
        }
    });
}

#[test]
fn clients_that_count_lose_no_increment() {
    on_each(|daemon| {
        daemon.client().write("/t/count", "0").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut client = daemon.client();
                    for _ in 0..25 {
                        let count = |tx: &mut xenstore::Transaction<'_>| {
                            let value = String::from_utf8(tx.read("/t/count")?).unwrap();
                            let count: u32 = value.parse().unwrap();
                            tx.write("/t/count", (count + 1).to_string())
                        };
                        let retry = Retry { attempts_max: 1000, ..Retry::default() };
                        client.transaction_retrying(retry, count).unwrap();
                    }
                });
            }
        });
        assert_eq!(daemon.client().read("/t/count").unwrap(), b"100");
    });
}

#[test]
fn events_come_until_the_timeout() {
    on_each(|daemon| {
        let (mut client, mut other) = (daemon.client(), daemon.client());
        client.watch("/t", "token").unwrap();
        other.write("/t/a", "1").unwrap();
        let paths: Vec<_> = client
            .events(Some(Duration::from_millis(300)))
            .map(|event| event.unwrap())
            .inspect(|event| assert_eq!(event.token, b"token"))
            .map(|event| String::from_utf8(event.path).unwrap())
            .collect();
        assert_eq!(paths, ["/t", "/t/a"]);
        client.unwatch("/t", "token").unwrap();
        other.write("/t/a", "2").unwrap();
        assert_eq!(client.poll_event().unwrap(), None);
    });
}

#[test]
fn the_descriptor_becomes_readable_with_an_event() {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::time::Timespec;
    on_each(|daemon| {
        let (mut client, mut other) = (daemon.client(), daemon.client());
        client.watch("/t", "token").unwrap();
        while client.next_event(Some(Duration::from_millis(100))).unwrap().is_some() {}
        let ready = |client: &Client, seconds| {
            let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let fd = client.as_fd();
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap()
        };
        assert_eq!(ready(&client, 0), 0);
        other.write("/t/a", "1").unwrap();
        assert_eq!(ready(&client, PATIENCE.as_secs() as i64), 1);
        assert_eq!(client.poll_event().unwrap().unwrap().path, b"/t/a");
    });
}

#[test]
fn events_are_kept_while_replies_are_awaited() {
    on_each(|daemon| {
        let mut client = daemon.client();
        client.watch("/t", "token").unwrap();
        for at in 0..100 {
            client.write(format!("/t/{at}"), "").unwrap();
        }
        let paths: Vec<_> = client
            .events(Some(Duration::from_millis(300)))
            .map(|event| String::from_utf8(event.unwrap().path).unwrap())
            .filter(|path| path != "/t")
            .collect();
        let expected: Vec<_> = (0..100).map(|at| format!("/t/{at}")).collect();
        assert_eq!(paths, expected);
    });
}

#[test]
fn depth_is_filtered_here_where_the_daemon_has_none() {
    on_each(|daemon| {
        let (mut client, mut other) = (daemon.client(), daemon.client());
        client.watch_depth("/t", "token", 1).unwrap();
        for path in ["/t/a", "/t/a/b", "/t/c"] {
            other.write(path, "").unwrap();
        }
        let paths: Vec<_> = client
            .events(Some(Duration::from_millis(300)))
            .map(|event| String::from_utf8(event.unwrap().path).unwrap())
            .collect();
        assert_eq!(paths, ["/t", "/t/a", "/t/c"]);
    });
}

fn thousands_of_children(client: &mut Client) -> Vec<String> {
    let names: Vec<String> = (0..3000).map(|at| format!("child-number-{at:04}")).collect();
    let writes: Vec<_> =
        names.iter().map(|name| (MsgType::Write, format!("/t/{name}\0"))).collect();
    submit_all(client, &writes);
    names
}

#[test]
fn a_long_listing_is_read_in_parts() {
    on_those_with_parts(|daemon| {
        let mut client = daemon.client();
        let names = thousands_of_children(&mut client);
        let strings = |names: Vec<Vec<u8>>| -> Vec<String> {
            names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
        };
        assert_eq!(strings(client.directory("/t").unwrap()), names);
        let in_transaction = client.transaction(|tx| tx.directory("/t")).unwrap();
        assert_eq!(strings(in_transaction), names);

        let mut walked = Vec::new();
        let options = Options { method: Method::Plain, ..Options::default() };
        walk(&mut client, b"/", options, |node| {
            walked.push(String::from_utf8(node.name().to_vec()).unwrap());
            Ok::<(), Error>(())
        })
        .unwrap();
        // C's daemon lists names in the order of their creation.
        walked.sort();
        let mut all = [names, ["t", "tool", "xenstored"].map(str::to_owned).to_vec()].concat();
        all.sort();
        assert_eq!(walked, all);
    });
}

#[test]
fn a_listing_that_changes_meanwhile_is_whole() {
    on_those_with_parts(|daemon| {
        let mut client = daemon.client();
        let names = thousands_of_children(&mut client).len();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut other = daemon.client();
                for at in 0..20 {
                    // One child is removed and one added: their number is the same at every moment.
                    let swap = |tx: &mut xenstore::Transaction<'_>| {
                        tx.rm(format!("/t/child-number-{at:04}"))?;
                        tx.write(format!("/t/in-its-place-{at:04}"), "")
                    };
                    other.transaction(swap).unwrap();
                }
            });
            while !writer.is_finished() {
                match client.directory("/t") {
                    Ok(listing) => assert_eq!(listing.len(), names),
                    Err(error) => assert!(matches!(error, Error::Unsteady { .. }), "{error}"),
                }
            }
        });
        assert_eq!(client.directory("/t").unwrap().len(), names);
    });
}

#[test]
fn an_oversized_listing_of_oxenstored_is_explained() {
    let Some(daemon) = Daemon::start(DaemonKind::OCaml) else { return };
    thousands_of_children(&mut daemon.client());
    let mut client = daemon.client();
    let error = client.directory("/t").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Protocol(_)) && text.contains("oxenstored"), "{text}");
    assert!(matches!(client.read("/t"), Err(Error::Gone { .. })), "the connection is lost");
}

#[test]
fn a_daemon_that_vanishes_is_told() {
    for mut daemon in each(&DaemonKind::ALL) {
        let mut client = daemon.client();
        client.write("/t/a", "1").unwrap();
        client.watch("/t", "token").unwrap();
        let ticket = client.submit(TransactionId::NONE, MsgType::Read, &[b"/t/a\0"]).unwrap();
        // The request is sent only in the wait, when the daemon is gone.
        daemon.kill();
        let error = client.wait(ticket).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Gone { .. }), "{text}");
        assert!(text.contains("READ /t/a") && text.contains("may have been done"), "{text}");
        let socket = daemon.socket.display().to_string();
        assert!(text.contains(&socket), "{text}");
        let events: Vec<_> = client.events(None).collect();
        assert!(matches!(events.last(), Some(Err(Error::Gone { .. }))), "{events:?}");
        let error = Client::connect(&daemon.socket).unwrap_err().to_string();
        assert!(error.contains(&socket) && error.contains("XENSTORED_PATH"), "{error}");
    }
}

#[test]
fn a_walk_keeps_the_order_of_a_recursion() {
    on_each(|daemon| {
        let mut client = daemon.client();
        let mut writes = Vec::new();
        for at in 0..3000_u32 {
            // A tree of uneven shape.
            let (a, b) = (at.wrapping_mul(2_654_435_761) >> 28, at % 7);
            let deep = "/d".repeat((at % 40) as usize);
            writes.push((MsgType::Write, format!("/t/{a}/{b}{deep}/{at}\0{at}")));
        }
        submit_all(&mut client, &writes);
        let mut expected = Vec::new();
        recursion(&mut client, "/t", &mut expected);
        assert!(expected.len() > 3000);
        for in_flight_max in [1, 2, 7, 128] {
            let mut walked = Vec::new();
            let options = Options { in_flight_max, ..Options::default() };
            walk(&mut client, b"/t", options, |node| {
                walked.push((String::from_utf8(node.path).unwrap(), node.value?));
                Ok::<(), Error>(())
            })
            .unwrap();
            assert!(walked == expected, "{in_flight_max} in flight");
            assert_eq!(client.in_flight(), 0);
        }
    });
}

fn recursion(client: &mut Client, path: &str, nodes: &mut Vec<(String, Vec<u8>)>) {
    for name in client.directory(path).unwrap() {
        let child = format!("{path}/{}", String::from_utf8(name).unwrap());
        let value = client.read(&child).unwrap();
        nodes.push((child.clone(), value));
        recursion(client, &child, nodes);
    }
}

#[test]
fn an_endless_wait_is_bounded_by_its_timeout() {
    on_each(|daemon| {
        let mut client = daemon.client();
        let begin = Instant::now();
        assert_eq!(client.next_event(Some(Duration::from_millis(50))).unwrap(), None);
        let took = begin.elapsed();
        assert!((Duration::from_millis(50)..PATIENCE).contains(&took), "{took:?}");
    });
}
