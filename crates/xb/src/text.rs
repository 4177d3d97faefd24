//! Texts for people: short strings, causes, sizes, times.

use std::time::Duration;

/// Returns the beginning of a text from outside, for an error.
#[must_use]
pub fn short(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.into();
    }
    text.chars().take(MOST).chain("...".chars()).collect()
}

/// Converts bytes of the store to text; a byte that is no UTF-8 becomes U+FFFD.
#[must_use]
pub fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Cleans text that a guest may have written, for one line: nothing in it moves the cursor.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Cleans text as [`clean`] does, in pieces, but keeps line ends and tabs; `last` is the byte
/// before it.
pub fn clean_lines(bytes: &mut [u8], last: &mut u8) {
    for byte in bytes {
        let was = *byte;
        // U+0080 to U+009F are control characters too, two bytes each.
        let is_control = was.is_ascii_control() && !b"\n\t".contains(&was);
        if is_control || (*last == 0xc2 && (0x80..0xa0).contains(&was)) {
            *byte = b'?';
        }
        *last = was;
    }
}

/// Returns the system's text for an error, without its number.
#[must_use]
pub fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Parses a number of bytes: `64M`, `1G`, or a number without a letter.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

/// Formats a number of bytes in the unit that fits.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Returns a number of times in words.
#[must_use]
pub fn times(count: u32) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

/// Formats a number of processors.
#[must_use]
pub fn processors(count: u32) -> String {
    if count == 1 { "1 processor".into() } else { format!("{count} processors") }
}

/// Formats a duration.
#[must_use]
pub fn took(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_is_left_in_lines() {
        let (mut last, mut first, mut second) = (0, *b"a\x1b[2J\r\n\tb\xc2", *b"\x9b1A\xc3\x84");
        clean_lines(&mut first, &mut last);
        clean_lines(&mut second, &mut last);
        assert_eq!((&first[..], &second[..]), (&b"a?[2J?\n\tb\xc2"[..], &b"?1A\xc3\x84"[..]));
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, number) in [("512", 512), ("4K", 4096), ("1m", 1 << 20), ("2G", 2 << 30)] {
            assert_eq!(bytes(text), Some(number), "{text}");
        }
        for text in ["", "K", "1.5G", "-1", "1 G", "99999999999T"] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(size(512), "512 B");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
