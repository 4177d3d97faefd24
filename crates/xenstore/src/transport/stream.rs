//! A transport over a byte stream of the caller's.

use super::wait::Wait;
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use xenstore_core::client::Client as ClientMachine;

/// A byte stream to a store, for [`Client::over`](crate::Client::over): a socket that another
/// process passed on, or the store of a simulation.
///
/// The descriptor polls readable while [`StoreStream::read`] has something.
pub trait StoreStream: AsFd + Send {
    /// Writes some of `bytes` without waiting, and returns the number of bytes taken.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if none is taken now; any other error ends the connection.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Reads some bytes without waiting, and returns their number, or 0 if the other end is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there are none now; any other error ends the connection.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Waits until there is something to read. It may return before.
    ///
    /// # Errors
    /// Any error means that the connection has ended.
    fn wait(&mut self) -> io::Result<()>;
}

/// The transport over such a stream.
pub(crate) struct CallerStream(Box<dyn StoreStream>);

impl fmt::Debug for CallerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallerStream").finish_non_exhaustive()
    }
}

fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::WouldBlock => Errno::AGAIN,
        _ => Errno::from_io_error(error).unwrap_or(Errno::IO),
    }
}

impl CallerStream {
    pub(crate) fn new(connection: Box<dyn StoreStream>) -> Self {
        Self(connection)
    }

    /// Writes until the output is empty or the stream takes no more.
    pub(crate) fn write(&mut self, machine: &mut ClientMachine) -> Result<(), Errno> {
        while !machine.output().is_empty() {
            match self.0.write(machine.output()) {
                Ok(count) => machine.consume_output(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        loop {
            match self.0.read(buffer) {
                Err(error) if wait == Wait::Block && error.kind() == io::ErrorKind::WouldBlock => {
                    self.0.wait().map_err(|error| errno(&error))?;
                }
                read => return read.map_err(|error| errno(&error)),
            }
        }
    }
}

impl AsFd for CallerStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
