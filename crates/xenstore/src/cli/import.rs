//! `import`: writes an export below a path, in one transaction if it fits.

use super::args::ParsedArgs;
use super::export::absolute;
use super::export_file::{self, ExportedNode};
use super::failure::CommandFailure;
use super::program::ProgramNames;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use xenstore::{Client, Error, MsgType, Store, Ticket, Transaction};
use xenstore_core::client::ErrorName;
use xenstore_core::wire;

/// The most nodes of an import that is tried in one transaction: the time that C's daemon takes
/// grows with the square of their number.
const ONE_TRANSACTION_MAX: usize = 5000;
/// The number of nodes in each transaction of a larger import. It is below C's quota
/// transaction-nodes (1024) even if each node has a few new parents.
const PART: usize = 500;
/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// The most requests in flight.
const IN_FLIGHT_MAX: usize = 128;

/// Reads the file, or stdin, and writes its nodes to the store.
pub(super) fn run(program: &ProgramNames, parsed: &ParsedArgs) -> Result<u8, CommandFailure> {
    let Some(root) = parsed.operands.first() else { return Ok(2) };
    let nodes = read_file(parsed.operands.get(1).map(Vec::as_slice))?;
    let mut client = Client::open()?;
    if nodes.len() <= ONE_TRANSACTION_MAX {
        let result = client.transaction(|tx| {
            if parsed.flags.replace {
                clear(tx, root)?;
            }
            write(tx, root, &nodes)
        });
        match result {
            Err(error) if may_fit_in_parts(&error) => {}
            result => return Ok(result.map(|()| 0)?),
        }
    }
    if parsed.flags.replace {
        client.transaction(|tx| clear(tx, root))?;
    }
    let mut done = 0;
    for part in nodes.chunks(PART) {
        client.transaction(|tx| write(tx, root, part)).map_err(|error| {
            let text = format!("after {done} of {} nodes: {error}", nodes.len());
            CommandFailure::with_message(text)
        })?;
        done += part.len();
        program.print_error(format!("{done} of {} nodes", nodes.len()).as_bytes());
    }
    Ok(0)
}

/// Reads the nodes in a file, or in stdin.
pub(super) fn read_file(path: Option<&[u8]>) -> Result<Vec<ExportedNode>, CommandFailure> {
    let (name, text) = match path {
        Some(path) if path != b"-" => {
            let path = OsStr::from_bytes(path);
            let text = File::open(path).and_then(|file| read_text(file, FILE_BYTES_MAX));
            (path.to_string_lossy().into_owned(), text)
        }
        _ => ("stdin".to_owned(), read_text(io::stdin().lock(), FILE_BYTES_MAX)),
    };
    let failure = |text: String| CommandFailure::with_message(format!("{name}: {text}")).code(2);
    let text = text.map_err(|error| failure(error.to_string()))?;
    export_file::parse(&text).map_err(failure)
}

/// Reads a text to its end. A text of more than `bytes_max` bytes is an error.
fn read_text(file: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let len = file.take(bytes_max.saturating_add(1)).read_to_end(&mut text)?;
    if u64::try_from(len).is_ok_and(|len| len <= bytes_max) {
        return Ok(text);
    }
    Err(io::Error::other(format!("longer than {bytes_max} bytes: export smaller subtrees")))
}

/// True if the error is one that several smaller transactions may avoid.
fn may_fit_in_parts(error: &Error) -> bool {
    match error {
        Error::Refused { name: ErrorName::Known(name), .. } => {
            matches!(name, wire::Error::NoSpc | wire::Error::NoMem | wire::Error::TooBig)
        }
        Error::Refused { name: ErrorName::Other(name), .. } => name == "EQUOTA",
        _ => false,
    }
}

/// Removes all nodes below a node.
fn clear(tx: &mut Transaction<'_>, root: &[u8]) -> Result<(), Error> {
    let names = tx.list(root)?;
    names.iter().try_for_each(|name| tx.rm(absolute(root, name.as_bytes())))
}

/// Writes values and permissions, with many requests in flight.
fn write(tx: &mut Transaction<'_>, root: &[u8], nodes: &[ExportedNode]) -> Result<(), Error> {
    let id = tx.id();
    let client = tx.client();
    let mut sent: VecDeque<Ticket> = VecDeque::new();
    let mut result = Ok(());
    for node in nodes {
        let path = absolute(root, &node.path);
        let perms: String = node.perms.iter().map(|perm| format!("{perm}\0")).collect();
        let requests: [(MsgType, &[&[u8]]); 2] = [
            (MsgType::Write, &[&path, b"\0", &node.value]),
            (MsgType::SetPerms, &[&path, b"\0", perms.as_bytes()]),
        ];
        for (kind, parts) in requests {
            match client.submit(id, kind, parts) {
                Ok(ticket) => sent.push_back(ticket),
                Err(error) => result = Err(error),
            }
        }
        while result.is_ok() && sent.len() > IN_FLIGHT_MAX {
            result = take(client, &mut sent);
        }
        if result.is_err() {
            break;
        }
    }
    while result.is_ok() && !sent.is_empty() {
        result = take(client, &mut sent);
    }
    sent.into_iter().for_each(|ticket| client.forget(ticket));
    result
}

fn take(client: &mut Client, sent: &mut VecDeque<Ticket>) -> Result<(), Error> {
    sent.pop_front().map_or(Ok(()), |ticket| client.wait(ticket).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_up_to_its_longest() {
        assert_eq!(read_text(&b"abcd"[..], 4).unwrap(), b"abcd");
        let wrong = read_text(io::repeat(b' '), 4).unwrap_err().to_string();
        assert!(wrong.contains("longer than 4 bytes"), "{wrong}");
    }
}
