//! FUSE's messages, as bytes.
//!
//! Source: Linux `include/uapi/linux/fuse.h`, protocol 7.

use rustix::io::Errno;

/// The protocol's version: 7.31, as in Linux 5.4.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// `FUSE_ASYNC_READ`, `FUSE_BIG_WRITES`, `FUSE_ASYNC_DIO`, `FUSE_MAX_PAGES`.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 15 | 1 << 22;
/// The most requests of the kernel for which no program waits.
const BACKGROUND_MAX: u16 = 256;
/// The most bytes of a read or a write.
pub(super) const TRANSFER_MAX: u32 = 256 << 10;
/// The bytes of the largest request: the kernel requires a page more.
pub(super) const REQUEST_MAX: usize = TRANSFER_MAX as usize + 4096;
/// The flags for a file whose reads and writes go to the device, each by itself, several at a time:
/// `FOPEN_DIRECT_IO`, `FOPEN_PARALLEL_DIRECT_WRITES`.
pub(super) const DIRECT: u32 = 1 | 1 << 6;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// The only folder.
pub(super) const ROOT: u64 = 1;

/// The operation of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum FuseOp {
    Init {
        major: u32,
        flags: u32,
    },
    Lookup {
        name: Vec<u8>,
    },
    Attributes,
    Open {
        flags: u32,
    },
    /// The last descriptor of one open(2) of a file was closed.
    Release,
    OpenFolder,
    Folder {
        offset: u64,
        size: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        flags: u32,
        data: Vec<u8>,
    },
    Flush,
    Allocate {
        mode: u32,
        offset: u64,
        len: u64,
    },
    FileSystem,
    /// An operation that only needs an answer of success.
    Nothing,
    /// An operation that has no answer.
    Silent,
    Unknown,
}

/// A request: its number, its node, and the user that makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) op: FuseOp,
}

/// The fields of a message, one after the other.
struct MessageFields<'a>(&'a [u8]);

impl MessageFields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*first))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }
}

/// Parses a request; `None` if it is too short.
pub(super) fn parse(bytes: &[u8]) -> Option<Request> {
    let mut head = MessageFields(bytes);
    let len = usize::try_from(head.u32()?).ok()?;
    let opcode = head.u32()?;
    let (unique, node) = (head.u64()?, head.u64()?);
    let (uid, gid) = (head.u32()?, head.u32()?);
    let mut body = MessageFields(bytes.get(IN_HEADER..len)?);
    let op = match opcode {
        1 => FuseOp::Lookup { name: body.0.strip_suffix(b"\0")?.to_vec() },
        // FORGET, INTERRUPT, BATCH_FORGET.
        2 | 36 | 42 => FuseOp::Silent,
        // SETATTR too: the size of a device cannot be set, and it has no times.
        3 | 4 => FuseOp::Attributes,
        14 => FuseOp::Open { flags: body.u32()? },
        27 => FuseOp::OpenFolder,
        15 | 28 => {
            body.skip(8)?;
            let (offset, size) = (body.u64()?, body.u32()?.min(TRANSFER_MAX));
            if opcode == 15 {
                FuseOp::Read { offset, size }
            } else {
                FuseOp::Folder { offset, size }
            }
        }
        16 => {
            body.skip(8)?;
            let (offset, size) = (body.u64()?, body.u32()?);
            body.skip(12)?;
            let flags = body.u32()?;
            body.skip(4)?;
            let data = body.0.get(..usize::try_from(size).ok()?)?.to_vec();
            FuseOp::Write { offset, flags, data }
        }
        17 => FuseOp::FileSystem,
        18 => FuseOp::Release,
        // FLUSH (of a descriptor that is closed), RELEASEDIR, FSYNCDIR, ACCESS, DESTROY.
        25 | 29 | 30 | 34 | 38 => FuseOp::Nothing,
        20 => FuseOp::Flush,
        26 => {
            let major = body.u32()?;
            body.skip(8)?;
            FuseOp::Init { major, flags: body.u32()? }
        }
        43 => {
            body.skip(8)?;
            let (offset, len) = (body.u64()?, body.u64()?);
            FuseOp::Allocate { mode: body.u32()?, offset, len }
        }
        _ => FuseOp::Unknown,
    };
    Some(Request { unique, node, uid, gid, op })
}

/// Returns the head of an answer with `len` bytes after it.
pub(super) fn head(unique: u64, errno: Option<Errno>, len: usize) -> [u8; OUT_HEADER] {
    let mut head = [0; OUT_HEADER];
    let len = u32::try_from(OUT_HEADER + len).unwrap_or(u32::MAX);
    let error = errno.map_or(0, |errno| -errno.raw_os_error());
    head[..4].copy_from_slice(&len.to_ne_bytes());
    head[4..8].copy_from_slice(&error.to_ne_bytes());
    head[8..].copy_from_slice(&unique.to_ne_bytes());
    head
}

/// Returns the bytes of an answer's 32-bit words; a 64-bit number has its low half first, as on
/// every machine that Xen runs on.
fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Returns both halves of a 64-bit number.
fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    let (halves, _) = bytes.as_chunks::<4>();
    [u32::from_ne_bytes(halves[0]), u32::from_ne_bytes(halves[1])]
}

