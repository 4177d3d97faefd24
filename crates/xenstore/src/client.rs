//! The connection: requests and their replies, requests about domains, watches.

use crate::error::{Error, connection_lost};
use crate::store::{Store, text};
use crate::transaction::{TransactionEnd, TransactionId};
use crate::transport::ring::StoreRing;
use crate::transport::stream::{CallerStream, StoreStream};
use crate::transport::{Transport, Wait, connect_first, places};
use crate::watch::{DepthFilter, Event};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xen::Port;
use xen::evtchn::EventChannels;
use xen::shared::SharedPage;
use xenstore_core::client::{Client as ClientMachine, Reply, RequestId};
use xenstore_core::wire::{self, MsgType, Strings};

/// The size of a read in bytes: room for many replies of many requests in flight.
const READ_BYTES: usize = 64 * 1024;

/// A request in flight. The caller gives it to [`Client::wait`] or [`Client::forget`].
#[derive(Debug)]
#[must_use = "a reply that nobody waits for is kept until the connection ends"]
pub struct Ticket {
    id: RequestId,
    kind: MsgType,
    subject: Box<[u8]>,
}

/// A connection to a store.
///
/// It is `Send`, and used by one thread at a time. It has no thread of its own: events arrive while
/// the caller waits for something, or in [`Client::poll_event`]. After an error other than a
/// refusal the connection cannot be used any more. The caller opens another.
#[derive(Debug)]
pub struct Client {
    machine: ClientMachine,
    transport: Transport,
    endpoint: PathBuf,
    buffer: Box<[u8]>,
    depths: DepthFilter,
    /// The longest time that a reply may take; `None` for no limit.
    timeout: Option<Duration>,
    ended: bool,
}

impl Client {
    /// Connects to the store of this machine, at the places that libxenstore tries: see
    /// [`crate::transport::places`].
    ///
    /// # Errors
    /// [`Error::NoDaemon`] with every place that was tried.
    pub fn open() -> Result<Self, Error> {
        connect_first(places()).map(|(transport, path)| Self::new(transport, path))
    }

