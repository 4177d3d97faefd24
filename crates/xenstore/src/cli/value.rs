//! Values as text: bytes that are not printable ASCII are escaped.

/// Escapes a value for printing as xenstore-utils do: `\t
///  \r \\`, three octal digits below 8, and `\xHH` for the rest.
pub(super) fn escape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for byte in value {
        match byte {
            b'\\' => out.extend(b"\\\\"),
            b' '..=b'~' => out.push(*byte),
            b'\t' => out.extend(b"\\t"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            0..=7 => out.extend(format!("\\{byte:03o}").bytes()),
            _ => out.extend(format!("\\x{byte:02x}").bytes()),
        }
    }
    out
}

/// Unescapes an argument of `write` as Debian's program does, with its peculiarities: `\x` takes at
/// most two characters as scanf(3) reads a hexadecimal number (white space before it, a sign or
/// `0x` within), and is an `x` if there is no number; up to three octal digits count modulo 256;
/// another escaped character is itself; a backslash at the end is a NUL.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let Some((kind, after)) = rest.split_first() else {
            out.push(0);
            break;
        };
        let (byte, after) = match kind {
            b't' => (b'\t', after),
            b'n' => (b'\n', after),
            b'r' => (b'\r', after),
            b'x' => hexadecimal(after).unwrap_or((b'x', after)),
            b'0'..=b'7' => octal(rest),
            other => (*other, after),
        };
        out.push(byte);
        rest = after;
    }
    out
}

fn octal(text: &[u8]) -> (u8, &[u8]) {
    let digits = text.iter().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    let (digits, rest) = text.split_at(digits);
    let value =
        digits.iter().fold(0u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0'));
    (value, rest)
}

/// Parses a number as scanf's `%2x` does.
fn hexadecimal(text: &[u8]) -> Option<(u8, &[u8])> {
    let space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let text = text.get(text.iter().position(|byte| !space(byte))?..)?;
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (byte, len) = match (text.first()?, text.get(1)) {
        (b'0', Some(b'x' | b'X')) => (0, 2),
        (b'+', _) => (digit(1)?, 2),
        (b'-', _) => (digit(1)?.wrapping_neg(), 2),
        _ => match (digit(0)?, digit(1)) {
            (high, Some(low)) => (high * 16 + low, 2),
            (low, None) => (low, 1),
        },
    };
    #[expect(clippy::cast_possible_truncation, reason = "a negative number keeps its low byte")]
    let byte = byte as u8;
    Some((byte, text.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&all)), all);
    }

    #[test]
    fn escapes_of_xenstore_write() {
        for (text, value) in [
            (&b"\\x0x41"[..], &b"\x0041"[..]),
            (b"q\\x 4", b"q\x04"),
            (b"z\\", b"z\0"),
            (b"\\x-4", b"\xfc"),
            (b"\\x-", b"x-"),
            (b"\\xzz", b"xzz"),
            (b"\\x", b"x"),
            (b"\\400\\8\\x4g", b"\08\x04g"),
            (b"\\x414", b"A4"),
            (b"a\\tb\\\\", b"a\tb\\"),
        ] {
            assert_eq!(unescape(text), value, "{}", text.escape_ascii());
        }
    }
}
