//! The daemon's socket: any number of clients of a console, each at its own place in the output.
//!
//! A client that does not read keeps nothing alive: it goes on with the oldest output that there is,
//! and is told how much it has missed. A guest's output waits for no client.

pub mod wire;

use crate::backlog::Backlog;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use wire::{ClientAccess, ClientFrame, DaemonFrame, Filled, FrameBuffer, OutputStart, PAYLOAD_MAX};
use xen::DomId;
use xen_driver::backend::DescriptorId;
use xenbus::Id;

/// The most clients at once.
pub const CLIENTS_MAX: usize = 1024;
/// Connections that are accepted in a turn.
const ACCEPTS_MAX: usize = 16;
/// The mode of the socket: for the daemon's own user.
const MODE: u32 = 0o600;
/// The lines and the bytes of a screenful, at most.
const SCREENFUL: (usize, usize) = (24, 8 << 10);

/// The name of a console in the daemon: one life of a domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConsoleId {
    /// The domain's number.
    pub domid: u16,
    /// The number of the console among those of the domain; 0 for the first one.
    pub number: u32,
    /// The number of consoles before it in this process.
    pub count: u64,
}

impl ConsoleId {
    /// Returns the domain and the number of the console, as a device has them.
    #[must_use]
    pub fn device(self) -> Id {
        Id { frontend: DomId(self.domid), devid: self.number }
    }
}

/// The output of a console.
#[derive(Clone, Copy, Debug)]
pub struct ConsoleOutput<'c> {
    /// The newest output; none while the console is not served, or if nothing of it is left.
    pub backlog: Option<&'c Backlog>,
    /// True if the domain is gone: there will be no more.
    pub ended: bool,
}

/// The consoles that clients can open.
pub trait OpenConsoles {
    /// Returns the console of this number, of a domain with this name or number, if it is served, or if
    /// its last output is kept.
    fn find(&self, domain: &[u8], number: u32) -> Option<ConsoleId>;

    /// Returns the output of a console.
    fn output(&self, console: ConsoleId) -> ConsoleOutput<'_>;

    /// Types bytes. Returns the number that the guest has room for.
    fn type_in(&mut self, console: ConsoleId, bytes: &[u8]) -> usize;

    /// Sets the size of the console's pseudoterminal, in characters.
    fn set_size(&mut self, console: ConsoleId, columns: u16, rows: u16);
}

/// The outcome of a turn of the service.
#[derive(Clone, Copy, Default, Debug)]
pub struct ServiceOutcome {
    /// Clients have come.
    pub streams_changed: bool,
    /// There is more to do at once.
    pub more: bool,
}

/// The socket and its clients.
#[derive(Debug)]
pub struct ConsoleService {
    listener: UnixListener,
    stream: DescriptorId,
    /// There may be connections to accept.
    acceptable: bool,
    clients: BTreeMap<DescriptorId, ServedClient>,
    clients_max: usize,
}

impl ConsoleService {
    /// Listens at `path`. One that another daemon has left there is removed: the caller holds the
    /// lock of the daemon that serves.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
        listener.set_nonblocking(true)?;
        let (stream, clients) = (DescriptorId::new(), BTreeMap::new());
        Ok(Self { listener, stream, acceptable: true, clients, clients_max: CLIENTS_MAX })
    }

    /// Returns the descriptors that are read and written until they block.
    pub fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let clients = self.clients.iter().map(|(name, client)| (*name, client.socket.as_fd()));
        std::iter::once((self.stream, self.listener.as_fd())).chain(clients)
    }

    /// Takes the news that a descriptor can be read or written again; false if it is not one of the
    /// service.
    pub fn ready(&mut self, stream: DescriptorId) -> bool {
        if stream == self.stream {
            self.acceptable = true;
            return true;
        }
        let client = self.clients.get_mut(&stream);
        client.is_some_and(|client| {
            (client.readable, client.writable, client.may_be_gone) = (true, true, true);
            true
        })
    }

    /// Accepts clients, takes their frames, and sends them output: a little for each.
    pub fn serve(&mut self, consoles: &mut impl OpenConsoles) -> ServiceOutcome {
        let mut outcome = ServiceOutcome { streams_changed: self.accept(), more: false };
        let count = self.clients.len();
        self.clients.retain(|_, client| match client.turn(consoles) {
            ClientTurn::Waits => true,
            ClientTurn::HasMore => {
                outcome.more = true;
                true
            }
            ClientTurn::Ended => false,
        });
        // One that was not accepted for want of room or of descriptors has some now.
        self.acceptable |= self.clients.len() < count;
        outcome.more |= self.acceptable && self.clients.len() < self.clients_max;
        outcome
    }

    /// Accepts some connections. Returns true if there were any.
    fn accept(&mut self) -> bool {
        let mut any = false;
        for _ in 0..ACCEPTS_MAX {
            if !self.acceptable || self.clients.len() >= self.clients_max {
                break;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(socket) => {
                    self.clients.insert(DescriptorId::new(), ServedClient::new(socket.into()));
                    any = true;
                }
                // Also where descriptors are short: the end of a client makes another try.
                Err(_) => self.acceptable = false,
            }
        }
        any
    }
}

