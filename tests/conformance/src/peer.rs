//! A raw client of a daemon, over its socket or over a guest's ring. It sends any bytes at all.

use crate::notation;
use crate::ring::GuestRing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use xenstore_core::limits::HEADER_SIZE;
use xenstore_core::wire::{Header, MsgType, TYPES, split_message};

/// The time without a reply after which the daemon counts as silent.
pub const REPLY_WITHIN: Duration = Duration::from_secs(10);

/// The longest time that a daemon may take after it was signalled again.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);
/// The number of lost signals of guests, in this process.
static SIGNALS_LOST: AtomicU32 = AtomicU32::new(0);

/// Returns the number of signals of guests that were lost in this process.
#[must_use]
pub fn signals_lost() -> u32 {
    SIGNALS_LOST.load(Ordering::Relaxed)
}

/// The number of requests of [`Peer::ask_all`] in flight: few enough that all are sent before an
/// answer has to be read.
const TOGETHER: usize = 32;

/// One message from the daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// Returns the error's name, if this is an ERROR.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        (self.header.kind == MsgType::Error.code())
            .then(|| String::from_utf8_lossy(&self.payload).trim_end_matches('\0').to_owned())
    }
}

/// The reason why there is no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiveFailure {
    /// The daemon closed the connection, or its stream is invalid.
    Closed,
    /// Nothing came in time.
    Silent,
    /// Nothing came in time, and the bytes were taken when the guest had signalled once more.
    Signal,
}

impl fmt::Display for ReceiveFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Signal => "silent until it was signalled again: the signal was lost",
        })
    }
}

/// The transport of a peer.
#[derive(Debug)]
enum PeerLink {
    Socket(UnixStream),
    /// Linux' device, which passes on the messages that domain 0 writes to it.
    Device(File),
    Ring(Box<dyn GuestRing>),
}

/// A raw client.
#[derive(Debug)]
pub struct Peer {
    link: PeerLink,
    unparsed: Vec<u8>,
    events: VecDeque<Message>,
    req_id: u32,
    abandoned: Vec<u32>,
    /// The number of replies that are expected.
    awaited: usize,
}

