//! The syntax of `xl.cfg(5)`: `KEY=VALUE` and `KEY+=VALUE`, one a line or with `;` between them; strings in either
//! quote, numbers, lists over several lines, comments from `#`.
//!
//! Strings know `\" \' \\ \a \b \f \n \r \t \v`, `\x41` and `\101`; octal escapes are octal.

use super::{DEPTH_MAX, Error, NO_TEXT, Place, Setting, Value, ValueKind, number};
use std::collections::HashMap;

/// A token; strings without their quotes and escapes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Key(String),
    Number(String),
    Text(String),
    Add,
    Sign(char),
    Newline,
    End,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Key(word) => format!("the word {word}"),
            Self::Number(digits) => format!("the number {digits}"),
            Self::Text(text) => format!("the string {:?}", crate::text::short(text)),
            Self::Add => "+=".into(),
            Self::Sign(sign) => format!("{sign:?}"),
            Self::Newline => "the end of the line".into(),
            Self::End => "the end of the file".into(),
        }
    }
}

struct ConfigParser<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    place: Place,
    token: Token,
    /// The place of the token's beginning.
    at: Place,
}

/// Parses the settings in a text, in order; `+=` adds to the earlier value.
///
/// # Errors
/// [`Error`] at the first that cannot be parsed.
pub fn parse(file: &str, text: &str) -> Result<Vec<Setting>, Error> {
    parse_after(Vec::new(), file, text)
}

/// Parses a text as [`parse`] does, but behind `settings`: what it sets again replaces their
/// values, and what it adds is added to them.
///
/// # Errors
/// As [`parse`].
pub fn parse_after(
    mut settings: Vec<Setting>,
    file: &str,
    text: &str,
) -> Result<Vec<Setting>, Error> {
    let (place, token) = (Place::start(file), Token::End);
    let at = place.clone();
    let mut parser = ConfigParser { rest: text.chars().peekable(), place, token, at };
    let mut known = settings.iter().map(|setting| setting.key.clone()).zip(0..).collect();
    parser.step()?;
    loop {
        match parser.token.clone() {
            Token::End => return Ok(settings),
            Token::Newline | Token::Sign(';') => parser.step()?,
            Token::Key(key) => {
                let place = parser.at.clone();
                parser.step()?;
                let assignment = match parser.token {
                    Token::Sign('=') => Assignment::Set,
                    Token::Add => Assignment::Add,
                    _ => return Err(parser.wrong("= or += after a key")),
                };
                parser.step()?;
                let value = parser.value(0)?;
                if !matches!(parser.token, Token::Newline | Token::End | Token::Sign(';')) {
                    return Err(parser.wrong("the end of the line, or ;"));
                }
                let setting = Setting { key, place: place.clone(), value };
                store(&mut settings, &mut known, setting, assignment)
                    .map_err(|expected| error(&place, "+= with values of two kinds", expected))?;
            }
            _ => return Err(parser.wrong("KEY=VALUE, the key in small letters")),
        }
    }
}

/// The operation of a line on the key's earlier value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Assignment {
    /// `=`.
    Set,
    /// `+=`.
    Add,
}

/// Stores a setting: the last one of a key counts, `+=` adds to the one before.
fn store(
    settings: &mut Vec<Setting>,
    known: &mut HashMap<String, usize>,
    new: Setting,
    assignment: Assignment,
) -> Result<(), &'static str> {
    let place = *known.entry(new.key.clone()).or_insert(settings.len());
    let Some(old) = settings.get_mut(place) else {
        settings.push(new);
        return Ok(());
    };
    if assignment == Assignment::Set {
        *old = new;
        return Ok(());
    }
    match (&mut old.value.kind, new.value.kind) {
        (ValueKind::List(list), ValueKind::List(more)) => list.extend(more),
        (ValueKind::Text(text), ValueKind::Text(more)) => text.push_str(&more),
        _ => return Err("two lists or two strings"),
    }
    Ok(())
}

fn error(place: &Place, found: impl Into<String>, expected: &str) -> Error {
    Error { place: place.clone(), found: found.into(), expected: expected.into() }
}

