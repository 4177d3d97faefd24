//! Words for whoever has started the process.

use std::fmt;
use std::io::Write;

/// A sentence for whoever has started the process: why it does not serve, or no longer.
pub type ProgramFailure = Box<dyn std::error::Error>;

/// A line for the log. Where it cannot be written, devices are served all the same.
pub(super) fn write_line(name: &str, line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{name}: {line}");
}
