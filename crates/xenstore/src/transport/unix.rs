//! The daemon's Unix socket: a byte stream, used by domain 0.

use super::wait::Wait;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use xenstore_core::client::Client as ClientMachine;

/// A connected stream socket.
#[derive(Debug)]
pub struct StoreSocket(OwnedFd);

impl StoreSocket {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// ECONNREFUSED if no process listens, ENOENT, EACCES, EINVAL for a path over 107 bytes.
    pub(crate) fn connect(path: &Path) -> Result<Self, Errno> {
        let address = SocketAddrUnix::new(path).map_err(|_| Errno::INVAL)?;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        connect(&fd, &address)?;
        Ok(Self(fd))
    }

    /// Writes until the output is empty or the socket is full.
    pub(crate) fn write(&mut self, machine: &mut ClientMachine) -> Result<(), Errno> {
        while !machine.output().is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(&self.0, machine.output(), flags) {
                Ok(count) => machine.consume_output(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        let flags = match wait {
            Wait::Block => RecvFlags::empty(),
            Wait::Poll => RecvFlags::DONTWAIT,
        };
        loop {
            match recv(&self.0, &mut *buffer, flags) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for StoreSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
