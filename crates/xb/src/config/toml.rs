//! Settings in TOML: strings, whole numbers, true and false (1 and 0), and arrays.

use super::{DEPTH_MAX, Error, NO_TEXT, Place, Setting, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Parses the settings in a text, in order.
///
/// # Errors
/// [`Error`] at the first that cannot be parsed, and at a value that no setting can have (tables,
/// dates, fractions).
pub fn parse(file: &str, text: &str) -> Result<Vec<Setting>, Error> {
    let places = PlaceCounter::of(file, text);
    if let Some(at) = text.find(NO_TEXT) {
        let (place, found) = (places.at(at), "a byte that is no UTF-8".into());
        return Err(Error { place, found, expected: "UTF-8".into() });
    }
    let table = DeTable::parse(text).map_err(|wrong| {
        let place = places.at(wrong.span().map_or(0, |span| span.start));
        let found = wrong.message().trim().replace('\n', ", ");
        Error { place, found, expected: "TOML".into() }
    })?;
    let mut settings = Vec::new();
    for (key, value) in table.get_ref() {
        let at = places.at(key.span().start);
        let value = read(&places, value, 0)?;
        settings.push(Setting { key: key.get_ref().to_string(), place: at, value });
    }
    settings.sort_by_key(|setting| (setting.place.line, setting.place.column));
    Ok(settings)
}

fn read(
    places: &PlaceCounter<'_>,
    from: &Spanned<DeValue<'_>>,
    depth: u32,
) -> Result<Value, Error> {
    let place = places.at(from.span().start);
    let wrong = |found: &str| Error {
        place: place.clone(),
        found: found.into(),
        expected: "a string, a whole number from 0, true, false, or an array of these".into(),
    };
    let kind = match from.get_ref() {
        DeValue::String(text) => ValueKind::Text(text.to_string()),
        DeValue::Integer(number) => {
            let parsed = u64::from_str_radix(number.as_str(), number.radix());
            let parsed = parsed.map_err(|_| wrong(&format!("the number {}", number.as_str())))?;
            ValueKind::Number(parsed, parsed.to_string())
        }
        DeValue::Boolean(set) => ValueKind::Number(u64::from(*set), u64::from(*set).to_string()),
        DeValue::Array(array) if depth < DEPTH_MAX => {
            let values = array.iter().map(|value| read(places, value, depth + 1));
            ValueKind::List(values.collect::<Result<_, _>>()?)
        }
        DeValue::Array(_) => return Err(wrong("arrays too deep in one another")),
        DeValue::Float(_) => return Err(wrong("a fraction")),
        DeValue::Datetime(_) => return Err(wrong("a date")),
        DeValue::Table(_) => return Err(wrong("a table")),
    };
    Ok(Value { place, kind })
}

/// The places of a text's bytes: counted once, and after that from the last mark before a byte.
struct PlaceCounter<'a> {
    text: &'a str,
    /// The marks: a place at least every [`MARK_BYTES`], with its byte.
    marks: Vec<(usize, Place)>,
}

/// The number of bytes that are counted for one place at most, except for the rest of a character.
const MARK_BYTES: usize = 256;

impl<'a> PlaceCounter<'a> {
    fn of(file: &str, text: &'a str) -> Self {
        let mut place = Place::start(file);
        let mut marks = vec![(0, place.clone())];
        let mut next = MARK_BYTES;
        for (at, character) in text.char_indices() {
            if at >= next {
                marks.push((at, place.clone()));
                next = at + MARK_BYTES;
            }
            place.pass(character);
        }
        Self { text, marks }
    }

    /// Returns the place of a byte.
    fn at(&self, byte: usize) -> Place {
        let behind = self.marks.partition_point(|(at, _)| *at <= byte);
        let Some((from, mark)) = self.marks.get(behind.saturating_sub(1)) else {
            return Place::start("");
        };
        let mut place = mark.clone();
        let between = self.text.get(*from..byte).unwrap_or_default();
        between.chars().for_each(|character| place.pass(character));
        place
    }
}

/// Writes settings as TOML.
#[must_use]
pub fn write(settings: &[Setting]) -> String {
    let line = |setting: &Setting| format!("{} = {}\n", key(&setting.key), written(&setting.value));
    settings.iter().map(line).collect()
}

/// Writes a key. A key of `xl.cfg` may have dots, which TOML takes for tables; one of TOML may be
/// any string.
fn key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !key.is_empty() && key.bytes().all(is_bare) { key.into() } else { quoted(key) }
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
