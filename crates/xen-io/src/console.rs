//! The console ring: two byte streams in one page, between a guest and its console backend.
//!
//! Source: `struct xencons_interface` in `xen/include/public/io/console.h`.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1024 | input: bytes to the guest, written by the backend |
//! | 1024 | 2048 | output: bytes from the guest, written by the guest |
//! | 3072, 3076 | 4 each | how much of the input was consumed, produced |
//! | 3080, 3084 | 4 each | how much of the output was consumed, produced |
//! | 3088 | 1 | connection: 0 connected, 1 not yet; since Xen 4.21 |
//!
//! The guest can write every word of the page. What it puts there harms its own console and nothing
//! else. After a read or a write that moved bytes the peer is to be notified, and only then: Linux
//! delays the events of a backend that notifies without moving an index (XSA-391).

use crate::byte_stream::ByteStream;
pub use crate::byte_stream::{RingError, StreamChunk};
use xen::shared::SharedPage;

/// Bytes of input that the page holds.
pub const INPUT_SIZE: usize = 1024;
/// Bytes of output that the page holds.
pub const OUTPUT_SIZE: usize = 2048;

/// Offsets of the fields of `struct xencons_interface` in the page, in bytes.
pub mod offset {
    /// `in`: the bytes to the guest.
    pub const IN: usize = 0;
    /// `out`: the bytes from the guest.
    pub const OUT: usize = 1024;
    /// `in_cons`.
    pub const IN_CONS: usize = 3072;
    /// `in_prod`.
    pub const IN_PROD: usize = 3076;
    /// `out_cons`.
    pub const OUT_CONS: usize = 3080;
    /// `out_prod`.
    pub const OUT_PROD: usize = 3084;
    /// `connection`.
    pub const CONNECTION: usize = 3088;
}

/// The value of the connection byte while a backend serves (`XENCONSOLE_CONNECTED`). A page of an
/// older builder of domains has it from the start.
pub const CONNECTED: u8 = 0;
/// The value of the connection byte before a backend serves (`XENCONSOLE_DISCONNECTED`).
pub const DISCONNECTED: u8 = 1;

const INPUT: ByteStream =
    ByteStream { data: offset::IN, size: 1024, cons: offset::IN_CONS, prod: offset::IN_PROD };
const OUTPUT: ByteStream =
    ByteStream { data: offset::OUT, size: 2048, cons: offset::OUT_CONS, prod: offset::OUT_PROD };

/// The backend's end of a console ring.
#[derive(Debug)]
pub struct ConsoleBackRing {
    page: SharedPage,
}

impl ConsoleBackRing {
    /// The backend's end of the ring in `page`, whose indices stay as they are.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        Self { page }
    }

    /// Tells the guest that its console is served. No notification is due for it.
    ///
    /// # Errors
    /// [`RingError::Page`] never happens with the layout of this module.
    pub fn set_connected(&self) -> Result<(), RingError> {
        Ok(self.page.copy_in(offset::CONNECTION, &[CONNECTED])?)
    }

    /// True if a backend has moved an index of this ring before. That backend may have ended before
    /// it notified the guest, so its successor is to notify once.
    ///
    /// # Errors
    /// [`RingError::Page`] never happens with the layout of this module.
    pub fn was_served(&self) -> Result<bool, RingError> {
        let own = [offset::OUT_CONS, offset::IN_PROD];
        let [output, input] = own.map(|index| self.page.load_u32(index));
        Ok(output? != 0 || input? != 0)
    }

    /// Copies output of the guest, at most `into.len()` bytes, and leaves it in the ring. The bytes
    /// may then be kept before [`ConsoleBackRing::release_output`] gives their room to the guest: a
    /// backend that ends in between has lost none.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing else that is in this ring means anything then.
    pub fn peek_output(&self, into: &mut [u8]) -> Result<StreamChunk, RingError> {
        OUTPUT.peek(&self.page, into)
    }

    /// Gives the guest the room of output that was copied. The guest is to be notified, unless the
    /// chunk is empty.
    ///
    /// # Errors
    /// [`RingError::Page`] never happens with the layout of this module.
    pub fn release_output(&self, chunk: StreamChunk) -> Result<(), RingError> {
        OUTPUT.release(&self.page, chunk)
    }

    /// Puts as much of `from` as fits into the guest's input; returns how many bytes. If it is not
    /// 0, the guest is to be notified. If it is less than all, the ring was seen full, and the guest
    /// notifies once it has read some.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing else that is in this ring means anything then.
    pub fn write_input(&self, from: &[u8]) -> Result<usize, RingError> {
        INPUT.produce(&self.page, from)
    }

    /// Returns the number of bytes of input that fit.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing else that is in this ring means anything then.
    pub fn input_room(&self) -> Result<usize, RingError> {
        INPUT.room(&self.page)
    }
}

/// A guest's end of a console ring.
#[derive(Debug)]
pub struct ConsoleFrontRing {
    page: SharedPage,
}

