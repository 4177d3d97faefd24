//! The commands of Debian's xenstore-utils 4.17, with the same output character by character: `read
//! write list ls rm exists chmod watch`. All of them run in a transaction that is restarted on
//! EAGAIN, except `ls`, `watch`, and `read` and `write` of one node.

use super::args::{Flags, ParsedArgs, parse};
use super::failure::CommandFailure;
use super::program::ProgramNames;
use super::table::Command;
use super::value::{escape, unescape};
use super::{chmod, ls, watch};
use std::io::{self, Write};
use xenstore::transaction::{Retry, TransactionEnd};
use xenstore::{Client, Error, Store, Transaction, TransactionId};
use xenstore_core::wire;

/// The most attempts of a command. Debian's commands retry for ever.
const ATTEMPTS_MAX: u32 = 10_000;

/// The output of one attempt, and its exit code.
type AttemptOutput = (Vec<u8>, u8);

/// Runs one of the commands.
pub(super) fn run(
    program: &ProgramNames,
    command: &'static Command,
    args: &[Vec<u8>],
) -> Result<u8, CommandFailure> {
    let ParsedArgs { flags, misplaced, operands, .. } = parse(program, command, args);
    let count = operands.len();
    let wrong_count = match command.name {
        "ls" => false,
        "write" => count == 0 || count % 2 == 1,
        _ => count == 0,
    };
    if misplaced || wrong_count {
        let line = [b"Usage: ", &program.usage[..], b" ", command.usage.as_bytes()].concat();
        return Err(CommandFailure::with_message(line));
    }
    let width = ls::width(&flags);
    let mut client =
        Client::open().map_err(|error| CommandFailure::with_errno("xs_open", &error))?;
    match command.name {
        "ls" => return ls::run(program, &mut client, &flags, width, &operands),
        "watch" => return watch::run(&mut client, &flags, &operands),
        _ => {}
    }
    let transaction = match command.name {
        "read" => count > 1,
        "write" => count > 2,
        _ => true,
    };
    let body = |store: &mut Transaction<'_>| perform(program, command, &flags, &operands, store);
    let (output, code) = if transaction {
        in_transaction(&mut client, body)?
    } else {
        body(&mut Transaction::within(&mut client, TransactionId::NONE))?
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&output)?;
    stdout.flush()?;
    Ok(code)
}

/// Runs a command in a transaction. A failed attempt is aborted, and its exit code is kept.
fn in_transaction(
    client: &mut Client,
    mut body: impl FnMut(&mut Transaction<'_>) -> Result<AttemptOutput, CommandFailure>,
) -> Result<AttemptOutput, CommandFailure> {
    let retry = Retry { attempts_max: ATTEMPTS_MAX, ..Retry::default() };
    let mut attempt = 0;
    loop {
        std::thread::sleep(retry.pause(attempt));
        attempt += 1;
        let id = client.transaction_start().map_err(|error| {
            CommandFailure::with_message("couldn't start transaction").with_advice_on(&error)
        })?;
        let outcome = body(&mut Transaction::within(client, id))?;
        let end = if outcome.1 == 0 { TransactionEnd::Commit } else { TransactionEnd::Abort };
        match client.transaction_end(id, end) {
            Ok(()) => return Ok(outcome),
            Err(error) => {
                let conflict = error.refusal() == Some(wire::Error::Again);
                if outcome.1 != 0 || !conflict || attempt == ATTEMPTS_MAX {
                    return Err(CommandFailure::with_message("couldn't end transaction")
                        .with_advice_on(&error));
                }
            }
        }
    }
}

fn perform(
    program: &ProgramNames,
    command: &Command,
    flags: &Flags,
    operands: &[Vec<u8>],
    store: &mut Transaction<'_>,
) -> Result<AttemptOutput, CommandFailure> {
    let mut output = Vec::new();
    let done = match command.name {
        "read" => read(program, flags, operands, store, &mut output),
        "write" => write(program, flags, operands, store),
        "list" => list(program, flags, operands, store, &mut output),
        "rm" => operands.iter().all(|path| {
            if flags.tidy { rm_tidy(program, path, store) } else { rm(program, path, store) }
        }),
        "exists" => operands.iter().all(|path| store.read(path).is_ok()),
        _ => chmod::run(flags, operands, store).map(|()| true)?,
    };
    Ok((output, if done { 0 } else { 1 }))
}

/// Prints one line about an error with a path.
fn complain(program: &ProgramNames, what: &str, path: &[u8], error: &Error) {
    program.print_error(&[what.as_bytes(), b" ", path].concat());
    if rustix::termios::isatty(io::stderr()) {
        program.print_error(error.to_string().as_bytes());
    }
}

fn read(
    program: &ProgramNames,
    flags: &Flags,
    operands: &[Vec<u8>],
    store: &mut Transaction<'_>,
    output: &mut Vec<u8>,
) -> bool {
    for path in operands {
        let value = match store.read(path) {
            Ok(value) => value,
            Err(error) => {
                complain(program, "couldn't read path", path, &error);
                return false;
            }
        };
        if flags.prefix {
            output.extend([path, &b": "[..]].concat());
        }
        if flags.raw {
            output.extend(value);
        } else {
            output.extend(escape(&value));
            output.push(b'\n');
        }
    }
    true
}

fn write(
    program: &ProgramNames,
    flags: &Flags,
    operands: &[Vec<u8>],
    store: &mut Transaction<'_>,
) -> bool {
    for pair in operands.chunks(2) {
        let [path, value] = pair else { return false };
        let value = if flags.raw { value.clone() } else { unescape(value) };
        if let Err(error) = store.write(path, value) {
            complain(program, "could not write path", path, &error);
            return false;
        }
    }
    true
}

fn list(
    program: &ProgramNames,
    flags: &Flags,
    operands: &[Vec<u8>],
    store: &mut Transaction<'_>,
    output: &mut Vec<u8>,
) -> bool {
    for path in operands {
        let names = match store.directory(path) {
            Ok(names) => names,
            Err(error) => {
                complain(program, "could not list path", path, &error);
                return false;
            }
        };
        for name in names {
            if flags.prefix {
                output.extend([path, &b"/"[..]].concat());
            }
            output.extend(name);
            output.push(b'\n');
        }
    }
    true
}

fn rm(program: &ProgramNames, path: &[u8], store: &mut Transaction<'_>) -> bool {
    match store.rm(path) {
        Ok(()) => true,
        Err(error) => {
            complain(program, "could not remove path", path, &error);
            false
        }
    }
}

/// Removes a node, then its parents as long as they have neither value nor children.
fn rm_tidy(program: &ProgramNames, path: &[u8], store: &mut Transaction<'_>) -> bool {
    let mut path = path;
    loop {
        if !rm(program, path, store) {
            return false;
        }
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return true };
        path = path.get(..slash).unwrap_or_default();
        let bare = store.read(path).is_ok_and(|value| value.is_empty())
            && store.directory(path).is_ok_and(|names| names.is_empty());
        if !bare {
            return true;
        }
    }
}
