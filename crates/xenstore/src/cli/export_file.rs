//! The file that `export` prints, and that `import` and `diff` read.
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
//!
//! People edit these files. A second value of a member that is used is an error, as it would be
//! unclear which one counts. A member that is not used is skipped. The depth of the text is bounded:
//! used members have a fixed depth, except for the version, where serde_json's limit of 128 levels
//! applies. Skipping takes no stack.

use super::json::{self, JsonBytes, JsonNode, JsonPerms, read_member, skip_member};
use serde_core::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::fmt;
use std::io::{self, Write};
use xenstore::Perm;

/// The version of the format.
const VERSION: u64 = 1;

/// A node of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ExportedNode {
    /// The path relative to the root of the export, whose own path is empty.
    pub(super) path: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) perms: Vec<Perm>,
}

/// Writes an export of the nodes below `root`.
pub(super) fn write(out: &mut impl Write, root: &[u8], nodes: &[ExportedNode]) -> io::Result<()> {
    write!(out, "{{\"xenstore-export\": {VERSION}, \"root\": ")?;
    json::write(out, &JsonBytes(root))?;
    out.write_all(b", \"nodes\": [")?;
    for (at, node) in nodes.iter().enumerate() {
        out.write_all(if at == 0 { b"\n" } else { b",\n" })?;
        let (value, perms) = (Some(&node.value[..]), Some(&node.perms[..]));
        json::write(out, &JsonNode { path: &node.path, value, perms })?;
    }
    out.write_all(b"\n]}\n")
}

/// Parses the text of an export and returns its nodes.
pub(super) fn parse(text: &[u8]) -> Result<Vec<ExportedNode>, String> {
    let ExportMembers(nodes) = serde_json::from_slice(text).map_err(|wrong| wrong.to_string())?;
    nodes.into_iter().enumerate().map(|(at, node)| node.check(at + 1)).collect()
}

/// The members of an export.
struct ExportMembers(Vec<NodeMembers>);

impl<'de> Deserialize<'de> for ExportMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ExportVisitor)
    }
}

/// Reads an export, and ends at a version that is not [`VERSION`].
struct ExportVisitor;

impl<'de> Visitor<'de> for ExportVisitor {
    type Value = ExportMembers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an export (this is not made by `xenstore export`)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<ExportMembers, A::Error> {
        let wrong = A::Error::custom;
        let mut version: Option<serde_json::Value> = None;
        let mut nodes = None;
        while let Some(name) = object.next_key::<String>()? {
            match name.as_str() {
                "xenstore-export" => {
                    read_member(&mut version, "xenstore-export", &mut object)?;
                    if version.as_ref().and_then(serde_json::Value::as_u64) != Some(VERSION) {
                        return Err(wrong("an unknown version, made by a newer `xenstore export`"));
                    }
                }
                "nodes" => read_member(&mut nodes, "nodes", &mut object)?,
                _ => skip_member(&mut object)?,
            }
        }
        if version.is_none() {
            return Err(wrong("not made by `xenstore export`: no member xenstore-export"));
        }
        nodes.map(ExportMembers).ok_or_else(|| wrong("no list of nodes"))
    }
}

/// The members of a node in an export.
struct NodeMembers {
    path: Option<JsonBytes<Vec<u8>>>,
    value: Option<JsonBytes<Vec<u8>>>,
    perms: Option<JsonPerms<Vec<Perm>>>,
}

impl NodeMembers {
    /// Returns the node, which is at this place of the list, if it is complete.
    fn check(self, place: usize) -> Result<ExportedNode, String> {
        let perms = self.perms.filter(|JsonPerms(perms)| !perms.is_empty());
        let (Some(JsonBytes(path)), Some(JsonBytes(value)), Some(JsonPerms(perms))) =
            (self.path, self.value, perms)
        else {
            return Err(format!("node {place} lacks a path, a value or permissions"));
        };
        if path.starts_with(b"/") || path.contains(&0) {
            return Err(format!("node {place}: its path must be relative"));
        }
        Ok(ExportedNode { path, value, perms })
    }
}

impl<'de> Deserialize<'de> for NodeMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NodeVisitor)
    }
}