impl Peer {
    /// Connects to a daemon's socket.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` if the daemon does not accept the connection within
    /// [`REPLY_WITHIN`].
    pub fn socket(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A blocking connect would wait for ever if the daemon is stuck and its backlog full.
        let end = Instant::now() + REPLY_WITHIN;
        loop {
            match connect(&socket, &address) {
                Err(Errno::AGAIN) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => break other?,
            }
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(Self::over(PeerLink::Socket(stream)))
    }

    /// Opens the device by which Linux lets domain 0 use the kernel's own ring.
    ///
    /// # Errors
    /// Those of the device.
    pub fn device(path: &Path) -> io::Result<Self> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
        let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Self::over(PeerLink::Device(device)))
    }

    /// Returns a guest with this ring.
    #[must_use]
    pub fn ring_of(ring: Box<dyn GuestRing>) -> Self {
        Self::over(PeerLink::Ring(ring))
    }

    fn over(link: PeerLink) -> Self {
        Self {
            link,
            unparsed: Vec::new(),
            events: VecDeque::new(),
            req_id: 100,
            abandoned: Vec::new(),
            awaited: 0,
        }
    }

    /// Returns the guest's ring.
    ///
    /// # Panics
    /// If this peer is no guest.
    pub fn ring(&mut self) -> &mut dyn GuestRing {
        match &mut self.link {
            PeerLink::Ring(ring) => ring.as_mut(),
            PeerLink::Socket(_) | PeerLink::Device(_) => panic!("domain 0's clients have no ring"),
        }
    }

    /// Forgets half-read messages and events, as after a reconnection.
    pub fn forget(&mut self) {
        self.unparsed.clear();
        self.events.clear();
        self.awaited = 0;
    }

    /// Sends these bytes, valid or not.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if the daemon does not take them within [`REPLY_WITHIN`].
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), ReceiveFailure> {
        let end = Instant::now() + REPLY_WITHIN;
        match &mut self.link {
            PeerLink::Socket(stream) => {
                stream.set_write_timeout(Some(REPLY_WITHIN)).map_err(|_| ReceiveFailure::Closed)?;
                stream.write_all(bytes).map_err(|error| lost_by(&error))
            }
            // Linux waits for the reply within the write, or refuses the request there.
            PeerLink::Device(device) => device.write_all(bytes).map_err(|error| lost_by(&error)),
            PeerLink::Ring(ring) => {
                let mut nothing_read = false;
                loop {
                    let count = ring.put(bytes).map_err(|error| lost_by(&error))?;
                    bytes = bytes.get(count..).unwrap_or_default();
                    if bytes.is_empty() {
                        return Ok(());
                    }
                    // `take` drops the signals that have come, so only a guest that has looked for
                    // room since may wait for one.
                    if count == 0 && nothing_read {
                        ring.wait(end).map_err(|error| lost_by(&error))?;
                    }
                    let read = ring.take(&mut self.unparsed).map_err(|error| lost_by(&error))?;
                    nothing_read = read == 0;
                }
            }
        }
    }

    /// Sends as much of `bytes` as the daemon takes at once; returns `None` if the connection is
    /// gone.
    pub fn send_some(&mut self, bytes: &[u8]) -> Option<usize> {
        match &mut self.link {
            PeerLink::Socket(stream) => {
                stream.set_write_timeout(Some(Duration::from_millis(200))).ok()?;
                match stream.write(bytes) {
                    Ok(count) => Some(count),
                    Err(error) if lost_by(&error) == ReceiveFailure::Silent => Some(0),
                    Err(_) => None,
                }
            }
            PeerLink::Device(device) => device.write(bytes).ok(),
            PeerLink::Ring(ring) => ring.put(bytes).ok(),
        }
    }

    /// Waits until `end` for the next message, event or reply.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if there is none.
    pub fn message(&mut self, end: Instant) -> Result<Message, ReceiveFailure> {
        loop {
            if let Some((header, payload, rest)) =
                split_message(&self.unparsed).map_err(|_| ReceiveFailure::Closed)?
            {
                let message = Message { header, payload: payload.to_vec() };
                let left = rest.len();
                self.unparsed.drain(..self.unparsed.len() - left);
                return Ok(message);
            }
            self.receive(end)?;
        }
    }

    fn receive(&mut self, end: Instant) -> Result<(), ReceiveFailure> {
        match &mut self.link {
            PeerLink::Socket(stream) => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ReceiveFailure::Silent);
                }
                stream.set_read_timeout(Some(left)).map_err(|_| ReceiveFailure::Closed)?;
                let mut buffer = [0; 16384];
                match stream.read(&mut buffer).map_err(|error| lost_by(&error))? {
                    0 => Err(ReceiveFailure::Closed),
                    count => {
                        self.unparsed.extend(buffer.get(..count).unwrap_or_default());
                        Ok(())
                    }
                }
            }
            PeerLink::Device(device) => {
                let left = end.saturating_duration_since(Instant::now());
                let left = Timespec::try_from(left).map_err(|_| ReceiveFailure::Closed)?;
                let mut ready = [PollFd::new(device, PollFlags::IN)];
                if poll(&mut ready, Some(&left)).map_err(|_| ReceiveFailure::Closed)? == 0 {
                    return Err(ReceiveFailure::Silent);
                }
                let mut buffer = [0; 16384];
                let count = device.read(&mut buffer).map_err(|error| lost_by(&error))?;
                self.unparsed.extend(buffer.get(..count).unwrap_or_default());
                Ok(())
            }
            PeerLink::Ring(ring) => {
                if ring.take(&mut self.unparsed).map_err(|error| lost_by(&error))? == 0 {
                    let known = self.awaited.saturating_mul(HEADER_SIZE);
                    let more = known.saturating_sub(self.unparsed.len()).max(1);
                    ring.wait_for(end, more).map_err(|error| lost_by(&error))?;
                }
                Ok(())
            }
        }
    }

    /// Sends one request and returns its id; the reply is taken with [`Peer::reply`].
    ///
    /// # Errors
    /// [`ReceiveFailure`] if it cannot be sent.
    pub fn request(
        &mut self,
        kind: u32,
        tx_id: u32,
        payload: &[u8],
    ) -> Result<u32, ReceiveFailure> {
        let mut bytes = Vec::new();
        let req_id = self.frame(kind, tx_id, payload, &mut bytes);
        self.send(&bytes)?;
        Ok(req_id)
    }

    /// Appends a request to `bytes`, which are to be sent with others, and returns its id.
    pub fn frame(&mut self, kind: u32, tx_id: u32, payload: &[u8], bytes: &mut Vec<u8>) -> u32 {
        self.req_id = self.req_id.wrapping_add(1);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        bytes.extend(Header { kind, req_id: self.req_id, tx_id, len }.to_bytes());
        bytes.extend(payload);
        self.req_id
    }

    /// Returns the next reply; events that come before it are kept.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if there is none by `end`.
    pub fn reply(&mut self, end: Instant) -> Result<Message, ReceiveFailure> {
        loop {
            let message = self.message(end).inspect_err(|_| self.awaited = 0)?;
            if message.header.kind == MsgType::WatchEvent.code() {
                self.events.push_back(message);
            } else if !self.abandoned.contains(&message.header.req_id) {
                self.awaited = self.awaited.saturating_sub(1);
                return Ok(message);
            }
        }
    }

    /// Returns the next reply, as [`Peer::reply`] does, within [`REPLY_WITHIN`]. A guest that gets
    /// none signals once more: if the daemon serves it then, the first signal was lost. It was lost,
    /// too, if the guest's look at the indices finds a response that its last look did not find: the
    /// answer on its console interrupts domain 0, which then sees the pending signal as well.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if there is none.
    pub fn reply_in_time(&mut self) -> Result<Message, ReceiveFailure> {
        let lost = match self.reply(Instant::now() + REPLY_WITHIN) {
            Err(ReceiveFailure::Silent) => ReceiveFailure::Silent,
            other => return other,
        };
        let PeerLink::Ring(ring) = &mut self.link else { return Err(lost) };
        let indices = |ring: &mut dyn GuestRing| ring.indices().map_err(|_| lost);
        let before = indices(ring.as_mut())?;
        ring.notify().map_err(|_| lost)?;
        let answered = self.reply(Instant::now() + AGAIN_WITHIN).is_ok();
        let PeerLink::Ring(ring) = &mut self.link else { return Err(lost) };
        let after = indices(ring.as_mut())?;
        println!(
            "      req_cons, req_prod, rsp_cons, rsp_prod of the silent ring: {before:?}; signalled once more, {after:?}"
        );
        let [requests_taken, requests, responses_taken, responses] = before;
        if answered && (requests_taken != requests || responses_taken != responses) {
            SIGNALS_LOST.fetch_add(1, Ordering::Relaxed);
            return Err(ReceiveFailure::Signal);
        }
        Err(lost)
    }

    /// Sets the number of expected replies. A guest whose notifications are slow waits for all of
    /// them at once.
    pub fn await_replies(&mut self, count: usize) {
        self.awaited = count;
    }

    /// Ignores the reply to this request; it is dropped if it comes later.
    pub fn abandon(&mut self, req_id: u32) {
        self.abandoned.push(req_id);
    }

    /// Sends a request and takes its reply, whose `req_id` is checked.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if there is none.
    ///
    /// # Panics
    /// If the reply's `req_id` is not the request's.
    pub fn call(
        &mut self,
        kind: u32,
        tx_id: u32,
        payload: &[u8],
    ) -> Result<Message, ReceiveFailure> {
        let req_id = self.request(kind, tx_id, payload)?;
        let reply = match self.reply_in_time() {
            Ok(reply) => reply,
            Err(lost) => {
                self.abandon(req_id);
                return Err(lost);
            }
        };
        let asked = type_name(kind);
        assert_eq!(reply.header.req_id, req_id, "the reply to {asked} carries a wrong req_id");
        Ok(reply)
    }

    /// Sends a request by name, with its payload in the notation of [`notation`]; returns the
    /// reply's payload in the same notation, or the error's name.
    ///
    /// # Panics
    /// If the type is unknown or there is no reply.
    pub fn ask(&mut self, kind: &str, payload: impl AsRef<str>) -> String {
        self.ask_in(0, kind, payload)
    }

    /// Sends a request, as [`Peer::ask`] does, within a transaction.
    ///
    /// # Panics
    /// As [`Peer::ask`].
    pub fn ask_in(&mut self, tx_id: u32, kind: &str, payload: impl AsRef<str>) -> String {
        let code = type_code(kind).unwrap_or_else(|| panic!("`{kind}` is no message type"));
        let bytes = notation::parse(payload.as_ref()).expect("a payload in the notation");
        match self.call(code, tx_id, &bytes) {
            Ok(reply) => reply.error().unwrap_or_else(|| notation::show(&reply.payload)),
            Err(lost) => panic!("{kind} {}: the connection is {lost}", payload.as_ref()),
        }
    }

    /// Sends requests together; returns their answers in order, each as [`Peer::ask`] returns it.
    /// This does not work over the device, which takes one at a time.
    ///
    /// # Panics
    /// As [`Peer::ask`].
    pub fn ask_all(&mut self, requests: &[(&str, String)]) -> Vec<String> {
        let mut answers = Vec::with_capacity(requests.len());
        for together in requests.chunks(TOGETHER) {
            let mut bytes = Vec::new();
            let mut sent = Vec::new();
            for (kind, payload) in together {
                let code = type_code(kind).unwrap_or_else(|| panic!("`{kind}` is no message type"));
                let payload = notation::parse(payload).expect("a payload in the notation");
                sent.push(self.frame(code, 0, &payload, &mut bytes));
            }
            let lost =
                |lost: ReceiveFailure| -> ! { panic!("{together:?}: the connection is {lost}") };
            self.send(&bytes).unwrap_or_else(|why| lost(why));
            for req_id in sent {
                let reply = self.reply_in_time();
                let reply = reply.unwrap_or_else(|why| lost(why));
                assert_eq!(reply.header.req_id, req_id, "{together:?}: a wrong req_id");
                answers.push(reply.error().unwrap_or_else(|| notation::show(&reply.payload)));
            }
        }
        answers
    }

    /// Sends a request that must be answered `OK`.
    ///
    /// # Panics
    /// If it is not.
    pub fn expect_ok(&mut self, kind: &str, payload: impl AsRef<str>) {
        let answer = self.ask(kind, payload.as_ref());
        assert_eq!(answer, "OK|", "{kind} {}", payload.as_ref());
    }

    /// Starts a transaction and returns its id.
    ///
    /// # Panics
    /// If it is refused.
    pub fn start(&mut self) -> u32 {
        let answer = self.ask("TRANSACTION_START", "|");
        answer.trim_end_matches('|').parse().unwrap_or_else(|_| panic!("a new id: {answer}"))
    }

    /// Waits for the next event; returns it as `path|token|`.
    pub fn event(&mut self, wait: Duration) -> Option<String> {
        if self.events.is_empty() {
            let message = self.message(Instant::now() + wait).ok()?;
            self.events.push_back(message);
        }
        self.events.pop_front().map(|event| notation::show(&event.payload))
    }

    /// Returns the number of events that have come and are not taken, after one more request and
    /// its reply.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if the daemon does not answer that request.
    pub fn pending(&mut self) -> Result<usize, ReceiveFailure> {
        self.call(MsgType::GetDomainPath.code(), 0, b"1\0")?;
        Ok(self.events.len())
    }

    /// Drops all waiting events but the first `count`.
    pub fn forget_after(&mut self, count: usize) {
        self.events.truncate(count);
    }

    /// Takes every event that the daemon has sent up to now, after one more request and its reply.
    ///
    /// # Errors
    /// [`ReceiveFailure`] if the daemon does not answer that request.
    pub fn events(&mut self) -> Result<Vec<String>, ReceiveFailure> {
        self.call(MsgType::GetDomainPath.code(), 0, b"1\0")?;
        Ok(self.events.drain(..).map(|event| notation::show(&event.payload)).collect())
    }
}

fn lost_by(error: &io::Error) -> ReceiveFailure {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ReceiveFailure::Silent,
        _ => ReceiveFailure::Closed,
    }
}

/// Returns the code of a type, by its name in the protocol document, or by a plain number.
#[must_use]
pub fn type_code(name: &str) -> Option<u32> {
    let known = TYPES.iter().find(|(_, known)| *known == name).map(|(kind, _)| kind.code());
    known.or_else(|| name.parse().ok())
}

/// Returns the name of a type's code, or the number.
#[must_use]
pub fn type_name(code: u32) -> String {
    MsgType::from_code(code).map_or_else(|| code.to_string(), |kind| kind.name().to_owned())
}
