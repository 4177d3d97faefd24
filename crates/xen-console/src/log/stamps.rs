//! The form of bytes in a log: the time before each line, and dots for escapes, as C's
//! `--timestamp` and `--replace-escape` have it.
//!
//! C has one flag for all guests that says if the next byte begins a line. A guest's unfinished
//! line then takes the time from another guest's line. Here each console has its own.
//!
//! Source: `tools/console/daemon/io.c` (`write_with_timestamp`, `do_replace_escape`).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::io::Write;

/// The bytes of a stamp: `[2026-12-02 17:32:05] `.
const STAMP_LEN: usize = 22;
/// The line that opens a log with stamps.
const OPENED: &[u8] = b"Logfile Opened\n";
const ESCAPE: u8 = 0x1b;

/// The zone of the local time. Copies share its rules.
#[derive(Clone, Debug)]
pub struct LocalZone(TimeZone);

impl LocalZone {
    /// Returns the zone of this process: that of TZ, else that of `/etc/localtime`, else UTC. It is
    /// read now, and a later change of these has no effect, as in C.
    #[must_use]
    pub fn of_process() -> Self {
        Self(TimeZone::system())
    }

    /// Returns the zone with these rules, in the form of POSIX's TZ: `CET-1CEST,M3.5.0,M10.5.0/3`.
    /// None if there is no such zone.
    #[must_use]
    pub fn from_rules(rules: &str) -> Option<Self> {
        TimeZone::posix(rules).ok().map(Self)
    }
}

/// The form of a log's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LineFormat {
    /// True if each line begins with the time.
    pub stamps: bool,
    /// True if the byte ESC becomes a dot.
    pub replace_escape: bool,
}

/// Formats the bytes of one log.
#[derive(Debug)]
pub struct LineFormatter {
    format: LineFormat,
    stamp: Stamp,
    /// True if the next byte begins a line.
    line_begins: bool,
    /// The formatted bytes. It grows to the largest chunk, at most 23 bytes for each.
    text: Vec<u8>,
}

impl LineFormatter {
    /// Returns the formatter of a log, whose next byte begins a line.
    #[must_use]
    pub fn new(format: LineFormat, zone: LocalZone) -> Self {
        Self { format, stamp: Stamp::new(zone), line_begins: true, text: Vec::new() }
    }

    /// Returns the line for a log that was opened at this time, in microseconds since 1970; no bytes
    /// in a log without stamps. The next byte begins a line.
    pub fn opened(&mut self, time_us: u64) -> &[u8] {
        self.line_begins = true;
        self.text.clear();
        if self.format.stamps {
            self.text.extend_from_slice(self.stamp.at(time_us));
            self.text.extend_from_slice(OPENED);
        }
        &self.text
    }

    /// Formats a chunk of the console's output that came at this time, in microseconds since 1970.
    /// CRs that follow the end of a line in the chunk are dropped if there are stamps. A raw format
    /// returns the chunk itself.
    pub fn format<'b>(&'b mut self, chunk: &'b [u8], time_us: u64) -> &'b [u8] {
        if self.format == LineFormat::default() {
            return chunk;
        }
        self.text.clear();
        if self.format.stamps {
            self.put_lines(chunk, time_us);
        } else {
            self.text.extend_from_slice(chunk);
        }
        if self.format.replace_escape {
            for byte in self.text.iter_mut().filter(|byte| **byte == ESCAPE) {
                *byte = b'.';
            }
        }
        &self.text
    }

    /// Appends a chunk with a stamp before each line.
    fn put_lines(&mut self, chunk: &[u8], time_us: u64) {
        let stamp = self.stamp.at(time_us);
        let mut follows_line = false;
        for mut line in chunk.split_inclusive(|byte| *byte == b'\n') {
            while follows_line && let [b'\r', rest @ ..] = line {
                line = rest;
            }
            if line.is_empty() {
                break;
            }
            if self.line_begins {
                self.text.extend_from_slice(stamp);
            }
            self.text.extend_from_slice(line);
            self.line_begins = line.ends_with(b"\n");
            follows_line = self.line_begins;
        }
    }
}

/// The stamp of the newest second.
#[derive(Debug)]
struct Stamp {
    zone: LocalZone,
    /// The second since 1970; none before the first.
    second: Option<u64>,
    bytes: [u8; STAMP_LEN],
}

impl Stamp {
    fn new(zone: LocalZone) -> Self {
        Self { zone, second: None, bytes: [b' '; STAMP_LEN] }
    }

