//! `watch`: prints the path of each event, or a JSON object a line.

use super::args::Flags;
use super::failure::CommandFailure;
use super::json;
use std::io::{self, Write};
use xenstore::Client;

/// Watches the operands and prints events until the count of `-n` is reached, or for ever without
/// it.
pub(super) fn run(
    client: &mut Client,
    flags: &Flags,
    operands: &[Vec<u8>],
) -> Result<u8, CommandFailure> {
    for path in operands {
        client.watch(path, path).map_err(|error| {
            let message = [b"Unable to add watch on ", &path[..], b"\n"].concat();
            CommandFailure::with_message(message).with_advice_on(&error)
        })?;
    }
    let count = flags.number.unwrap_or(-1);
    let mut printed = 0;
    let mut stdout = io::stdout().lock();
    while count == -1 || printed < count {
        let Some(event) = client.next_event(None)? else { continue };
        if flags.json {
            json::event_line(&mut stdout, &event)?;
        } else {
            stdout.write_all(&[&event.path[..], b"\n"].concat())?;
        }
        stdout.flush()?;
        printed = if count == -1 { 0 } else { printed + 1 };
    }
    Ok(0)
}
