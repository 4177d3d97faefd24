//! Settings, as both syntaxes have them: a key, a value, and the place of each.

use std::fmt;
use std::sync::Arc;

/// The greatest depth of lists in lists.
pub const DEPTH_MAX: u32 = 16;

/// The character that stands in a text for bytes that are no UTF-8; it is in no script.
pub(crate) const NO_TEXT: char = char::MAX;

/// A place in a text, line and column from 1; columns count characters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file, or another source of the text.
    pub file: Arc<str>,
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Place {
    /// Returns the beginning of a text.
    #[must_use]
    pub fn start(file: &str) -> Self {
        Self { file: file.into(), line: 1, column: 1 }
    }

    /// Moves past a character.
    pub(crate) fn pass(&mut self, character: char) {
        if character == '\n' {
            self.line = self.line.saturating_add(1);
            self.column = 1;
        } else {
            self.column = self.column.saturating_add(1);
        }
    }

    /// Returns the place this number of characters further on in the same line.
    #[must_use]
    pub fn right(&self, characters: usize) -> Self {
        let characters = u32::try_from(characters).unwrap_or(u32::MAX);
        let column = self.column.saturating_add(characters);
        Self { file: Arc::clone(&self.file), line: self.line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column } = self;
        write!(f, "{file}:{line}:{column}")
    }
}

/// An error in a configuration, and the text that was expected.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Error {
    /// Its place.
    pub place: Place,
    /// The text that was found there.
    pub found: String,
    /// The text that was expected.
    pub expected: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, found, expected } = self;
        write!(f, "{place}: {found}; expected {expected}")
    }
}

impl std::error::Error for Error {}

/// A warning, which stops no command.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Warning {
    /// Its place.
    pub place: Place,
    /// The text to be told.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, text } = self;
        write!(f, "{place}: {text}")
    }
}

/// A value, and where it begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// Its beginning.
    pub place: Place,
    /// Its content.
    pub kind: ValueKind,
}

/// The kinds of values in both syntaxes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ValueKind {
    /// A string.
    Text(String),
    /// A number: its value, and its form in the file (`0x10`).
    Number(u64, String),
    /// A list.
    List(Vec<Value>),
}

impl Value {
    /// Writes the value as a file has it. The arguments write a string and a number. Lists of more
    /// than one value take several lines.
    pub(super) fn written(
        &self,
        text: fn(&str) -> String,
        number: fn(u64, &str) -> String,
    ) -> String {
        match &self.kind {
            ValueKind::Text(content) => text(content),
            ValueKind::Number(value, as_read) => number(*value, as_read),
            ValueKind::List(list) => {
                let mut items = list.iter().map(|value| value.written(text, number));
                if list.len() < 2 {
                    format!("[{}]", items.next().unwrap_or_default())
                } else {
                    format!(
                        "[\n{}]",
                        items.map(|item| format!("    {item},\n")).collect::<String>()
                    )
                }
            }
        }
    }

    /// Returns the value in a word, for an error.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.kind {
            ValueKind::Text(text) => format!("{:?}", crate::text::short(text)),
            ValueKind::Number(_, written) => written.clone(),
            ValueKind::List(_) => "a list".into(),
        }
    }
}

/// A key with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// Its place.
    pub place: Place,
    /// Its value.
    pub value: Value,
}

/// Parses a number as `xl.cfg` writes it: decimal, octal with a `0` before it, hexadecimal with
/// `0x`.
#[must_use]
pub fn number(written: &str) -> Option<u64> {
    let digits = |text: &str, radix| {
        let plain = text.bytes().all(|byte| char::from(byte).is_digit(radix));
        if plain { u64::from_str_radix(text, radix).ok() } else { None }
    };
    if let Some(hexadecimal) = written.strip_prefix("0x").or_else(|| written.strip_prefix("0X")) {
        digits(hexadecimal, 16)
    } else if written.len() > 1 && written.starts_with('0') {
        digits(written, 8)
    } else {
        digits(written, 10)
    }
}
