//! `chmod`, with the peculiarities of Debian's program.

use super::args::{Flags, atoi};
use super::failure::CommandFailure;
use xenstore::{NodeAccess, Perm, Store, Transaction};

/// The size in bytes of the buffer in which Debian's program builds paths for `-r`. A longer path
/// is cut.
const RECURSE_PATH_MAX: usize = 255;

/// Sets the permissions of the node that the first operand names to the remaining operands.
pub(super) fn run(
    flags: &Flags,
    operands: &[Vec<u8>],
    store: &mut Transaction<'_>,
) -> Result<(), CommandFailure> {
    let Some((path, modes)) = operands.split_first() else { return Ok(()) };
    let perms =
        modes.iter().map(|mode| perm(mode)).collect::<Result<Vec<Perm>, CommandFailure>>()?;
    set(path, &perms, store)?;
    if flags.upto {
        set_parents(path, &perms, store)?;
    }
    if flags.recurse && !path.is_empty() {
        set_below(path, &perms, store)?;
    }
    Ok(())
}

fn perm(mode: &[u8]) -> Result<Perm, CommandFailure> {
    let letter = mode.first().copied().unwrap_or(0);
    match NodeAccess::from_letter(letter) {
        Some(access) => Ok(Perm { access, domid: atoi(mode.get(1..).unwrap_or_default()) }),
        None => Err(CommandFailure::with_message(
            [b"Invalid permission specification: '", &[letter][..], b"'"].concat(),
        )
        .advised("a permission is n, r, w or b and a domid, such as r5; the first is the owner's")),
    }
}

fn set(path: &[u8], perms: &[Perm], store: &mut Transaction<'_>) -> Result<(), CommandFailure> {
    if path.is_empty() {
        return Ok(());
    }
    store.set_perms(path, perms).map_err(|error| {
        let message = [b"Error occurred setting permissions on '", path, b"'"].concat();
        CommandFailure::with_errno(message, &error)
    })
}

/// Sets the permissions of all parents of `path`, except the root.
fn set_parents(
    path: &[u8],
    perms: &[Perm],
    store: &mut Transaction<'_>,
) -> Result<(), CommandFailure> {
    let mut path = path;
    while !path.is_empty() {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else {
            let message = [b"Unable to locate path separator '/' in '", path, b"'"].concat();
            return Err(CommandFailure::with_message(message));
        };
        path = path.get(..slash).unwrap_or_default();
        set(path, perms, store)?;
    }
    Ok(())
}

/// Sets the permissions of all nodes below `path`. The children of a node that cannot be listed are
/// left out.
fn set_below(
    path: &[u8],
    perms: &[Perm],
    store: &mut Transaction<'_>,
) -> Result<(), CommandFailure> {
    let mut todo = vec![path.to_vec()];
    while let Some(parent) = todo.pop() {
        if parent != path {
            set(&parent, perms, store)?;
        }
        for name in store.directory(&parent).unwrap_or_default().iter().rev() {
            let mut child = [&parent[..], b"/", name].concat();
            child.truncate(RECURSE_PATH_MAX);
            todo.push(child);
        }
    }
    Ok(())
}
