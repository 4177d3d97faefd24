//! The same settings in TOML: strings, whole numbers, true and false (1 and 0), and arrays.

use super::{DEPTH_MAX, Error, Kind, Place, Setting, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The settings in a text, in order.
///
/// # Errors
/// [`Error`] at the first that makes no sense, and at what no setting can be (tables, dates, fractions).
pub fn parse(file: &str, text: &str) -> Result<Vec<Setting>, Error> {
    let table = DeTable::parse(text).map_err(|wrong| {
        let place = place(file, text, wrong.span().map_or(0, |span| span.start));
        let found = wrong.message().trim().replace('\n', ", ");
        Error { place, found, expected: "TOML".into() }
    })?;
    let mut settings = Vec::new();
    for (key, value) in table.get_ref() {
        let at = place(file, text, key.span().start);
        let value = read(file, text, value, 0)?;
        settings.push(Setting { key: key.get_ref().to_string(), place: at, value });
    }
    settings.sort_by_key(|setting| (setting.place.line, setting.place.column));
    Ok(settings)
}

fn read(file: &str, text: &str, from: &Spanned<DeValue<'_>>, depth: u32) -> Result<Value, Error> {
    let place = place(file, text, from.span().start);
    let wrong = |found: &str| Error {
        place: place.clone(),
        found: found.into(),
        expected: "a string, a whole number from 0, true, false, or an array of these".into(),
    };
    let kind = match from.get_ref() {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Integer(number) => {
            let parsed = u64::from_str_radix(number.as_str(), number.radix());
            let parsed = parsed.map_err(|_| wrong(&format!("the number {}", number.as_str())))?;
            Kind::Number(parsed, parsed.to_string())
        }
        DeValue::Boolean(set) => Kind::Number(u64::from(*set), u64::from(*set).to_string()),
        DeValue::Array(array) if depth < DEPTH_MAX => {
            let values = array.iter().map(|value| read(file, text, value, depth + 1));
            Kind::List(values.collect::<Result<_, _>>()?)
        }
        DeValue::Array(_) => return Err(wrong("arrays too deep in one another")),
        DeValue::Float(_) => return Err(wrong("a fraction")),
        DeValue::Datetime(_) => return Err(wrong("a date")),
        DeValue::Table(_) => return Err(wrong("a table")),
    };
    Ok(Value { place, kind })
}

/// The line and column of a byte.
fn place(file: &str, text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    let number = |count: usize| u32::try_from(count.saturating_add(1)).unwrap_or(u32::MAX);
    Place { file: file.into(), line: number(line), column: number(column) }
}

/// Settings as TOML.
#[must_use]
pub fn write(settings: &[Setting]) -> String {
    let line = |setting: &Setting| format!("{} = {}\n", key(&setting.key), written(&setting.value));
    settings.iter().map(line).collect()
}

/// A key of `xl.cfg` may have dots, which TOML takes for tables.
fn key(key: &str) -> String {
    if key.contains('.') { format!("\"{key}\"") } else { key.into() }
}

fn written(value: &Value) -> String {
    value.written(quoted, |value, _| value.to_string())
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for next in text.chars() {
        match next {
            '"' | '\\' => out.extend(['\\', next]),
            next if next.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(next))),
            next => out.push(next),
        }
    }
    out + "\""
}
