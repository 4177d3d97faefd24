//! The program as it was called, and what it prints.

use super::fail::Fail;
use std::io::{self, Write};

/// The names by which the program was called.
pub(super) struct Program {
    /// argv\[0\].
    pub(super) path: Vec<u8>,
    /// The name in a usage line: argv\[0\], and the command where that is not part of it.
    pub(super) usage: Vec<u8>,
    /// The beginning of each line on stderr: the last part of argv\[0\], as err(3) has it.
    pub(super) short: Vec<u8>,
    /// The beginning of getopt's lines: argv\[0\], or the command where that comes behind.
    pub(super) getopt: Vec<u8>,
}

impl Program {
    /// One line on stderr, the program's name in front.
    pub(super) fn say(&self, message: &[u8]) {
        let line = [&self.short[..], b": ", message, b"\n"].concat();
        // There is nowhere to complain about a closed stderr.
        let _ = io::stderr().write_all(&line);
    }
}

pub(super) fn print(text: &str) -> Result<(), Fail> {
    print_to(io::stdout(), text)
}

pub(super) fn print_to(mut to: impl Write, text: &str) -> Result<(), Fail> {
    to.write_all(text.as_bytes())?;
    Ok(to.flush()?)
}