    /// Connects to the socket or the device at `path`.
    ///
    /// # Errors
    /// [`Error::NoDaemon`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let places = vec![path.as_ref().to_owned()];
        connect_first(places).map(|(transport, path)| Self::new(transport, path))
    }

    /// Connects as a guest to the store through its own ring, which is in `page`. The store is
    /// notified through `port`. `evtchn` may be shared with others: see [`crate::transport::ring`].
    #[must_use]
    pub fn over_ring(page: SharedPage, port: Port, evtchn: Box<dyn EventChannels + Send>) -> Self {
        Self::new(Transport::Ring(StoreRing::new(page, port, evtchn)), "the guest's ring".into())
    }

    /// Connects to the store at the other end of a byte stream.
    #[must_use]
    pub fn over(connection: Box<dyn StoreStream>) -> Self {
        Self::new(
            Transport::CallerStream(CallerStream::new(connection)),
            "the caller's connection".into(),
        )
    }

    fn new(transport: Transport, endpoint: PathBuf) -> Self {
        Self {
            machine: ClientMachine::new(),
            transport,
            endpoint,
            buffer: vec![0; READ_BYTES].into(),
            depths: DepthFilter::default(),
            timeout: None,
            ended: false,
        }
    }

    /// Returns the path of the socket or device.
    #[must_use]
    pub fn endpoint(&self) -> &Path {
        &self.endpoint
    }

    /// Sets the longest time that a reply may take (`None`, the initial value: no limit). After a
    /// reply that did not come in time the connection cannot be used any more.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Queues a request without waiting. It is sent by the next call that waits or polls, or by
    /// [`Client::flush`]. The payload is `parts` concatenated; the caller adds the NULs.
    ///
    /// # Errors
    /// [`Error::TooLong`]; nothing is sent then.
    pub fn submit(
        &mut self,
        tx: TransactionId,
        kind: MsgType,
        parts: &[&[u8]],
    ) -> Result<Ticket, Error> {
        let first = parts.first().copied().unwrap_or_default();
        let subject = match kind {
            MsgType::TransactionStart | MsgType::TransactionEnd => &[][..],
            _ => Strings::new(first).next().unwrap_or(first),
        };
        let id = self.machine.send(kind, tx.0, parts).map_err(|refused| Error::TooLong {
            request: kind,
            subject: subject.to_vec(),
            len: refused.len,
        })?;
        Ok(Ticket { id, kind, subject: subject.into() })
    }

    /// Waits for the reply to this request. Replies and events that arrive before it are kept.
    ///
    /// # Errors
    /// [`Error::Refused`] if the daemon answers with an error, [`Error::Gone`] if the connection
    /// ends before, [`Error::Io`] with ETIMEDOUT if it takes longer than [`Client::set_timeout`]
    /// allows.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Vec<u8>, Error> {
        let id = ticket.id;
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let came = self.pump(deadline, |machine| machine.has_reply(id));
        let came = came.map_err(|error| match error {
            Error::Gone { .. } => {
                connection_lost(Some((ticket.kind, &ticket.subject)), &self.endpoint)
            }
            error => error,
        })?;
        if !came {
            return Err(self.fail("the store's reply", Errno::TIMEDOUT));
        }
        match self.machine.take_reply(id) {
            Some(Reply::Done(payload)) => Ok(payload),
            Some(Reply::Refused(name)) => {
                let Ticket { kind: request, subject, .. } = ticket;
                Err(Error::Refused { request, subject: subject.into_vec(), name })
            }
            None => Err(connection_lost(Some((ticket.kind, &ticket.subject)), &self.endpoint)),
        }
    }

    /// True if [`Client::wait`] would return at once. Reads and writes nothing.
    #[must_use]
    pub fn is_ready(&self, ticket: &Ticket) -> bool {
        self.ended || self.machine.has_reply(ticket.id)
    }

    /// Discards the reply to this request when it arrives.
    pub fn forget(&mut self, ticket: Ticket) {
        self.machine.forget(ticket.id);
        drop(ticket);
    }

    /// Returns the number of requests whose reply has not arrived.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.machine.in_flight()
    }

    /// Writes queued requests as far as the daemon takes them without waiting.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Io`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.transport.write(&mut self.machine).map_err(|errno| self.fail("writing", errno))
    }

    /// Sends one request in a transaction, or outside any, and waits for its reply.
    ///
    /// # Errors
    /// Those of [`Client::submit`] and [`Client::wait`].
    pub fn request_in(
        &mut self,
        tx: TransactionId,
        kind: MsgType,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        let ticket = self.submit(tx, kind, parts)?;
        self.wait(ticket)
    }

    /// Writes and reads until `done` holds, and returns true. Returns false at the deadline.
    fn pump(
        &mut self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&ClientMachine) -> bool,
    ) -> Result<bool, Error> {
        loop {
            if done(&self.machine) {
                return Ok(true);
            }
            if self.ended {
                return Err(connection_lost(None, &self.endpoint));
            }
            self.flush()?;
            // A device refuses a request in its write(2).
            if done(&self.machine) {
                return Ok(true);
            }
            let idle = self.machine.output().is_empty();
            let wait = if idle && deadline.is_none() { Wait::Block } else { Wait::Poll };
            let known = self.transport.has_input();
            let known = known.map_err(|errno| self.fail("reading", errno))?;
            if !known && wait == Wait::Poll && !self.poll_fd(deadline)? {
                return Ok(false);
            }
            self.read(wait)?;
        }
    }

    /// Waits until there is something to read, or there is room for output that is queued.
    fn poll_fd(&self, deadline: Option<Instant>) -> Result<bool, Error> {
        let mut wanted = PollFlags::IN;
        if !self.machine.output().is_empty() {
            wanted |= PollFlags::OUT;
        }
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.transport, wanted)];
            match poll(&mut fds, left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io("waiting for the store", errno)),
            }
        }
    }

    /// Reads once and gives the bytes to the machine.
    fn read(&mut self, wait: Wait) -> Result<(), Error> {
        match self.transport.read(&mut self.buffer, wait) {
            Ok(0) => Err(self.fail("reading", Errno::CONNRESET)),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                let result = self.machine.receive(bytes);
                self.ended |= result.is_err();
                Ok(result?)
            }
            Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(self.fail("reading", errno)),
        }
    }

    /// Ends the connection and returns the error for the caller.
    fn fail(&mut self, what: &'static str, errno: Errno) -> Error {
        self.ended = true;
        match errno {
            Errno::CONNRESET | Errno::PIPE => connection_lost(None, &self.endpoint),
            errno => io(what, errno),
        }
    }
}

