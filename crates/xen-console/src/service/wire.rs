//! The frames between the daemon and a client of a console, on a Unix stream socket.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | kind |
//! | 1 | 0 |
//! | 2 | length of the payload, little endian, at most 4096 |
//! | length | payload; numbers in it are little endian |
//!
//! | kind | from | payload |
//! |---|---|---|
//! | 1 open | client | 1 byte of access, 1 byte of where to begin, the domain's name or number |
//! | 2 input | client | bytes that were typed |
//! | 3 size | client | columns and rows of its window, 2 bytes each |
//! | 4 open a further console | client | as 1 open, with the number of the console, 4 bytes, before the domain |
//! | 17 opened | daemon | the domain's number, 2 bytes; the place of the first byte, 8 bytes |
//! | 18 output | daemon | bytes of the guest |
//! | 19 missed | daemon | the number of bytes that the client has not got, 8 bytes |
//! | 20 ended | daemon | none: the domain is gone, and all that the daemon has kept of its output was sent |
//! | 21 refused | daemon | a sentence; the daemon then closes the connection |

use std::io::{self, Read};

/// The longest payload of a frame.
pub const PAYLOAD_MAX: usize = 4096;
/// The bytes before a payload.
pub const HEAD: usize = 4;

/// The rights of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientAccess {
    /// It sees output.
    Watch,
    /// It types, too.
    Type,
}

/// The first byte of output that a client gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputStart {
    /// The next one.
    Now,
    /// That of the last screenful.
    Screenful,
    /// The oldest one that the daemon has.
    Oldest,
}

/// A frame of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientFrame<'f> {
    /// Opens the console of a domain; the first frame, and once.
    Open {
        /// The rights that the client wants.
        access: ClientAccess,
        /// The first byte that it wants.
        start: OutputStart,
        /// The number of the console: 0 is the domain's first one.
        number: u32,
        /// The domain's name or number.
        domain: &'f [u8],
    },
    /// Types bytes.
    Input(&'f [u8]),
    /// Says the size of the client's window, in characters.
    Size {
        /// Its width.
        columns: u16,
        /// Its height.
        rows: u16,
    },
}

/// A frame of the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DaemonFrame<'f> {
    /// The console is open.
    Opened {
        /// The domain's number.
        domid: u16,
        /// The place of the first byte of output, in bytes since the console is served.
        place: u64,
    },
    /// Output of the guest.
    Output(&'f [u8]),
    /// The number of bytes that the client has not got, as it did not read.
    Missed(u64),
    /// The domain is gone.
    Ended,
    /// The request is refused, for the reason in this sentence.
    Refused(&'f [u8]),
}

/// The error of a peer that does not keep to the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameFault;

const OPEN: u8 = 1;
const INPUT: u8 = 2;
const SIZE: u8 = 3;
/// A daemon of an earlier version does not know it, and closes the connection.
const OPEN_FURTHER: u8 = 4;
const OPENED: u8 = 17;
const OUTPUT: u8 = 18;
const MISSED: u8 = 19;
const ENDED: u8 = 20;
const REFUSED: u8 = 21;

impl<'f> ClientFrame<'f> {
    /// Appends the frame to `bytes`. A payload beyond [`PAYLOAD_MAX`] is cut.
    pub fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Open { access, start, number, domain } => {
                let access = match access {
                    ClientAccess::Watch => 0,
                    ClientAccess::Type => 1,
                };
                let start = match start {
                    OutputStart::Now => 0,
                    OutputStart::Screenful => 1,
                    OutputStart::Oldest => 2,
                };
                match number {
                    0 => put(bytes, OPEN, &[&[access, start], domain]),
                    _ => {
                        let number = number.to_le_bytes();
                        put(bytes, OPEN_FURTHER, &[&[access, start], &number, domain]);
                    }
                }
            }
            Self::Input(typed) => put(bytes, INPUT, &[typed]),
            Self::Size { columns, rows } => {
                put(bytes, SIZE, &[&columns.to_le_bytes(), &rows.to_le_bytes()]);
            }
        }
    }

    fn parse(kind: u8, payload: &'f [u8]) -> Result<Self, FrameFault> {
        match (kind, payload) {
            (OPEN, [access, start, domain @ ..]) => Self::open([*access, *start], 0, domain),
            (OPEN_FURTHER, [access, start, a, b, c, d, domain @ ..]) => {
                Self::open([*access, *start], u32::from_le_bytes([*a, *b, *c, *d]), domain)
            }
            (INPUT, typed) => Ok(Self::Input(typed)),
            (SIZE, [a, b, c, d]) => Ok(Self::Size {
                columns: u16::from_le_bytes([*a, *b]),
                rows: u16::from_le_bytes([*c, *d]),
            }),
            _ => Err(FrameFault),
        }
    }

    fn open([access, start]: [u8; 2], number: u32, domain: &'f [u8]) -> Result<Self, FrameFault> {
        let access = match access {
            0 => ClientAccess::Watch,
            1 => ClientAccess::Type,
            _ => return Err(FrameFault),
        };
        let start = match start {
            0 => OutputStart::Now,
            1 => OutputStart::Screenful,
            2 => OutputStart::Oldest,
            _ => return Err(FrameFault),
        };
        Ok(Self::Open { access, start, number, domain })
    }
}