impl ConsoleFrontRing {
    /// The guest's end of the ring in `page`, whose indices stay as they are.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        Self { page }
    }

    /// True if a backend serves the console, or the builder of the domain was older than the byte
    /// that says so.
    ///
    /// # Errors
    /// [`RingError::Page`] never happens with the layout of this module.
    pub fn connected(&self) -> Result<bool, RingError> {
        let mut connection = [DISCONNECTED];
        self.page.copy_out(offset::CONNECTION, &mut connection)?;
        Ok(connection == [CONNECTED])
    }

    /// Takes input, at most `into.len()` bytes; returns how many. If it is not 0, the backend is to
    /// be notified.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing is taken then.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, RingError> {
        INPUT.consume(&self.page, into)
    }

    /// Puts as much of `from` as fits into the output; returns how many bytes. If it is not 0, the
    /// backend is to be notified. If it is less than all, the ring was seen full, and the backend
    /// notifies once it has taken some.
    ///
    /// # Errors
    /// [`RingError::Index`]; nothing is put then.
    pub fn write(&self, from: &[u8]) -> Result<usize, RingError> {
        OUTPUT.produce(&self.page, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves the page to the guest's end.
    fn front_of(ring: ConsoleBackRing) -> ConsoleFrontRing {
        ConsoleFrontRing::new(ring.page)
    }

    fn back_of(ring: ConsoleFrontRing) -> ConsoleBackRing {
        ConsoleBackRing::new(ring.page)
    }

    fn back() -> ConsoleBackRing {
        ConsoleBackRing::new(SharedPage::private())
    }

    #[test]
    fn output_stays_until_it_is_released() {
        let front = front_of(back());
        assert_eq!(front.write(&[7; 3000]), Ok(2048));
        let back = back_of(front);
        let mut bytes = [0; 100];
        let first = back.peek_output(&mut bytes).unwrap();
        assert_eq!((first.start, first.len, bytes), (0, 100, [7; 100]));
        // A backend that was killed here finds the bytes again.
        assert_eq!(back.peek_output(&mut bytes), Ok(first));
        back.release_output(first).unwrap();
        assert_eq!(back.peek_output(&mut bytes).unwrap().start, 100);
        let front = front_of(back);
        assert_eq!(front.write(&[8; 200]), Ok(100));
    }

    #[test]
    fn a_ring_shows_that_a_backend_has_moved_an_index() {
        let back = back();
        assert_eq!(back.was_served(), Ok(false));
        back.write_input(b"id\n").unwrap();
        assert_eq!(back.was_served(), Ok(true));
        let front = front_of(ConsoleBackRing::new(SharedPage::private()));
        front.write(b"login:").unwrap();
        let back = back_of(front);
        assert_eq!(back.was_served(), Ok(false));
        let chunk = back.peek_output(&mut [0; 3]).unwrap();
        back.release_output(chunk).unwrap();
        assert_eq!(back.was_served(), Ok(true));
    }

    #[test]
    fn streams_go_on_over_the_end_of_the_ring_and_of_the_index() {
        for start in [1000, 2000, u32::MAX - 10, 0x7fff_fff0] {
            let back = back();
            for word in [offset::IN_CONS, offset::IN_PROD, offset::OUT_CONS, offset::OUT_PROD] {
                back.page.store_u32(word, start).unwrap();
            }
            let sent: Vec<u8> = (0..2048).map(|at| (at % 251) as u8).collect();
            assert_eq!(back.write_input(&sent), Ok(1024));
            assert_eq!(back.input_room(), Ok(0));
            let front = front_of(back);
            let mut got = [0; 2048];
            assert_eq!(front.read(&mut got), Ok(1024));
            assert_eq!(got[..1024], sent[..1024]);
            assert_eq!(front.write(&sent), Ok(2048));
            let back = back_of(front);
            let chunk = back.peek_output(&mut got).unwrap();
            assert_eq!((chunk.start, chunk.len), (start, 2048));
            assert_eq!(got[..], sent[..]);
            back.release_output(chunk).unwrap();
            assert_eq!(back.page.load_u32(offset::OUT_CONS), Ok(start.wrapping_add(2048)));
        }
    }

    #[test]
    fn impossible_indices_are_refused() {
        for (cons, prod) in [(0, 2049), (1, 0), (u32::MAX, 2048), (0x8000_0000, 0)] {
            let back = back();
            for (word, value) in [
                (offset::IN_CONS, cons),
                (offset::IN_PROD, prod),
                (offset::OUT_CONS, cons),
                (offset::OUT_PROD, prod),
            ] {
                back.page.store_u32(word, value).unwrap();
            }
            let error = RingError::Index { cons, prod };
            assert_eq!(back.peek_output(&mut [0; 8]), Err(error));
            assert_eq!(back.write_input(&[0; 8]), Err(error));
            assert_eq!(back.input_room(), Err(error));
            let front = front_of(back);
            assert_eq!(front.read(&mut [0; 8]), Err(error));
            assert_eq!(front.write(&[0; 8]), Err(error));
        }
    }

    #[test]
    fn the_connection_byte_lies_where_the_header_says() {
        let back = back();
        back.page.copy_in(3088, &[DISCONNECTED, 9]).unwrap();
        let front = front_of(back);
        assert_eq!(front.connected(), Ok(false));
        let back = back_of(front);
        back.set_connected().unwrap();
        let mut bytes = [0; 2];
        back.page.copy_out(3088, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 9]);
        assert_eq!(front_of(back).connected(), Ok(true));
    }
}
