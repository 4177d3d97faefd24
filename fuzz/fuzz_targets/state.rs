//! Arbitrary bytes as the state that another daemon has left. A state that is accepted must be a
//! consistent store. Written and read again, it must be the same state, and all its connections and
//! domains can leave.
#![no_main]

#[path = "../../crates/xenstore-core/tests/suite/common/mod.rs"]
mod common;

use common::TestStore;
use libfuzzer_sys::fuzz_target;
use std::convert::Infallible;
use xenstore_core::server::{Config, DomId, RestoredConnection, Server};
use xenstore_core::stream::{DaemonHandles, TransportState};
use xenstore_core::wire::MsgType;

const GLOBAL: DaemonHandles = DaemonHandles { socket_fd: -1, evtchn_fd: -1 };

fuzz_target!(|data: &[u8]| {
    let restored = match Server::restore(Config::default(), data, 0) {
        Ok(restored) => restored,
        Err(error) => {
            assert!(error.offset <= data.len() && !error.what.is_empty());
            return;
        }
    };
    let connections = restored.connections;
    let mut store = TestStore::new();
    store.server = restored.server;
    store.check();
    let written = dump(&store.server, &connections);
    // A permission entry of 4 bytes makes a domain known, and the records of a domain are 200 bytes
    // long.
    assert!(written.len() <= 64 * data.len() + 4096, "{} of {}", written.len(), data.len());
    let again = Server::restore(Config::default(), &written, 0).expect("a store has written it");
    // Rings are written before sockets.
    let mut before: Vec<&RestoredConnection> = connections.iter().collect();
    before.sort_by_key(|known| known.ring.is_none());
    for (known, before) in again.connections.iter().zip(before) {
        assert_eq!((known.ring, &known.input), (before.ring, &before.input));
    }
    let twice = dump(&again.server, &again.connections);
    assert!(
        without_list_number(written) == without_list_number(twice),
        "what was read again is another state"
    );
    use_and_close(store, &connections);
});

fn dump(server: &Server, connections: &[RestoredConnection]) -> Vec<u8> {
    let mut stream = Vec::new();
    let link = |conn| {
        let known = connections.iter().find(|known| known.conn == conn);
        // The store has a connection of its own, for its self-check.
        known.map_or(TransportState { handle: 0, input: &[] }, |known| TransportState {
            handle: known.handle,
            input: &known.input,
        })
    };
    let written: Result<(), Infallible> = server.dump(GLOBAL, link, |bytes| {
        stream.extend_from_slice(bytes);
        Ok(())
    });
    written.expect("memory takes everything");
    stream
}

/// Returns the state without the number of the lists of children, which is behind the header and
/// GLOBAL_DATA and grows.
fn without_list_number(mut stream: Vec<u8>) -> Vec<u8> {
    stream[40..48].fill(0);
    stream
}

/// Sends a request for each connection and reads all of its output; then all connections and
/// domains leave.
fn use_and_close(mut store: TestStore, connections: &[RestoredConnection]) {
    let TestStore { server, machine, .. } = &mut store;
    for known in connections {
        let header = xenstore_core::wire::Header {
            kind: MsgType::Directory.code(),
            req_id: 1,
            tx_id: 0,
            len: 2,
        };
        server.request(known.conn, &header, b"/\0", 0, machine);
        loop {
            let len = server.output(known.conn).len();
            if len == 0 {
                break;
            }
            server.consume_output(known.conn, len.min(1000), 0);
        }
    }
    for known in connections.iter().filter(|known| known.ring.is_none()) {
        server.disconnect(known.conn, 0, machine);
    }
    let domains: Vec<DomId> = server.domains().filter(|domid| domid.0 != 0).collect();
    for domid in domains {
        server.domain_died(domid, 0, machine);
    }
    store.check();
}