/// Reads a node.
struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = NodeMembers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with path, value and perms")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<NodeMembers, A::Error> {
        let mut node = NodeMembers { path: None, value: None, perms: None };
        while let Some(name) = object.next_key::<String>()? {
            match name.as_str() {
                "path" => read_member(&mut node.path, "path", &mut object)?,
                "value" => read_member(&mut node.value, "value", &mut object)?,
                "perms" => read_member(&mut node.perms, "perms", &mut object)?,
                _ => skip_member(&mut object)?,
            }
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"{"path": "a", "value": {"base64": "/wA="}, "perms": ["n0", "r5"]}"#;

    fn export(nodes: &str) -> String {
        format!("{{\"xenstore-export\": 1, \"root\": \"/\", \"nodes\": [\n{nodes}\n]}}\n")
    }

    fn fault(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn an_export_comes_back_byte_for_byte() {
        let text = export(&format!("{NODE},\n{}", NODE.replace("\"a\"", "\"a/b\"")));
        let nodes = parse(text.as_bytes()).unwrap();
        assert_eq!(
            (nodes.len(), &nodes[0].path[..], &nodes[0].value[..]),
            (2, &b"a"[..], &b"\xff\0"[..])
        );
        let mut out = Vec::new();
        write(&mut out, b"/", &nodes).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn files_that_are_no_export_are_explained() {
        for (text, part) in [
            ("[]", "not made by"),
            ("{}", "not made by"),
            ("{\"xenstore-export\": 2}", "newer"),
            ("{\"xenstore-export\": 2, \"nodes\": 5}", "newer"),
            ("{\"xenstore-export\": null}", "newer"),
            ("{\"xenstore-export\": 1}", "no list"),
            ("{\"xenstore-export\": 1, \"nodes\": [{\"path\": \"a\"}]}", "node 1"),
            ("{\"xenstore-export\": 1, \"nodes\": 5}", "expected a sequence at line 1 column 33"),
            ("{", "line 1"),
            (&export(&NODE.replace("\"a\"", "\"/a\"")), "node 1: its path must be relative"),
            (&export(&NODE.replace("[\"n0\", \"r5\"]", "[]")), "node 1 lacks"),
            (&export(&NODE.replace("r5", "x5")), "\"x5\" is no permission such as r5 at line 2"),
            (&export(&NODE.replace("/wA=", "/wA")), "without valid base64 at line 2"),
        ] {
            let wrong = fault(text);
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }

    #[test]
    fn faults_of_the_syntax_have_their_line() {
        for (text, line) in [
            ("", 1),
            ("{\"a\": [1,\n2", 2),
            ("{\"a\" 1}", 1),
            ("{\n\n\"abc", 3),
            ("{\"xenstore-export\": 1, \"nodes\": []} 2", 1),
            (r#"{"\ud800": 1}"#, 1),
            (r#"{"\u12": 1}"#, 1),
            ("nul", 1),
        ] {
            let wrong = fault(text);
            assert!(wrong.contains(&format!(" at line {line} column ")), "{text}: {wrong}");
        }
    }

    #[test]
    fn a_member_that_appears_twice_is_refused() {
        let twice = |name: &str, text: &str| {
            let wrong = fault(text);
            let expected = format!("the member {name} appears twice in an object at line ");
            assert!(wrong.starts_with(&expected), "{text}: {wrong}");
        };
        for name in ["path", "value", "perms"] {
            let member = format!("\"{name}\": ");
            let value = if name == "perms" { "[]" } else { "\"\"" };
            twice(name, &export(&NODE.replacen('{', &format!("{{{member}{value}, "), 1)));
        }
        twice("base64", &export(&NODE.replace("{\"base64\"", "{\"base64\": \"\", \"base64\"")));
        twice("nodes", &export(NODE).replace("\"root\"", "\"nodes\": [], \"root\""));
        twice(
            "xenstore-export",
            &export(NODE).replace("\"root\"", "\"xenstore-export\": 1, \"root\""),
        );
        let unused = "\"root\": [1, -2.5e3, true, null], \"root\"";
        let unused = export(NODE).replace("\"root\"", unused);
        assert_eq!(parse(unused.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn depth_takes_no_stack() {
        const DEPTH: usize = 1_000_000;
        let (open, close) = ("[".repeat(DEPTH), "]".repeat(DEPTH));
        let deep = format!("{open}{close}");
        fault(&open);
        fault(&export(&open));
        fault(&export(&NODE.replace("\"a\"", &deep)));
        let version = export(NODE).replace(": 1,", &format!(": {deep},"));
        assert!(fault(&version).contains("recursion limit exceeded at line 1"));
        let unused = export(NODE).replace("\"/\"", &deep);
        assert_eq!(parse(unused.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn every_truncated_file_is_refused() {
        let text = export(NODE);
        for len in 0..text.trim_end().len() {
            let wrong = fault(&text[..len]);
            assert!(wrong.starts_with("EOF while parsing"), "{len}: {wrong}");
            assert!(wrong.contains(" at line "), "{len}: {wrong}");
        }
    }
}
