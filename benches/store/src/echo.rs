//! The limit: a server with a poll loop like the daemon's (epoll, one receive into 64 KiB, every
//! complete request answered, one send) that parses the header and answers a constant.

use crate::Result;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use xenstore_core::wire::{Header, MsgType, split_message};

/// The value in the reply to a READ, as long as the values that the benches write.
const VALUE: &[u8; 32] = b"0123456789abcdef0123456789abcdef";
/// The listening socket's mark among the epoll events; connections are marked by their index.
const LISTENER: u64 = u64::MAX;

/// One connection with its buffered bytes: a partial message, and replies that are not sent.
struct EchoConnection {
    socket: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Serves `path` until it is killed.
pub(crate) fn serve(path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mark = epoll::EventData::new_u64(LISTENER);
    epoll::add(&poll, &listener, mark, epoll::EventFlags::IN)?;
    let mut peers: Vec<Option<EchoConnection>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match epoll::wait(&poll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let mark = event.data.u64();
            if mark == LISTENER {
                accept_all(&listener, &poll, &mut peers)?;
            } else if let Some(slot) = peers.get_mut(mark as usize)
                && let Some(peer) = slot
                && !peer.answer(&mut buffer)
            {
                *slot = None;
            }
        }
    }
}

/// Accepts every waiting connection.
fn accept_all(
    listener: &UnixListener,
    poll: &impl std::os::fd::AsFd,
    peers: &mut Vec<Option<EchoConnection>>,
) -> Result<()> {
    while let Ok((socket, _)) = listener.accept() {
        socket.set_nonblocking(true)?;
        let mark = epoll::EventData::new_u64(peers.len() as u64);
        epoll::add(poll, &socket, mark, epoll::EventFlags::IN)?;
        peers.push(Some(EchoConnection { socket, input: Vec::new(), output: Vec::new() }));
    }
    Ok(())
}

impl EchoConnection {
    /// Answers every complete request of one receive; returns false if the connection has ended.
    fn answer(&mut self, buffer: &mut [u8]) -> bool {
        let got = match net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, 0)) => return false,
            Ok((_, got)) => got,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        self.output.clear();
        let fresh = &buffer[..got];
        let good = if self.input.is_empty() {
            reply_to_all(fresh, &mut self.output).map(|left| self.input.extend_from_slice(left))
        } else {
            self.input.extend_from_slice(fresh);
            let kept = reply_to_all(&self.input, &mut self.output).map(<[u8]>::len);
            kept.map(|kept| drop(self.input.drain(..self.input.len() - kept)))
        };
        good.is_some() && self.send_all()
    }

    /// Sends the replies. It blocks while a client is slow to read them, which these benches never
    /// are.
    fn send_all(&mut self) -> bool {
        let mut rest = &self.output[..];
        while !rest.is_empty() {
            match net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::AGAIN) => {
                    let mut fds =
                        [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::OUT)];
                    if rustix::event::poll(&mut fds, None).is_err() {
                        return false;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// Appends one reply for each complete request of `bytes`; returns the rest, or `None` for a
/// broken stream.
fn reply_to_all<'a>(mut bytes: &'a [u8], output: &mut Vec<u8>) -> Option<&'a [u8]> {
    while let Some((header, _, rest)) = split_message(bytes).ok()? {
        let body: &[u8] = if header.kind == MsgType::Read.code() { VALUE } else { b"OK\0" };
        output.extend_from_slice(&Header { len: body.len() as u32, ..header }.to_bytes());
        output.extend_from_slice(body);
        bytes = rest;
    }
    Some(bytes)
}
