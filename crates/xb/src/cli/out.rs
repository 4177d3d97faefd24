//! Tables and JSON on standard output.

use crate::Error;
use std::io::Write;

use crate::text::is_format;

pub(crate) use crate::text::clean;

/// Prints a text; a closed pipe is not an error.
pub(crate) fn print(text: &str) -> Result<u8, Error> {
    print_while_read(text).map(|_| 0)
}

/// The outcome of printing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Printed {
    /// All of it was written.
    Whole,
    /// Nobody reads the output any more.
    ReaderGone,
}

/// Prints a text that others are to follow.
pub(crate) fn print_while_read(text: &str) -> Result<Printed, Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Printed::Whole),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Printed::ReaderGone),
        Err(error) => Err(Error::io("standard output")(error)),
    }
}

/// Prints a message beside the output, on standard error.
pub(crate) fn tell(options: &super::options::GlobalOptions, text: &str) {
    if options.json {
        eprintln!("{}", escaped(&serde_json::json!({ "note": text }).to_string()));
    } else {
        eprintln!("xb: {}", clean(text));
    }
}

/// Prints the reason for which a command failed. It may quote a guest's text.
pub(crate) fn failed(options: &super::options::GlobalOptions, why: &str, code: u8) {
    if options.json {
        let value = serde_json::json!({ "error": why, "code": code });
        eprintln!("{}", escaped(&value.to_string()));
    } else {
        let lines: Vec<String> = why.lines().map(clean).collect();
        eprintln!("xb: {}", lines.join("\n"));
    }
}

/// Prints a value as JSON.
pub(crate) fn json(value: &serde_json::Value) -> Result<u8, Error> {
    print(&(escaped(&format!("{value:#}")) + "\n"))
}

/// Prints a value as JSON on one line, which others are to follow.
pub(crate) fn json_line(value: &serde_json::Value) -> Result<Printed, Error> {
    print_while_read(&(escaped(&value.to_string()) + "\n"))
}

/// Escapes what JSON need not escape, and a terminal obeys: DEL, U+0080 to U+009F, and characters
/// that format others. They are in strings alone.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if ('\u{7f}'..='\u{9f}').contains(&letter) || is_format(letter) {
            let units = letter.encode_utf16(&mut [0; 2]).to_vec();
            text.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            text.push(letter);
        }
    }
    text
}

/// Prints rows in columns, the first row their names.
pub(crate) fn table(rows: &[Vec<String>]) -> Result<u8, Error> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_characters_that_a_terminal_obeys() {
        let value = serde_json::json!({ "a": "x\u{7f}\u{9b}2J\u{202e}\u{e0041}é\n" });
        let text = escaped(&value.to_string());
        let hidden = |letter: char| letter.is_control() || is_format(letter);
        assert!(!text.contains(hidden), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
