//! Signals as descriptors: SIGTERM and SIGINT end a daemon, SIGHUP makes it open its files again.

use crate::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// The reading ends of the signals' sockets. Each signal writes one byte.
#[derive(Debug)]
pub struct SignalSockets {
    /// SIGTERM and SIGINT.
    pub terminate: UnixStream,
    /// SIGHUP.
    pub hang_up: UnixStream,
}

impl SignalSockets {
    /// Installs the handlers of the signals.
    ///
    /// # Errors
    /// [`Error::Signals`] if the system refuses.
    pub fn install() -> Result<Self, Error> {
        let catch = |signals: &[i32]| -> io::Result<UnixStream> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
            }
            Ok(reader)
        };
        Ok(Self {
            terminate: catch(&[SIGTERM, SIGINT]).map_err(Error::Signals)?,
            hang_up: catch(&[SIGHUP]).map_err(Error::Signals)?,
        })
    }

    /// Takes SIGHUP. Returns true if it has come since the last call.
    pub fn take_hang_up(&mut self) -> bool {
        take(&mut self.hang_up)
    }

    /// Takes SIGTERM and SIGINT. Returns true if one has come since the last call.
    pub fn take_terminate(&mut self) -> bool {
        take(&mut self.terminate)
    }
}

/// Reads all bytes of a signal's socket. Returns true if there were any.
fn take(socket: &mut UnixStream) -> bool {
    let (mut bytes, mut any) = ([0; 64], false);
    while let Ok(count) = socket.read(&mut bytes) {
        any |= count > 0;
        if count < bytes.len() {
            break;
        }
    }
    any
}
