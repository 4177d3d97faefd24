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
    text: ForeignText,
}

impl ForeignOutput {
    pub(in crate::cli) fn of_standard_output() -> Self {
        let out = io::stdout().lock();
        let text = ForeignText { is_terminal: out.is_terminal(), ..ForeignText::default() };
        Self { out: BufWriter::with_capacity(BUFFER, out), text }
    }

    /// Writes bytes of another's text.
    pub(in crate::cli) fn foreign(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(&self.text.clean(bytes))
    }

    /// Writes words of this program.
    pub(in crate::cli) fn own(&mut self, words: &str) -> io::Result<()> {
        (self.text.last, self.text.returns) = (0, 0);
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

/// The place in a text of others.
#[derive(Debug, Default)]
struct ForeignText {
    /// The text is for a terminal.
    is_terminal: bool,
    last: u8,
    /// The number of CRs that wait for the byte behind them: before an LF they are left out, as a
    /// console ends its lines by both.
    returns: usize,
}

impl ForeignText {
    /// Returns the text as it is shown; for a terminal it moves no cursor.
    fn clean(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if *byte == b'\r' {
                self.returns += 1;
                continue;
            }
            let returns = std::mem::take(&mut self.returns);
            if *byte != b'\n' {
                let most = if self.is_terminal { 1 } else { usize::MAX };
                shown.extend(std::iter::repeat_n(b'\r', returns.min(most)));
            }
            shown.push(*byte);
        }
        if self.is_terminal {
            text::clean_lines(&mut shown, &mut self.last);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_lines_of_a_console_are_ends_of_lines() {
        let mut terminal = ForeignText { is_terminal: true, ..ForeignText::default() };
        let mut shown = terminal.clean(b"one\r\ntwo\r");
        shown.extend(terminal.clean(b"\r\n10%\r\r20%\x1b[2J\xc2"));
        shown.extend(terminal.clean(b"\x9b2J\r"));
        assert_eq!(shown, b"one\ntwo\n10%?20%?[2J\xc2?2J");
        let mut pipe = ForeignText::default();
        let mut shown = pipe.clean(b"one\r\ntwo\r");
        shown.extend(pipe.clean(b"\r\n10%\r\r20%\x1b[2J"));
        assert_eq!(shown, b"one\ntwo\n10%\r\r20%\x1b[2J");
    }
}
