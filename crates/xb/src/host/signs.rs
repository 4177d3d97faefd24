//! Signs of life of backends: the environment that asks for them, and the socket where they are heard.

use crate::Error;
use daemon::service::{ALIVE, READY, SILENCE_VARIABLE, SOCKET_VARIABLE};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The silence of a backend after which it counts as hung.
const SILENCE: Duration = Duration::from_secs(10);
/// The variable of the environment with another silence, in seconds.
const SILENCE_SECONDS: &str = "XB_BACKEND_SILENCE";
/// The shortest silence: a backend gives a sign twice in it.
const SILENCE_MIN: Duration = Duration::from_millis(100);
/// The variable with the process that signs are asked of, which is another one here.
const PROCESS_VARIABLE: &str = "WATCHDOG_PID";
/// The longest sign that is looked at, in bytes.
const SIGN_MAX: usize = 512;

/// Returns the silence of a backend after which it counts as hung.
pub(crate) fn silence() -> Duration {
    let named = std::env::var(SILENCE_SECONDS).ok().and_then(|text| text.parse().ok());
    let named = named.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    named.map_or(SILENCE, |silence| silence.max(SILENCE_MIN))
}

/// Makes a program give its signs of life at a socket; without one it gives none.
pub(crate) fn ask_for(command: &mut Command, socket: Option<PathBuf>) {
    command.env_remove(PROCESS_VARIABLE);
    match socket {
        Some(socket) => {
            let silence = silence().as_micros().to_string();
            command.env(SOCKET_VARIABLE, socket).env(SILENCE_VARIABLE, silence);
        }
        None => {
            command.env_remove(SOCKET_VARIABLE).env_remove(SILENCE_VARIABLE);
        }
    }
}

/// True if a process was asked for its signs of life at this socket.
pub(crate) fn is_asked(pid: rustix::process::Pid, socket: &Path) -> bool {
    let environ = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
    let wanted = format!("{SOCKET_VARIABLE}={}", socket.display());
    let has =
        |environ: Vec<u8>| environ.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes());
    environ.is_ok_and(has)
}

/// The socket where the signs of one backend are heard.
#[derive(Debug)]
pub(crate) struct SignSocket(UnixDatagram);

impl SignSocket {
    /// Makes the socket in place of an earlier one.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        let _ = std::fs::remove_file(path);
        // Made with these flags, as a sandbox has no ioctl(2) to change them.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let bound = SocketAddrUnix::new(path).and_then(|address| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
            rustix::net::bind(&socket, &address)?;
            Ok(UnixDatagram::from(socket))
        });
        bound.map(Self).map_err(|errno| Error::io(path.display())(errno.into()))
    }

    /// Takes all signs; true if there was one.
    pub(crate) fn take(&self) -> bool {
        let (mut sign, mut any) = ([0; SIGN_MAX], false);
        while let Ok(count) = self.0.recv(&mut sign) {
            let text = String::from_utf8_lossy(sign.get(..count).unwrap_or_default());
            any |= text.lines().any(|line| line == READY || line == ALIVE);
        }
        any
    }
}

impl AsFd for SignSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_told_from_other_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        // One is left of an earlier process.
        drop(SignSocket::bind(&path).unwrap());
        let socket = SignSocket::bind(&path).unwrap();
        let backend = UnixDatagram::unbound().unwrap();
        let send = |text: &[u8]| assert!(backend.send_to(text, &path).unwrap() > 0);
        assert!(!socket.take());
        send(b"STATUS=nothing");
        send(&[b'x'; 2000]);
        assert!(!socket.take());
        send(b"READY=1\nMAINPID=7");
        send(b"STATUS=nothing");
        assert!(socket.take());
        assert!(!socket.take());
    }
}
