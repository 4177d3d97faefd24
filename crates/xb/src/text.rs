//! Texts for people: short strings, causes, sizes, times.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::os::fd::AsFd;
use std::time::Duration;

/// Returns the beginning of a text from outside, for an error.
#[must_use]
pub fn short(text: &str) -> String {
    const MOST: usize = 60;
    cut(text, MOST)
}

/// Returns the beginning of a text that is longer than so many characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most).chain("...".chars()).collect()
}

/// Converts bytes of the store to text; a byte that is no UTF-8 becomes U+FFFD.
#[must_use]
pub fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Cleans text that a guest may have written, for one line: nothing in it moves the cursor, and
/// nothing turns round or hides what stands beside it.
#[must_use]
pub fn clean(text: &str) -> String {
    let letters = text.chars().filter(|letter| !is_format(*letter));
    letters.map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// The characters of Unicode that format others (general category Cf), and its separators of lines
/// and paragraphs: first and last of each range.
const FORMATS: [(char, char); 21] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{2064}'),
    ('\u{2066}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0001}', '\u{e0001}'),
    ('\u{e0020}', '\u{e007f}'),
];

/// True for characters that are not shown, and change how others are.
pub(crate) fn is_format(letter: char) -> bool {
    FORMATS.iter().any(|(first, last)| (*first..=*last).contains(&letter))
}

/// The most characters of another domain's text that a sentence repeats.
const FOREIGN_MAX: usize = 160;

/// Quotes a text of another domain, cleaned and cut: it ends where it seems to end.
#[must_use]
pub fn foreign(text: &str) -> String {
    format!("\"{}\"", cut(&clean(text).replace('"', "'"), FOREIGN_MAX))
}

/// Quotes a word for a shell, where it has to be.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
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

/// Writes to a stream where it has room: nobody may read it for a while, and the work goes on all
/// the same.
pub(crate) fn print_where_room<S: AsFd>(stream: &S, text: &str) {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let room = poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&at_once));
    if matches!(room, Ok(1..)) {
        let _ = rustix::io::write(stream, text.as_bytes());
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
    fn foreign_text_ends_where_it_seems_to_end() {
        assert_eq!(clean("a\u{202e}b\u{2066}\u{200b}c\n\u{9b}d"), "abc??d");
        assert_eq!(foreign("no\"; run: \u{202e}x"), "\"no'; run: x\"");
        let long = "é".repeat(FOREIGN_MAX + 1);
        assert_eq!(foreign(&long), format!("\"{}...\"", "é".repeat(FOREIGN_MAX)));
        assert_eq!(foreign(&long[2..]), format!("\"{}\"", &long[2..]));
    }

    /// A shell reads the word that was quoted.
    #[test]
    fn words_are_quoted_for_a_shell() {
        for word in ["", "web", "a b", "$(id)", "a'b", "x; id #", "'; id; '", "\\", "-n\n*"] {
            let script = format!("printf %s {}", shell_word(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes(), "{script}");
        }
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