/// Transactions.
impl Client {
    /// Starts a transaction that the caller ends with [`Client::transaction_end`].
    ///
    /// # Errors
    /// EBUSY or ENOSPC where too many are open.
    pub fn transaction_start(&mut self) -> Result<TransactionId, Error> {
        let request = MsgType::TransactionStart;
        let reply = self.request(request, &[b"\0"])?;
        match number(&reply) {
            Some(id) => Ok(TransactionId(id)),
            None => Err(Error::BadReply { request, subject: Vec::new(), reply }),
        }
    }

    /// Ends a transaction.
    ///
    /// # Errors
    /// EAGAIN where a commit met a conflict, ENOENT for one that is not open.
    pub fn transaction_end(&mut self, tx: TransactionId, end: TransactionEnd) -> Result<(), Error> {
        let letter: &[u8] = match end {
            TransactionEnd::Commit => b"T\0",
            TransactionEnd::Abort => b"F\0",
        };
        self.request_in(tx, MsgType::TransactionEnd, &[letter]).map(drop)
    }
}

/// Watches.
impl Client {
    /// Watches a node and all nodes below it, or `@introduceDomain`, `@releaseDomain`. One event
    /// comes at once.
    ///
    /// # Errors
    /// EEXIST where the same path and token are watched, E2BIG or ENOSPC (quota).
    pub fn watch(&mut self, path: impl AsRef<[u8]>, token: impl AsRef<[u8]>) -> Result<(), Error> {
        let path = text(MsgType::Watch, path.as_ref())?;
        let token = text(MsgType::Watch, token.as_ref())?;
        self.request(MsgType::Watch, &[path, b"\0", token, b"\0"]).map(drop)
    }

    /// Watches as [`Client::watch`] does, for changes at most `depth` levels below the node: 0 for
    /// the node alone. `@introduceDomain` and `@releaseDomain` take 1, and report `@releaseDomain/<domid>`.
    ///
    /// Daemons before Xen 4.21 do not know a depth, and Linux's `/dev/xen/xenbus` does not pass it
    /// on. In these cases all events are sent, and the client drops those that are too deep.
    ///
    /// # Errors
    /// Those of [`Client::watch`].
    pub fn watch_depth(
        &mut self,
        path: impl AsRef<[u8]>,
        token: impl AsRef<[u8]>,
        depth: u32,
    ) -> Result<(), Error> {
        let path = text(MsgType::Watch, path.as_ref())?;
        let token = text(MsgType::Watch, token.as_ref())?;
        if self.transport.passes_depth() {
            let number = format!("{depth}\0");
            let parts = [path, b"\0", token, b"\0", number.as_bytes()];
            match self.request(MsgType::Watch, &parts) {
                Err(error) if error.refusal() == Some(wire::Error::Inval) => {}
                result => return result.map(drop),
            }
        }
        // The depth is set first: the first event may come before the reply.
        self.depths.add(path, token, depth);
        let result = self.watch(path, token);
        if result.is_err() {
            self.depths.remove(path, token);
        }
        result
    }

    /// Ends a watch. Events that were already sent still come.
    ///
    /// # Errors
    /// ENOENT if there is no such watch.
    pub fn unwatch(
        &mut self,
        path: impl AsRef<[u8]>,
        token: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let path = text(MsgType::Unwatch, path.as_ref())?;
        let token = text(MsgType::Unwatch, token.as_ref())?;
        self.request(MsgType::Unwatch, &[path, b"\0", token, b"\0"])?;
        self.depths.remove(path, token);
        Ok(())
    }

    /// Ends all watches and transactions of this connection.
    ///
    /// # Errors
    /// See [`Store::request`].
    pub fn reset_watches(&mut self) -> Result<(), Error> {
        self.request(MsgType::ResetWatches, &[b"\0"])?;
        self.depths.clear();
        Ok(())
    }

    /// Returns an event that has arrived, without waiting. If it returns `None`, the descriptor
    /// ([`AsFd`]) becomes readable when there is more.
    ///
    /// # Errors
    /// [`Error::Gone`] once the connection has ended and all events have been taken.
    pub fn poll_event(&mut self) -> Result<Option<Event>, Error> {
        self.next_event(Some(Duration::ZERO))
    }