impl ConfigParser<'_> {
    fn wrong(&self, expected: &str) -> Error {
        error(&self.at, self.token.shown(), expected)
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        self.place.pass(next);
        Some(next)
    }

    /// Reads the characters of a word.
    fn word(&mut self, first: char, more: impl Fn(char) -> bool) -> String {
        let mut word = String::from(first);
        while let Some(next) = self.rest.peek().copied().filter(|next| more(*next)) {
            word.push(next);
            self.next();
        }
        word
    }

    /// Reads the next token.
    fn step(&mut self) -> Result<(), Error> {
        loop {
            self.at = self.place.clone();
            let Some(next) = self.next() else {
                self.token = Token::End;
                return Ok(());
            };
            self.token = match next {
                ' ' | '\t' | '\r' => continue,
                '#' => {
                    while self.rest.peek().is_some_and(|next| *next != '\n') {
                        self.next();
                    }
                    continue;
                }
                '\n' => Token::Newline,
                ',' | '[' | ']' | '=' | ';' => Token::Sign(next),
                '+' if self.rest.peek() == Some(&'=') => {
                    self.next();
                    Token::Add
                }
                '"' | '\'' => Token::Text(self.text(next)?),
                'a'..='z' => Token::Key(self.word(next, is_of_key)),
                '0'..='9' => Token::Number(self.word(next, |next| next.is_ascii_alphanumeric())),
                '+' | '-' | '.' | '(' | ')' | ':' => {
                    let found = format!("{next:?}");
                    let expected = "a key, a string, a number or a list (this is no Python)";
                    return Err(error(&self.at, found, expected));
                }
                NO_TEXT => return Err(error(&self.at, "a byte that is no UTF-8", "UTF-8")),
                other => {
                    let found = format!("{other:?}");
                    let expected = "a key (in small letters), a string, a number or a list";
                    return Err(error(&self.at, found, expected));
                }
            };
            return Ok(());
        }
    }

    /// Reads the rest of a string that began with `quote`.
    fn text(&mut self, quote: char) -> Result<String, Error> {
        let mut bytes = Vec::new();
        loop {
            let place = self.place.clone();
            match self.next() {
                Some(next) if next == quote => break,
                Some('\\') => self.escape(&place, &mut bytes)?,
                Some(NO_TEXT) => return Err(error(&place, "a byte that is no UTF-8", "UTF-8")),
                None | Some('\n') => {
                    let expected = format!("{quote} in the line where the string begins");
                    return Err(error(&self.at, "a string without an end", &expected));
                }
                Some(next) => bytes.extend(next.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| error(&self.at, "a string that is no UTF-8", "UTF-8"))
    }

    /// Reads the part of an escape behind the backslash.
    fn escape(&mut self, place: &Place, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let next = self.next();
        let plain = match next {
            Some(next @ ('"' | '\'' | '\\')) => Some(next as u8),
            Some('a') => Some(7),
            Some('b') => Some(8),
            Some('f') => Some(12),
            Some('n') => Some(b'\n'),
            Some('r') => Some(b'\r'),
            Some('t') => Some(b'\t'),
            Some('v') => Some(11),
            Some('x') => self.digits(16, 2, String::new()),
            Some(next @ '0'..='7') => self.digits(8, 3, next.into()),
            _ => None,
        };
        let found = || format!("\\{}", next.map_or(String::new(), |next| next.to_string()));
        let expected = "one of \\\" \\' \\\\ \\a \\b \\f \\n \\r \\t \\v, \\x and two digits, \\ and up to three octal ones";
        match plain {
            Some(0) | None => Err(error(place, found(), expected)),
            Some(byte) => {
                bytes.push(byte);
                Ok(())
            }
        }
    }

    /// Reads a byte from its digits, at most `most`; `None` where there are none, or the number is
    /// no byte.
    fn digits(&mut self, radix: u32, most: usize, mut text: String) -> Option<u8> {
        while text.len() < most
            && let Some(next) = self.rest.peek().copied().filter(|next| next.is_digit(radix))
        {
            text.push(next);
            self.next();
        }
        u8::from_str_radix(&text, radix).ok()
    }

    fn value(&mut self, depth: u32) -> Result<Value, Error> {
        let place = self.at.clone();
        let kind = match std::mem::replace(&mut self.token, Token::Newline) {
            Token::Text(text) => ValueKind::Text(text),
            Token::Number(written) => {
                let number = number(&written).ok_or_else(|| {
                    let found = format!("the number {written}");
                    error(&place, found, "a decimal, octal (0..) or hexadecimal (0x..) number")
                })?;
                ValueKind::Number(number, written)
            }
            Token::Sign('[') if depth < DEPTH_MAX => ValueKind::List(self.list(depth)?),
            other => {
                self.token = other;
                return Err(self.wrong("a string in quotes, a number or a [list]"));
            }
        };
        self.step()?;
        Ok(Value { place, kind })
    }

    /// Reads the values of a list, up to its closing bracket, which is the token then.
    fn list(&mut self, depth: u32) -> Result<Vec<Value>, Error> {
        let mut list = Vec::new();
        self.step()?;
        loop {
            self.skip_lines()?;
            if self.token == Token::Sign(']') {
                return Ok(list);
            }
            list.push(self.value(depth + 1)?);
            self.skip_lines()?;
            match self.token {
                Token::Sign(',') => self.step()?,
                Token::Sign(']') => {}
                _ => return Err(self.wrong(", or ] in a list")),
            }
        }
    }

    fn skip_lines(&mut self) -> Result<(), Error> {
        while self.token == Token::Newline {
            self.step()?;
        }
        Ok(())
    }
}

/// True if a key may have the character behind its first letter.
fn is_of_key(next: char) -> bool {
    next.is_ascii_lowercase() || next.is_ascii_digit() || "._".contains(next)
}

/// Writes settings as `xl.cfg`.
///
/// # Errors
/// [`Error`] at a key that it cannot have.
pub fn write(settings: &[Setting]) -> Result<String, Error> {
    let mut text = String::new();
    for Setting { key, place, value } in settings {
        if !key.starts_with(|first: char| first.is_ascii_lowercase()) || !key.chars().all(is_of_key)
        {
            let found = format!("the key {:?}", crate::text::short(key));
            let expected = "small letters, digits, . and _, which is all that xl.cfg can have";
            return Err(error(place, found, expected));
        }
        text += &format!("{key} = {}\n", written(value));
    }
    Ok(text)
}

fn written(value: &Value) -> String {
    value.written(quoted, |_, as_read| as_read.into())
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for next in text.chars() {
        match next {
            '"' | '\\' => out.extend(['\\', next]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            next if next.is_ascii_control() => out.push_str(&format!("\\x{:02x}", next as u8)),
            next => out.push(next),
        }
    }
    out + "\""
}
