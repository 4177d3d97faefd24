//! The limits and places that all consoles of a daemon share.

use crate::log::{ConsoleLog, LogLimits};
use crate::record::ConsoleRecord;
use rustix::fs::{Mode, OFlags, openat};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// The most bytes of output that wait for a reader of the terminal, whatever `limit` says.
pub const BACKLOG_MAX: usize = 1 << 20;
/// The least.
pub const BACKLOG_MIN: usize = 1 << 12;
/// The rate at which a guest's output is taken, in bytes a second: three times that of C's daemon.
pub const OUTPUT_RATE: u64 = 1 << 20;
/// The time whose bytes a guest may have taken at once after it was quiet: 8 MiB.
pub const OUTPUT_BURST: Duration = Duration::from_secs(8);

/// The choice for output that nobody reads, where a console has as much of it as it may.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum OverflowPolicy {
    /// The oldest bytes go.
    #[default]
    Discard,
    /// The guest waits.
    Keep,
}

/// The limits and places that all consoles of a daemon share.
#[derive(Debug)]
pub struct ConsoleSettings {
    /// The folder of the logs; none where guests are not logged.
    pub log_folder: Option<Rc<OwnedFd>>,
    /// The bounds of each log.
    pub log_limits: LogLimits,
    /// The folder of the records, best on tmpfs.
    pub record_folder: Option<OwnedFd>,
    /// The choice for output that nobody reads.
    pub overflow: OverflowPolicy,
}

impl ConsoleSettings {
    /// Opens the log of a guest of this name; none where guests are not logged.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn open_log(&self, guest: &[u8]) -> io::Result<Option<ConsoleLog>> {
        let Some(folder) = &self.log_folder else { return Ok(None) };
        let name = log_name(guest);
        ConsoleLog::open(Rc::clone(folder), OsStr::new(&name), self.log_limits).map(Some)
    }

    /// Opens the record of a domain's console; none where there is no place for records.
    #[must_use]
    pub fn open_record(&self, domid: u16) -> Option<ConsoleRecord> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(self.record_folder.as_ref()?, domid.to_string(), flags, mode).ok()?;
        Some(ConsoleRecord::new(file.into()))
    }

    /// Removes the record of a domain that is gone.
    pub fn remove_record(&self, domid: u16) {
        if let Some(folder) = &self.record_folder {
            // One that stays names a life that does not come again.
            let _ = rustix::fs::unlinkat(folder, domid.to_string(), rustix::fs::AtFlags::empty());
        }
    }
}

/// The name of the log of a guest: `guest-NAME.log`. A byte of the guest's name that would lead out
/// of the folder, or that a terminal would take for a command, is written `%2f`.
#[must_use]
pub fn log_name(guest: &[u8]) -> String {
    let mut name = String::from("guest-");
    // 255 bytes is the longest file name; the endings `.log.1.index` need 12.
    for byte in guest {
        let plain = byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%') || *byte == b' ';
        if plain {
            name.push(char::from(*byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
        if name.len() > 230 {
            break;
        }
    }
    name.push_str(".log");
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_chooses_no_path() {
        assert_eq!(log_name(b"web-1"), "guest-web-1.log");
        assert_eq!(log_name(b"../../etc/x"), "guest-..%2f..%2fetc%2fx.log");
        assert_eq!(log_name(b"a\n\x1b%"), "guest-a%0a%1b%25.log");
        assert!(log_name(&[b'/'; 300]).len() < 240);
    }
}
