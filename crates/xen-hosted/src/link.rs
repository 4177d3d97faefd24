//! A peer's end of its socket to the broker: requests, and messages that the broker sends without a
//! request.

use crate::counters::{Counter, IDENTITIES_LEN, counters_len};
use crate::errno::from_errno;
use crate::limits::{ANSWER_WITHIN_S, PACKET_MAX};
use crate::map::Map;
use crate::proto::{self, BrokerMessage, BrokerRequest};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use xen::gnttab::PageAccess;
use xen::{DomId, Error, Port};

/// Locks, also where another thread panicked meanwhile: nothing here is left inconsistent.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) words: Vec<u64>,
    pub(crate) fds: VecDeque<OwnedFd>,
}

impl Answer {
    /// Returns word number `at`, as a number of this type.
    pub(crate) fn number<T: TryFrom<u64>>(&self, at: usize) -> Result<T, Error> {
        let word = self.words.get(at).copied().ok_or(Error::Other(Errno::PROTO.raw_os_error()))?;
        T::try_from(word).map_err(|_| Error::Other(Errno::PROTO.raw_os_error()))
    }

    /// Returns the next descriptor.
    ///
    /// # Errors
    /// EMFILE where this process has no room for it: then the kernel drops the descriptor.
    pub(crate) fn fd(&mut self) -> Result<OwnedFd, Error> {
        self.fds.pop_front().ok_or(Error::Other(Errno::MFILE.raw_os_error()))
    }
}

/// A message of the broker about a port, with its descriptors.
pub(crate) type News = (BrokerMessage, Vec<OwnedFd>);

/// A table of other domains' arenas that this process has looked up.
pub(crate) trait ArenaFollower: fmt::Debug + Send + Sync {
    /// Handles the end of an arena of `granter`.
    fn arena_ended(&self, granter: DomId, slot: u32);
}

/// One process's connection to the broker.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// The receive buffer, locked from a request to its answer.
    buffer: Mutex<Vec<u8>>,
    broker_gone: AtomicBool,
    /// Messages of the broker about ports that the owner of the ports has not taken yet.
    news: Mutex<Vec<News>>,
    /// An event that is readable while there are such messages.
    news_event: OwnedFd,
    /// The tables of arenas that this process has looked up.
    followers: Mutex<Vec<Weak<dyn ArenaFollower>>>,
    /// True if the event channels were taken.
    pub(crate) ports_taken: AtomicBool,
    pub(crate) domid: DomId,
    /// The ports that existed from the start: console, store.
    pub(crate) first_ports: [Port; 2],
    counters: Map,
    /// The number of unrequested messages of the broker that this process has taken.
    taken_messages: AtomicU64,
    /// The identities of all domains, by number; for the watchers of domains.
    pub(crate) identities: Option<Map>,
}

impl Link {
    /// Connects to the socket at `path`, which determines the rights of this process.
    ///
    /// # Errors
    /// As [`Link::connect_within`].
    pub(crate) fn connect(path: &Path) -> Result<Arc<Self>, Error> {
        Self::connect_within(path, Duration::from_secs(ANSWER_WITHIN_S))
    }

    /// Connects with a bound to the time that each answer may take.
    ///
    /// # Errors
    /// [`Error::NoDev`] where no broker listens, [`Error::Busy`] where it has as many connections as it takes,
    /// `ETIMEDOUT`, or the broker's error.
    pub(crate) fn connect_within(path: &Path, within: Duration) -> Result<Arc<Self>, Error> {
        let family = AddressFamily::UNIX;
        let socket =
            rustix::net::socket_with(family, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(from_errno)?;
        let address = SocketAddrUnix::new(path).map_err(from_errno)?;
        // A broker that is stopped has a full queue of connections after a while.
        set_socket_timeout(&socket, Timeout::Send, Some(within)).map_err(from_errno)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => Self::over_within(socket, within),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(Error::NoDev),
            Err(errno) => Err(late(errno)),
        }
    }

