//! Payloads as `docs/misc/xenstore.txt` writes them: `|` is a NUL.
//!
//! Also: `\|`, `\\`, `\s` (a space), `\xHH` (any byte), and `{text*N}`, which repeats.

use std::fmt::Write;

/// Returns the bytes that `text` stands for.
///
/// # Errors
/// The fault of the text.
pub fn parse(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '|' => bytes.push(0),
            '\\' => bytes.push(escape(&mut chars)?),
            '{' => {
                let body: String = chars.by_ref().take_while(|c| *c != '}').collect();
                let (part, count) = body.rsplit_once('*').ok_or("`{` without `*N}`")?;
                let count: usize = count.parse().map_err(|_| format!("`{count}` is no count"))?;
                bytes.extend(parse(part)?.repeat(count));
            }
            _ => bytes.extend(next.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Ok(bytes)
}

fn escape(chars: &mut std::str::Chars<'_>) -> Result<u8, String> {
    match chars.next() {
        Some('s') => Ok(b' '),
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            let digits =
                Some(digits).filter(|two| two.len() == 2).ok_or("`\\x` needs two digits")?;
            u8::from_str_radix(&digits, 16).map_err(|_| format!("`\\x{digits}` is no byte"))
        }
        Some(plain @ ('|' | '\\' | '{' | '$')) => u8::try_from(plain).map_err(|e| e.to_string()),
        other => Err(format!("`\\{other:?}` is no escape")),
    }
}

/// Returns `bytes` in the notation, with runs of 16 equal bytes and more folded.
#[must_use]
pub fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        let Some(byte) = run.first() else { continue };
        let one = match byte {
            0 => "|".to_owned(),
            b' ' => "\\s".to_owned(),
            b'|' | b'\\' | b'{' => format!("\\{}", char::from(*byte)),
            0x21..=0x7e => char::from(*byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        if run.len() < 16 {
            text.push_str(&one.repeat(run.len()));
        } else {
            let _ = write!(text, "{{{one}*{}}}", run.len());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for text in ["/a|b|", "\\x80\\s\\|{a*20}", "", "{|*17}"] {
            assert_eq!(show(&parse(text).unwrap()), text);
        }
    }

    #[test]
    fn refuses_nonsense() {
        for text in ["\\q", "{a}", "{a*b}", "\\x4"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
