//! One connection to the store, shared by other processes of its domain: each connects to a socket,
//! as to a daemon's, and is served over the connection, as the kernel's `/dev/xen/xenbus` does it.
//!
//! Each process has its own transactions and watches. They end with its connection, so a process
//! that is killed leaves none behind. All of them have the rights of the one domain, and are served
//! one request after the other.

use crate::client::Client;
use crate::error::Error;
use crate::transaction::{TransactionEnd, TransactionId};
use crate::watch::Event;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, recv, send};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use xenstore_core::wire::{self, Header, MsgType, Strings, split_message};

/// The most processes that are served at a time; others wait until one leaves.
const SHARERS_MAX: usize = 16;
/// The most bytes that wait for a process which does not read. It is not served any more then.
const UNREAD_MAX: usize = 256 * 1024;
/// The most watches of one process.
const WATCHES_MAX: usize = 1024;
/// The most transactions of one process.
const TRANSACTIONS_MAX: usize = 32;
/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;
/// The beginning of the tokens of all processes' watches.
const TOKEN: &[u8] = b"share:";

/// The processes that share a connection.
#[derive(Debug)]
pub struct SharedStore {
    listener: OwnedFd,
    sharers: BTreeMap<u32, Sharer>,
    next: u32,
}

/// A process that shares the connection.
#[derive(Debug)]
struct Sharer {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    transactions: BTreeSet<u32>,
    /// Its watches: the path and its own token.
    watches: BTreeSet<(Vec<u8>, Vec<u8>)>,
    is_over: bool,
}

impl SharedStore {
    /// Begins to listen at a path, in place of an earlier socket.
    ///
    /// # Errors
    /// The error of the socket.
    pub fn bind(path: &Path) -> std::io::Result<Self> {
        let _ = std::fs::remove_file(path);
        // Standard listeners do not block if their descriptor was made so; this one is polled first.
        let listener = OwnedFd::from(UnixListener::bind(path)?);
        Ok(Self { listener, sharers: BTreeMap::new(), next: 1 })
    }

    /// Returns the descriptors that are readable when there is something to do.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listens = (self.sharers.len() < SHARERS_MAX).then(|| self.listener.as_fd());
        listens.into_iter().chain(self.sharers.values().map(|sharer| sharer.socket.as_fd()))
    }

    /// True while a process has not read all that it was sent: it is to be tried again soon, as no
    /// descriptor tells when.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.sharers.values().any(|sharer| !sharer.output.is_empty())
    }

    /// Serves what the processes ask now. Returns true if there was anything: then events may have
    /// come with the answers.
    ///
    /// # Errors
    /// The connection to the store is gone.
    pub fn serve(&mut self, store: &mut Client) -> Result<bool, Error> {
        let mut any = false;
        while self.sharers.len() < SHARERS_MAX
            && is_readable(self.listener.as_fd())
            && let Ok(socket) = rustix::net::accept_with(
                &self.listener,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            )
        {
            self.sharers.insert(self.next, Sharer::new(socket));
            self.next = self.next.wrapping_add(1).max(1);
            any = true;
        }
        for (number, sharer) in &mut self.sharers {
            any |= sharer.read();
            sharer.serve(*number, store)?;
            sharer.write();
        }
        let over: Vec<u32> =
            self.sharers.iter().filter(|(_, sharer)| sharer.is_over).map(|(at, _)| *at).collect();
        for number in over {
            if let Some(sharer) = self.sharers.remove(&number) {
                sharer.leave(number, store)?;
            }
        }
        Ok(any)
    }

    /// Passes an event on to the process whose watch it is for. Returns false if it is for none.
    pub fn take(&mut self, event: &Event) -> bool {
        let Some((number, token)) = own_token(&event.token) else { return false };
        if let Some(sharer) = self.sharers.get_mut(&number) {
            let payload = [&event.path[..], b"\0", token, b"\0"].concat();
            sharer.push(MsgType::WatchEvent, 0, 0, &payload);
            sharer.write();
        }
        true
    }
}

/// True if a listener has a connection.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&at_once)), Ok(1..))
}

/// Returns the token of a watch at the store, of a process's token.
fn token_at_store(number: u32, token: &[u8]) -> Vec<u8> {
    [TOKEN, format!("{number}:").as_bytes(), token].concat()
}

/// Returns the process and its token, of a token at the store.
fn own_token(token: &[u8]) -> Option<(u32, &[u8])> {
    let rest = token.strip_prefix(TOKEN)?;
    let end = rest.iter().position(|byte| *byte == b':')?;
    let number = std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()?;
    Some((number, rest.get(end + 1..)?))
}

impl Sharer {
    fn new(socket: OwnedFd) -> Self {
        let (input, output) = (Vec::new(), Vec::new());
        let (transactions, watches) = (BTreeSet::new(), BTreeSet::new());
        Self { socket, input, output, transactions, watches, is_over: false }
    }

