//! Serves the devices of a hosted guest as files: `/dev/xvda` for its programs.
//!
//! The guest makes the mount before its program runs (`xen_hosted::domain::Devices::Files`); this
//! module serves the other end of it. A file is the device: its size is the device's, also after
//! the device was resized. Each read and write is one of the device, without a cache in between, as
//! many at a time as programs make; fsync(2) is a flush, and `FALLOC_FL_PUNCH_HOLE` is a discard
//! that reads as zeroes. Truncating a device does nothing. While the backend is away, programs
//! wait.
//!
//! `/dev/null` and `/dev/zero` are there too, for shells.

mod wire;

use super::byte_jobs::{ByteJobs, Durability, FinishedJob, JobKind};
use super::{BlockFrontend, Info};
use crate::disk::DiskAccess;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire::{Attributes, FuseOp, ROOT, Request};
use xenbus::Error;

/// The nodes of files that each guest has and that are no devices.
const NULL: u64 = 2;
const ZERO: u64 = 3;
const FULL: u64 = 4;
const RANDOM: u64 = 5;
const URANDOM: u64 = 6;
/// These files, by name.
const OF_ALL: [(u64, &str); 5] =
    [(NULL, "null"), (ZERO, "zero"), (FULL, "full"), (RANDOM, "random"), (URANDOM, "urandom")];
/// The first node of a device. A node is this, plus the device's number, plus in the upper bits the
/// number of devices that came before it. A user that has an old device open therefore does not
/// reach a new one of the same number.
const FIRST: u64 = 1 << 32;
/// The kinds and permissions of nodes.
const FOLDER: u32 = 0o040_755;
const FILE_OF_ALL: u32 = 0o100_666;
const FILE: u32 = 0o100_600;
const FILE_READ_ONLY: u32 = 0o100_400;
/// The bytes that the requests of one device may hold, before further ones fail. Only requests for
/// which no program waits can be so many.
const HELD_MAX: usize = 64 << 20;
/// The most requests taken before others have their turn.
const TURN_MAX: usize = 64;

/// Returns random bytes.
fn random(size: u32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; size as usize];
    let mut end = 0;
    while let Some(rest) = bytes.get_mut(end..).filter(|rest| !rest.is_empty()) {
        end += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// One device among the files.
#[derive(Debug)]
struct ExportedFile {
    name: String,
    bytes: ByteJobs,
    /// The requests that the kernel waits for, with the kind of their answers.
    pending: BTreeMap<u64, ReplyKind>,
    info: Option<Info>,
    node: u64,
    /// The number of users that have it open.
    users: usize,
}

/// The answer to a successful request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReplyKind {
    Data,
    Written(usize),
    Nothing,
}

/// The mount: a folder of devices.
#[derive(Debug)]
pub struct Fuse {
    fd: OwnedFd,
    files: BTreeMap<u32, ExportedFile>,
    /// The number of devices added so far.
    added: u64,
    buffer: Vec<u8>,
    /// The owner of the files: the mount belongs to one user.
    owner: (u32, u32),
    /// True while the mount is there.
    mounted: bool,
}

/// The answer; `None` if it comes later.
type FuseReply = Result<Option<Vec<u8>>, Errno>;

