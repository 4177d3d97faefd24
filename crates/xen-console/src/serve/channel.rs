//! The socket of a channel: a byte stream between a guest and one program of this domain at a time.
//!
//! Source: `docs/misc/channel.txt`, `docs/misc/console.txt` (`connection=socket`).
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, fchmod, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use xen_driver::backend::DescriptorId;

/// The mode of the socket: for the daemon's own user.
const MODE: Mode = Mode::from_raw_mode(0o600);
/// The most bytes of a socket's path (unix(7): `sun_path` without its end).
const PATH_MAX: usize = 107;
/// The most clients that wait while another one has the channel.
const WAITING_MAX: i32 = 16;
/// The most clients that come and go in a turn.
const CLIENTS_A_TURN: u32 = 4;

/// The reason why a channel has no socket.
#[derive(Debug)]
pub enum ChannelError {
    /// The path is not absolute, or too long for a socket.
    Path(PathBuf),
    /// Another program listens there.
    InUse(PathBuf),
    /// Something that is no socket is there.
    Taken(PathBuf),
    /// The system refuses.
    System(PathBuf, Errno),
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(
                f,
                "{path:?} is no absolute path of at most {PATH_MAX} bytes, as a socket has one; \
                 give the channel another path"
            ),
            Self::InUse(path) => write!(f, "another program listens at {path:?}; end it"),
            Self::Taken(path) => {
                write!(f, "{path:?} is there and is no socket; remove it")
            }
            Self::System(path, errno) => write!(f, "no socket can be made at {path:?}: {errno}"),
        }
    }
}

impl std::error::Error for ChannelError {}

/// The socket of a channel, removed when it is dropped.
#[derive(Debug)]
pub struct ChannelSocket {
    listener: OwnedFd,
    name: DescriptorId,
    path: PathBuf,
    /// The device and the inode of the socket's file.
    identity: (u64, u64),
    client: Option<ChannelClient>,
    /// There may be a client to accept.
    acceptable: bool,
    /// Clients have come or gone.
    changed: bool,
}

/// The program that has the channel.
#[derive(Debug)]
struct ChannelClient {
    socket: UnixStream,
    name: DescriptorId,
}

impl ChannelSocket {
    /// Listens at `path`. A socket that a daemon which was killed has left there is replaced.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn bind(path: &Path) -> Result<Self, ChannelError> {
        let is_short = path.as_os_str().len() <= PATH_MAX;
        let address = SocketAddrUnix::new(path).ok().filter(|_| path.is_absolute() && is_short);
        let address = address.ok_or_else(|| ChannelError::Path(path.into()))?;
        let failed = |errno| ChannelError::System(path.into(), errno);
        remove_stale(path, &address)?;
        let listener = new_socket().map_err(failed)?;
        // Before it has a name: nobody else can connect in between.
        fchmod(&listener, MODE).map_err(failed)?;
        bind(&listener, &address).map_err(failed)?;
        listen(&listener, WAITING_MAX).map_err(failed)?;
        let about = look(path).map_err(failed)?;
        let (name, path, identity) = (DescriptorId::new(), path.into(), identity(&about));
        let (client, acceptable, changed) = (None, true, true);
        Ok(Self { listener, name, path, identity, client, acceptable, changed })
    }

    /// Returns the descriptors that are read and written until they block.
    pub fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let client = self.client.iter().map(|client| (client.name, client.socket.as_fd()));
        std::iter::once((self.name, self.listener.as_fd())).chain(client)
    }

    /// True if a program has the channel.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Takes the news that a descriptor can be read or written again.
    pub fn ready(&mut self) {
        self.acceptable = true;
    }

    /// True if clients have come or gone since the last [`ChannelSocket::take_change`].
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Takes the news that clients have come or gone.
    pub fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// True if a client may wait to be accepted.
    #[must_use]
    pub fn may_accept(&self) -> bool {
        self.acceptable && self.client.is_none()
    }

    /// Reads what the client has sent; returns how many bytes, 0 if nothing is there. A client that is
    /// gone makes room for the next one.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        for _ in 0..CLIENTS_A_TURN {
            let Some(client) = &mut self.client else {
                if self.accept() {
                    continue;
                }
                return 0;
            };
            match client.socket.read(into) {
                Ok(0) => self.lose_client(),
                Ok(count) => return count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lose_client(),
            }
        }
        0
    }

    /// Writes to the client; returns how many bytes, 0 if it has no room, or there is none.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let Some(client) = &mut self.client else { return 0 };
        match client.socket.write(from) {
            Ok(count) => count,
            Err(error) => {
                if ![ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) {
                    self.lose_client();
                }
                0
            }
        }
    }

    fn lose_client(&mut self) {
        self.client = None;
        self.acceptable = true;
        self.changed = true;
    }

    /// Accepts the client that waits, if there is one and nobody has the channel. Returns true if there
    /// was one.
    pub fn accept(&mut self) -> bool {
        if !self.may_accept() {
            return false;
        }
        match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                let (socket, name) = (socket.into(), DescriptorId::new());
                self.client = Some(ChannelClient { socket, name });
                self.changed = true;
                true
            }
            // Also where descriptors are short: the next client makes another try.
            Err(_) => {
                self.acceptable = false;
                false
            }
        }
    }
}

