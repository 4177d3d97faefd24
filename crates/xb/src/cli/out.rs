//! Tables and JSON on standard output.

use crate::Error;
use std::io::Write;

pub(crate) use crate::text::clean;

/// Prints a text; a closed pipe is not an error.
pub(crate) fn print(text: &str) -> Result<u8, Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output")(error))
        }
        _ => Ok(0),
    }
}

/// Prints a message beside the output, on standard error.
pub(crate) fn tell(options: &super::options::GlobalOptions, text: &str) {
    if options.json {
        eprintln!("{}", serde_json::json!({ "note": text }));
    } else {
        eprintln!("xb: {}", clean(text));
    }
}

/// Prints the reason for which a command failed. It may quote a guest's text.
pub(crate) fn failed(options: &super::options::GlobalOptions, why: &str, code: u8) {
    if options.json {
        eprintln!("{}", serde_json::json!({ "error": why, "code": code }));
    } else {
        let lines: Vec<String> = why.lines().map(clean).collect();
        eprintln!("xb: {}", lines.join("\n"));
    }
}

/// Prints a value as JSON.
pub(crate) fn json(value: &serde_json::Value) -> Result<u8, Error> {
    print(&format!("{value:#}\n"))
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
