//! The XenStore ring: two byte streams in one page, between a guest and the store.
//!
//! Source: `struct xenstore_domain_interface` in `xen/include/public/io/xs_wire.h`, and
//! `docs/misc/xenstore-ring.txt`.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1024 | requests, written by the guest |
//! | 1024 | 1024 | responses and events, written by the store |
//! | 2048, 2052 | 4 each | how much of the requests was consumed, produced |
//! | 2056, 2060 | 4 each | how much of the responses was consumed, produced |
//! | 2064 | 4 | features of the store, one bit each |
//! | 2068 | 4 | connection: 0 connected, 1 the guest asks for a reset |
//! | 2072 | 4 | why the store has stopped serving this ring, 0 while it does |
//! | 2076 | 4 | the guest's event channel port where Xen itself set it up, else 0 |
//!
//! The four indices run freely modulo 2^32. All eight words lie where the guest can write them,
//! also those that only the store should write: whatever the guest puts there harms its own streams
//! and nothing else. After a read or a write that moved bytes the peer is to be notified.

use crate::byte_stream::ByteStream;
pub use crate::byte_stream::RingError;
use xen::shared::SharedPage;

/// Bytes of each of the two streams that the page holds (`XENSTORE_RING_SIZE`).
pub const RING_SIZE: usize = 1024;

const RING_SIZE_U32: u32 = 1024;
/// Offsets of the fields of `struct xenstore_domain_interface` in the page, in bytes.
pub mod offset {
    /// `req`: the requests.
    pub const REQ: usize = 0;
    /// `rsp`: the responses and events.
    pub const RSP: usize = 1024;
    /// `req_cons`.
    pub const REQ_CONS: usize = 2048;
    /// `req_prod`.
    pub const REQ_PROD: usize = 2052;
    /// `rsp_cons`.
    pub const RSP_CONS: usize = 2056;
    /// `rsp_prod`.
    pub const RSP_PROD: usize = 2060;
    /// `server_features`.
    pub const SERVER_FEATURES: usize = 2064;
    /// `connection`.
    pub const CONNECTION: usize = 2068;
    /// `error`.
    pub const ERROR: usize = 2072;
    /// `evtchn_port`, since Xen 4.21.
    pub const EVTCHN_PORT: usize = 2076;
}

/// The connection word of a ring in use (`XENSTORE_CONNECTED`).
pub const CONNECTED: u32 = 0;
/// The connection word with which a guest asks for a reset (`XENSTORE_RECONNECT`).
pub const RECONNECT: u32 = 1;

const REQUESTS: ByteStream = ByteStream {
    data: offset::REQ,
    size: RING_SIZE_U32,
    cons: offset::REQ_CONS,
    prod: offset::REQ_PROD,
};
const RESPONSES: ByteStream = ByteStream {
    data: offset::RSP,
    size: RING_SIZE_U32,
    cons: offset::RSP_CONS,
    prod: offset::RSP_PROD,
};

/// The reason that a store stops serving a ring: the value of the error word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ErrorWord {
    /// The ring is served (`XENSTORE_ERROR_NONE`).
    None = 0,
    /// The event channel cannot be used (`XENSTORE_ERROR_COMM`).
    Communication = 1,
    /// Indices that are not possible (`XENSTORE_ERROR_RINGIDX`).
    RingIndex = 2,
    /// A payload over the limit (`XENSTORE_ERROR_PROTO`).
    Protocol = 3,
}

/// The store's end of a guest's ring.
#[derive(Debug)]
pub struct ServerRing {
    page: SharedPage,
}