/// A client of the service.
#[derive(Debug)]
struct ServedClient {
    socket: UnixStream,
    frames: FrameBuffer,
    state: ClientState,
    /// Bytes that were typed and that the guest has no room for yet.
    typed: Vec<u8>,
    /// The size of its window, for a console that is not open yet.
    size: Option<(u16, u16)>,
    /// Frames that are being sent, and the number of bytes that were.
    output: Vec<u8>,
    sent: usize,
    readable: bool,
    writable: bool,
    /// There was news of the socket, which may be that the client is gone.
    may_be_gone: bool,
}

/// The state of a client.
#[derive(Debug)]
enum ClientState {
    /// It has opened nothing yet.
    New,
    /// It waits for the console of a domain.
    Waiting { access: ClientAccess, start: OutputStart, number: u32, domain: Vec<u8> },
    /// It has a console open, and has its output before this place.
    Open { access: ClientAccess, console: ConsoleId, place: u64 },
    /// It gets what is left, and is closed.
    Closing,
}

/// The outcome of a client's turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClientTurn {
    Waits,
    HasMore,
    Ended,
}

impl ServedClient {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            frames: FrameBuffer::default(),
            state: ClientState::New,
            typed: Vec::new(),
            size: None,
            output: Vec::new(),
            sent: 0,
            readable: true,
            writable: true,
            may_be_gone: false,
        }
    }

    fn turn(&mut self, consoles: &mut impl OpenConsoles) -> ClientTurn {
        if self.receive(consoles).is_err() {
            return ClientTurn::Ended;
        }
        self.find(consoles);
        self.type_in(consoles);
        if self.send(consoles).is_err() {
            return ClientTurn::Ended;
        }
        let unsent = self.sent < self.output.len();
        if matches!(self.state, ClientState::Closing) && !unsent {
            return ClientTurn::Ended;
        }
        let reads = self.readable && self.typed.is_empty();
        let writes = self.writable && (unsent || self.has_output(consoles));
        if reads || writes { ClientTurn::HasMore } else { ClientTurn::Waits }
    }

    /// Takes frames. Nothing is read while bytes that were typed wait for room.
    fn receive(&mut self, consoles: &mut impl OpenConsoles) -> Result<(), ClientLost> {
        if !self.typed.is_empty() {
            return self.check_presence();
        }
        if !self.readable {
            return Ok(());
        }
        match self.frames.fill(&mut self.socket).map_err(|_| ClientLost)? {
            Filled::Some => {}
            Filled::Nothing => self.readable = false,
            Filled::Closed => return Err(ClientLost),
        }
        while let Some(frame) = self.frames.client_frame().map_err(|_| ClientLost)? {
            match (frame, &self.state) {
                (ClientFrame::Open { access, start, number, domain }, ClientState::New) => {
                    let domain = domain.to_vec();
                    self.state = ClientState::Waiting { access, start, number, domain };
                }
                (
                    ClientFrame::Input(typed),
                    ClientState::Open { access, .. } | ClientState::Waiting { access, .. },
                ) => {
                    if *access == ClientAccess::Type {
                        self.typed.extend_from_slice(typed);
                    }
                }
                (
                    ClientFrame::Size { columns, rows },
                    ClientState::Open { access, console, .. },
                ) => {
                    if *access == ClientAccess::Type {
                        consoles.set_size(*console, columns, rows);
                    }
                }
                (ClientFrame::Size { columns, rows }, ClientState::Waiting { .. }) => {
                    self.size = Some((columns, rows));
                }
                (_, ClientState::Closing) => {}
                _ => return Err(ClientLost),
            }
        }
        Ok(())
    }

    /// Finds out if the client is gone, without reading.
    fn check_presence(&mut self) -> Result<(), ClientLost> {
        if !std::mem::take(&mut self.may_be_gone) {
            return Ok(());
        }
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            _ => Err(ClientLost),
        }
    }

    /// Opens the console that the client waits for, if it is there.
    fn find(&mut self, consoles: &mut impl OpenConsoles) {
        let ClientState::Waiting { access, start, number, domain } = &self.state else { return };
        let Some(console) = consoles.find(domain, *number) else { return };
        let Some(backlog) = consoles.output(console).backlog else { return };
        let place = match start {
            OutputStart::Now => backlog.end(),
            OutputStart::Oldest => backlog.start(),
            OutputStart::Screenful => {
                let (lines, bytes) = SCREENFUL;
                backlog.last_lines(lines, bytes)
            }
        };
        let access = *access;
        self.state = ClientState::Open { access, console, place };
        DaemonFrame::Opened { domid: console.domid, place }.put(&mut self.output);
        if let Some((columns, rows)) = self.size.filter(|_| access == ClientAccess::Type) {
            consoles.set_size(console, columns, rows);
        }
    }

    fn type_in(&mut self, consoles: &mut impl OpenConsoles) {
        let ClientState::Open { console, .. } = self.state else { return };
        if !self.typed.is_empty() {
            let count = consoles.type_in(console, &self.typed).min(self.typed.len());
            self.typed.drain(..count);
        }
    }

    fn has_output(&self, consoles: &impl OpenConsoles) -> bool {
        let ClientState::Open { console, place, .. } = self.state else { return false };
        let output = consoles.output(console);
        output.ended || output.backlog.is_some_and(|backlog| backlog.end() > place)
    }

    /// Sends what is due, as far as the socket has room.
    fn send(&mut self, consoles: &impl OpenConsoles) -> Result<(), ClientLost> {
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            self.prepare_output(consoles);
        }
        while self.writable && self.sent < self.output.len() {
            match self.socket.write(self.output.get(self.sent..).unwrap_or_default()) {
                Ok(count) => self.sent = self.sent.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(ClientLost),
            }
        }
        Ok(())
    }

    /// Puts the next frames of output.
    fn prepare_output(&mut self, consoles: &impl OpenConsoles) {
        let ClientState::Open { console, place, .. } = &mut self.state else { return };
        let output = consoles.output(*console);
        let slice = output.backlog.map(|backlog| backlog.from(*place)).unwrap_or_default();
        if slice.missed > 0 {
            DaemonFrame::Missed(slice.missed).put(&mut self.output);
            *place = place.saturating_add(slice.missed);
        }
        let bytes = slice.bytes.get(..slice.bytes.len().min(PAYLOAD_MAX)).unwrap_or_default();
        if !bytes.is_empty() {
            DaemonFrame::Output(bytes).put(&mut self.output);
            *place = place.saturating_add(bytes.len() as u64);
        } else if output.ended {
            DaemonFrame::Ended.put(&mut self.output);
            self.state = ClientState::Closing;
        }
    }
}

