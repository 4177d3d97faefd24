//! A parser of JSON (RFC 8259), for the files that `export` writes and people edit.

use std::fmt;

/// The deepest nesting of arrays and objects.
const DEPTH_MAX: usize = 64;

/// A JSON value. A number is kept as its text: no file of this tool needs its value.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::cli) enum Json {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Returns the member of an object.
    pub(in crate::cli) fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Self::Object(members) => members.iter().find(|(at, _)| at == name).map(|(_, at)| at),
            _ => None,
        }
    }
}

/// A fault in a text, with its line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct ParseError {
    line: usize,
    what: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Parses one value. Text after it is an error.
pub(in crate::cli) fn parse(text: &[u8]) -> Result<Json, ParseError> {
    let mut reader = JsonReader { text, at: 0 };
    let json = reader.value(0)?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.wrong("something follows the end of the JSON value"));
    }
    Ok(json)
}

struct JsonReader<'a> {
    text: &'a [u8],
    at: usize,
}

impl JsonReader<'_> {
    fn wrong(&self, what: &'static str) -> ParseError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        ParseError { line: 1 + before.iter().filter(|byte| **byte == b'\n').count(), what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Skips white space and takes this byte if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.peek() == Some(byte);
        if there {
            self.at += 1;
        }
        there
    }

    fn value(&mut self, depth: usize) -> Result<Json, ParseError> {
        if depth > DEPTH_MAX {
            return Err(self.wrong("nested too deep"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => Ok(self.number()),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Json, ParseError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        for (word, json) in
            [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))]
        {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(json);
            }
        }
        Err(self.wrong("a JSON value is expected here"))
    }

    fn number(&mut self) -> Json {
        let from = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = self.text.get(from..self.at).unwrap_or_default();
        Json::Number(String::from_utf8_lossy(text).into_owned())
    }

    fn array(&mut self, depth: usize) -> Result<Json, ParseError> {
        self.at += 1;
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Ok(Json::Array(items));
            }
            if !self.take(b',') {
                return Err(self.wrong("expected , or ] here"));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, ParseError> {
        self.at += 1;
        let mut members = Vec::new();
        if self.take(b'}') {
            return Ok(Json::Object(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("the name of a member is expected here"));
            }
            let name = self.string()?;
            if !self.take(b':') {
                return Err(self.wrong("expected : here"));
            }
            members.push((name, self.value(depth + 1)?));
            if self.take(b'}') {
                return Ok(Json::Object(members));
            }
            if !self.take(b',') {
                return Err(self.wrong("expected , or } here"));
            }
        }
    }

    fn string(&mut self) -> Result<String, ParseError> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let Some(byte) = self.peek() else { return Err(self.wrong("a string has no end")) };
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let char = self.escape()?;
                    out.extend(char.encode_utf8(&mut [0; 4]).bytes());
                }
                0..0x20 => return Err(self.wrong("a control character in a string")),
                other => out.push(other),
            }
        }
        String::from_utf8(out).map_err(|_| self.wrong("a string is not UTF-8"))
    }

    fn escape(&mut self) -> Result<char, ParseError> {
        let byte = self.peek();
        self.at += 1;
        Ok(match byte {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(char @ (b'"' | b'\\' | b'/')) => char::from(char),
            Some(b'u') => {
                let mut units = vec![self.unit()?];
                let pair = (0xd800..0xdc00).contains(&units[0])
                    && self.text.get(self.at..).is_some_and(|rest| rest.starts_with(b"\\u"));
                if pair {
                    self.at += 2;
                    units.push(self.unit()?);
                }
                match char::decode_utf16(units).next() {
                    Some(Ok(char)) => char,
                    _ => return Err(self.wrong("half a surrogate pair")),
                }
            }
            _ => return Err(self.wrong("an unknown escape in a string")),
        })
    }

    /// Parses four hexadecimal digits.
    fn unit(&mut self) -> Result<u16, ParseError> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        let text = std::str::from_utf8(digits).unwrap_or_default();
        let unit = u16::from_str_radix(text, 16).ok().filter(|_| !text.starts_with('+'));
        self.at += 4;
        unit.ok_or_else(|| self.wrong("four hexadecimal digits are expected here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let json = parse(br#" {"a": [1, -2.5e3, true, null], "b": "\u00e9\ud83d\ude00\/\n"} "#);
        let json = json.unwrap();
        let Some(Json::Array(items)) = json.get("a") else { panic!("{json:?}") };
        assert_eq!((items.len(), &items[2]), (4, &Json::Bool(true)));
        assert_eq!(json.get("b"), Some(&Json::String("é\u{1f600}/\n".into())));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line) in [
            ("", 1),
            ("[1,\n2", 2),
            ("{\"a\" 1}", 1),
            ("\n\n\"abc", 3),
            ("[1] 2", 1),
            (r#""\ud800""#, 1),
            (r#""\u12""#, 1),
            ("nul", 1),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().line, line, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).unwrap_err().what, "nested too deep");
    }
}