    /// Waits for the next event. Returns `None` if none comes within `timeout` (`None`: waits for
    /// ever).
    ///
    /// # Errors
    /// [`Error::Gone`] once the connection has ended and all events have been taken.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            while let Some(event) = self.machine.poll_event() {
                if self.depths.wants(&event) {
                    return Ok(Some(event));
                }
            }
            if !self.pump(deadline, |machine| machine.events_waiting() > 0)? {
                return Ok(None);
            }
        }
    }
}

/// Requests about domains and the daemon itself. All but [`Client::get_domain_path`] are for domain
/// 0 (others get EACCES).
impl Client {
    /// Sends a command to the daemon (as `xenstore-control` does). Each argument is a string.
    ///
    /// # Errors
    /// EINVAL for a command that the daemon does not know.
    pub fn control(&mut self, command: &str, args: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let mut parts = vec![text(MsgType::Control, command.as_bytes())?, b"\0"];
        for arg in args {
            parts.extend([text(MsgType::Control, arg)?, b"\0"]);
        }
        self.request(MsgType::Control, &parts)
    }

    /// Returns `/local/domain/<domid>`, the base of that domain's relative paths.
    ///
    /// # Errors
    /// See [`Store::request`].
    pub fn get_domain_path(&mut self, domid: u16) -> Result<Vec<u8>, Error> {
        self.request_with_numbers(MsgType::GetDomainPath, &[u64::from(domid)])
            .map(|reply| string(&reply))
    }

    /// True if the daemon serves this domain.
    ///
    /// # Errors
    /// See [`Store::request`].
    pub fn is_domain_introduced(&mut self, domid: u16) -> Result<bool, Error> {
        let reply = self.request_with_numbers(MsgType::IsDomainIntroduced, &[u64::from(domid)])?;
        match reply.first() {
            Some(b'T') => Ok(true),
            Some(b'F') => Ok(false),
            _ => Err(Error::BadReply {
                request: MsgType::IsDomainIntroduced,
                subject: domid.to_string().into(),
                reply,
            }),
        }
    }

    /// Tells the daemon to serve a domain, with the guest frame of its ring page and its unbound
    /// event channel.
    ///
    /// # Errors
    /// EINVAL if there is no such domain, EISCONN, and the errors of mapping and binding.
    pub fn introduce(&mut self, domid: u16, gfn: u64, port: u32) -> Result<(), Error> {
        self.request_with_numbers(MsgType::Introduce, &[domid.into(), gfn, port.into()]).map(drop)
    }

    /// Tells the daemon to stop serving a domain.
    ///
    /// # Errors
    /// ENOENT if it is not served.
    pub fn release(&mut self, domid: u16) -> Result<(), Error> {
        self.request_with_numbers(MsgType::Release, &[domid.into()]).map(drop)
    }

    /// Lets `@releaseDomain` fire again for a domain that was shut down and has resumed.
    ///
    /// # Errors
    /// ENOENT if the domain is not served.
    pub fn resume(&mut self, domid: u16) -> Result<(), Error> {
        self.request_with_numbers(MsgType::Resume, &[domid.into()]).map(drop)
    }

    /// Gives `domid`, a device-model domain, the rights of `target`.
    ///
    /// # Errors
    /// ENOENT if one of them is not served.
    pub fn set_target(&mut self, domid: u16, target: u16) -> Result<(), Error> {
        self.request_with_numbers(MsgType::SetTarget, &[domid.into(), target.into()]).map(drop)
    }

    /// Returns the feature bits offered to a domain, or (`None`) those of the daemon.
    ///
    /// # Errors
    /// ENOSYS for daemons before Xen 4.22.
    pub fn get_feature(&mut self, domid: Option<u16>) -> Result<u32, Error> {
        let reply = match domid {
            Some(domid) => self.request_with_numbers(MsgType::GetFeature, &[domid.into()])?,
            None => self.without_payload(MsgType::GetFeature)?,
        };
        self.number(MsgType::GetFeature, reply)
    }