/// The client is gone, or does not keep to the frames.
#[derive(Debug)]
struct ClientLost;

#[cfg(test)]
mod tests {
    use super::*;

    /// No console is there.
    struct NoConsoles;

    impl OpenConsoles for NoConsoles {
        fn find(&self, _: &[u8], _: u32) -> Option<ConsoleId> {
            None
        }

        fn output(&self, _: ConsoleId) -> ConsoleOutput<'_> {
            ConsoleOutput { backlog: None, ended: true }
        }

        fn type_in(&mut self, _: ConsoleId, bytes: &[u8]) -> usize {
            bytes.len()
        }

        fn set_size(&mut self, _: ConsoleId, _: u16, _: u16) {}
    }

    #[test]
    fn at_the_most_clients_it_waits_and_then_takes_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut service = ConsoleService::bind(&path).unwrap();
        service.clients_max = 2;
        let mut clients: Vec<UnixStream> =
            (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        service.serve(&mut NoConsoles);
        assert_eq!(service.clients.len(), 2);
        let idle = service.serve(&mut NoConsoles);
        assert!(!idle.more && !idle.streams_changed, "it has nothing to do");
        drop(clients.remove(0));
        let streams: Vec<DescriptorId> = service.streams().map(|(stream, _)| stream).collect();
        assert!(streams.into_iter().all(|stream| service.ready(stream)));
        assert!(service.serve(&mut NoConsoles).more, "the third waits in the queue");
        assert!(service.serve(&mut NoConsoles).streams_changed);
        assert_eq!(service.clients.len(), 2);
    }
}
