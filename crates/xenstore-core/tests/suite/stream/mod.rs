//! Tests of the state as a stream of records: a written stream is read back unchanged, and
//! malformed ones are refused.

mod foreign;
mod hostile;
mod same;

use crate::common::TestStore;
use std::collections::BTreeMap;
use xenstore_core::server::{Config, ConnId, RestoredStore, Server};
use xenstore_core::stream::{DaemonHandles, Error, TransportState};

const GLOBAL: DaemonHandles = DaemonHandles { socket_fd: 5, evtchn_fd: 6 };

/// Returns the stream of a store whose daemon has no input. The handles are the connections'
/// numbers.
fn dump(server: &Server) -> Vec<u8> {
    dump_with(server, &BTreeMap::new())
}

/// Returns the stream of a store whose daemon has input of some connections.
fn dump_with(server: &Server, input: &BTreeMap<ConnId, Vec<u8>>) -> Vec<u8> {
    dump_linked(server, |conn| TransportState {
        handle: conn.0,
        input: input.get(&conn).map(Vec::as_slice).unwrap_or_default(),
    })
}

/// Returns the stream of a store just restored, with the earlier handles of its connections.
fn dump_again(restored: &RestoredStore) -> Vec<u8> {
    dump_linked(&restored.server, |conn| {
        let known = restored.connections.iter().find(|known| known.conn == conn);
        let known = known.expect("every connection is told");
        TransportState { handle: known.handle, input: &known.input }
    })
}

fn dump_linked<'a>(server: &Server, link: impl Fn(ConnId) -> TransportState<'a>) -> Vec<u8> {
    let mut stream = Vec::new();
    let written: Result<(), std::convert::Infallible> = server.dump(GLOBAL, link, |bytes| {
        stream.extend_from_slice(bytes);
        Ok(())
    });
    written.expect("memory takes everything");
    stream
}

/// Clears the one number in a stream that increases whenever a store is made: the generation of the
/// lists of children.
fn lasting(mut stream: Vec<u8>) -> Vec<u8> {
    let generation = [&0x7862_0001u32.to_ne_bytes()[..], &8u32.to_ne_bytes()].concat();
    assert_eq!(stream[32..40], generation, "the record behind GLOBAL_DATA is another");
    stream[40..48].fill(0);
    stream
}

fn restore(stream: &[u8]) -> Result<RestoredStore, Error> {
    Server::restore(Config::default(), stream, 0)
}

/// Restores a store from a stream, on a machine like that of the writer. Returns it with the new
/// connections by their former ids.
fn taken_over(store: &TestStore, stream: &[u8]) -> (TestStore, BTreeMap<ConnId, ConnId>) {
    let restored =
        Server::restore(Config::default(), stream, store.now).expect("it was just written");
    let mut other = TestStore::new();
    other.machine = store.machine.clone();
    other.now = store.now;
    let conns = restored.connections.iter().map(|known| (ConnId(known.handle), known.conn));
    let conns = conns.collect();
    other.server = restored.server;
    (other, conns)
}

/// Returns a store with some of every kind of state, and the connection of its guest 7.
fn full() -> (TestStore, ConnId) {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = store.guest(7);
    store.guest(8);
    store.write(dom0, 0, "/local/domain/7/x", "value").unwrap();
    store.set_perms(dom0, 0, "/local/domain/7", &["n7", "r8", "w9", "r32757"]).unwrap();
    store.set_perms(dom0, 0, "@introduceDomain", &["n0", "r7"]).unwrap();
    store.write(dom0, 0, "/bytes", "\u{1}\0\u{2}").unwrap();
    store.watch(guest, "x", "relative").unwrap();
    store.watch(guest, "@releaseDomain", "special").unwrap();
    store.watch(dom0, "/", "all").unwrap();
    for payload in [&b"/local\0near\x001\0"[..], b"@introduceDomain\0far\x00100000\0"] {
        store.call(dom0, xenstore_core::wire::MsgType::Watch, 0, payload).unwrap();
    }
    for conn in [dom0, guest] {
        store.events(conn);
    }
    control(&mut store, dom0, "weight\x007\x00512");
    control(&mut store, dom0, "quota-soft\0set\0memory\x001000000");
    (store, guest)
}

fn control(store: &mut TestStore, conn: ConnId, command: &str) -> String {
    let payload = format!("{command}\0");
    let reply = store.call(conn, xenstore_core::wire::MsgType::Control, 0, payload.as_bytes());
    String::from_utf8(reply.unwrap_or_else(|error| panic!("{command:?}: {error}"))).expect("text")
}
