//! `ls`: Debian's text, or a JSON object a line.

use super::args::Flags;
use super::failure::CommandFailure;
use super::json;
use super::program::ProgramNames;
use super::value::escape;
use std::io::{self, BufWriter, Write};
use xenstore::error::describe;
use xenstore::walk::{Node, NodeParts, Options, walk};
use xenstore::{Client, Error, MsgType};

/// The length of the marker that replaces the end of a cut value, with the three characters before
/// it.
const CUT: usize = b" = \"...\"".len();

/// The widths of a line, as Debian's program counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    /// The most columns. It is negative on a terminal that reports none: nothing is cut then.
    max: i32,
    /// The column at which permissions begin.
    desired: i32,
}

/// Returns the width for these flags and this terminal.
pub(super) fn width(flags: &Flags) -> Width {
    let mut width = if flags.flat {
        Width { max: i32::MAX / 2, desired: 0 }
    } else {
        Width { max: 80, desired: 60 }
    };
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) {
        width.max = i32::from(size.ws_col) - 2;
    }
    width
}

/// Prints the subtrees of the operands, or the root's if there are none.
pub(super) fn run(
    program: &ProgramNames,
    client: &mut Client,
    flags: &Flags,
    width: Width,
    operands: &[Vec<u8>],
) -> Result<u8, CommandFailure> {
    let root = [b"/".to_vec()];
    let parts =
        if flags.prefix || flags.json { NodeParts::ValuesAndPerms } else { NodeParts::Values };
    let options = Options { parts, ..Options::default() };
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    for path in if operands.is_empty() { &root[..] } else { operands } {
        let result = walk(client, path, options, |node| {
            if flags.json {
                json::node_line(&mut out, &node)?;
            } else {
                text_line(&mut out, program, flags, width, &node)?;
            }
            Ok::<(), WalkError>(())
        });
        match result {
            Ok(()) => {}
            Err(WalkError::Output(error)) => return Err(error.into()),
            Err(WalkError::Store(error)) => {
                out.flush()?;
                return Err(listing_failed(path, &error));
            }
        }
    }
    out.flush()?;
    Ok(0)
}

/// The error that ends a walk.
enum WalkError {
    Output(io::Error),
    Store(Error),
}

impl From<Error> for WalkError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for WalkError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn listing_failed(root: &[u8], error: &Error) -> CommandFailure {
    let path = match error {
        Error::Refused {
            request: MsgType::Directory | MsgType::DirectoryPart, subject, ..
        } => subject,
        _ => root,
    };
    CommandFailure::with_errno([b"xs_directory (", path, b")"].concat(), error)
}

fn text_line(
    out: &mut impl Write,
    program: &ProgramNames,
    flags: &Flags,
    width: Width,
    node: &Node,
) -> io::Result<()> {
    let mut column = 0;
    if flags.flat {
        out.write_all(&node.path)?;
    } else {
        for _ in 0..node.depth {
            out.write_all(b" ")?;
        }
        let name = cut(node.name(), width, node.depth);
        out.write_all(name)?;
        column = node.depth + name.len();
    }
    match &node.value {
        Err(_) => out.write_all(b":\n")?,
        Ok(value) => {
            let text = escape(value);
            if fits(width, column + value.len()) {
                out.write_all(b" = \"")?;
                out.write_all(&text)?;
                out.write_all(b"\"")?;
                if flags.prefix {
                    pad(out, width, column + text.len() + b" = \"\"".len())?;
                }
            } else {
                out.write_all(b" = \"")?;
                out.write_all(cut(&text, width, column))?;
                out.write_all(b"\\...\"")?;
            }
        }
    }
    match &node.perms {
        Some(Ok(perms)) => {
            let perms: Vec<String> = perms.iter().map(ToString::to_string).collect();
            write!(out, "  ({})", perms.join(","))?;
        }
        Some(Err(error)) => {
            let what = b"\ncould not access permissions for ";
            let errno = describe(error.errno());
            program.print_error(&[what, node.name(), b": ", errno.as_bytes()].concat());
        }
        None => {}
    }
    out.write_all(b"\n")
}

/// True if a line that ends at `end`, without quotes and brackets, need not be cut. Debian's
/// program compares unsigned numbers: a negative width is enough for everything.
fn fits(width: Width, end: usize) -> bool {
    match usize::try_from(width.max) {
        Ok(max) => max >= end + CUT,
        Err(_) => true,
    }
}

/// Returns the beginning of `text` that fits after `column`. Returns all of it if nothing would
/// fit: printf(3) ignores a negative precision.
fn cut(text: &[u8], width: Width, column: usize) -> &[u8] {
    let room = usize::try_from(width.max).ok().and_then(|max| max.checked_sub(CUT + column));
    text.get(..room.unwrap_or(text.len())).unwrap_or(text)
}

/// Writes dots up to the column at which the permissions begin.
fn pad(out: &mut impl Write, width: Width, column: usize) -> io::Result<()> {
    let end = usize::try_from(width.desired.min(width.max)).unwrap_or(0);
    out.write_all(b" ")?;
    for column in column + 1..end {
        out.write_all(if column % 2 == 1 { b"." } else { b" " })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut() {
        let width = Width { max: 20, desired: 60 };
        assert_eq!(cut(b"0123456789abcdef", width, 2), b"0123456789");
        assert_eq!(cut(b"0123456789abcdef", width, 13), b"0123456789abcdef");
        assert!(fits(width, 12) && !fits(width, 13));
        let none = Width { max: -2, desired: 60 };
        assert!(fits(none, 5000));
        assert_eq!(cut(b"abc", none, 0), b"abc");
    }
}
