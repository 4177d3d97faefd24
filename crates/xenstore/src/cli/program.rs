//! The names of the program, and its messages on stderr.

use super::failure::CommandFailure;
use std::io::{self, Write};

/// The names by which the program was called.
pub(super) struct ProgramNames {
    /// argv\[0\].
    pub(super) path: Vec<u8>,
    /// The name in a usage line: argv\[0\], followed by the command if that is not part of it.
    pub(super) usage: Vec<u8>,
    /// The beginning of each line on stderr: the last part of argv\[0\], as err(3) has it.
    pub(super) short: Vec<u8>,
    /// The beginning of getopt's lines: argv\[0\], or the command if argv\[0\] does not contain it.
    pub(super) getopt: Vec<u8>,
}

impl ProgramNames {
    /// Prints one line on stderr, after the program's name.
    pub(super) fn print_error(&self, message: &[u8]) {
        let line = [&self.short[..], b": ", message, b"\n"].concat();
        // An error of stderr has no place to be reported.
        let _ = io::stderr().write_all(&line);
    }
}

pub(super) fn print(text: &str) -> Result<(), CommandFailure> {
    print_to(io::stdout(), text)
}

pub(super) fn print_to(mut to: impl Write, text: &str) -> Result<(), CommandFailure> {
    to.write_all(text.as_bytes())?;
    Ok(to.flush()?)
}
