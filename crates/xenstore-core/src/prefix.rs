//! The first bytes of names as numbers. Most names can be compared by them alone.

/// Returns the first eight bytes of a name as a number that sorts as the bytes do. Names contain no
/// NUL, so padding with NULs keeps the order.
#[inline]
pub(crate) fn prefix_of(name: &[u8]) -> u64 {
    if let Some(first) = name.first_chunk::<8>() {
        return u64::from_be_bytes(*first);
    }
    let bits = u32::try_from(name.len()).unwrap_or(0).saturating_mul(8);
    match (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        // The two parts overlap, and are the same in the overlap.
        (Some(first), Some(last)) => {
            let (first, last) = (u32::from_be_bytes(*first), u32::from_be_bytes(*last));
            u64::from(first) << 32 | u64::from(last) << 64u32.saturating_sub(bits)
        }
        _ => {
            let bytes = name.iter().fold(0, |bytes, byte| bytes << 8 | u64::from(*byte));
            bytes.checked_shl(64u32.saturating_sub(bits)).unwrap_or(0)
        }
    }
}

/// True if the prefix contains the whole name.
pub(crate) fn is_whole(prefix: u64) -> bool {
    prefix & 0xff == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn prefixes_sort_as_the_names_do() {
        let names: Vec<Vec<u8>> = (0..12u8)
            .flat_map(|len| {
                let name: Vec<u8> = (b'b'..).take(len.into()).collect();
                let last = |by: i8| {
                    let mut other = name.clone();
                    if let Some(last) = other.last_mut() {
                        *last = last.wrapping_add_signed(by);
                    }
                    other
                };
                vec![last(-1), name.clone(), last(1), vec![0xff; len.into()]]
            })
            .collect();
        for one in &names {
            let mut padded = one.clone();
            padded.resize(8, 0);
            assert_eq!(prefix_of(one), u64::from_be_bytes(*padded.first_chunk().unwrap()));
            assert_eq!(is_whole(prefix_of(one)), one.len() < 8, "{one:?}");
            for two in &names {
                if prefix_of(one) != prefix_of(two) {
                    assert_eq!(prefix_of(one) < prefix_of(two), one < two, "{one:?} {two:?}");
                } else if is_whole(prefix_of(one)) {
                    assert_eq!(one, two);
                }
            }
        }
    }
}