impl<'f> DaemonFrame<'f> {
    /// Appends the frame to `bytes`. A payload beyond [`PAYLOAD_MAX`] is cut.
    pub fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Opened { domid, place } => {
                put(bytes, OPENED, &[&domid.to_le_bytes(), &place.to_le_bytes()]);
            }
            Self::Output(output) => put(bytes, OUTPUT, &[output]),
            Self::Missed(count) => put(bytes, MISSED, &[&count.to_le_bytes()]),
            Self::Ended => put(bytes, ENDED, &[]),
            Self::Refused(sentence) => put(bytes, REFUSED, &[sentence]),
        }
    }

    fn parse(kind: u8, payload: &'f [u8]) -> Result<Self, FrameFault> {
        match (kind, payload) {
            (OPENED, [a, b, place @ ..]) => {
                let place = place.try_into().map_err(|_| FrameFault)?;
                let domid = u16::from_le_bytes([*a, *b]);
                Ok(Self::Opened { domid, place: u64::from_le_bytes(place) })
            }
            (OUTPUT, output) => Ok(Self::Output(output)),
            (MISSED, count) => {
                let count = count.try_into().map_err(|_| FrameFault)?;
                Ok(Self::Missed(u64::from_le_bytes(count)))
            }
            (ENDED, []) => Ok(Self::Ended),
            (REFUSED, sentence) => Ok(Self::Refused(sentence)),
            _ => Err(FrameFault),
        }
    }
}

fn put(bytes: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let at = bytes.len();
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes.truncate(at.saturating_add(HEAD + PAYLOAD_MAX));
    let len = u16::try_from(bytes.len().saturating_sub(at + HEAD)).unwrap_or(0);
    if let Some(place) = bytes.get_mut(at + 2..at + HEAD) {
        place.copy_from_slice(&len.to_le_bytes());
    }
}

/// The outcome of a read of a socket that does not block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// Bytes came; there may be more.
    Some,
    /// None is there now.
    Nothing,
    /// The peer has closed its end.
    Closed,
}

/// Bytes of a peer, until they are whole frames.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// The number of bytes of frames that were taken.
    taken: usize,
}

