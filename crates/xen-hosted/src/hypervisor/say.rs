//! The broker's lines for who runs it.

use std::io::{self, Write};

/// One line for who runs the broker.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "xen-hosted: {text}");
}