/// Returns the answer to INIT.
pub(super) fn init(flags: u32) -> Vec<u8> {
    let background = u32::from(BACKGROUND_MAX);
    // max_background, congestion_threshold; max_pages, map_alignment.
    let limits = words_of_halves(background, background / 4 * 3);
    let pages = words_of_halves(TRANSFER_MAX / 4096, 0);
    let mut answer =
        words(&[MAJOR, MINOR, TRANSFER_MAX, flags & FLAGS, limits, TRANSFER_MAX, 1, pages]);
    answer.resize(64, 0);
    answer
}

/// Returns two 16-bit numbers in one word.
fn words_of_halves(first: u32, second: u32) -> u32 {
    let [first, second] = [first as u16, second as u16].map(u16::to_ne_bytes);
    u32::from_ne_bytes([first[0], first[1], second[0], second[1]])
}

/// The attributes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attributes {
    pub(super) node: u64,
    /// The size in bytes.
    pub(super) size: u64,
    /// The kind and permissions, as in stat(2).
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

fn attributes(of: &Attributes) -> Vec<u8> {
    let mut list = Vec::with_capacity(22);
    // Inode, size, blocks, three times without a meaning.
    for value in [of.node, of.size, of.size.div_ceil(512), 0, 0, 0] {
        list.extend(halves(value));
    }
    // Their nanoseconds, mode, links, owner, no device number, block size, flags.
    list.extend([0, 0, 0, of.mode, 1, of.uid, of.gid, 0, 4096, 0]);
    words(&list)
}

/// Returns the answer to GETATTR and SETATTR, which the kernel does not cache.
pub(super) fn attr(of: &Attributes) -> Vec<u8> {
    let mut answer = vec![0; 16];
    answer.extend(attributes(of));
    answer
}

/// Returns the answer to LOOKUP, which the kernel does not cache.
pub(super) fn entry(of: &Attributes) -> Vec<u8> {
    let mut answer = words(&halves(of.node));
    answer.resize(40, 0);
    answer.extend(attributes(of));
    answer
}

/// Returns the answer to OPEN and OPENDIR.
pub(super) fn opened(flags: u32) -> Vec<u8> {
    words(&[0, 0, flags, 0])
}

/// Returns the answer to WRITE.
pub(super) fn written(count: usize) -> Vec<u8> {
    words(&[u32::try_from(count).unwrap_or(u32::MAX), 0])
}

/// Returns the answer to STATFS: the file system has no room.
pub(super) fn file_system() -> Vec<u8> {
    let mut answer = vec![0; 40];
    answer.extend(words(&[4096, 255, 4096, 0]));
    answer.resize(80, 0);
    answer
}

/// Returns an entry of READDIR; `next` is the offset after it.
pub(super) fn folder_entry(node: u64, next: u64, mode: u32, name: &[u8]) -> Vec<u8> {
    let mut list = halves(node).to_vec();
    list.extend(halves(next));
    list.extend([u32::try_from(name.len()).unwrap_or(0), mode >> 12]);
    let mut entry = words(&list);
    entry.extend_from_slice(name);
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

/// True if the other side's version of the protocol is supported.
pub(super) fn is_supported(major: u32) -> bool {
    major == MAJOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(IN_HEADER + body.len()).unwrap();
        let mut bytes = words(&[len, opcode, 7, 0, 5, 0, 1, 2, 0, 0]);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn requests_are_read() {
        let op = |opcode, body: &[u8]| parse(&request(opcode, body)).map(|request| request.op);
        let whole = parse(&request(3, &[0; 16])).unwrap();
        assert_eq!(whole, Request { unique: 7, node: 5, uid: 1, gid: 2, op: FuseOp::Attributes });
        assert_eq!(op(1, b"xvda\0"), Some(FuseOp::Lookup { name: b"xvda".to_vec() }));
        let read = words(&[0, 0, 512, 0, 4096, 0, 0, 0, 0, 0]);
        assert_eq!(op(15, &read), Some(FuseOp::Read { offset: 512, size: 4096 }));
        let mut write = words(&[0, 0, 512, 0, 3, 0, 0, 0, 2, 0]);
        write.extend_from_slice(b"abc");
        let data = b"abc".to_vec();
        assert_eq!(op(16, &write), Some(FuseOp::Write { offset: 512, flags: 2, data }));
        assert_eq!(op(16, &write[..42]), None, "a write of more than there is");
        assert_eq!(op(15, &read[..8]), None);
        assert_eq!(op(1, b"xvda"), None, "a name without an end");
        assert_eq!(op(99, b""), Some(FuseOp::Unknown));
        for len in 0..IN_HEADER {
            assert_eq!(parse(&request(3, b"")[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn answers_have_the_lengths_of_the_header() {
        let of = Attributes { node: 2, size: 1 << 33, mode: 0o100_600, uid: 1, gid: 1 };
        assert_eq!(attr(&of).len(), 104);
        assert_eq!(entry(&of).len(), 128);
        assert_eq!(init(u32::MAX).len(), 64);
        assert_eq!(opened(0).len(), 16);
        assert_eq!(written(1).len(), 8);
        assert_eq!(file_system().len(), 80);
        assert_eq!(folder_entry(2, 1, 0o100_600, b"xvda").len(), 32);
        assert_eq!(head(1, Some(Errno::IO), 0)[4..8], (-5_i32).to_ne_bytes());
    }
}