impl FrameBuffer {
    /// Reads what is there, as far as there is room for two frames.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn fill(&mut self, socket: &mut impl Read) -> io::Result<Filled> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let len = self.bytes.len();
        let room = (2 * (HEAD + PAYLOAD_MAX)).saturating_sub(len);
        if room == 0 {
            return Ok(Filled::Some);
        }
        self.bytes.resize(len + room, 0);
        let read = socket.read(self.bytes.get_mut(len..).unwrap_or_default());
        self.bytes.truncate(len + read.as_ref().map_or(0, |count| *count));
        match read {
            Ok(0) => Ok(Filled::Closed),
            Ok(_) => Ok(Filled::Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Filled::Some),
            Err(error) => Err(error),
        }
    }

    /// Takes the next frame of a client; none if it is not whole yet.
    ///
    /// # Errors
    /// [`FrameFault`].
    pub fn client_frame(&mut self) -> Result<Option<ClientFrame<'_>>, FrameFault> {
        self.next()?.map(|(kind, payload)| ClientFrame::parse(kind, payload)).transpose()
    }

    /// Takes the next frame of the daemon; none if it is not whole yet.
    ///
    /// # Errors
    /// [`FrameFault`].
    pub fn daemon_frame(&mut self) -> Result<Option<DaemonFrame<'_>>, FrameFault> {
        self.next()?.map(|(kind, payload)| DaemonFrame::parse(kind, payload)).transpose()
    }

    fn next(&mut self) -> Result<Option<(u8, &[u8])>, FrameFault> {
        let left = self.bytes.get(self.taken..).unwrap_or_default();
        let [kind, zero, a, b, rest @ ..] = left else { return Ok(None) };
        let len = usize::from(u16::from_le_bytes([*a, *b]));
        if *zero != 0 || len > PAYLOAD_MAX {
            return Err(FrameFault);
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        self.taken += HEAD + len;
        Ok(Some((*kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [ClientFrame<'static>; 5] = [
        ClientFrame::Open {
            access: ClientAccess::Type,
            start: OutputStart::Screenful,
            number: 0,
            domain: b"web",
        },
        ClientFrame::Open {
            access: ClientAccess::Watch,
            start: OutputStart::Oldest,
            number: 0x0102_0304,
            domain: b"7",
        },
        ClientFrame::Input(b"id\n"),
        ClientFrame::Input(b""),
        ClientFrame::Size { columns: 132, rows: 50 },
    ];
    const DAEMON: [DaemonFrame<'static>; 5] = [
        DaemonFrame::Opened { domid: 7, place: 1 << 40 },
        DaemonFrame::Output(b"login: "),
        DaemonFrame::Missed(5),
        DaemonFrame::Ended,
        DaemonFrame::Refused(b"there is no domain web"),
    ];

    /// A reader that gives one byte at a time.
    struct Slow<'b>(&'b [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let [first, rest @ ..] = self.0 else { return Err(io::ErrorKind::WouldBlock.into()) };
            into[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn frames_are_read_as_they_were_put_however_they_are_cut() {
        let (mut clients, mut daemons) = (Vec::new(), Vec::new());
        CLIENT.iter().for_each(|frame| frame.put(&mut clients));
        DAEMON.iter().for_each(|frame| frame.put(&mut daemons));
        let (mut buffer, mut socket, mut count) = (FrameBuffer::default(), Slow(&clients), 0);
        while buffer.fill(&mut socket).unwrap() == Filled::Some {
            if let Some(frame) = buffer.client_frame().unwrap() {
                assert_eq!(frame, CLIENT[count]);
                count += 1;
            }
        }
        assert_eq!(count, CLIENT.len());
        let (mut buffer, mut socket, mut count) = (FrameBuffer::default(), &daemons[..], 0);
        assert_eq!(buffer.fill(&mut socket).unwrap(), Filled::Some);
        while let Some(frame) = buffer.daemon_frame().unwrap() {
            assert_eq!(frame, DAEMON[count]);
            count += 1;
        }
        assert_eq!(count, DAEMON.len());
        assert_eq!(buffer.fill(&mut socket).unwrap(), Filled::Closed);
    }

    #[test]
    fn a_first_console_is_opened_as_earlier_versions_did() {
        let mut bytes = Vec::new();
        CLIENT[0].put(&mut bytes);
        assert_eq!(bytes, b"\x01\0\x05\0\x01\x01web");
        bytes.clear();
        CLIENT[1].put(&mut bytes);
        assert_eq!(bytes, b"\x04\0\x07\0\0\x02\x04\x03\x02\x017");
    }

    #[test]
    fn a_peer_that_keeps_to_no_frame_is_refused() {
        for bytes in [
            &[1, 1, 0, 0][..],
            &[1, 0, 0, 255],
            &[1, 0, 0, 0],
            &[4, 0, 5, 0, 0, 0, 1, 0, 0],
            &[1, 0, 2, 0, 9, 0],
            &[3, 0, 1, 0, 0],
            &[99, 0, 0, 0],
        ] {
            let mut buffer = FrameBuffer::default();
            buffer.fill(&mut &*bytes).unwrap();
            assert_eq!(buffer.client_frame(), Err(FrameFault), "{bytes:?}");
        }
    }

    #[test]
    fn the_longest_payload_passes_and_a_longer_one_is_cut() {
        let mut bytes = Vec::new();
        DaemonFrame::Output(&[7; PAYLOAD_MAX + 9]).put(&mut bytes);
        let mut buffer = FrameBuffer::default();
        buffer.fill(&mut &bytes[..]).unwrap();
        assert_eq!(buffer.daemon_frame(), Ok(Some(DaemonFrame::Output(&[7; PAYLOAD_MAX]))));
    }
}
