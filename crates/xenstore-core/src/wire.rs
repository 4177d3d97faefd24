//! The wire format: message types, headers, error names, and splitting a byte stream into messages.
//!
//! Source: `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt` of Xen 4.23. Headers are
//! in the byte order of the machine, as both ends are on the same machine.

use crate::bytes::find;
use crate::limits::{HEADER_SIZE, PAYLOAD_MAX};
use core::fmt;

/// A message type (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are those of docs/misc/xenstore.txt")]
pub enum MsgType {
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    ResetWatches = 21,
    DirectoryPart = 22,
    GetFeature = 23,
    SetFeature = 24,
    GetQuota = 25,
    SetQuota = 26,
}

/// The number of type codes, holes included (`XS_TYPE_COUNT`).
pub const TYPE_COUNT: usize = 27;

/// All types with their names, in the order of the codes.
pub const TYPES: [(MsgType, &str); 26] = [
    (MsgType::Control, "CONTROL"),
    (MsgType::Directory, "DIRECTORY"),
    (MsgType::Read, "READ"),
    (MsgType::GetPerms, "GET_PERMS"),
    (MsgType::Watch, "WATCH"),
    (MsgType::Unwatch, "UNWATCH"),
    (MsgType::TransactionStart, "TRANSACTION_START"),
    (MsgType::TransactionEnd, "TRANSACTION_END"),
    (MsgType::Introduce, "INTRODUCE"),
    (MsgType::Release, "RELEASE"),
    (MsgType::GetDomainPath, "GET_DOMAIN_PATH"),
    (MsgType::Write, "WRITE"),
    (MsgType::Mkdir, "MKDIR"),
    (MsgType::Rm, "RM"),
    (MsgType::SetPerms, "SET_PERMS"),
    (MsgType::WatchEvent, "WATCH_EVENT"),
    (MsgType::Error, "ERROR"),
    (MsgType::IsDomainIntroduced, "IS_DOMAIN_INTRODUCED"),
    (MsgType::Resume, "RESUME"),
    (MsgType::SetTarget, "SET_TARGET"),
    (MsgType::ResetWatches, "RESET_WATCHES"),
    (MsgType::DirectoryPart, "DIRECTORY_PART"),
    (MsgType::GetFeature, "GET_FEATURE"),
    (MsgType::SetFeature, "SET_FEATURE"),
    (MsgType::GetQuota, "GET_QUOTA"),
    (MsgType::SetQuota, "SET_QUOTA"),
];

impl MsgType {
    /// Returns the type with this code; `None` for 20 (RESTRICT, removed) and everything above 26.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        let at = match code {
            0..=19 => code,
            21..=26 => code.wrapping_sub(1),
            _ => return None,
        };
        TYPES.get(usize::try_from(at).ok()?).map(|(kind, _)| *kind)
    }

    /// Returns the code on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Returns the name in the protocol document.
    #[must_use]
    pub fn name(self) -> &'static str {
        TYPES.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }
}

/// An error that a reply can name (`xsd_errors`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the names are those of errno(3)")]
pub enum Error {
    Inval,
    Access,
    Exist,
    IsDir,
    NoEnt,
    NoMem,
    NoSpc,
    Io,
    NotEmpty,
    NoSys,
    RoFs,
    Busy,
    Again,
    IsConn,
    TooBig,
    Perm,
}

/// All errors with their names on the wire and their numbers on Linux, in the order of
/// `xsd_errors`.
pub const ERRORS: [(Error, &str, i32); 16] = [
    (Error::Inval, "EINVAL", 22),
    (Error::Access, "EACCES", 13),
    (Error::Exist, "EEXIST", 17),
    (Error::IsDir, "EISDIR", 21),
    (Error::NoEnt, "ENOENT", 2),
    (Error::NoMem, "ENOMEM", 12),
    (Error::NoSpc, "ENOSPC", 28),
    (Error::Io, "EIO", 5),
    (Error::NotEmpty, "ENOTEMPTY", 39),
    (Error::NoSys, "ENOSYS", 38),
    (Error::RoFs, "EROFS", 30),
    (Error::Busy, "EBUSY", 16),
    (Error::Again, "EAGAIN", 11),
    (Error::IsConn, "EISCONN", 106),
    (Error::TooBig, "E2BIG", 7),
    (Error::Perm, "EPERM", 1),
];

impl Error {
    /// Returns the name sent in an ERROR reply, without its NUL.
    #[must_use]
    pub fn name(self) -> &'static str {
        ERRORS.iter().find(|(error, ..)| *error == self).map_or("EINVAL", |(_, name, _)| name)
    }

    /// Returns the error with this name; `None` for a name that is not in `xs_wire.h`.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        ERRORS.iter().find(|(_, known, _)| known.as_bytes() == name).map(|(error, ..)| *error)
    }

    /// Returns the number of this error in Linux's errno(3).
    #[must_use]
    pub fn errno(self) -> i32 {
        ERRORS.iter().find(|(error, ..)| *error == self).map_or(22, |(_, _, number)| *number)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Error {}

/// A message header (`struct xsd_sockmsg`) as sent. Its fields have not been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The type's code. See [`MsgType::from_code`].
    pub kind: u32,
    /// The request id. The caller chooses it, and the reply repeats it.
    pub req_id: u32,
    /// The transaction, 0 for none. The reply repeats it.
    pub tx_id: u32,
    /// The length of the payload in bytes.
    pub len: u32,
}

