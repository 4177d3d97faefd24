//! The broker's log lines for its operator.

use std::io::{self, Write};

/// Writes one log line.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "xen-hosted: {text}");
}