impl ServerRing {
    /// The store's end of the ring in `page`, which is used as it is.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        Self { page }
    }

    /// Takes what the guest has sent, at most `into.len()` bytes; returns how many. Where it is not
    /// 0 the guest is to be notified, as it may wait for space. Where it is less than all that `into`
    /// takes, the ring was seen empty after it, and the guest notifies when it sends more.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing else that is in this ring means anything then.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, RingError> {
        REQUESTS.consume(&self.page, into)
    }

    /// Sends as much of `from` as fits; returns how many bytes. Where it is not 0 the guest is to be
    /// notified; where it is less than all, the ring was seen full, and the guest notifies once it has
    /// read some.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing else that is in this ring means anything then.
    pub fn write(&self, from: &[u8]) -> Result<usize, RingError> {
        RESPONSES.produce(&self.page, from)
    }

    /// Empties both streams: all four indices become 0.
    ///
    /// # Errors
    /// [`RingError::Page`] never happens with the layout of this module.
    pub fn reset(&self) -> Result<(), RingError> {
        for stream in [REQUESTS, RESPONSES] {
            self.page.store_u32(stream.cons, 0)?;
            self.page.store_u32(stream.prod, 0)?;
        }
        Ok(())
    }

    /// Offers features, as `xenstore_core::wire::feature` names them.
    ///
    /// # Errors
    /// As [`ServerRing::reset`].
    pub fn set_features(&self, features: u32) -> Result<(), RingError> {
        Ok(self.page.store_u32(offset::SERVER_FEATURES, features)?)
    }

    /// True if the guest asks for the ring to be closed and connected again.
    ///
    /// # Errors
    /// As [`ServerRing::reset`].
    pub fn reconnect_requested(&self) -> Result<bool, RingError> {
        Ok(self.page.load_u32(offset::CONNECTION)? == RECONNECT)
    }

    /// Tells the guest that the ring is connected (again).
    ///
    /// # Errors
    /// As [`ServerRing::reset`].
    pub fn set_connected(&self) -> Result<(), RingError> {
        Ok(self.page.store_u32(offset::CONNECTION, CONNECTED)?)
    }

    /// Tells the guest the reason that it is no longer served, or that it is served.
    ///
    /// # Errors
    /// As [`ServerRing::reset`].
    pub fn set_error(&self, why: ErrorWord) -> Result<(), RingError> {
        Ok(self.page.store_u32(offset::ERROR, why as u32)?)
    }

    /// The guest's event channel port where Xen itself has set the ring up (dom0less).
    ///
    /// # Errors
    /// As [`ServerRing::reset`].
    pub fn evtchn_port(&self) -> Result<Option<u32>, RingError> {
        let port = self.page.load_u32(offset::EVTCHN_PORT)?;
        Ok((port != 0).then_some(port))
    }
}

/// A guest's end of its own ring.
#[derive(Debug)]
pub struct ClientRing {
    page: SharedPage,
}

