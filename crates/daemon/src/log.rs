//! The log: one structured line for each occurrence, to stderr or to syslog.
//!
//! Lines are `key=value` pairs, `level` first and `msg="…"` last. No action of a peer may fill a
//! log: a caller that reports an action of a peer limits the rate.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;

/// The severity of a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// The daemon cannot do its work.
    Error,
    /// A client is not served as it expects.
    Warn,
    /// Information for administrators in normal operation.
    Info,
    /// Details, written with `--verbose` only.
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// Returns the severity of syslog(3) with facility `LOG_DAEMON`.
    fn priority(self) -> u8 {
        const DAEMON: u8 = 3 << 3;
        DAEMON
            | match self {
                Self::Error => 3,
                Self::Warn => 4,
                Self::Info => 6,
                Self::Debug => 7,
            }
    }
}

enum Sink {
    Stderr,
    Syslog(Option<UnixDatagram>),
    Taker(Box<dyn FnMut(&str)>),
}

/// The most lines about the actions of one domain that are written within [`WINDOW_US`]. Further
/// lines are only counted.
const WINDOW_LINES: u32 = 20;
/// The length of the window, in microseconds.
const WINDOW_US: u64 = 10_000_000;

/// The number of lines about each domain's actions in the current window. One domain's lines never
/// displace another's.
#[derive(Default)]
struct Window {
    began: u64,
    lines: HashMap<Option<u16>, u32>,
}

/// A log and its destination.
pub struct Log {
    /// The program's name, for syslog.
    name: &'static str,
    sink: Sink,
    most: Level,
    window: Window,
}

impl Log {
    /// Returns the log of the program `name` on stderr, with lines up to `most`.
    #[must_use]
    pub fn stderr(name: &'static str, most: Level) -> Self {
        Self { name, sink: Sink::Stderr, most, window: Window::default() }
    }

    /// Returns a log that gives its lines up to `most` to `taker`, without line ends. For a
    /// program that runs the daemon's loop itself.
    #[must_use]
    pub fn to(name: &'static str, most: Level, taker: Box<dyn FnMut(&str)>) -> Self {
        Self { name, sink: Sink::Taker(taker), most, window: Window::default() }
    }

    /// Writes to syslog from now on. If there is none the lines are lost.
    pub fn to_syslog(&mut self) {
        self.sink = Sink::Syslog(connect_syslog(SYSLOG).ok());
    }

    /// Writes one line. `fields` are `key=value` pairs in logfmt, or empty.
    pub fn line(&mut self, level: Level, fields: &str, text: &str) {
        if level > self.most {
            return;
        }
        let mut line = format!("level={}", level.name());
        if !fields.is_empty() {
            line.push(' ');
            line.push_str(fields);
        }
        line.push_str(" msg=\"");
        for character in text.chars() {
            match character {
                '"' | '\\' => line.extend(['\\', character]),
                '\n' => line.push_str("\\n"),
                control if control.is_control() => {
                    let _ = write!(line, "\\x{:02x}", u32::from(control));
                }
                other => line.push(other),
            }
        }
        line.push('"');
        self.send(level, line);
    }

    /// Writes a line about an action that a domain can repeat without limit; `now` is in
    /// microseconds. Lines over the limit are counted, and reported when the window is over.
    pub fn limited(&mut self, level: Level, domid: Option<u16>, text: &str, now: u64) {
        if now.saturating_sub(self.window.began) >= WINDOW_US {
            let window = Window { began: now, lines: HashMap::new() };
            let old = std::mem::replace(&mut self.window, window);
            for (domid, lines) in old.lines {
                let lost = lines.saturating_sub(WINDOW_LINES);
                if lost > 0 {
                    let text = format!("{lost} more lines about what it does were left out");
                    self.line(Level::Warn, &field(domid), &text);
                }
            }
        }
        let lines = self.window.lines.entry(domid).or_default();
        *lines = lines.saturating_add(1);
        if *lines <= WINDOW_LINES {
            self.line(level, &field(domid), text);
        }
    }

    fn send(&mut self, level: Level, mut line: String) {
        match &mut self.sink {
            Sink::Stderr => {
                line.push('\n');
                let _ = io::stderr().write_all(line.as_bytes());
            }
            Sink::Taker(taker) => taker(&line),
            Sink::Syslog(socket) => {
                let pid = rustix::process::getpid();
                let pid = pid.as_raw_nonzero();
                let datagram = format!("<{}>{}[{pid}]: {line}", level.priority(), self.name);
                let sent = socket.as_ref().map(|to| to.send(datagram.as_bytes()));
                match sent {
                    Some(Ok(_)) => {}
                    // The logger does not keep up. Lines are lost, and the daemon does not wait for
                    // it.
                    Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The logger does not run, or was restarted.
                    _ => {
                        *socket = connect_syslog(SYSLOG).ok();
                        if let Some(socket) = socket {
                            let _ = socket.send(datagram.as_bytes());
                        }
                    }
                }
            }
        }
    }
}

/// The socket of the system's logger (syslog(3)).
const SYSLOG: &str = "/dev/log";

/// Returns `domid=7`, or nothing.
fn field(domid: Option<u16>) -> String {
    domid.map(|domid| format!("domid={domid}")).unwrap_or_default()
}

/// Connects to the system's logger at `path`. The socket is non-blocking from the start: an ioctl
/// that sets it would not pass a daemon's system-call filter.
///
/// # Errors
/// There is no logger.
pub fn connect_syslog(path: &str) -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (Log, UnixDatagram) {
        let (to, from) = UnixDatagram::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let window = Window::default();
        (Log { name: "xenstored", sink: Sink::Syslog(Some(to)), most: Level::Info, window }, from)
    }

    fn next(from: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 1000];
        let len = from.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..len].to_vec()).unwrap())
    }

    #[test]
    fn lines_are_fields_and_a_quoted_text() {
        let (mut log, from) = log();
        log.line(Level::Debug, "", "not wanted");
        log.line(Level::Warn, "domid=7", "a \"quoted\" one\nand \x1b");
        let line = next(&from).unwrap();
        assert!(line.starts_with("<28>xenstored["), "{line}");
        let text = r#"]: level=warn domid=7 msg="a \"quoted\" one\nand \x1b""#;
        assert!(line.ends_with(text), "{line}");
        assert_eq!(next(&from), None);
    }

    #[test]
    fn what_a_peer_can_repeat_is_limited() {
        let (mut log, from) = log();
        let mut lines = 0;
        for _ in 0..WINDOW_LINES + 50 {
            log.limited(Level::Warn, Some(7), "again", WINDOW_US);
            lines += u32::from(next(&from).is_some());
        }
        assert_eq!(lines, WINDOW_LINES);
        log.limited(Level::Warn, Some(8), "another", WINDOW_US);
        assert!(next(&from).unwrap().contains("domid=8 msg=\"another\""));
        log.limited(Level::Warn, None, "later", WINDOW_US * 2);
        assert!(next(&from).unwrap().contains("domid=7 msg=\"50 more lines"));
        assert!(next(&from).unwrap().contains("later"));
    }
}
