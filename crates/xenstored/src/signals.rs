//! Signals as descriptors: SIGTERM and SIGINT end the daemon, SIGHUP opens the trace file again.

use crate::Error;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// The reading ends of the signals' sockets. Each signal writes one byte.
pub(crate) struct SignalSockets {
    pub(crate) terminate: UnixStream,
    pub(crate) hang_up: UnixStream,
}

impl SignalSockets {
    /// Installs the handlers of the signals.
    ///
    /// # Errors
    /// [`Error::Start`] if the system refuses.
    pub(crate) fn install() -> Result<Self, Error> {
        let catch = |signals: &[i32]| -> io::Result<UnixStream> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
            }
            Ok(reader)
        };
        let failed = |error: io::Error| Error::start(format!("signals: {error}"));
        Ok(Self {
            terminate: catch(&[libc::SIGTERM, libc::SIGINT]).map_err(failed)?,
            hang_up: catch(&[libc::SIGHUP]).map_err(failed)?,
        })
    }

    /// Reads the bytes of SIGHUP.
    pub(crate) fn drain_hang_up(&mut self) {
        let mut bytes = [0; 64];
        while self.hang_up.read(&mut bytes).is_ok_and(|count| count == bytes.len()) {}
    }
}
