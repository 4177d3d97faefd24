//! The limits and places that all consoles of a daemon share.

use crate::log::{ConsoleLog, LineFormat, LineFormatter, LocalZone, LogLimits, remove_log};
use crate::options::Overflow;
use crate::record::ConsoleRecord;
use crate::serve::rate::GuestRates;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, statat, unlinkat};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use xenbus::Id;

/// The most bytes of output that wait for a reader of the terminal, whatever `limit` says.
pub const BACKLOG_MAX: usize = 1 << 20;
/// The least.
pub const BACKLOG_MIN: usize = 1 << 12;

/// Logs that are removed in a turn, at most.
const REMOVED_MAX: usize = 16;

/// The limits and places that all consoles of a daemon share.
#[derive(Debug)]
pub struct ConsoleSettings {
    /// The folder of the logs; none where nothing is logged.
    pub log_folder: Option<Rc<OwnedFd>>,
    /// The bounds of each log.
    pub log_limits: LogLimits,
    /// True if guests are logged.
    pub log_guests: bool,
    /// True if channels are, too.
    pub log_channels: bool,
    /// The number of logs above which those of ended guests are removed.
    pub log_count: u64,
    /// The format of guests' logs.
    pub guest_format: LineFormat,
    /// The zone of the times in logs.
    pub zone: LocalZone,
    /// The folder of the records, best on tmpfs.
    pub record_folder: Option<OwnedFd>,
    /// The choice for output that nobody reads.
    pub overflow: Overflow,
    /// The rates of all guests.
    pub rates: GuestRates,
    /// The names of the logs that are in use, by their consoles.
    pub log_names: UsedLogNames,
}

/// The names of the logs that are in use, by their consoles: no two consoles write into one log.
#[derive(Default, Debug)]
pub struct UsedLogNames(RefCell<BTreeMap<Id, String>>);

impl UsedLogNames {
    /// Gives a console the log `wanted`, which ends in `.log`, or one of another name if that is in use.
    /// One that the console had before is free again.
    pub fn claim(&self, console: Id, wanted: String) -> String {
        let mut names = self.0.borrow_mut();
        names.remove(&console);
        let mut name = wanted;
        while names.values().any(|used| *used == name) {
            name = numbered_log_name(&name, console.frontend.0);
        }
        names.insert(console, name.clone());
        name
    }

    /// Frees the log of a console that is gone.
    pub fn release(&self, console: Id) {
        self.0.borrow_mut().remove(&console);
    }

    fn has(&self, name: &str) -> bool {
        self.0.borrow().values().any(|used| used == name)
    }
}

impl ConsoleSettings {
    /// Opens the log `name`; none where guests are not logged.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn open_log(&self, name: &str) -> io::Result<Option<ConsoleLog>> {
        let Some(folder) = self.log_folder.as_ref().filter(|_| self.log_guests) else {
            return Ok(None);
        };
        ConsoleLog::open(Rc::clone(folder), OsStr::new(name), self.log_limits).map(Some)
    }

    /// Removes some of the oldest logs of guests, where there are more than may be; never one that is
    /// in use. Returns true if there may still be too many.
    pub fn trim_logs(&self) -> bool {
        let Some(folder) = self.log_folder.as_ref().filter(|_| self.log_guests) else {
            return false;
        };
        let names = log_names(folder).unwrap_or_default();
        let more = (names.len() as u64).saturating_sub(self.log_count);
        let ended = names.iter().filter(|(_, name)| !self.log_names.has(name));
        let most = usize::try_from(more).unwrap_or(usize::MAX).min(REMOVED_MAX);
        let mut removed = 0;
        for (_, name) in ended.take(most) {
            // One that stays is tried again with the next guest.
            removed += usize::from(remove_log(folder, OsStr::new(name)).is_ok());
        }
        removed == REMOVED_MAX
    }

    /// Returns the format of a guest's log; none if it has the guest's bytes as they come.
    #[must_use]
    pub fn guest_format(&self) -> Option<LineFormatter> {
        let LineFormat { stamps, replace_escape } = self.guest_format;
        (stamps || replace_escape).then(|| LineFormatter::new(self.guest_format, self.zone.clone()))
    }

    /// Opens the record of a console; none where there is no place for records.
    #[must_use]
    pub fn open_record(&self, console: Id) -> Option<ConsoleRecord> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(self.record_folder.as_ref()?, record_name(console), flags, mode).ok()?;
        Some(ConsoleRecord::new(file.into()))
    }

    /// Removes the record of a console that is gone.
    pub fn remove_record(&self, console: Id) {
        if let Some(folder) = &self.record_folder {
            // One that stays names a life that does not come again.
            let _ = unlinkat(folder, record_name(console), AtFlags::empty());
        }
    }
}

