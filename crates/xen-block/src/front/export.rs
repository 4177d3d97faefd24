//! A frontend's device as an NBD server on a Unix socket, for programs of a hosted guest.
//!
//! Source: the protocol's `doc/proto.md` (NetworkBlockDevice/nbd): fixed newstyle negotiation,
//! `NBD_OPT_GO`, `NBD_OPT_INFO`, `NBD_OPT_EXPORT_NAME`, `NBD_OPT_LIST`, `NBD_OPT_ABORT`; simple replies. Every
//! export name is the device. A request is one request of the ring, so it is at most
//! [`Info::segments_max`](super::Info) pages long; clients are told so.
//!
//! It runs in one thread and never blocks: [`Export::serve`] does the work that is possible at the
//! moment. A client that violates the protocol, or does not take its answers, is bounded, and harms
//! only itself.

mod wire;

use super::{
    BlockFrontend, Buffer, BufferSectors, Completion, DiskRequest, Info, Offer, SubmitError,
};
use crate::disk::DiskAccess;
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use wire::{ClientPhase, NbdCommand, Request};
use xen_io::blkif::Status;
use xenbus::Error;

/// The most clients at a time.
const CLIENTS_MAX: usize = 16;
/// The most unanswered requests of a client.
const OPEN_MAX: usize = 64;
/// The most bytes of answers that a client has not taken; beyond that, its requests are not read.
const OUTPUT_MAX: usize = 4 << 20;
/// The bytes of one read.
const READ_BYTES: usize = 256 << 10;

/// One client.
struct Client {
    stream: UnixStream,
    phase: ClientPhase,
    input: Vec<u8>,
    output: Vec<u8>,
    open: usize,
    ended: bool,
}

/// A request that is not answered.
struct ClientRequest {
    client: u64,
    request: Request,
    buffers: Vec<Buffer>,
    payload: Vec<u8>,
}