    /// Reads what is there. Returns true if there was anything.
    fn read(&mut self) -> bool {
        let mut buffer = [0; READ_BYTES];
        match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.is_over = true,
            Ok((count, _)) => self.input.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(_) => self.is_over = true,
        }
        true
    }

    /// Answers the complete requests in its input.
    fn serve(&mut self, number: u32, store: &mut Client) -> Result<(), Error> {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        loop {
            match split_message(rest) {
                Ok(Some((header, payload, next))) => {
                    rest = next;
                    self.answer(number, store, header, payload)?;
                }
                Ok(None) => break,
                // As with the daemon, a message that is too long ends the connection.
                Err(_) => {
                    self.is_over = true;
                    break;
                }
            }
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn answer(
        &mut self,
        number: u32,
        store: &mut Client,
        header: Header,
        payload: &[u8],
    ) -> Result<(), Error> {
        let (id, tx) = (header.req_id, header.tx_id);
        let Some(kind) = MsgType::from_code(header.kind) else {
            self.refuse(id, tx, wire::Error::NoSys);
            return Ok(());
        };
        let answer = match kind {
            // The daemon answers neither: they are its own.
            MsgType::WatchEvent | MsgType::Error => Err(wire::Error::Inval),
            // One of another process would be answered too, as all are of one connection.
            _ if tx != 0 && !self.transactions.contains(&tx) => Err(wire::Error::NoEnt),
            MsgType::TransactionStart if self.transactions.len() >= TRANSACTIONS_MAX => {
                Err(wire::Error::Busy)
            }
            MsgType::Watch => self.watch(number, store, payload)?,
            MsgType::Unwatch => self.unwatch(number, store, payload)?,
            MsgType::ResetWatches => {
                self.end_watches(number, store)?;
                Ok(b"OK\0".to_vec())
            }
            kind => forward(store, TransactionId(tx), kind, &[payload])?,
        };
        match answer {
            Ok(reply) => {
                if kind == MsgType::TransactionStart
                    && let Some(tx) = transaction_of(&reply)
                {
                    self.transactions.insert(tx);
                }
                self.push(kind, id, tx, &reply);
            }
            Err(error) => self.refuse(id, tx, error),
        }
        if kind == MsgType::TransactionEnd {
            self.transactions.remove(&tx);
        }
        Ok(())
    }

    fn watch(
        &mut self,
        number: u32,
        store: &mut Client,
        payload: &[u8],
    ) -> Result<Result<Vec<u8>, wire::Error>, Error> {
        let mut strings = Strings::new(payload);
        let (Some(path), Some(token)) = (strings.next(), strings.next()) else {
            return Ok(Err(wire::Error::Inval));
        };
        if self.watches.len() >= WATCHES_MAX {
            return Ok(Err(wire::Error::NoSpc));
        }
        let own = token_at_store(number, token);
        let parts: [&[u8]; 5] = [path, b"\0", &own, b"\0", strings.rest()];
        let answer = forward(store, TransactionId::NONE, MsgType::Watch, &parts)?;
        if answer.is_ok() {
            self.watches.insert((path.to_vec(), token.to_vec()));
        }
        Ok(answer)
    }

    fn unwatch(
        &mut self,
        number: u32,
        store: &mut Client,
        payload: &[u8],
    ) -> Result<Result<Vec<u8>, wire::Error>, Error> {
        let mut strings = Strings::new(payload);
        let (Some(path), Some(token)) = (strings.next(), strings.next()) else {
            return Ok(Err(wire::Error::Inval));
        };
        if !self.watches.remove(&(path.to_vec(), token.to_vec())) {
            return Ok(Err(wire::Error::NoEnt));
        }
        end_watch(number, store, path, token)
    }

    fn end_watches(&mut self, number: u32, store: &mut Client) -> Result<(), Error> {
        for (path, token) in std::mem::take(&mut self.watches) {
            // One that is gone already is no error.
            let _ = end_watch(number, store, &path, &token)?;
        }
        Ok(())
    }

    /// Ends all that a process has left.
    fn leave(mut self, number: u32, store: &mut Client) -> Result<(), Error> {
        self.end_watches(number, store)?;
        for tx in std::mem::take(&mut self.transactions) {
            match store.transaction_end(TransactionId(tx), TransactionEnd::Abort) {
                Err(error) if error.refusal().is_none() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn refuse(&mut self, id: u32, tx: u32, error: wire::Error) {
        let name = [error.name().as_bytes(), b"\0"].concat();
        self.push(MsgType::Error, id, tx, &name);
    }

    fn push(&mut self, kind: MsgType, req_id: u32, tx_id: u32, payload: &[u8]) {
        let Ok(len) = u32::try_from(payload.len()) else { return };
        if self.output.len() + payload.len() > UNREAD_MAX {
            self.is_over = true;
            return;
        }
        let header = Header { kind: kind.code(), req_id, tx_id, len };
        self.output.extend_from_slice(&header.to_bytes());
        self.output.extend_from_slice(payload);
    }

    /// Writes as much as the process takes.
    fn write(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, flags) {
                Ok(count) => drop(self.output.drain(..count.min(self.output.len()))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.is_over = true;
                    return;
                }
            }
        }
    }
}

/// Sends a request over the shared connection. The inner error is the store's refusal.
fn forward(
    store: &mut Client,
    tx: TransactionId,
    kind: MsgType,
    parts: &[&[u8]],
) -> Result<Result<Vec<u8>, wire::Error>, Error> {
    match store.request_in(tx, kind, parts) {
        Ok(reply) => Ok(Ok(reply)),
        Err(Error::TooLong { .. }) => Ok(Err(wire::Error::TooBig)),
        Err(error) => match error.refusal() {
            Some(refusal) => Ok(Err(refusal)),
            None if matches!(error, Error::Refused { .. }) => Ok(Err(wire::Error::Inval)),
            None => Err(error),
        },
    }
}

fn end_watch(
    number: u32,
    store: &mut Client,
    path: &[u8],
    token: &[u8],
) -> Result<Result<Vec<u8>, wire::Error>, Error> {
    let own = token_at_store(number, token);
    let parts: [&[u8]; 4] = [path, b"\0", &own, b"\0"];
    forward(store, TransactionId::NONE, MsgType::Unwatch, &parts)
}

/// Returns the number of the transaction in the reply to its start.
fn transaction_of(reply: &[u8]) -> Option<u32> {
    std::str::from_utf8(Strings::new(reply).next()?).ok()?.parse().ok()
}
