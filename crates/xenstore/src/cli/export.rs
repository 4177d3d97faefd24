//! `export`: prints a subtree as JSON, and reads it back.
//!
//! ```json
//! {"xenstore-export": 1, "root": "/local/domain/1", "nodes": [
//! {"path": "", "value": "", "perms": ["n0", "r1"]},
//! {"path": "name", "value": "guest", "perms": ["n0", "r1"]},
//! {"path": "data/blob", "value": {"base64": "/wA="}, "perms": ["n1"]}
//! ]}
//! ```
//!
//! One node a line, parents first; paths are relative to the root.

use super::failure::CommandFailure;
use super::getopt::ParsedArgs;
use super::json::{bytes, node_object, parse, to_bytes, to_perms};
use std::io::{self, BufWriter, Write};
use xenstore::transaction::Retry;
use xenstore::walk::{NodeParts, Options, walk};
use xenstore::{Client, Error, Perm, Store, Transaction, TransactionId};
use xenstore_core::wire;

/// The version of the format.
const VERSION: &str = "1";

/// A node of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ExportedNode {
    /// The path relative to the root of the export, whose own path is empty.
    pub(super) path: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) perms: Vec<Perm>,
}

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
    write!(out, "{{\"xenstore-export\": {VERSION}, \"root\": {}, \"nodes\": [", bytes(path))?;
    for (at, node) in nodes.iter().enumerate() {
        out.write_all(if at == 0 { b"\n" } else { b",\n" })?;
        let object = node_object(&node.path, Some(&node.value), Some(&node.perms));
        out.write_all(object.as_bytes())?;
    }
    out.write_all(b"\n]}\n")?;
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

/// Parses the text of an export and returns its nodes.
pub(super) fn read_back(text: &[u8]) -> Result<Vec<ExportedNode>, String> {
    let json = parse::parse(text).map_err(|wrong| wrong.to_string())?;
    match json.get("xenstore-export") {
        Some(parse::Json::Number(version)) if version == VERSION => {}
        Some(_) => {
            return Err("made by a newer `xenstore export`, which this one cannot read".into());
        }
        None => return Err("not made by `xenstore export`: no member xenstore-export".into()),
    }
    let Some(parse::Json::Array(nodes)) = json.get("nodes") else {
        return Err("no list of nodes".into());
    };
    let node = |(at, json): (usize, &parse::Json)| {
        let field = |name| json.get(name).and_then(to_bytes);
        let perms = json.get("perms").and_then(to_perms).filter(|perms| !perms.is_empty());
        let (Some(path), Some(value), Some(perms)) = (field("path"), field("value"), perms) else {
            return Err(format!("node {} lacks a path, a value or permissions", at + 1));
        };
        if path.starts_with(b"/") || path.contains(&0) {
            return Err(format!("node {}: its path must be relative", at + 1));
        }
        Ok(ExportedNode { path, value, perms })
    };
    nodes.iter().enumerate().map(node).collect()
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
    fn files_that_are_no_export_are_explained() {
        for (text, part) in [
            ("[]", "not made by"),
            ("{\"xenstore-export\": 2}", "newer"),
            ("{\"xenstore-export\": 1}", "no list"),
            ("{\"xenstore-export\": 1, \"nodes\": [{\"path\": \"a\"}]}", "node 1"),
            ("{", "line 1"),
        ] {
            let wrong = read_back(text.as_bytes()).unwrap_err();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }

    #[test]
    fn absolute_paths() {
        for (root, relative, path) in
            [("/a", "", "/a"), ("/a", "b/c", "/a/b/c"), ("/", "b", "/b"), ("/", "", "/")]
        {
            assert_eq!(absolute(root.as_bytes(), relative.as_bytes()), path.as_bytes());
        }
    }
}