/// The name of a console's record: `7` of the first one of domain 7, `7.1` of the next.
fn record_name(console: Id) -> String {
    let Id { frontend, devid } = console;
    if devid == 0 { frontend.to_string() } else { format!("{frontend}.{devid}") }
}

/// Returns the logs of guests in a folder that have an index beside them, as only this daemon's have:
/// the time of their last change, and their names, the oldest first.
fn log_names(folder: &OwnedFd) -> io::Result<Vec<(i64, String)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let Some(log) = name.strip_suffix(".log.index").filter(|log| log.starts_with("guest-"))
        else {
            continue;
        };
        let log = format!("{log}.log");
        if let Ok(about) = statat(folder, &*log, AtFlags::SYMLINK_NOFOLLOW) {
            names.push((about.st_mtime, log));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The name of the log of a guest's console: `guest-NAME.log` of its first one, `guest-NAME.console-N.log`
/// of another. A byte of the guest's name that would lead out
/// of the folder, or that a terminal would take for a command, is written `%2f`.
#[must_use]
pub fn log_name(guest: &[u8], number: u32) -> String {
    let mut name = String::from("guest-");
    // 255 bytes is the longest file name; the endings `.console-16.65535.log.1.index` need 29.
    for byte in guest {
        let plain = byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%') || *byte == b' ';
        if plain {
            name.push(char::from(*byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
        if name.len() > 220 {
            break;
        }
    }
    if number > 0 {
        name.push_str(&format!(".console-{number}"));
    }
    name.push_str(".log");
    name
}

/// The name of the log of a domain, where another running one has its name, and the log of that `name`.
#[must_use]
pub fn numbered_log_name(name: &str, domid: u16) -> String {
    format!("{}.{domid}.log", name.strip_suffix(".log").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::DomId;

    #[test]
    fn a_guest_chooses_no_path() {
        assert_eq!(log_name(b"web-1", 0), "guest-web-1.log");
        assert_eq!(log_name(b"web-1", 3), "guest-web-1.console-3.log");
        assert_eq!(log_name(b"../../etc/x", 0), "guest-..%2f..%2fetc%2fx.log");
        assert_eq!(log_name(b"a\n\x1b%", 0), "guest-a%0a%1b%25.log");
        assert!(log_name(&[b'/'; 300], 0).len() < 240);
        assert!(log_name(&[b'/'; 300], 16).len() < 240);
    }

    #[test]
    fn no_two_consoles_have_one_log() {
        let id = |frontend, devid| Id { frontend: DomId(frontend), devid };
        let names = UsedLogNames::default();
        let claim = |console, guest: &[u8]| names.claim(console, log_name(guest, console.devid));
        assert_eq!(claim(id(1, 0), b"web"), "guest-web.log");
        assert_eq!(claim(id(1, 1), b"web"), "guest-web.console-1.log");
        assert_eq!(claim(id(2, 0), b"web"), "guest-web.2.log");
        assert_eq!(claim(id(2, 1), b"web"), "guest-web.console-1.2.log");
        // A name that looks like another guest's second console.
        assert_eq!(claim(id(3, 0), b"web.console-1"), "guest-web.console-1.3.log");
        assert_eq!(claim(id(1, 0), b"web"), "guest-web.log", "its own is no obstacle");
        names.release(id(1, 1));
        assert!(!names.has("guest-web.console-1.log") && names.has("guest-web.log"));
        assert_eq!(claim(id(3, 0), b"web.console-1"), "guest-web.console-1.log");
    }
}
