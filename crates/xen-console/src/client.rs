//! A client of a console: the other end of the daemon's socket.

use crate::service::wire::{
    ClientAccess, ClientFrame, DaemonFrame, Filled, FrameBuffer, FrameFault, OutputStart,
    PAYLOAD_MAX,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The most bytes that wait for the daemon: what is typed beyond it is to be typed later.
const UNSENT_MAX: usize = 16 << 10;

/// The error of a client.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket cannot be used.
    Socket(io::Error),
    /// The daemon has ended.
    Gone,
    /// The daemon does not keep to the frames, as one of another version may do.
    Frames,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => write!(f, "the console daemon cannot be reached: {error}"),
            Self::Gone => f.write_str("the console daemon has ended"),
            Self::Frames => {
                f.write_str("the console daemon sends what this version does not understand")
            }
        }
    }
}

impl std::error::Error for ClientError {}

impl From<FrameFault> for ClientError {
    fn from(FrameFault: FrameFault) -> Self {
        Self::Frames
    }
}

/// A console that is open for a client. After [`ConsoleClient::open`], no call waits.
#[derive(Debug)]
pub struct ConsoleClient {
    socket: UnixStream,
    frames: FrameBuffer,
    unsent: Vec<u8>,
    /// The daemon has closed its end; frames that came before may still be there.
    closed: bool,
}

impl ConsoleClient {
    /// Asks the daemon behind the socket at `path` for the console of a domain, by name or number.
    /// The answer is the first frame.
    ///
    /// # Errors
    /// [`ClientError::Socket`]: no daemon listens there, or this user may not connect.
    pub fn open(
        path: &Path,
        domain: &[u8],
        access: ClientAccess,
        start: OutputStart,
    ) -> Result<Self, ClientError> {
        Self::open_numbered(path, (domain, 0), access, start)
    }

    /// Asks as [`ConsoleClient::open`] does for the console of this number; 0 is the first one. A
    /// daemon that knows first consoles alone ends the connection.
    ///
    /// # Errors
    /// As [`ConsoleClient::open`].
    pub fn open_numbered(
        path: &Path,
        (domain, number): (&[u8], u32),
        access: ClientAccess,
        start: OutputStart,
    ) -> Result<Self, ClientError> {
        let socket = connect_at_once(path).map_err(|errno| ClientError::Socket(errno.into()))?;
        let (frames, mut unsent) = (FrameBuffer::default(), Vec::new());
        ClientFrame::Open { access, start, number, domain }.put(&mut unsent);
        let mut client = Self { socket, frames, unsent, closed: false };
        client.flush()?;
        Ok(client)
    }

    /// Reads what the daemon has sent, for [`ConsoleClient::next_frame`]. Returns true if there may be more.
    ///
    /// # Errors
    /// The socket cannot be used. That the daemon has ended is an error of [`ConsoleClient::next_frame`].
    pub fn receive(&mut self) -> Result<bool, ClientError> {
        match self.frames.fill(&mut self.socket).map_err(ClientError::Socket)? {
            Filled::Some => Ok(true),
            Filled::Nothing => Ok(false),
            Filled::Closed => {
                self.closed = true;
                Ok(false)
            }
        }
    }

    /// Takes the next frame; none if it has not come yet.
    ///
    /// # Errors
    /// [`ClientError::Gone`], [`ClientError::Frames`].
    pub fn next_frame(&mut self) -> Result<Option<DaemonFrame<'_>>, ClientError> {
        let closed = self.closed;
        match self.frames.daemon_frame()? {
            None if closed => Err(ClientError::Gone),
            frame => Ok(frame),
        }
    }

    /// Types bytes. Returns the number that is on its way: less than all while the guest does not
    /// read.
    ///
    /// # Errors
    /// The daemon has ended.
    pub fn type_in(&mut self, bytes: &[u8]) -> Result<usize, ClientError> {
        let mut count = 0;
        for part in bytes.chunks(PAYLOAD_MAX) {
            if self.unsent.len() + part.len() > UNSENT_MAX {
                break;
            }
            ClientFrame::Input(part).put(&mut self.unsent);
            count += part.len();
        }
        self.flush()?;
        Ok(count)
    }

    /// Says the size of the client's window, in characters. The console's pseudoterminal gets it.
    ///
    /// # Errors
    /// The daemon has ended.
    pub fn set_size(&mut self, columns: u16, rows: u16) -> Result<(), ClientError> {
        ClientFrame::Size { columns, rows }.put(&mut self.unsent);
        self.flush()
    }

    /// Sends what waits, as far as the socket has room.
    ///
    /// # Errors
    /// The daemon has ended.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    // What the daemon has sent before can still be read.
                    self.unsent.clear();
                }
                Err(error) => return Err(ClientError::Socket(error)),
            }
        }
        Ok(())
    }

    /// True if something waits to be sent: [`ConsoleClient::flush`] is due once the socket has room.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

/// Connects to a socket. A daemon that is stopped, with more clients waiting than it has room for, is
/// an error and is not waited for.
fn connect_at_once(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

impl AsFd for ConsoleClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
