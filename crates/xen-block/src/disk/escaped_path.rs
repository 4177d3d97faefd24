//! A path for a log.

use std::fmt;
use std::path::Path;

/// A path for a log; its control characters are escaped.
#[derive(Clone, Copy)]
pub(super) struct EscapedPath<'p>(pub(super) &'p Path);

impl fmt::Display for EscapedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string_lossy();
        text.chars().try_for_each(|char| match char.is_control() {
            true => write!(f, "{}", char.escape_default()),
            false => write!(f, "{char}"),
        })
    }
}