impl Fuse {
    /// Serves the mount behind this descriptor of `/dev/fuse`, which does not block.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let buffer = vec![0; wire::REQUEST_MAX];
        Self { fd, files: BTreeMap::new(), added: 0, buffer, owner: (0, 0), mounted: true }
    }

    /// Adds a device under a name without a slash; nothing changes if the device is there already.
    pub fn add(&mut self, devid: u32, name: &str) {
        if self.files.contains_key(&devid) {
            return;
        }
        self.added += 1;
        let node = self.added << 32 | u64::from(devid);
        let (bytes, pending, name) = (ByteJobs::default(), BTreeMap::new(), name.to_owned());
        self.files.insert(devid, ExportedFile { name, bytes, pending, info: None, node, users: 0 });
    }

    /// Removes a device: its requests fail, and so do later ones of programs that have it open.
    pub fn remove(&mut self, devid: u32) {
        if let Some(mut file) = self.files.remove(&devid) {
            for done in file.bytes.end() {
                let answer = file.pending.remove(&done.tag);
                self.answer(done, answer);
            }
        }
    }

    /// Returns the number of users that have a device open.
    #[must_use]
    pub fn users(&self, devid: u32) -> usize {
        let file = self.files.get(&devid).filter(|_| self.mounted);
        file.map_or(0, |file| file.users)
    }

    /// True if the mount is there: then the descriptor is to be polled.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// Takes the answer to one of [`Fuse::turn`]'s requests; false if the request is not one of
    /// them.
    pub fn complete(
        &mut self,
        devid: u32,
        front: &mut BlockFrontend,
        completion: super::Completion,
    ) -> bool {
        if !ByteJobs::owns(&completion) {
            return false;
        }
        if let Some(file) = self.files.get_mut(&devid)
            && let Some(done) = file.bytes.complete(front, completion)
        {
            let answer = file.pending.remove(&done.tag);
            self.answer(done, answer);
        }
        true
    }

    /// Takes requests of the guest's programs; returns their number.
    ///
    /// # Errors
    /// The descriptor is not one of FUSE.
    pub fn turn(&mut self) -> Result<usize, Error> {
        let mut taken = 0;
        while taken < TURN_MAX && self.is_mounted() {
            let count = match rustix::io::read(&self.fd, self.buffer.as_mut_slice()) {
                Ok(count) => count,
                Err(Errno::AGAIN) => break,
                // The request was interrupted.
                Err(Errno::NOENT | Errno::INTR) => continue,
                Err(Errno::NODEV) => {
                    self.mounted = false;
                    break;
                }
                Err(errno) => return Err(Error::Driver(format!("the mount of /dev: {errno}"))),
            };
            taken += 1;
            let request = self.buffer.get(..count).and_then(wire::parse);
            let request = request.ok_or_else(|| Error::Driver("no request of FUSE".into()))?;
            let (unique, silent) = (request.unique, request.op == FuseOp::Silent);
            match self.serve(request) {
                Ok(Some(body)) if !silent => self.reply(unique, None, &body),
                Ok(_) => {}
                Err(errno) => self.reply(unique, Some(errno), &[]),
            }
        }
        Ok(taken)
    }

    /// Makes a device's requests for its programs.
    ///
    /// # Errors
    /// As [`BlockFrontend::push`].
    pub fn ask(&mut self, devid: u32, front: &mut BlockFrontend) -> Result<(), Error> {
        let Some(file) = self.files.get_mut(&devid) else { return Ok(()) };
        // While the backend is away, the device keeps its properties.
        file.info = front.info().or(file.info);
        let ended = file.bytes.submit_waiting(front);
        let ended: Vec<_> =
            ended.into_iter().map(|done| (file.pending.remove(&done.tag), done)).collect();
        for (answer, done) in ended {
            self.answer(done, answer);
        }
        front.push()
    }

    fn answer(&self, done: FinishedJob, answer: Option<ReplyKind>) {
        let body = match (done.result, answer) {
            (Err(errno), _) => return self.reply(done.tag, Some(errno), &[]),
            (Ok(data), Some(ReplyKind::Data)) => data,
            (Ok(_), Some(ReplyKind::Written(count))) => wire::written(count),
            (Ok(_), _) => Vec::new(),
        };
        self.reply(done.tag, None, &body);
    }

    /// Answers a request. One that was interrupted meanwhile needs no answer: the kernel's error
    /// about that is ignored.
    fn reply(&self, unique: u64, errno: Option<Errno>, body: &[u8]) {
        let head = wire::head(unique, errno, body.len());
        let _ = rustix::io::writev(&self.fd, &[IoSlice::new(&head), IoSlice::new(body)]);
    }

    fn serve(&mut self, request: Request) -> FuseReply {
        let Request { unique, node, uid, gid, op } = request;
        self.owner = (uid, gid);
        let now = |body: Vec<u8>| Ok(Some(body));
        match op {
            FuseOp::Init { major, flags } if wire::is_supported(major) => now(wire::init(flags)),
            FuseOp::Init { .. } => Err(Errno::PROTO),
            FuseOp::Lookup { name } => now(wire::entry(&self.attributes(self.find(&name)?)?)),
            FuseOp::Attributes => now(wire::attr(&self.attributes(node)?)),
            FuseOp::OpenFolder if node == ROOT => now(wire::opened(0)),
            FuseOp::Folder { offset, size } if node == ROOT => now(self.list(offset, size)),
            FuseOp::Open { flags } => self.open(node, flags),
            FuseOp::Release => {
                if let Some(file) = self.files.values_mut().find(|file| file.node == node) {
                    file.users = file.users.saturating_sub(1);
                }
                now(Vec::new())
            }
            FuseOp::Nothing | FuseOp::Silent => now(Vec::new()),
            FuseOp::FileSystem => now(wire::file_system()),
            FuseOp::Flush if node < FIRST => now(Vec::new()),
            FuseOp::Read { .. } if node == NULL => now(Vec::new()),
            FuseOp::Read { size, .. } if node == ZERO || node == FULL => {
                now(vec![0; size as usize])
            }
            FuseOp::Read { size, .. } if node == RANDOM || node == URANDOM => {
                random(size).map(Some)
            }
            FuseOp::Write { .. } if node == FULL => Err(Errno::NOSPC),
            FuseOp::Write { data, .. } if node < FIRST => now(wire::written(data.len())),
            FuseOp::Read { offset, size } => self.read(unique, node, offset, size),
            FuseOp::Write { offset, flags, data } => self.write(unique, node, offset, flags, data),
            FuseOp::Allocate { mode, offset, len } => self.punch(unique, node, mode, offset, len),
            FuseOp::Flush => {
                let (file, info) = self.file(node)?;
                file.add_job(&info, unique, 0..0, JobKind::Flush, ReplyKind::Nothing)
            }
            FuseOp::OpenFolder | FuseOp::Folder { .. } => Err(Errno::NOTDIR),
            FuseOp::Unknown => Err(Errno::NOSYS),
        }
    }

    fn find(&self, name: &[u8]) -> Result<u64, Errno> {
        if let Some((node, _)) = OF_ALL.iter().find(|at| at.1.as_bytes() == name) {
            return Ok(*node);
        }
        // A device whose size is not known yet cannot be opened yet.
        let here = |file: &ExportedFile| file.name.as_bytes() == name && file.info.is_some();
        let found = self.files.values().find(|file| here(file));
        found.map(|file| file.node).ok_or(Errno::NOENT)
    }

    /// Returns the device of a node.
    fn file(&mut self, node: u64) -> Result<(&mut ExportedFile, Info), Errno> {
        let file = self.files.values_mut().find(|file| file.node == node).ok_or(Errno::NXIO)?;
        let info = file.info.ok_or(Errno::NXIO)?;
        Ok((file, info))
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        let (uid, gid) = self.owner;
        let like = |size, mode| Ok(Attributes { node, size, mode, uid, gid });
        if node == ROOT {
            return like(0, FOLDER);
        }
        if OF_ALL.iter().any(|at| at.0 == node) {
            return like(0, FILE_OF_ALL);
        }
        let file = self.files.values().find(|file| file.node == node).ok_or(Errno::NOENT)?;
        match file.info {
            Some(info) if info.access == DiskAccess::ReadWrite => like(info.bytes(), FILE),
            Some(info) => like(info.bytes(), FILE_READ_ONLY),
            None => like(0, FILE),
        }
    }

    fn open(&mut self, node: u64, flags: u32) -> FuseReply {
        if node >= FIRST {
            let (file, info) = self.file(node)?;
            let writes = flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
            if writes && info.access == DiskAccess::ReadOnly {
                return Err(Errno::ROFS);
            }
            file.users += 1;
        }
        Ok(Some(wire::opened(wire::DIRECT)))
    }

    fn list(&self, offset: u64, size: u32) -> Vec<u8> {
        let devices = self.files.values().map(|file| (file.node, FILE, &*file.name));
        let first = [(ROOT, FOLDER, "."), (ROOT, FOLDER, "..")].into_iter();
        let first = first.chain(OF_ALL.map(|(node, name)| (node, FILE_OF_ALL, name)));
        let mut answer = Vec::new();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let entries = first.chain(devices).enumerate().skip(skip);
        for (at, (node, mode, name)) in entries {
            let entry = wire::folder_entry(node, at as u64 + 1, mode, name.as_bytes());
            if answer.len() + entry.len() > size as usize {
                break;
            }
            answer.extend(entry);
        }
        answer
    }

    fn read(&mut self, unique: u64, node: u64, offset: u64, size: u32) -> FuseReply {
        let (file, info) = self.file(node)?;
        let end = info.bytes().min(offset.saturating_add(size.into()));
        if offset >= end {
            return Ok(Some(Vec::new()));
        }
        file.add_job(&info, unique, offset..end, JobKind::Read, ReplyKind::Data)
    }

    fn write(
        &mut self,
        unique: u64,
        node: u64,
        offset: u64,
        flags: u32,
        mut data: Vec<u8>,
    ) -> FuseReply {
        let (file, info) = self.file(node)?;
        let end = info.bytes().min(offset.saturating_add(data.len() as u64));
        if data.is_empty() {
            return Ok(Some(wire::written(0)));
        }
        if offset >= end {
            return Err(Errno::NOSPC);
        }
        data.truncate(usize::try_from(end - offset).unwrap_or(usize::MAX));
        let sync =
            if flags & libc::O_DSYNC as u32 != 0 { Durability::Flushed } else { Durability::Plain };
        let count = data.len();
        file.add_job(
            &info,
            unique,
            offset..end,
            JobKind::Write(data, sync),
            ReplyKind::Written(count),
        )
    }

    fn punch(&mut self, unique: u64, node: u64, mode: u32, offset: u64, len: u64) -> FuseReply {
        let (file, info) = self.file(node)?;
        let keeps = libc::FALLOC_FL_KEEP_SIZE as u32;
        let mode = mode & !keeps;
        let known = [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE];
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        if !known.iter().any(|flag| mode == *flag as u32) {
            return Err(Errno::OPNOTSUPP);
        }
        if info.access == DiskAccess::ReadOnly {
            return Err(Errno::BADF);
        }
        let end = end.min(info.bytes());
        if offset >= end {
            return Ok(Some(Vec::new()));
        }
        file.add_job(&info, unique, offset..end, JobKind::Zero, ReplyKind::Nothing)
    }
}

impl ExportedFile {
    /// Adds a job; its answer comes later. A device that does not answer blocks only the programs
    /// that use it.
    fn add_job(
        &mut self,
        info: &Info,
        unique: u64,
        wanted: std::ops::Range<u64>,
        kind: JobKind,
        answer: ReplyKind,
    ) -> FuseReply {
        if self.bytes.held() >= HELD_MAX {
            return Err(Errno::NOMEM);
        }
        self.pending.insert(unique, answer);
        self.bytes.add(info, unique, wanted, kind);
        Ok(None)
    }
}

impl AsFd for Fuse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