    /// Returns the stamp of a time, which is computed once a second.
    fn at(&mut self, time_us: u64) -> &[u8; STAMP_LEN] {
        let second = time_us / 1_000_000;
        if self.second != Some(second) {
            self.second = Some(second);
            // No clock is beyond the last time, which has four digits of a year.
            let time =
                i64::try_from(second).ok().and_then(|time| Timestamp::from_second(time).ok());
            let time: DateTime = self.zone.0.to_datetime(time.unwrap_or(Timestamp::MAX));
            let (year, month, day) = (time.year(), time.month(), time.day());
            let (hour, minute, second) = (time.hour(), time.minute(), time.second());
            let _ = write!(
                &mut self.bytes[..],
                "[{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}] "
            );
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";
    /// 2026-12-02 16:32:05 UTC.
    const TIME_US: u64 = 1_796_229_125_999_999;

    fn formatter(stamps: bool, replace_escape: bool) -> LineFormatter {
        let zone = LocalZone::from_rules(BERLIN).unwrap();
        LineFormatter::new(LineFormat { stamps, replace_escape }, zone)
    }

    /// Formats chunks, and shows the stamp as `@`.
    fn format(mut formatter: LineFormatter, chunks: &[&str]) -> String {
        let mut text = Vec::new();
        for chunk in chunks {
            text.extend_from_slice(formatter.format(chunk.as_bytes(), TIME_US));
        }
        String::from_utf8(text).unwrap().replace("[2026-12-02 17:32:05] ", "@")
    }

    #[test]
    fn each_line_begins_with_the_time() {
        for (chunks, text) in [
            (&["a\r\n\rb\n"][..], "@a\r\n@b\n"),
            (&["a\r\n", "\rb\n"], "@a\r\n@\rb\n"),
            (&["a\n\r\r\n\r", "b"], "@a\n@\n@b"),
            (&["part", " of", " one\nand", " two"], "@part of one\n@and two"),
            (&["\n\n"], "@\n@\n"),
            (&["\r\ra\r\r\n"], "@\r\ra\r\r\n"),
            (&["", "a", ""], "@a"),
            (&["a\u{1b}[0m\n"], "@a\u{1b}[0m\n"),
        ] {
            assert_eq!(format(formatter(true, false), chunks), text, "{chunks:?}");
        }
    }

    #[test]
    fn escapes_become_dots() {
        let chunks = ["\u{1b}[1m\n\r", "x\u{1b}"];
        assert_eq!(format(formatter(false, true), &chunks), ".[1m\n\rx.");
        assert_eq!(format(formatter(true, true), &chunks), "@.[1m\n@x.");
    }

    #[test]
    fn raw_bytes_are_not_copied() {
        let chunk = b"\x1b[1m\n\rx".as_slice();
        let mut raw = formatter(false, false);
        assert_eq!(raw.opened(TIME_US), b"");
        assert_eq!(raw.format(chunk, TIME_US).as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn consoles_do_not_share_the_place_in_a_line() {
        let (mut one, mut other) = (formatter(true, false), formatter(true, false));
        assert_eq!(one.format(b"Press Enter", TIME_US).len(), STAMP_LEN + 11);
        assert_eq!(other.format(b"boot\n", TIME_US), b"[2026-12-02 17:32:05] boot\n");
        assert_eq!(one.format(b"!\n", TIME_US), b"!\n");
    }

    #[test]
    fn a_log_says_when_it_was_opened() {
        let mut log = formatter(true, false);
        assert_eq!(log.opened(TIME_US), b"[2026-12-02 17:32:05] Logfile Opened\n");
        assert_eq!(log.format(b"unfinished", TIME_US), b"[2026-12-02 17:32:05] unfinished");
        assert_eq!(log.opened(TIME_US), b"[2026-12-02 17:32:05] Logfile Opened\n");
        assert_eq!(log.format(b"a", TIME_US), b"[2026-12-02 17:32:05] a");
    }

    #[test]
    fn the_time_is_local_and_changes_with_the_second() {
        let mut stamp = Stamp::new(LocalZone::from_rules(BERLIN).unwrap());
        let mut at = |time_us| String::from_utf8(stamp.at(time_us).to_vec()).unwrap();
        // The night of 25 October 2026, when an hour comes twice, and one in March that is left out.
        for (time_us, expected) in [
            (0, "[1970-01-01 01:00:00] "),
            (1_792_889_999_999_999, "[2026-10-25 02:59:59] "),
            (1_792_890_000_000_000, "[2026-10-25 02:00:00] "),
            (1_774_745_999_000_000, "[2026-03-29 01:59:59] "),
            (1_774_746_000_000_000, "[2026-03-29 03:00:00] "),
        ] {
            assert_eq!(at(time_us), expected);
        }
        assert!(at(u64::MAX).starts_with("[9999-12-"), "{}", at(u64::MAX));
        assert!(LocalZone::from_rules("no zone").is_none());
    }

    #[test]
    fn the_buffer_is_used_again() {
        let mut log = formatter(true, true);
        let chunk = [b'\n'; 2048];
        let first = log.format(&chunk, TIME_US);
        let (place, len) = (first.as_ptr(), first.len());
        assert_eq!(len, 2048 * (STAMP_LEN + 1));
        assert_eq!(log.format(&chunk, TIME_US + 1).as_ptr(), place);
    }
}
