//! The state of a daemon, told to its service manager.

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// The word that says that a daemon serves.
pub const READY: &str = "READY=1";
/// The word that says that a daemon is alive.
pub const ALIVE: &str = "WATCHDOG=1";
/// The variable that names the service manager's socket.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// The variable with the silence, in microseconds, after which a daemon counts as dead.
pub const SILENCE_VARIABLE: &str = "WATCHDOG_USEC";
/// The variable with the number of the process that this is about.
const PROCESS_VARIABLE: &str = "WATCHDOG_PID";

/// Sends `state` to the service manager that `NOTIFY_SOCKET` names. Does nothing if it is not set.
/// Source: sd_notify(3).
///
/// # Errors
/// The error of the socket.
pub fn sd_notify(state: &str) -> io::Result<()> {
    match std::env::var_os(SOCKET_VARIABLE) {
        Some(to) if !to.is_empty() => notify(&to, state),
        _ => Ok(()),
    }
}

/// Sends `state` as one datagram to a path, or to an abstract address if it begins with `@`.
fn notify(to: &OsStr, state: &str) -> io::Result<()> {
    let (address, socket) = (address(to)?, socket(SocketFlags::CLOEXEC)?);
    sendto(&socket, state.as_bytes(), SendFlags::NOSIGNAL, &address)?;
    Ok(())
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?)
}

fn address(to: &OsStr) -> io::Result<SocketAddrUnix> {
    Ok(match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(to)?,
    })
}

/// The signs of life of a daemon, for a service manager that ends it after a silence.
#[derive(Debug)]
pub struct LifeSigns {
    socket: OwnedFd,
    address: SocketAddrUnix,
    interval: Duration,
    /// The time of the last sign, by the clock of [`LifeSigns::give`].
    last: Option<Duration>,
}

impl LifeSigns {
    /// Returns those that the environment asks for; `None` where it asks for none. To be called
    /// before a daemon gives up the right to make sockets. Source: sd_watchdog_enabled(3).
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let to = variable(SOCKET_VARIABLE)?;
        let silence = variable(SILENCE_VARIABLE)?.to_str()?.parse().ok()?;
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        if variable(PROCESS_VARIABLE).is_some_and(|pid| pid != own.as_str()) {
            return None;
        }
        Self::new(&to, Duration::from_micros(silence)).ok()
    }

    fn new(to: &OsStr, silence: Duration) -> io::Result<Self> {
        let address = address(to)?;
        let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        Ok(Self { socket, address, interval: silence / 2, last: None })
    }

    /// Returns the longest time between two calls of [`LifeSigns::give`].
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Gives a sign if it is time for one; `now` is of any clock that runs forward. Nobody has to
    /// hear it, and it waits for nobody.
    pub fn give(&mut self, now: Duration) {
        // Half of the interval: the next call may come as late as a whole one.
        if self.last.is_some_and(|last| now.saturating_sub(last) < self.interval / 2) {
            return;
        }
        self.last = Some(now);
        let _ = sendto(&self.socket, ALIVE.as_bytes(), SendFlags::NOSIGNAL, &self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_service_manager_hears_at_an_abstract_address() {
        let name = format!("daemon-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify(OsStr::new(&format!("@{name}")), "READY=1\nMAINPID=7").unwrap();
        let mut word = [0; 64];
        let len = manager.recv(&mut word).unwrap();
        assert_eq!(&word[..len], b"READY=1\nMAINPID=7");
    }

    #[test]
    fn signs_of_life_are_given_in_time_and_wait_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let at = |ms| Duration::from_millis(ms);
        let mut signs = LifeSigns::new(path.as_os_str(), at(1000)).unwrap();
        assert_eq!(signs.interval(), at(500));
        // Nobody is there yet.
        signs.give(at(0));
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let heard = || {
            let mut word = [0; 64];
            let len = manager.recv(&mut word).ok()?;
            Some(word[..len] == *ALIVE.as_bytes())
        };
        signs.give(at(100));
        assert_eq!(heard(), None, "too early");
        signs.give(at(250));
        assert_eq!((heard(), heard()), (Some(true), None));
        // Nobody reads: the queue is full at some time.
        (2..2000).for_each(|turn| signs.give(at(turn * 250)));
        assert_eq!(heard(), Some(true));
    }
}
