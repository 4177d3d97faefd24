//! `export`: prints a subtree as JSON.

use super::args::ParsedArgs;
use super::export_file::{self, ExportedNode};
use super::failure::CommandFailure;
use std::io::{self, BufWriter, Write};
use xenstore::transaction::Retry;
use xenstore::walk::{NodeParts, Options, walk};
use xenstore::{Client, Error, Store, Transaction, TransactionId};
use xenstore_core::wire;

/// The choice between reads of one state of the store and independent reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Consistency {
    Transaction,
    Loose,
}

/// Prints a subtree.
pub(super) fn run(parsed: &ParsedArgs) -> Result<u8, CommandFailure> {
    let Some(path) = parsed.operands.first() else { return Ok(2) };
    let mut client = Client::open()?;
    let nodes = snapshot(&mut client, consistency(parsed), |tx| subtree(tx, path))?;
    let mut out = BufWriter::new(io::stdout().lock());
    export_file::write(&mut out, path, &nodes)?;
    out.flush()?;
    Ok(0)
}

/// Returns the consistency that the flags select.
pub(super) fn consistency(parsed: &ParsedArgs) -> Consistency {
    if parsed.flags.loose { Consistency::Loose } else { Consistency::Transaction }
}

/// Runs `body` in a transaction that is retried on a conflict, or outside any transaction.
pub(super) fn snapshot<T>(
    client: &mut Client,
    consistency: Consistency,
    mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
) -> Result<T, CommandFailure> {
    let result = match consistency {
        Consistency::Transaction => {
            let retry = Retry { attempts_max: 10, ..Retry::default() };
            client.transaction_retrying(retry, body)
        }
        Consistency::Loose => body(&mut Transaction::within(client, TransactionId::NONE)),
    };
    result.map_err(|error| {
        let conflict = matches!(error, Error::Conflict { .. });
        let fail = CommandFailure::from(error);
        if conflict { fail.advised("--loose reads without a transaction") } else { fail }
    })
}

/// Returns a node and all nodes below it. A node that vanishes meanwhile, outside a transaction, is
/// left out.
pub(super) fn subtree(tx: &mut Transaction<'_>, path: &[u8]) -> Result<Vec<ExportedNode>, Error> {
    let (value, perms) = (tx.read(path)?, tx.get_perms(path)?);
    let mut nodes = vec![ExportedNode { path: Vec::new(), value, perms }];
    let options = Options { tx: tx.id(), parts: NodeParts::ValuesAndPerms, ..Options::default() };
    let skip = path.len() + usize::from(!path.ends_with(b"/"));
    walk(tx.client(), path, options, |node| {
        let (value, perms) = match (node.value, node.perms) {
            (Ok(value), Some(Ok(perms))) => (value, perms),
            (Err(error), _) | (_, Some(Err(error))) => {
                let gone = error.refusal() == Some(wire::Error::NoEnt);
                return if gone { Ok(()) } else { Err(error) };
            }
            (Ok(_), None) => return Ok(()),
        };
        let path = node.path.get(skip..).unwrap_or_default().to_vec();
        nodes.push(ExportedNode { path, value, perms });
        Ok(())
    })?;
    Ok(nodes)
}

/// Returns the path of an exported node below `root`.
pub(super) fn absolute(root: &[u8], relative: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if relative.is_empty() || root.ends_with(b"/") { b"" } else { b"/" };
    [root, slash, relative].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths() {
        for (root, relative, path) in
            [("/a", "", "/a"), ("/a", "b/c", "/a/b/c"), ("/", "b", "/b"), ("/", "", "/")]
        {
            assert_eq!(absolute(root.as_bytes(), relative.as_bytes()), path.as_bytes());
        }
    }
}
