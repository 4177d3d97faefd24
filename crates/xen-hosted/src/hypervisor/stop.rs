//! The signals that end the broker.

use std::io;
use std::os::fd::OwnedFd;

/// Makes a descriptor that becomes readable at SIGTERM or SIGINT, which from now on have no other
/// effect.
///
/// # Errors
/// The system's error.
pub fn stop_signals() -> io::Result<OwnedFd> {
    let (read, write) = std::os::unix::net::UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read.into())
}
