//! Writes and reads the JSON of this tool.
//!
//! Bytes (values, paths, tokens) are a string if they are UTF-8, and otherwise `{"base64": "…"}`. A
//! node is an object with `path`, `value`, and `perms`, a list such as `["n0", "r5"]`. A value or
//! permissions that could not be read are null.

use parse::Json;
use std::io::{self, Write};
use xenstore::walk::Node;
use xenstore::{Event, Perm};

pub(super) mod parse;

/// Writes one line of `ls --json`.
pub(super) fn node_line(out: &mut impl Write, node: &Node) -> io::Result<()> {
    let perms = node.perms.as_ref().and_then(|perms| perms.as_ref().ok());
    let value = node.value.as_ref().ok();
    let line = node_object(&node.path, value.map(Vec::as_slice), perms.map(Vec::as_slice));
    writeln!(out, "{line}")
}

/// Writes one line of `watch --json`.
pub(super) fn event_line(out: &mut impl Write, event: &Event) -> io::Result<()> {
    writeln!(out, "{{\"path\": {}, \"watch\": {}}}", bytes(&event.path), bytes(&event.token))
}

/// Returns a node as an object.
pub(super) fn node_object(path: &[u8], value: Option<&[u8]>, perms: Option<&[Perm]>) -> String {
    let value = value.map_or("null".into(), bytes);
    let perms = perms.map_or("null".into(), |perms| {
        let perms: Vec<String> = perms.iter().map(|perm| format!("\"{perm}\"")).collect();
        format!("[{}]", perms.join(", "))
    });
    format!("{{\"path\": {}, \"value\": {value}, \"perms\": {perms}}}", bytes(path))
}

/// Returns the bytes as a JSON string, or as base64.
pub(super) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => string(text),
        Err(_) => format!("{{\"base64\": \"{}\"}}", base64(bytes)),
    }
}

fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0'..' ' | '\x7f' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            _ => out.push(char),
        }
    }
    out.push('"');
    out
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let digit = word >> (18 - 6 * at) & 63;
            out.push(if at <= chunk.len() { char::from(DIGITS[digit as usize]) } else { '=' });
        }
    }
    out
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0u32, 0);
    for digit in digits.bytes() {
        let value = DIGITS.iter().position(|known| *known == digit)?;
        word = (word << 6 | u32::try_from(value).ok()?) & 0xfff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    Some(out)
}

/// Returns the bytes that [`bytes`] wrote.
pub(super) fn to_bytes(json: &Json) -> Option<Vec<u8>> {
    match json {
        Json::String(text) => Some(text.clone().into_bytes()),
        Json::Object(_) => match json.get("base64")? {
            Json::String(text) => from_base64(text),
            _ => None,
        },
        _ => None,
    }
}

/// Returns the permissions that [`node_object`] wrote.
pub(super) fn to_perms(json: &Json) -> Option<Vec<Perm>> {
    let Json::Array(entries) = json else { return None };
    let perm = |entry: &Json| match entry {
        Json::String(text) => Perm::parse(text.as_bytes()),
        _ => None,
    };
    entries.iter().map(perm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_string_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let ascii: Vec<u8> = (0..128).collect();
        for value in [&all[..], &ascii, b"", b"\xff", b"\xff\xfe", "é\u{1f600}".as_bytes()] {
            let json = parse::parse(bytes(value).as_bytes()).unwrap();
            assert_eq!(to_bytes(&json).unwrap(), value);
        }
    }

    #[test]
    fn base64_of_rfc_4648() {
        for (text, coded) in [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(text.as_bytes()), coded);
            assert_eq!(from_base64(coded).unwrap(), text.as_bytes());
        }
        for wrong in ["Zg", "Z===", "Zm9v!"] {
            assert_eq!(from_base64(wrong), None);
        }
    }

    #[test]
    fn a_node() {
        let perms = [Perm::parse(b"n0").unwrap(), Perm::parse(b"r5").unwrap()];
        let line = node_object(b"/a", Some(b"x\"\n"), Some(&perms));
        assert_eq!(line, r#"{"path": "/a", "value": "x\"\n", "perms": ["n0", "r5"]}"#);
    }
}