impl Drop for ChannelSocket {
    fn drop(&mut self) {
        // Not one that another program has put in its place.
        if look(&self.path).is_ok_and(|about| identity(&about) == self.identity) {
            let _ = unlinkat(CWD, &self.path, AtFlags::empty());
        }
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn look(path: &Path) -> Result<Stat, Errno> {
    statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

fn identity(about: &Stat) -> (u64, u64) {
    (about.st_dev, about.st_ino)
}

/// Removes a socket at which nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ChannelError> {
    let failed = |errno| ChannelError::System(path.into(), errno);
    let about = match look(path) {
        Err(Errno::NOENT) => return Ok(()),
        about => about.map_err(failed)?,
    };
    if FileType::from_raw_mode(about.st_mode) != FileType::Socket {
        return Err(ChannelError::Taken(path.into()));
    }
    match connect(&new_socket().map_err(failed)?, address) {
        Err(Errno::CONNREFUSED) => unlinkat(CWD, path, AtFlags::empty()).map_err(failed),
        // Its queue may be full.
        Ok(()) | Err(Errno::AGAIN) => Err(ChannelError::InUse(path.into())),
        Err(errno) => Err(failed(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn one_client_at_a_time_has_the_channel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let mut channel = ChannelSocket::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "for the daemon's own user");
        let mut bytes = [0; 8];
        assert_eq!((channel.read(&mut bytes), channel.write(b"lost")), (0, 0));
        let mut first = UnixStream::connect(&path).unwrap();
        first.write_all(b"one").unwrap();
        channel.ready();
        assert_eq!(channel.read(&mut bytes), 3);
        assert_eq!(&bytes[..3], b"one");
        let mut second = UnixStream::connect(&path).unwrap();
        second.write_all(b"two").unwrap();
        channel.ready();
        assert_eq!(channel.read(&mut bytes), 0, "the first one has it");
        assert_eq!(channel.write(b"answer"), 6);
        let mut answer = [0; 6];
        first.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        drop(first);
        assert!(channel.take_change());
        assert_eq!(channel.read(&mut bytes), 3);
        assert_eq!(&bytes[..3], b"two");
        assert!(channel.is_changed() && channel.is_connected());
        drop(second);
        assert_eq!(channel.read(&mut bytes), 0);
        assert!(!channel.is_connected());
        drop(channel);
        assert!(!path.exists(), "it is removed");
    }

    #[test]
    fn nothing_of_another_program_is_replaced_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "mine").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        for name in ["file", "link"] {
            let refused = ChannelSocket::bind(&path(name));
            assert!(matches!(refused, Err(ChannelError::Taken(_))), "{refused:?}");
        }
        let other = UnixListener::bind(path("other")).unwrap();
        let refused = ChannelSocket::bind(&path("other"));
        assert!(matches!(refused, Err(ChannelError::InUse(_))), "{refused:?}");
        // Whoever made it was killed.
        drop(other);
        let channel = ChannelSocket::bind(&path("other")).unwrap();
        std::fs::remove_file(path("other")).unwrap();
        let _other = UnixListener::bind(path("other")).unwrap();
        drop(channel);
        assert!(path("other").exists());
        let refused = ChannelSocket::bind(&path("absent/agent"));
        assert!(matches!(refused, Err(ChannelError::System(..))), "{refused:?}");
        let rest = PATH_MAX - dir.path().as_os_str().len() - 1;
        let longest = ChannelSocket::bind(&path(&"x".repeat(rest))).unwrap();
        drop(longest);
        for path in [Path::new("agent"), Path::new(""), &path(&"x".repeat(rest + 1))] {
            let refused = ChannelSocket::bind(path);
            assert!(matches!(refused, Err(ChannelError::Path(_))), "{refused:?}");
        }
    }
}
