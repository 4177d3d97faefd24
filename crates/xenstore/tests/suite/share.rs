//! A connection that several processes share.

use crate::support::{PATIENCE, each};
use conformance::DaemonKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xenstore::share::SharedStore;
use xenstore::{Client, Store};

/// Runs `body` with the path of a socket over which a connection to `socket` is shared, and with the
/// number of events that the connection has had.
fn shared(socket: PathBuf, body: impl FnOnce(&Path, &AtomicUsize)) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    let mut shared = SharedStore::bind(&path).unwrap();
    let (is_over, events) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut store = Client::connect(socket).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                shared.serve(&mut store).unwrap();
                while let Some(event) = store.poll_event().unwrap() {
                    events.fetch_add(1, Ordering::Relaxed);
                    assert!(shared.take(&event), "{event:?}");
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&path, &events)));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

fn next(client: &mut Client) -> (String, String) {
    let event = client.next_event(Some(PATIENCE)).unwrap().expect("an event comes");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&event.path), text(&event.token))
}

#[test]
fn each_process_has_watches_and_transactions_of_its_own() {
    for daemon in each(&[DaemonKind::Ours, DaemonKind::C]) {
        shared(daemon.socket.clone(), |path, _| {
            let (mut one, mut two) =
                (Client::connect(path).unwrap(), Client::connect(path).unwrap());
            one.write("/s/a", "1").unwrap();
            assert_eq!(two.read("/s/a").unwrap(), b"1");
            assert_eq!(two.try_read("/s/none").unwrap(), None);
            // The same token of two processes, and one that looks like those of the connection.
            for client in [&mut one, &mut two] {
                client.watch("/s", "t:0:share:1:x").unwrap();
                assert_eq!(next(client), ("/s".into(), "t:0:share:1:x".into()));
            }
            two.unwatch("/s", "t:0:share:1:x").unwrap();
            assert!(two.unwatch("/s", "t:0:share:1:x").is_err(), "it is the other's");
            two.write("/s/a", "2").unwrap();
            assert_eq!(next(&mut one), ("/s/a".into(), "t:0:share:1:x".into()));
            assert_eq!(two.poll_event().unwrap(), None);
            let done = one.transaction(|tx| {
                let value = tx.read("/s/a")?;
                tx.write("/s/b", &value)?;
                Ok(value)
            });
            assert_eq!(done.unwrap(), b"2");
            for kind in [xenstore::MsgType::WatchEvent, xenstore::MsgType::Error] {
                let none = xenstore::TransactionId::NONE;
                assert!(one.request_in(none, kind, &[b"/s\0"]).unwrap_err().refusal().is_some());
            }
            // Another's transaction is none of this one.
            let open = one.transaction_start().unwrap();
            let read = two.request_in(open, xenstore::MsgType::Read, &[b"/s/a\0"]);
            assert!(read.unwrap_err().refusal().is_some());
            one.transaction_end(open, xenstore::transaction::TransactionEnd::Abort).unwrap();
        });
    }
}

/// A process that is killed leaves no watch and no transaction behind.
#[test]
fn what_a_process_has_ends_with_it() {
    for daemon in each(&[DaemonKind::Ours, DaemonKind::C]) {
        let mut control = daemon.client();
        shared(daemon.socket.clone(), |path, events| {
            for round in 0..40 {
                let mut client = Client::connect(path).unwrap();
                for number in 0..20 {
                    client.watch("/s", format!("{round}:{number}")).unwrap();
                }
                let _open = client.transaction_start().unwrap();
            }
            let end = Instant::now() + PATIENCE;
            loop {
                let before = events.load(Ordering::Relaxed);
                control.write("/s/x", "").unwrap();
                // Nothing tells that no event comes.
                std::thread::sleep(Duration::from_millis(50));
                if events.load(Ordering::Relaxed) == before {
                    break;
                }
                assert!(Instant::now() < end, "watches are left");
            }
            let mut last = Client::connect(path).unwrap();
            last.transaction(|tx| tx.write("/s/x", "1")).unwrap();
        });
    }
}