    /// Sets the feature bits for a domain that is not introduced yet.
    ///
    /// # Errors
    /// ENOSYS for daemons before Xen 4.22, EINVAL for bits that the daemon does not have, EBUSY.
    pub fn set_feature(&mut self, domid: u16, features: u32) -> Result<(), Error> {
        self.request_with_numbers(MsgType::SetFeature, &[domid.into(), features.into()]).map(drop)
    }

    /// Returns a quota of one domain, or (`None`) the default for new domains; 0 is no limit.
    ///
    /// # Errors
    /// ENOSYS for daemons before Xen 4.22, EINVAL for a name that the daemon does not know.
    pub fn get_quota(&mut self, domid: Option<u16>, name: &str) -> Result<u32, Error> {
        let domid = domid.map(|domid| format!("{domid}\0")).unwrap_or_default();
        let name = text(MsgType::GetQuota, name.as_bytes())?;
        let reply = self.request(MsgType::GetQuota, &[domid.as_bytes(), name, b"\0"])?;
        self.number(MsgType::GetQuota, reply)
    }

    /// Returns the names of all quotas that the daemon knows.
    ///
    /// # Errors
    /// ENOSYS for daemons before Xen 4.22.
    pub fn quota_names(&mut self) -> Result<Vec<String>, Error> {
        let reply = self.without_payload(MsgType::GetQuota)?;
        let names = String::from_utf8_lossy(&string(&reply)).into_owned();
        Ok(names.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// Sets a quota of one domain, or (`None`) the default for new domains; 0 is no limit.
    ///
    /// # Errors
    /// Those of [`Client::get_quota`].
    pub fn set_quota(&mut self, domid: Option<u16>, name: &str, value: u32) -> Result<(), Error> {
        let domid = domid.map(|domid| format!("{domid}\0")).unwrap_or_default();
        let name = text(MsgType::SetQuota, name.as_bytes())?;
        let value = format!("{value}\0");
        let parts = [domid.as_bytes(), name, b"\0", value.as_bytes()];
        self.request(MsgType::SetQuota, &parts).map(drop)
    }

    /// Sends a request with an empty payload. oxenstored processes such a request only when more
    /// bytes come, so a harmless request follows it.
    fn without_payload(&mut self, kind: MsgType) -> Result<Vec<u8>, Error> {
        let ticket = self.submit(TransactionId::NONE, kind, &[])?;
        let behind = self.submit(TransactionId::NONE, MsgType::GetDomainPath, &[b"0\0"])?;
        let result = self.wait(ticket);
        self.forget(behind);
        result
    }

    /// Sends a request whose arguments are numbers.
    fn request_with_numbers(&mut self, kind: MsgType, numbers: &[u64]) -> Result<Vec<u8>, Error> {
        let payload: String = numbers.iter().map(|number| format!("{number}\0")).collect();
        self.request(kind, &[payload.as_bytes()])
    }

    fn number(&self, request: MsgType, reply: Vec<u8>) -> Result<u32, Error> {
        let subject = Vec::new();
        number(&reply).ok_or(Error::BadReply { request, subject, reply })
    }
}

impl Store for Client {
    fn request(&mut self, kind: MsgType, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.request_in(TransactionId::NONE, kind, parts)
    }
}

impl AsFd for Client {
    /// Returns the descriptor, to wait for events together with other descriptors. It becomes
    /// readable when something has arrived. Before waiting, call [`Client::poll_event`] until it
    /// returns `None`: an event that was already read does not make the descriptor readable.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

/// Returns the error of an operation that the system refused.
fn io(what: &'static str, errno: Errno) -> Error {
    Error::Io { what, errno: errno.raw_os_error() }
}

/// Returns the string of a reply, up to its NUL.
fn string(reply: &[u8]) -> Vec<u8> {
    Strings::new(reply).next().unwrap_or(reply).to_vec()
}

fn number(reply: &[u8]) -> Option<u32> {
    std::str::from_utf8(&string(reply)).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_does_not_come_is_awaited_for_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // The listener accepts connections and never reads.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path).unwrap();
        client.set_timeout(Some(Duration::from_millis(20)));
        let error = Store::read(&mut client, "/").unwrap_err();
        assert_eq!(error.errno(), Errno::TIMEDOUT.raw_os_error());
        // The late reply would be taken for another request's, so no further request is sent.
        assert!(matches!(Store::read(&mut client, "/"), Err(Error::Gone { .. })));
    }
}
