//! Searches bytes eight at a time. Every request has its payload and its paths searched, some
//! several times.

/// Returns the top bit of every byte of a word that is `BYTE`.
#[inline]
fn marks<const BYTE: u8>(word: u64) -> u64 {
    const LOW: u64 = u64::from_ne_bytes([0x7f; 8]);
    // A byte is now zero where it was `BYTE`. Nothing is carried from one byte into the next.
    let differs = word ^ u64::from_ne_bytes([BYTE; 8]);
    !((differs & LOW).wrapping_add(LOW) | differs | LOW)
}

/// Returns the position of the first `BYTE`.
#[inline]
pub(crate) fn find<const BYTE: u8>(bytes: &[u8]) -> Option<usize> {
    let first_of = |found: u64| (found.trailing_zeros() / 8) as usize;
    let mut rest = bytes;
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        let found = marks::<BYTE>(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(bytes.len().wrapping_sub(rest.len()).wrapping_add(first_of(found)));
        }
        rest = behind;
    }
    match bytes.last_chunk::<8>() {
        // Some of these bytes were compared before, and none of those was `BYTE`.
        Some(word) => {
            let found = marks::<BYTE>(u64::from_le_bytes(*word));
            (found != 0).then(|| bytes.len().wrapping_sub(8).wrapping_add(first_of(found)))
        }
        None => bytes.iter().position(|byte| *byte == BYTE),
    }
}

/// True if two `BYTE`s are adjacent.
#[inline]
pub(crate) fn has_pair<const BYTE: u8>(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut last_was_one = 0;
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        let found = marks::<BYTE>(u64::from_le_bytes(*word));
        // Compares each byte with the one before it, and the first with the last of the previous
        // word.
        if found & ((found << 8) | last_was_one) != 0 {
            return true;
        }
        last_was_one = found >> 56;
        rest = behind;
    }
    (last_was_one != 0 && rest.first() == Some(&BYTE))
        || rest.array_windows().any(|pair| *pair == [BYTE, BYTE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn the_first_is_found_wherever_it_stands() {
        for len in 0..30 {
            for other in [0x01, 0x2e, 0x30, 0x7f, 0x80, 0xae, 0xaf, 0xb0, 0xff] {
                let mut bytes = vec![other; len];
                assert_eq!((find::<b'/'>(&bytes), find::<0>(&bytes)), (None, None));
                // The bytes are set from the end on: a search stops at the first, whatever follows
                // it.
                for at in (0..len).rev() {
                    bytes[at] = b'/';
                    assert_eq!(find::<b'/'>(&bytes), Some(at), "{len} {other}");
                    bytes[at] = 0;
                    assert_eq!(find::<0>(&bytes), Some(at), "{len} {other}");
                }
            }
        }
    }

    #[test]
    fn a_pair_is_seen_wherever_it_stands() {
        for len in 0..20 {
            let mut bytes = vec![b'a'; len];
            assert!(!has_pair::<b'/'>(&bytes));
            for one in 0..len {
                for two in one.saturating_add(1)..len {
                    (bytes[one], bytes[two]) = (b'/', b'/');
                    assert_eq!(has_pair::<b'/'>(&bytes), two == one + 1, "{len} {one} {two}");
                    (bytes[one], bytes[two]) = (b'a', b'a');
                }
            }
        }
    }
}
