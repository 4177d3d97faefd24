//! Standard output for text that others have written.

use crate::cli::out;
use crate::{Error, text};
use serde_json::Value;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

/// The bytes that are collected before they are written.
const BUFFER: usize = 64 << 10;

/// Standard output. A terminal obeys control characters, so there nothing in the text of others moves
/// its cursor.
#[derive(Debug)]
pub(in crate::cli) struct ForeignOutput {
    out: BufWriter<StdoutLock<'static>>,
    /// The place in the text; none where the output is no terminal, and gets the bytes as they are.
    terminal: Option<TerminalText>,
}

impl ForeignOutput {
    pub(in crate::cli) fn of_standard_output() -> Self {
        let out = io::stdout().lock();
        let terminal = out.is_terminal().then(TerminalText::default);
        Self { out: BufWriter::with_capacity(BUFFER, out), terminal }
    }

    /// Writes bytes of another's text.
    pub(in crate::cli) fn foreign(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.terminal {
            Some(terminal) => self.out.write_all(&terminal.clean(bytes)),
            None => self.out.write_all(bytes),
        }
    }

    /// Writes words of this program.
    pub(in crate::cli) fn own(&mut self, words: &str) -> io::Result<()> {
        if let Some(terminal) = &mut self.terminal {
            *terminal = TerminalText::default();
        }
        self.out.write_all(words.as_bytes())
    }

    /// Writes a value as a line of JSON.
    pub(in crate::cli) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.own(&(out::escaped(&value.to_string()) + "\n"))
    }

    pub(in crate::cli) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Returns false after a write to a closed pipe, which is not an error: nobody reads any more.
pub(in crate::cli) fn is_read(written: io::Result<()>) -> Result<bool, Error> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).map_err(Error::io("standard output")),
    }
}

/// The place in a text for a terminal.
#[derive(Debug, Default)]
struct TerminalText {
    last: u8,
    /// A CR was left out, or more of them: at a line's end they are not shown.
    has_return: bool,
}

impl TerminalText {
    /// Returns text that moves no cursor.
    fn clean(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if *byte == b'\r' {
                self.has_return = true;
                continue;
            }
            if std::mem::take(&mut self.has_return) && *byte != b'\n' {
                shown.push(b'\r');
            }
            shown.push(*byte);
        }
        text::clean_lines(&mut shown, &mut self.last);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_lines_of_a_console_are_ends_of_lines() {
        let mut terminal = TerminalText::default();
        let mut shown = terminal.clean(b"one\r\ntwo\r");
        shown.extend(terminal.clean(b"\r\n10%\r\r20%\x1b[2J\xc2"));
        shown.extend(terminal.clean(b"\x9b2J\r"));
        assert_eq!(shown, b"one\ntwo\n10%?20%?[2J\xc2?2J");
    }
}
