//! Keys, of the bytes that a terminal in raw mode sends for them.

/// A key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TypedKey {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-L.
    Redraw,
    /// A key that stands for a character.
    Char(char),
}

/// The byte that begins the sequence of a key which stands for no character.
const ESCAPE: u8 = 0x1b;

/// Returns the keys of bytes that were read at once. Those of no known key are left out.
pub(crate) fn keys(bytes: &[u8]) -> Vec<TypedKey> {
    let mut keys = Vec::new();
    let mut left = bytes;
    while let Some((first, rest)) = left.split_first() {
        let (key, used) = match (*first, rest) {
            // ECMA-48: parameters and intermediate bytes, then one byte that ends the sequence.
            (ESCAPE, [b'[', rest @ ..]) => {
                let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte));
                let len = end.map_or(rest.len(), |end| end + 1);
                (rest.get(..len).and_then(sequence), 2 + len)
            }
            (ESCAPE, [b'O', last, ..]) => (sequence(&[*last]), 3),
            (ESCAPE, _) => (Some(TypedKey::Escape), 1),
            (b'\r' | b'\n', _) => (Some(TypedKey::Enter), 1),
            (0x7f | 0x08, _) => (Some(TypedKey::Backspace), 1),
            (0x03, _) => (Some(TypedKey::Interrupt), 1),
            (0x0c, _) => (Some(TypedKey::Redraw), 1),
            _ => character(left),
        };
        keys.extend(key);
        left = left.get(used..).unwrap_or_default();
    }
    keys
}

/// Returns the key of a sequence, without its beginning.
fn sequence(bytes: &[u8]) -> Option<TypedKey> {
    Some(match bytes {
        b"A" => TypedKey::Up,
        b"B" => TypedKey::Down,
        b"C" => TypedKey::Right,
        b"D" => TypedKey::Left,
        b"H" | b"1~" | b"7~" => TypedKey::Home,
        b"F" | b"4~" | b"8~" => TypedKey::End,
        b"5~" => TypedKey::PageUp,
        b"6~" => TypedKey::PageDown,
        _ => return None,
    })
}

/// Returns the character at the beginning, and the number of its bytes.
fn character(bytes: &[u8]) -> (Option<TypedKey>, usize) {
    /// The most bytes of a character.
    const LEN_MAX: usize = 4;
    let head = bytes.get(..LEN_MAX).unwrap_or(bytes);
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => {
            let whole = head.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(whole).unwrap_or_default()
        }
    };
    match text.chars().next() {
        Some(letter) if letter.is_control() => (None, letter.len_utf8()),
        Some(letter) => (Some(TypedKey::Char(letter)), letter.len_utf8()),
        None => (None, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_keys() {
        for (bytes, wanted) in [
            (&b"q"[..], &[TypedKey::Char('q')][..]),
            (b"\x1b[A\x1b[B", &[TypedKey::Up, TypedKey::Down]),
            (b"\x1bOC\x1bOD", &[TypedKey::Right, TypedKey::Left]),
            (b"\x1b[5~\x1b[6~", &[TypedKey::PageUp, TypedKey::PageDown]),
            (b"\x1b[H\x1b[4~", &[TypedKey::Home, TypedKey::End]),
            (b"\x1b", &[TypedKey::Escape]),
            (
                b"\r\x7f\x03\x0c",
                &[TypedKey::Enter, TypedKey::Backspace, TypedKey::Interrupt, TypedKey::Redraw],
            ),
            (
                "aé日\u{1f980}".as_bytes(),
                &[
                    TypedKey::Char('a'),
                    TypedKey::Char('é'),
                    TypedKey::Char('日'),
                    TypedKey::Char('\u{1f980}'),
                ],
            ),
            // The answers of a terminal, unknown keys, broken text.
            (b"\x1b[12;40Rx", &[TypedKey::Char('x')]),
            (b"\x1b[3~\x01\xff\xc3", &[]),
            (b"\x1b[", &[]),
            (b"", &[]),
        ] {
            assert_eq!(keys(bytes), wanted, "{bytes:?}");
        }
    }
}
