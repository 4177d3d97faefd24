//! The terminal of this program's user: raw while a console is shown, and afterwards as it was.

pub(crate) mod keys;
pub(crate) mod screen;
pub(crate) mod signals;

use rustix::fs::{Mode, OFlags};
use rustix::termios::{
    OptionalActions, QueueSelector, Termios, Winsize, isatty, tcflush, tcgetattr, tcgetwinsize,
    tcsetattr, ttyname,
};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// A terminal in raw mode. It gets its earlier mode when this is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    terminal: File,
    earlier: Termios,
}

impl RawTerminal {
    /// Makes the terminal behind standard input raw; none if that is no terminal.
    ///
    /// # Errors
    /// The terminal's mode cannot be read or set.
    pub(crate) fn of_input() -> io::Result<Option<Self>> {
        let input = io::stdin();
        if !isatty(&input) {
            return Ok(None);
        }
        let terminal = File::from(input.as_fd().try_clone_to_owned()?);
        let earlier = tcgetattr(&terminal)?;
        let mut raw = earlier.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, earlier }))
    }

    /// Returns its columns and rows; none if it has no size.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        let Winsize { ws_col, ws_row, .. } = tcgetwinsize(&self.terminal).ok()?;
        (ws_col > 0 && ws_row > 0).then_some((ws_col, ws_row))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A guest can make the terminal answer by a sequence of characters. The answer is not for the
        // shell. Output is not waited for: the terminal may be stopped.
        let _ = tcflush(&self.terminal, QueueSelector::IFlush);
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.earlier);
    }
}

/// Standard output, for bytes that come while other things are waited for.
#[derive(Debug)]
pub(crate) struct PatientOutput {
    output: File,
    /// Bytes that are to be written, and the number of those that were.
    waiting: Vec<u8>,
    written: usize,
}

impl PatientOutput {
    /// The most bytes of a write: a pipe that can be written has room for them.
    const WRITE_MAX: usize = 4096;

    /// Opens standard output anew if it is a terminal, as its mode of waiting is shared with other
    /// programs.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(crate) fn of_standard_output() -> io::Result<Self> {
        let own = io::stdout().as_fd().try_clone_to_owned()?;
        let name = ttyname(&own, Vec::new()).ok();
        let anew = name.and_then(|name| {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(name, flags, Mode::empty()).ok()
        });
        Ok(Self { output: File::from(anew.unwrap_or(own)), waiting: Vec::new(), written: 0 })
    }

    /// Returns the number of bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len().saturating_sub(self.written)
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// Writes some bytes that wait. It is called once the output can be written.
    ///
    /// # Errors
    /// The output is gone.
    pub(crate) fn write_some(&mut self) -> io::Result<()> {
        let left = self.waiting.get(self.written..).unwrap_or_default();
        match self.output.write(left.get(..Self::WRITE_MAX).unwrap_or(left)) {
            Ok(count) => self.written += count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
        if self.len() == 0 {
            self.waiting.clear();
            self.written = 0;
        }
        Ok(())
    }
}

impl AsFd for PatientOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

/// The key that ends a console: one byte, alone in what was typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EscapeKey(u8);

impl EscapeKey {
    /// `^]`, as `xl console` has it.
    pub(crate) const DEFAULT: Self = Self(0x1d);

    /// Parses `^X`, which is Ctrl and that key, or one character.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            [b'^', key @ (b'@'..=b'_' | b'a'..=b'z')] => Ok(Self(key & 0x1f)),
            [key] if key.is_ascii() => Ok(Self(*key)),
            _ => Err("a key is one character, or ^ and one for Ctrl: ^] or ~".into()),
        }
    }

    /// True if this was typed: the key alone. The same byte in a text that is pasted goes to the guest.
    pub(crate) fn ends(self, typed: &[u8]) -> bool {
        typed == [self.0]
    }
}

impl std::fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            key @ 0..=0x1f => write!(f, "^{}", char::from(key | 0x40)),
            key => write!(f, "{}", char::from(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_xl_has_them() {
        assert_eq!(EscapeKey::parse("^]"), Ok(EscapeKey::DEFAULT));
        assert_eq!(EscapeKey::parse("^a"), EscapeKey::parse("^A"));
        assert_eq!(EscapeKey::parse("~").map(|key| key.to_string()), Ok("~".into()));
        assert_eq!(EscapeKey::DEFAULT.to_string(), "^]");
        for bad in ["", "ab", "^1", "^^^", "é"] {
            assert!(EscapeKey::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_key_that_is_typed_alone_ends_the_console() {
        let key = EscapeKey::DEFAULT;
        assert!(key.ends(b"\x1d"));
        assert!(!key.ends(b"a\x1d") && !key.ends(b"ls\n") && !key.ends(b""));
    }
}
