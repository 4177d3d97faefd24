//! The log of the supervisor: lines on standard output.

use crate::text;

/// Writes a line into the log, where there is room: backends are supervised all the same.
pub(super) fn say(line: &str) {
    text::print_where_room(&std::io::stdout(), &format!("devd: {line}\n"));
}