/// A device as an NBD server; its socket is removed when it is dropped.
pub struct Export {
    listener: UnixListener,
    path: PathBuf,
    clients: BTreeMap<u64, Client>,
    /// The requests that wait for room in the ring, in order.
    waiting: VecDeque<ClientRequest>,
    pending: BTreeMap<u64, ClientRequest>,
    next: u64,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Export {
    /// Listens at `path`.
    ///
    /// # Errors
    /// The error of the system.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // Not by ioctl(2), which a hosted guest may not use.
        rustix::fs::fcntl_setfl(&listener, OFlags::NONBLOCK)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            clients: BTreeMap::new(),
            waiting: VecDeque::new(),
            pending: BTreeMap::new(),
            next: 0,
        })
    }

    /// Returns the number of clients.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Returns the descriptors to poll, with the events. A client whose requests are not taken at
    /// the moment is not polled for reading.
    pub fn polled(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let room =
            if self.clients.len() < CLIENTS_MAX { PollFlags::IN } else { PollFlags::empty() };
        let clients = self.clients.values().map(|client| {
            let mut flags = if client.is_full() { PollFlags::empty() } else { PollFlags::IN };
            flags.set(PollFlags::OUT, !client.output.is_empty());
            (client.stream.as_fd(), flags)
        });
        std::iter::once((self.listener.as_fd(), room)).chain(clients)
    }

    /// Takes requests, makes the device's requests, and answers clients. Returns the number of
    /// steps. For a caller that takes the completions itself, and passes those of this server to
    /// [`Export::complete`].
    ///
    /// # Errors
    /// The backend has broken the ring.
    pub fn serve(&mut self, front: &mut BlockFrontend) -> Result<usize, Error> {
        let mut moved = 0;
        self.accept();
        if let Some(info) = front.info() {
            moved += self.read_all(&info);
        }
        self.ask(front);
        front.push()?;
        for client in self.clients.values_mut() {
            moved += client.send();
        }
        self.clients.retain(|_, client| !client.ended);
        Ok(moved)
    }

    fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok(stream) = accept_with(&self.listener, flags) else { return };
            let stream = UnixStream::from(stream);
            self.next += 1;
            let (phase, output) = (ClientPhase::Greeted, wire::greeting());
            let input = Vec::new();
            let client = Client { stream, phase, input, output, open: 0, ended: false };
            self.clients.insert(self.next, client);
        }
    }

    /// Reads the bytes that clients have sent.
    fn read_all(&mut self, info: &Info) -> usize {
        let mut moved = 0;
        for (id, client) in &mut self.clients {
            if client.is_full() {
                continue;
            }
            moved += client.receive(info);
            let mut used = 0;
            while !client.ended && client.open < OPEN_MAX {
                let rest = client.input.get(used..).unwrap_or_default();
                let step = wire::step(client.phase, rest, info, &mut client.output);
                let Ok(step) = step else {
                    client.ended = true;
                    break;
                };
                let Some(step) = step else { break };
                client.phase = step.phase;
                if let Some((request, payload)) = step.request {
                    if request.command == NbdCommand::Disconnect {
                        client.ended = true;
                    } else if let Some(errno) = request_error(&request, info) {
                        wire::reply(&mut client.output, request.handle, Some(errno), &[]);
                    } else {
                        client.open += 1;
                        let payload = rest.get(payload).unwrap_or_default().to_vec();
                        let (client, buffers) = (*id, Vec::new());
                        self.waiting.push_back(ClientRequest { client, request, buffers, payload });
                    }
                }
                used += step.used;
                moved += 1;
            }
            client.input.drain(..used);
        }
        moved
    }

    /// Submits the waiting requests to the device, as far as there is room.
    fn ask(&mut self, front: &mut BlockFrontend) {
        while let Some(mut job) = self.waiting.pop_front() {
            match submit(front, &mut job, self.next + 1) {
                Ok(()) => {
                    self.next += 1;
                    self.pending.insert(self.next, job);
                }
                Err(SubmitError::NotPossible) => {
                    give_back(front, &mut job);
                    self.reply(&job, Some(Errno::PERM), &[]);
                }
                Err(_) => {
                    give_back(front, &mut job);
                    self.waiting.push_front(job);
                    return;
                }
            }
        }
    }

    /// Takes the answer to one of its requests; any other completion is ignored.
    pub fn complete(&mut self, front: &mut BlockFrontend, completion: Completion) {
        let Some(mut job) = self.pending.remove(&completion.tag) else { return };
        let errno = match completion.status {
            Status::Okay => None,
            Status::NotSupported => Some(Errno::OPNOTSUPP),
            _ => Some(Errno::IO),
        };
        let mut payload = Vec::new();
        if errno.is_none() && job.request.command == NbdCommand::Read {
            payload.resize(job.request.len as usize, 0);
            for (buffer, part) in job.buffers.iter().zip(payload.chunks_mut(4096)) {
                // The range is inside the page.
                let _ = front.page(*buffer).map(|page| page.copy_out(0, part));
            }
        }
        give_back(front, &mut job);
        self.reply(&job, errno, &payload);
    }

    fn reply(&mut self, job: &ClientRequest, errno: Option<Errno>, payload: &[u8]) {
        if let Some(client) = self.clients.get_mut(&job.client) {
            client.open -= 1;
            wire::reply(&mut client.output, job.request.handle, errno, payload);
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// True if the client's requests are not read until answers have been taken.
    fn is_full(&self) -> bool {
        self.open >= OPEN_MAX || self.output.len() >= OUTPUT_MAX
    }

    /// Reads once, at most the bytes that a request needs.
    fn receive(&mut self, info: &Info) -> usize {
        let room = (wire::request_max(info) + READ_BYTES).saturating_sub(self.input.len());
        let before = self.input.len();
        self.input.resize(before + room.min(READ_BYTES), 0);
        let result = self.stream.read(&mut self.input[before..]);
        let count = match result {
            Ok(0) => {
                self.ended = room > 0;
                0
            }
            Ok(count) => count,
            Err(error) => {
                let later = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                self.ended = !later.contains(&error.kind());
                0
            }
        };
        self.input.truncate(before + count);
        count
    }

    fn send(&mut self) -> usize {
        if self.output.is_empty() {
            return 0;
        }
        match self.stream.write(&self.output) {
            Ok(count) => {
                self.output.drain(..count);
                count
            }
            Err(error) => {
                let later = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                self.ended |= !later.contains(&error.kind());
                0
            }
        }
    }
}

/// Returns the error of a faulty request, if any: such a request is answered and not submitted.
fn request_error(request: &Request, info: &Info) -> Option<Errno> {
    let size = u64::from(info.sector_size);
    let end = request.offset.checked_add(request.len.into());
    let inside = end.is_some_and(|end| end <= info.bytes());
    let aligned =
        request.offset.is_multiple_of(size) && u64::from(request.len).is_multiple_of(size);
    let transfer = matches!(request.command, NbdCommand::Read | NbdCommand::Write);
    let writes = matches!(request.command, NbdCommand::Write | NbdCommand::Trim);
    if writes && info.access == DiskAccess::ReadOnly {
        return Some(Errno::PERM);
    }
    match request.command {
        NbdCommand::Flush => None,
        NbdCommand::Unknown => Some(Errno::INVAL),
        _ if request.len == 0 => Some(Errno::INVAL),
        _ if !inside && writes => Some(Errno::NOSPC),
        _ if !inside || !aligned => Some(Errno::INVAL),
        _ if transfer && request.len as usize > wire::transfer_max(info) => Some(Errno::OVERFLOW),
        _ => None,
    }
}

fn give_back(front: &mut BlockFrontend, job: &mut ClientRequest) {
    for buffer in job.buffers.drain(..) {
        front.give_back(buffer);
    }
}

/// Submits one request of a client as one request of the ring.
fn submit(front: &mut BlockFrontend, job: &mut ClientRequest, tag: u64) -> Result<(), SubmitError> {
    let Request { command, offset, len, .. } = job.request;
    let (sector, sectors) = (offset / 512, u64::from(len) / 512);
    let want = match command {
        NbdCommand::Read => DiskRequest::Read { tag, sector },
        NbdCommand::Write => DiskRequest::Write { tag, sector },
        NbdCommand::Trim => DiskRequest::Discard { tag, sector, sectors },
        _ => match front.info() {
            // A backend without flush does not cache writes.
            Some(info) if info.flush == Offer::NotTaken => return Err(SubmitError::NotPossible),
            _ => DiskRequest::Flush { tag },
        },
    };
    let mut parts = Vec::new();
    if matches!(command, NbdCommand::Read | NbdCommand::Write) {
        let mut left = sectors;
        while left > 0 {
            let buffer = front.take_buffer().ok_or(SubmitError::Ring)?;
            let here = left.min(8);
            parts.push(BufferSectors { buffer, first: 0, last: (here - 1) as u8 });
            job.buffers.push(buffer);
            left -= here;
        }
        for (buffer, part) in job.buffers.iter().zip(job.payload.chunks(4096)) {
            // The range is inside the page.
            let _ = front.page(*buffer).map(|page| page.copy_in(0, part));
        }
    }
    front.submit(0, want, &parts)
}
