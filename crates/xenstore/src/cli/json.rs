//! Writes and reads the JSON of this tool.
//!
//! Bytes (values, paths, tokens) are a string if they are UTF-8, and otherwise `{"base64": "…"}`. A
//! node is an object with `path`, `value`, and `perms`, a list such as `["n0", "r5"]`. A value or
//! permissions that could not be read are null.

use serde_core::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_core::ser::{Serialize, SerializeMap, Serializer};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};
use std::fmt;
use std::io::{self, Write};
use xenstore::walk::Node;
use xenstore::{Event, Perm};

/// Writes a value of JSON.
pub(super) fn write(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(out, SpacedFormatter);
    Ok(value.serialize(&mut serializer)?)
}

/// Writes one line of `ls --json`.
pub(super) fn node_line(out: &mut impl Write, node: &Node) -> io::Result<()> {
    let perms = node.perms.as_ref().and_then(|perms| perms.as_ref().ok());
    let value = node.value.as_ref().ok();
    write(
        out,
        &JsonNode {
            path: &node.path,
            value: value.map(Vec::as_slice),
            perms: perms.map(Vec::as_slice),
        },
    )?;
    out.write_all(b"\n")
}

/// Writes one line of `watch --json`.
pub(super) fn event_line(out: &mut impl Write, event: &Event) -> io::Result<()> {
    write(out, &JsonEvent(event))?;
    out.write_all(b"\n")
}

/// The layout of this tool's JSON: on one line, with a space after each comma and colon, and DEL
/// escaped as other control characters are.
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for (at, part) in fragment.split('\x7f').enumerate() {
            out.write_all(if at == 0 { b"" } else { b"\\u007f" })?;
            out.write_all(part.as_bytes())?;
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let escape = match escape {
            CharEscape::Backspace => CharEscape::AsciiControl(0x08),
            CharEscape::FormFeed => CharEscape::AsciiControl(0x0c),
            other => other,
        };
        CompactFormatter.write_char_escape(out, escape)
    }
}

/// Bytes as a JSON string, or as base64.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct JsonBytes<T>(pub(super) T);

impl Serialize for JsonBytes<&[u8]> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut object = serializer.serialize_map(Some(1))?;
                object.serialize_entry("base64", &base64(self.0))?;
                object.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for JsonBytes<Vec<u8>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BytesVisitor).map(Self)
    }
}

/// Reads what [`JsonBytes`] wrote.
struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with base64")
    }

    fn visit_str<E>(self, text: &str) -> Result<Vec<u8>, E> {
        Ok(text.as_bytes().to_vec())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Vec<u8>, A::Error> {
        let mut coded: Option<String> = None;
        while let Some(name) = object.next_key::<String>()? {
            match name.as_str() {
                "base64" => read_member(&mut coded, "base64", &mut object)?,
                _ => skip_member(&mut object)?,
            }
        }
        let bytes = coded.and_then(|coded| from_base64(&coded));
        bytes.ok_or_else(|| A::Error::custom("an object without valid base64"))
    }
}

/// Reads the value of an object's member. A second value of the same member is an error.
pub(super) fn read_member<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    place: &mut Option<T>,
    name: &str,
    object: &mut A,
) -> Result<(), A::Error> {
    if place.is_some() {
        return Err(A::Error::custom(format!("the member {name} appears twice in an object")));
    }
    *place = Some(object.next_value()?);
    Ok(())
}

/// Skips the value of an object's member. Neither its depth nor its length takes stack.
pub(super) fn skip_member<'de, A: MapAccess<'de>>(object: &mut A) -> Result<(), A::Error> {
    object.next_value::<IgnoredAny>().map(drop)
}

/// Permissions as a list of strings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct JsonPerms<T>(pub(super) T);

impl Serialize for JsonPerms<&[Perm]> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

impl<'de> Deserialize<'de> for JsonPerms<Vec<Perm>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let perms = texts.iter().map(|text| {
            let wrong = || D::Error::custom(format!("{text:?} is no permission such as r5"));
            Perm::parse(text.as_bytes()).ok_or_else(wrong)
        });
        perms.collect::<Result<_, _>>().map(Self)
    }
}

/// A node as an object.
#[derive(Debug)]
pub(super) struct JsonNode<'a> {
    pub(super) path: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    pub(super) perms: Option<&'a [Perm]>,
}

impl Serialize for JsonNode<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(3))?;
        object.serialize_entry("path", &JsonBytes(self.path))?;
        object.serialize_entry("value", &self.value.map(JsonBytes))?;
        object.serialize_entry("perms", &self.perms.map(JsonPerms))?;
        object.end()
    }
}

/// A watch event as an object.
struct JsonEvent<'a>(&'a Event);

impl Serialize for JsonEvent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(2))?;
        object.serialize_entry("path", &JsonBytes(&self.0.path[..]))?;
        object.serialize_entry("watch", &JsonBytes(&self.0.token[..]))?;
        object.end()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &impl Serialize) -> String {
        let mut out = Vec::new();
        write(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_string_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let ascii: Vec<u8> = (0..128).collect();
        for value in [&all[..], &ascii, b"", b"\xff", b"\xff\xfe", "é\u{1f600}".as_bytes()] {
            let json = text(&JsonBytes(value));
            let JsonBytes::<Vec<u8>>(back) = serde_json::from_str(&json).unwrap();
            assert_eq!(back, value);
        }
    }

    #[test]
    fn escapes_are_read() {
        let json = r#" "\u00e9\ud83d\ude00\/\n" "#;
        let JsonBytes::<Vec<u8>>(bytes) = serde_json::from_str(json).unwrap();
        assert_eq!(bytes, "é\u{1f600}/\n".as_bytes());
    }

    #[test]
    fn control_characters_are_escaped() {
        let ascii: Vec<u8> = (0..128).collect();
        let expected = concat!(
            r#""\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\u0008\t\n\u000b\u000c\r\u000e\u000f"#,
            r#"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f"#,
            r##" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"##,
            r#"abcdefghijklmnopqrstuvwxyz{|}~\u007f""#
        );
        assert_eq!(text(&JsonBytes(&ascii[..])), expected);
        assert_eq!(text(&JsonBytes(&b"\x7fa\x7f\x7f"[..])), r#""\u007fa\u007f\u007f""#);
        assert_eq!(text(&JsonBytes(&b"/\xff\0"[..])), r#"{"base64": "L/8A"}"#);
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
        let node = |value, perms| text(&JsonNode { path: b"/a", value, perms });
        let line = node(Some(b"x\"\n"), Some(&perms));
        assert_eq!(line, r#"{"path": "/a", "value": "x\"\n", "perms": ["n0", "r5"]}"#);
        assert_eq!(node(None, None), r#"{"path": "/a", "value": null, "perms": null}"#);
        assert_eq!(node(Some(b""), Some(&[])), r#"{"path": "/a", "value": "", "perms": []}"#);
    }

    #[test]
    fn an_event() {
        let event = Event { path: b"/a\x08".to_vec(), token: b"\xff".to_vec() };
        let mut line = Vec::new();
        event_line(&mut line, &event).unwrap();
        let expected = "{\"path\": \"/a\\u0008\", \"watch\": {\"base64\": \"/w==\"}}\n";
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
}
