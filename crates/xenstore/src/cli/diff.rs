//! `diff`: compares two subtrees, or a subtree and an export. The exit codes are those of diff(1):
//! 0 for no difference, 1 for a difference, 2 for trouble.

use super::args::ParsedArgs;
use super::export::{consistency, snapshot, subtree};
use super::export_file::ExportedNode;
use super::failure::CommandFailure;
use super::import::read_file;
use super::value::escape;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use xenstore::{Client, Error, Transaction};

/// Prints the differences: `-` for the first operand, `+` for the second.
pub(super) fn run(parsed: &ParsedArgs) -> Result<u8, CommandFailure> {
    compare(parsed).map_err(|fail| if fail.code == 1 { fail.code(2) } else { fail })
}

fn compare(parsed: &ParsedArgs) -> Result<u8, CommandFailure> {
    let [left, right] = &parsed.operands[..] else { return Ok(2) };
    let file = if is_file(right) { Some(read_file(Some(right))?) } else { None };
    let mut client = Client::open()?;
    let (left, right) = snapshot(&mut client, consistency(parsed), |tx| {
        let left = subtree(tx, left)?;
        Ok((left, other(tx, right, file.as_deref())?))
    })?;
    let lines = differences(left, right);
    let mut out = BufWriter::new(io::stdout().lock());
    for line in &lines {
        out.write_all(line)?;
    }
    out.flush()?;
    Ok(if lines.is_empty() { 0 } else { 1 })
}

/// True if the operand is an export: `-` or the name of an existing file. Anything else is a path
/// of the store.
fn is_file(operand: &[u8]) -> bool {
    operand == b"-" || Path::new(OsStr::from_bytes(operand)).is_file()
}

fn other(
    tx: &mut Transaction<'_>,
    path: &[u8],
    file: Option<&[ExportedNode]>,
) -> Result<Vec<ExportedNode>, Error> {
    match file {
        Some(nodes) => Ok(nodes.to_vec()),
        None => subtree(tx, path),
    }
}

/// Returns the lines of the output in the order of the tree, a parent before its children.
fn differences(left: Vec<ExportedNode>, right: Vec<ExportedNode>) -> Vec<Vec<u8>> {
    let mut both: BTreeMap<Vec<Vec<u8>>, [Option<ExportedNode>; 2]> = BTreeMap::new();
    for (side, nodes) in [left, right].into_iter().enumerate() {
        for node in nodes {
            let parts = node.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
            if let Some(place) = both.entry(parts).or_default().get_mut(side) {
                *place = Some(node);
            }
        }
    }
    let mut lines = Vec::new();
    for [left, right] in both.into_values().filter(|[left, right]| left != right) {
        lines.extend(left.iter().map(|node| line(b"- ", node)));
        lines.extend(right.iter().map(|node| line(b"+ ", node)));
    }
    lines
}

fn line(sign: &[u8], node: &ExportedNode) -> Vec<u8> {
    let path: &[u8] = if node.path.is_empty() { b"." } else { &node.path };
    let perms: Vec<String> = node.perms.iter().map(ToString::to_string).collect();
    let perms = format!("\"  ({})\n", perms.join(","));
    [sign, path, b" = \"", &escape(&node.value), perms.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::Perm;

    fn node(path: &str, value: &str, perm: &str) -> ExportedNode {
        let perms = vec![Perm::parse(perm.as_bytes()).unwrap()];
        ExportedNode { path: path.into(), value: value.into(), perms }
    }

    #[test]
    fn lines_in_the_order_of_the_tree() {
        let left = vec![node("", "", "n0"), node("a", "1", "n0"), node("a/b", "", "n0")];
        let right = vec![node("", "", "n0"), node("a", "2", "n0"), node("a-b", "", "n0")];
        let text = differences(left, right).concat();
        let expected =
            "- a = \"1\"  (n0)\n+ a = \"2\"  (n0)\n- a/b = \"\"  (n0)\n+ a-b = \"\"  (n0)\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn permissions_differ_too() {
        let lines = differences(vec![node("", "", "n0")], vec![node("", "", "r0")]);
        assert_eq!(lines.concat(), b"- . = \"\"  (n0)\n+ . = \"\"  (r0)\n");
    }
}