impl Header {
    /// Parses the header at the start of `bytes`; `None` if there are fewer than 16.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (words, _) = bytes.get(..HEADER_SIZE)?.as_chunks::<4>();
        let [kind, req_id, tx_id, len] = words else { return None };
        Some(Self {
            kind: u32::from_ne_bytes(*kind),
            req_id: u32::from_ne_bytes(*req_id),
            tx_id: u32::from_ne_bytes(*tx_id),
            len: u32::from_ne_bytes(*len),
        })
    }

    /// Returns the 16 bytes of this header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let (words, _) = bytes.as_chunks_mut::<4>();
        for (to, from) in words.iter_mut().zip([self.kind, self.req_id, self.tx_id, self.len]) {
            *to = from.to_ne_bytes();
        }
        bytes
    }
}

/// A message whose header announces more than [`PAYLOAD_MAX`] bytes. The stream cannot be read
/// further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OversizedMessage {
    /// The length in the header.
    pub len: u32,
}

impl fmt::Display for OversizedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message announces {} bytes of payload; the limit is {PAYLOAD_MAX}", self.len)
    }
}

impl core::error::Error for OversizedMessage {}

/// One message off a stream: its header, its payload, and the bytes behind it.
pub type SplitMessage<'a> = (Header, &'a [u8], &'a [u8]);

/// Splits the first message from `bytes`: returns its header, its payload, and the bytes after it.
/// `Ok(None)` if the message is not complete yet.
///
/// # Errors
/// [`OversizedMessage`] as soon as the header has arrived, however much has arrived of the payload.
pub fn split_message(bytes: &[u8]) -> Result<Option<SplitMessage<'_>>, OversizedMessage> {
    let Some(header) = Header::parse(bytes) else { return Ok(None) };
    let len = header.len as usize;
    if len > PAYLOAD_MAX {
        return Err(OversizedMessage { len: header.len });
    }
    let body = bytes.get(HEADER_SIZE..).unwrap_or_default();
    Ok(body.split_at_checked(len).map(|(payload, rest)| (header, payload, rest)))
}

/// The NUL-terminated strings at the start of a payload. Bytes after the last NUL are no string.
#[derive(Clone, Debug)]
pub struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    /// Returns the strings of `payload`.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    /// Returns the bytes that have not been taken yet, NULs included.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = find::<0>(self.0)?;
        let (string, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..).unwrap_or_default();
        Some(string)
    }
}

/// The features that a server can offer to a guest, at offset 2064 of its ring page.
pub mod feature {
    /// The guest may request a reset of its ring (`XENSTORE_SERVER_FEATURE_RECONNECTION`).
    pub const RECONNECTION: u32 = 1;
    /// The ring page has an error word (`XENSTORE_SERVER_FEATURE_ERROR`).
    pub const ERROR: u32 = 2;
    /// WATCH takes a depth (`XENSTORE_SERVER_FEATURE_WATCHDEPTH`).
    pub const WATCH_DEPTH: u32 = 4;
    /// Permissions may name every domain (`XENSTORE_SERVER_FEATURE_DOMID_ANY`).
    pub const DOMID_ANY: u32 = 8;
    /// All features that this server offers.
    pub const ALL: u32 = RECONNECTION | ERROR | WATCH_DEPTH | DOMID_ANY;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_round_trip() {
        for (kind, name) in TYPES {
            assert_eq!(MsgType::from_code(kind.code()), Some(kind));
            assert_eq!(kind.name(), name);
        }
        for code in [20, 27, 0xffff, u32::MAX] {
            assert_eq!(MsgType::from_code(code), None);
        }
    }

    #[test]
    fn header_round_trips() {
        let header = Header { kind: 2, req_id: 7, tx_id: 0xffff_ffff, len: 4096 };
        assert_eq!(Header::parse(&header.to_bytes()), Some(header));
        assert_eq!(Header::parse(&header.to_bytes()[..15]), None);
    }

    #[test]
    fn too_long_is_known_from_the_header_alone() {
        for len in [4097, 0x8000_0000, u32::MAX] {
            let bytes = Header { len, ..Header::default() }.to_bytes();
            assert_eq!(split_message(&bytes), Err(OversizedMessage { len }));
        }
    }

    #[test]
    fn messages_split() {
        let mut bytes = Header { kind: 2, len: 2, ..Header::default() }.to_bytes().to_vec();
        assert_eq!(split_message(&bytes), Ok(None));
        bytes.extend(b"/\0next");
        let (header, payload, rest) = split_message(&bytes).unwrap().unwrap();
        assert_eq!((header.kind, payload, rest), (2, &b"/\0"[..], &b"next"[..]));
    }

    #[test]
    fn strings_stop_at_the_last_nul() {
        let mut strings = Strings::new(b"a\0\0tail");
        assert_eq!(strings.next(), Some(&b"a"[..]));
        assert_eq!(strings.next(), Some(&b""[..]));
        assert_eq!(strings.next(), None);
        assert_eq!(strings.rest(), b"tail");
    }
}
