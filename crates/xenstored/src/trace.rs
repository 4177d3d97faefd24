//! The trace: one line for every message in and out, in a file that can be switched, renamed and
//! reopened while the daemon runs.
//!
//! Source of the switches: `trace_switches` in `tools/xenstored/core.c`.

use crate::switch::Switch;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xenstore_core::wire::{Header, MsgType};

/// The names of the switches. `io` traces messages, `obj` connections that open and close. The
/// others are accepted so that scripts for the C daemon still work, and trace nothing.
pub const SWITCHES: [&str; 5] = ["obj", "io", "wrl", "acc", "tdb"];
const OBJ: usize = 0;
const IO: usize = 1;

/// The number of bytes of lines that are collected before they are written.
const BUFFER_BYTES: usize = 32 * 1024;

/// Parses `+name` or `-name`.
pub(crate) fn parse_switch(text: &[u8]) -> Option<(usize, Switch)> {
    let (sign, name) = text.split_first()?;
    let switch = match sign {
        b'+' => Switch::On,
        b'-' => Switch::Off,
        _ => return None,
    };
    let at = SWITCHES.iter().position(|known| known.as_bytes() == name)?;
    Some((at, switch))
}

/// The direction of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MessageDirection {
    In,
    Out,
}

/// The peer of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessagePeer {
    pub(crate) conn: u32,
    pub(crate) domid: u16,
}

/// The trace file, open or not.
pub(crate) struct TraceFile {
    path: Option<PathBuf>,
    file: Option<File>,
    lines: Vec<u8>,
    on: [bool; SWITCHES.len()],
}

impl TraceFile {
    /// Returns a trace into `path`, not opened yet.
    pub(crate) fn new(path: Option<PathBuf>, switches: &[(usize, Switch)]) -> Self {
        let mut on = [true, true, false, false, false];
        for (at, switch) in switches {
            if let Some(on) = on.get_mut(*at) {
                *on = *switch == Switch::On;
            }
        }
        Self { path, file: None, lines: Vec::new(), on }
    }

    /// Opens the file, or opens it again after it was moved away. Does nothing without a path.
    ///
    /// # Errors
    /// The error of open(2). Nothing is traced then.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.close();
        let Some(path) = &self.path else { return Ok(()) };
        daemon::create_parents(path)?;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        self.file = Some(file);
        Ok(())
    }

    /// Traces into another file from now on.
    ///
    /// # Errors
    /// Those of [`TraceFile::reopen`].
    pub(crate) fn set_path(&mut self, path: PathBuf) -> io::Result<()> {
        self.close();
        self.path = Some(path);
        self.reopen()
    }

    /// Writes the collected lines and closes the file. Its path is kept.
    pub(crate) fn close(&mut self) {
        self.flush();
        self.file = None;
    }

    /// Returns the file's path.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns each switch and true if it is on.
    pub(crate) fn switches(&self) -> impl Iterator<Item = (&'static str, bool)> {
        SWITCHES.into_iter().zip(self.on)
    }

    /// Turns one switch on or off.
    pub(crate) fn set_switch(&mut self, (at, switch): (usize, Switch)) {
        if let Some(on) = self.on.get_mut(at) {
            *on = switch == Switch::On;
        }
    }

    /// True if messages are traced. It is checked before [`TraceFile::message`].
    pub(crate) fn wants_messages(&self) -> bool {
        self.file.is_some() && self.on[IO]
    }

    /// Traces one message.
    pub(crate) fn message(
        &mut self,
        to: MessageDirection,
        peer: MessagePeer,
        header: &Header,
        payload: &[u8],
    ) {
        let arrow = match to {
            MessageDirection::In => "IN ",
            MessageDirection::Out => "OUT",
        };
        self.stamp();
        let MessagePeer { conn, domid } = peer;
        let _ = write!(self.lines, " {arrow} conn={conn} domid={domid} ");
        match MsgType::from_code(header.kind) {
            Some(kind) => self.lines.extend_from_slice(kind.name().as_bytes()),
            None => {
                let _ = write!(self.lines, "type={}", header.kind);
            }
        }
        let _ = write!(self.lines, " req={} tx={} (", header.req_id, header.tx_id);
        for byte in payload {
            match byte {
                0 => self.lines.push(b' '),
                b'\\' => self.lines.extend_from_slice(b"\\\\"),
                0x20..=0x7e => self.lines.push(*byte),
                other => {
                    let _ = write!(self.lines, "\\x{other:02x}");
                }
            }
        }
        self.lines.extend_from_slice(b")\n");
        if self.lines.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    /// Traces a connection that opened or closed.
    pub(crate) fn object(&mut self, what: &str, peer: MessagePeer, detail: &str) {
        if self.file.is_some() && self.on[OBJ] {
            self.stamp();
            let MessagePeer { conn, domid } = peer;
            let _ = writeln!(self.lines, " {what} conn={conn} domid={domid}{detail}");
        }
    }

    /// Writes a line that the administrator sent.
    pub(crate) fn note(&mut self, text: &str) {
        if self.file.is_some() {
            self.stamp();
            let _ = writeln!(self.lines, " {text}");
        }
    }

    /// Writes the collected lines. It is called once per round of the event loop.
    pub(crate) fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            // A full disk must not stop the store. The lines are lost.
            let _ = file.write_all(&self.lines);
        }
        self.lines.clear();
    }

    fn stamp(&mut self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let _ = write!(self.lines, "{}.{:06}", now.tv_sec, now.tv_nsec / 1000);
    }
}