impl ClientRing {
    /// The guest's end of the ring in `page`, which is used as it is.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        Self { page }
    }

    /// Takes responses and events, at most `into.len()` bytes; returns how many. Where it is not 0
    /// the store is to be notified.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing is taken then.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, RingError> {
        RESPONSES.consume(&self.page, into)
    }

    /// Sends as much of `from` as fits; returns how many bytes. Where it is not 0 the store is to be
    /// notified.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing is sent then.
    pub fn write(&self, from: &[u8]) -> Result<usize, RingError> {
        REQUESTS.produce(&self.page, from)
    }

    /// The features that the store offers.
    ///
    /// # Errors
    /// [`RingError::Page`] never happens with the layout of this module.
    pub fn features(&self) -> Result<u32, RingError> {
        Ok(self.page.load_u32(offset::SERVER_FEATURES)?)
    }

    /// Asks for the ring to be reset; the store is to be notified, and until
    /// [`ClientRing::connected`] nothing else in the page means anything. Only for stores that
    /// offer the feature.
    ///
    /// # Errors
    /// As [`ClientRing::features`].
    pub fn request_reconnect(&self) -> Result<(), RingError> {
        Ok(self.page.store_u32(offset::CONNECTION, RECONNECT)?)
    }

    /// True if the ring is connected.
    ///
    /// # Errors
    /// As [`ClientRing::features`].
    pub fn connected(&self) -> Result<bool, RingError> {
        Ok(self.page.load_u32(offset::CONNECTION)? == CONNECTED)
    }

    /// Returns the reason that the store has stopped serving, by its number in `xs_wire.h`; 0 while
    /// it serves. Newer stores may say numbers that [`ErrorWord`] does not have.
    ///
    /// # Errors
    /// As [`ClientRing::features`].
    pub fn error(&self) -> Result<u32, RingError> {
        Ok(self.page.load_u32(offset::ERROR)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hostile index pairs, as consumed and produced: all announce more than the ring holds.
    const HOSTILE: [(u32, u32); 6] =
        [(0, 1025), (1, 0), (5, 4), (u32::MAX, 1024), (0, u32::MAX), (0x8000_0000, 0)];

    fn server() -> ServerRing {
        ServerRing::new(SharedPage::private())
    }

    /// Moves the ring's page from one end to the other; both ends have the same private field.
    fn front_of(server: ServerRing) -> ClientRing {
        ClientRing::new(server.page)
    }

    #[test]
    fn an_empty_ring_has_nothing() {
        let ring = server();
        let mut bytes = [0; 16];
        assert_eq!(ring.read(&mut bytes), Ok(0));
        assert_eq!(ring.write(b""), Ok(0));
    }

    #[test]
    fn requests_and_responses_do_not_meet() {
        let ring = server();
        assert_eq!(ring.write(b"response"), Ok(8));
        let front = front_of(ring);
        assert_eq!(front.write(b"request"), Ok(7));
        let mut bytes = [0; 16];
        assert_eq!(front.read(&mut bytes), Ok(8));
        assert_eq!(&bytes[..8], b"response");
        let ring = ServerRing::new(front.page);
        assert_eq!(ring.read(&mut bytes), Ok(7));
        assert_eq!(&bytes[..7], b"request");
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let ring = server();
        assert_eq!(ring.write(&[1; 1000]), Ok(1000));
        assert_eq!(ring.write(&[2; 1000]), Ok(24));
        assert_eq!(ring.write(&[3; 1]), Ok(0));
        let front = front_of(ring);
        let mut bytes = [0; 2000];
        assert_eq!(front.read(&mut bytes), Ok(1024));
        assert_eq!((bytes[999], bytes[1000], bytes[1023]), (1, 2, 2));
        assert_eq!(ServerRing::new(front.page).write(&[4; 2000]), Ok(1024));
    }

    #[test]
    fn bytes_survive_the_end_of_the_ring_and_of_the_index() {
        for start in [1000, u32::MAX - 10, u32::MAX, 0x7fff_fff0] {
            let ring = server();
            for word in [2048, 2052, 2056, 2060] {
                ring.page.store_u32(word, start).unwrap();
            }
            let sent: Vec<u8> = (0..1024).map(|at| (at % 251) as u8).collect();
            assert_eq!(ring.write(&sent), Ok(1024));
            assert_eq!(ring.write(b"x"), Ok(0), "full at {start}");
            let front = front_of(ring);
            let mut got = [0; 1024];
            assert_eq!(front.read(&mut got[..100]), Ok(100));
            assert_eq!(front.read(&mut got[100..]), Ok(924));
            assert_eq!(sent, got, "from index {start}");
            assert_eq!(front.page.load_u32(2060), Ok(start.wrapping_add(1024)));
        }
    }

    #[test]
    fn impossible_indices_are_refused() {
        for (cons, prod) in HOSTILE {
            let ring = server();
            for (stream, base) in [(REQUESTS, 2048), (RESPONSES, 2056)] {
                assert_eq!((stream.cons, stream.prod), (base, base + 4));
                ring.page.store_u32(stream.cons, cons).unwrap();
                ring.page.store_u32(stream.prod, prod).unwrap();
            }
            let error = Err(RingError::Index { cons, prod });
            assert_eq!(ring.read(&mut [0; 8]), error);
            assert_eq!(ring.write(&[0; 8]), error);
            ring.reset().unwrap();
            assert_eq!(ring.write(&[0; 8]), Ok(8), "usable again after a reset");
        }
    }

    #[test]
    fn the_words_lie_where_the_header_says() {
        let ring = server();
        ring.set_features(15).unwrap();
        ring.set_error(ErrorWord::Protocol).unwrap();
        ring.page.store_u32(2076, 9).unwrap();
        assert_eq!(ring.page.load_u32(2064), Ok(15));
        assert_eq!(ring.page.load_u32(2072), Ok(3));
        assert_eq!(ring.evtchn_port(), Ok(Some(9)));
        let front = front_of(ring);
        assert_eq!((front.features(), front.error()), (Ok(15), Ok(3)));
        assert_eq!(front.connected(), Ok(true));
        front.request_reconnect().unwrap();
        assert_eq!(front.connected(), Ok(false));
        let ring = ServerRing::new(front.page);
        assert_eq!(ring.reconnect_requested(), Ok(true));
        ring.set_connected().unwrap();
        assert_eq!(ring.reconnect_requested(), Ok(false));
        assert_eq!(ring.page.load_u32(2068), Ok(0));
    }
}
