//! The signals that end a program which has changed its user's terminal, and the terminal's size.

use crate::Error;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The signals that end what is shown or change its size, as bytes in sockets.
#[derive(Debug)]
pub(crate) struct TerminalSignals {
    ends: UnixStream,
    sizes: UnixStream,
    /// The number of the last signal that ends the program; 0 before.
    caught: Arc<AtomicUsize>,
}

impl TerminalSignals {
    /// Catches these signals from now on.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(crate) fn catch() -> Result<Self, Error> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
        let failed = || Error::io("signals");
        let pair = || -> io::Result<(UnixStream, UnixStream)> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            Ok((reader, writer))
        };
        let (ends, end) = pair().map_err(failed())?;
        let (sizes, size) = pair().map_err(failed())?;
        let caught = Arc::default();
        for signal in [SIGTERM, SIGHUP, SIGINT, SIGQUIT] {
            let number = usize::try_from(signal).unwrap_or(0);
            let flag = Arc::clone(&caught);
            signal_hook::flag::register_usize(signal, flag, number).map_err(failed())?;
            let end = end.try_clone().map_err(failed())?;
            signal_hook::low_level::pipe::register(signal, end).map_err(failed())?;
        }
        signal_hook::low_level::pipe::register(SIGWINCH, size).map_err(failed())?;
        Ok(Self { ends, sizes, caught })
    }

    /// Returns the descriptors that become readable when a signal has come.
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.ends.as_fd(), self.sizes.as_fd()]
    }

    /// Returns the number of the signal that ends the program, if one has come.
    pub(crate) fn number(&self) -> Option<u8> {
        let number = self.caught.load(Ordering::SeqCst);
        u8::try_from(number).ok().filter(|number| *number > 0)
    }

    /// True if the window has another size since the last call.
    pub(crate) fn resized(&mut self) -> bool {
        let mut bytes = [0; 64];
        self.sizes.read(&mut bytes).is_ok_and(|count| count > 0)
    }
}