    /// Opens a connection to the broker over `socket`.
    pub(crate) fn over(socket: OwnedFd) -> Result<Arc<Self>, Error> {
        Self::over_within(socket, Duration::from_secs(ANSWER_WITHIN_S))
    }

    fn over_within(socket: OwnedFd, within: Duration) -> Result<Arc<Self>, Error> {
        set_socket_timeout(&socket, Timeout::Recv, Some(within)).map_err(from_errno)?;
        let mut buffer = vec![0; PACKET_MAX];
        let broker_gone = AtomicBool::new(false);
        let mut news = Vec::new();
        let apply = |message, fds| news.push((message, fds));
        let mut hello =
            call(socket.as_fd(), &mut buffer, &broker_gone, &BrokerRequest::Hello, &[], apply)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let news_event = eventfd(u32::from(!news.is_empty()), flags).map_err(from_errno)?;
        let ports_max: u32 = hello.number(4)?;
        let first_ports = [Port(hello.number(2)?), Port(hello.number(3)?)];
        let len = counters_len(ports_max);
        let counters = Map::new(hello.fd()?, 0, len, PageAccess::ReadWrite).map_err(from_errno)?;
        let identities = match hello.fds.pop_front() {
            Some(fd) => {
                Some(Map::new(fd, 0, IDENTITIES_LEN, PageAccess::Read).map_err(from_errno)?)
            }
            None => None,
        };
        Ok(Arc::new(Self {
            domid: DomId(hello.number(0)?),
            socket,
            buffer: Mutex::new(buffer),
            broker_gone,
            news: Mutex::new(news),
            news_event,
            followers: Mutex::default(),
            ports_taken: AtomicBool::new(false),
            first_ports,
            counters,
            taken_messages: AtomicU64::new(0),
            identities,
        }))
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// [`Error::NoDev`] where the broker is gone, or the error in its answer.
    pub(crate) fn call(&self, request: &BrokerRequest) -> Result<Answer, Error> {
        self.call_with(request, &[])
    }

    /// Makes a call as [`Link::call`] does, with descriptors.
    pub(crate) fn call_with(
        &self,
        request: &BrokerRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, Error> {
        let mut buffer = lock(&self.buffer);
        let apply = |message, fds| self.apply(message, fds);
        call(self.socket.as_fd(), &mut buffer, &self.broker_gone, request, fds, apply)
    }

    /// Takes the messages that the broker has sent without a request; does not wait.
    ///
    /// # Errors
    /// [`Error::NoDev`] where the broker is gone.
    pub(crate) fn drain(&self) -> Result<(), Error> {
        let mut buffer = lock(&self.buffer);
        loop {
            let mut fds = Vec::new();
            let flags = RecvFlags::DONTWAIT;
            match proto::receive(self.socket.as_fd(), &mut buffer, &mut fds, flags) {
                Ok(0) => self.broker_gone.store(true, Ordering::Relaxed),
                Ok(count) => {
                    if let Some(message) =
                        BrokerMessage::decode(buffer.get(..count).unwrap_or_default())
                    {
                        self.apply(message, fds);
                    }
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(_) => self.broker_gone.store(true, Ordering::Relaxed),
            }
            let broker_gone = self.broker_gone.load(Ordering::Relaxed);
            return if broker_gone { Err(Error::NoDev) } else { Ok(()) };
        }
    }

    /// True if the broker has sent a message that this process has not taken yet. Where a peer's
    /// call has returned, the messages that the call caused were counted before.
    #[inline]
    pub(crate) fn has_unread(&self) -> bool {
        let told = self.counters.long(Counter::Told.offset()).load(Ordering::Acquire);
        told > self.taken_messages.load(Ordering::Relaxed)
    }

    /// Returns the descriptors to wait for: the socket, and the event of messages about ports.
    pub(crate) fn poll_descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.socket.as_fd(), self.news_event.as_fd())
    }

    /// Takes the broker's messages about ports, in their order.
    pub(crate) fn take_news(&self) -> Vec<News> {
        let mut news = lock(&self.news);
        if !news.is_empty() {
            let _ = rustix::io::read(&self.news_event, &mut [0; 8]);
            self.taken_messages.fetch_add(news.len() as u64, Ordering::Relaxed);
        }
        std::mem::take(&mut *news)
    }

    fn apply(&self, message: BrokerMessage, fds: Vec<OwnedFd>) {
        if let BrokerMessage::ArenaEnded { granter, slot } = &message {
            self.taken_messages.fetch_add(1, Ordering::Relaxed);
            let all: Vec<_> = lock(&self.followers).iter().filter_map(Weak::upgrade).collect();
            for follower in all {
                follower.arena_ended(*granter, *slot);
            }
        } else {
            let mut news = lock(&self.news);
            if news.is_empty() {
                // A thread that waits for the socket finds nothing there any more.
                let _ = rustix::io::write(&self.news_event, &1_u64.to_ne_bytes());
            }
            news.push((message, fds));
        }
    }

    /// Sends the broker a message that it does not answer.
    pub(crate) fn tell(&self, request: &BrokerRequest) {
        // A broker that is gone needs no message.
        let _ = proto::send(self.socket.as_fd(), &request.encode(), &[], SendFlags::empty());
    }

    /// Tells `follower` of arenas that end, as long as it exists.
    pub(crate) fn follow(&self, follower: Weak<dyn ArenaFollower>) {
        let mut followers = lock(&self.followers);
        followers.retain(|follower| follower.strong_count() > 0);
        followers.push(follower);
    }

    /// Counts a refusal by the library; the broker counts its own.
    #[cold]
    pub(crate) fn count_refusal(&self) {
        self.count(Counter::Refused, 1);
    }

    /// Adds to a counter of this process.
    #[inline]
    pub(crate) fn count(&self, counter: Counter, by: i64) {
        let word = self.counters.long(counter.offset());
        // Only this process writes it; two threads may lose a count.
        let sum = word.load(Ordering::Relaxed).wrapping_add_signed(by);
        word.store(sum, Ordering::Relaxed);
    }
}

/// Sends one request and receives its answer; messages that come before it go to `apply`.
fn call(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    broker_gone: &AtomicBool,
    request: &BrokerRequest,
    fds: &[BorrowedFd<'_>],
    mut apply: impl FnMut(BrokerMessage, Vec<OwnedFd>),
) -> Result<Answer, Error> {
    if broker_gone.load(Ordering::Relaxed) {
        return Err(Error::NoDev);
    }
    match proto::send(socket, &request.encode(), fds, SendFlags::empty()) {
        // It may have sent its reason before it closed its end.
        Ok(()) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(late(errno)),
    }
    let mut is_reset = false;
    loop {
        let mut fds = Vec::new();
        let count = match proto::receive(socket, buffer, &mut fds, RecvFlags::empty()) {
            // It has closed without reading the request; its earlier messages follow.
            Err(Errno::CONNRESET) if !is_reset => {
                is_reset = true;
                continue;
            }
            Ok(0) | Err(Errno::CONNRESET) => {
                broker_gone.store(true, Ordering::Relaxed);
                return Err(Error::NoDev);
            }
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(error) => {
                // A later answer would be taken for that of another request.
                broker_gone.store(true, Ordering::Relaxed);
                return Err(late(error));
            }
        };
        match BrokerMessage::decode(buffer.get(..count).unwrap_or_default()) {
            Some(BrokerMessage::Reply { errno: 0, words }) => {
                return Ok(Answer { words, fds: fds.into() });
            }
            Some(BrokerMessage::Reply { errno, .. }) => return Err(Error::from_errno(errno)),
            Some(message) => apply(message, fds),
            None => return Err(from_errno(Errno::PROTO)),
        }
    }
}

/// Converts a socket's error; `EAGAIN` of a timeout becomes `ETIMEDOUT`.
#[cold]
fn late(errno: Errno) -> Error {
    from_errno(if errno == Errno::AGAIN { Errno::TIMEDOUT } else { errno })
}
