//! Lines, numbers and hexadecimal digits, in buffers of a fixed size.

use core::fmt;

/// Bytes up to a fixed number; further bytes are dropped.
pub(crate) struct ByteBuffer<const SIZE: usize> {
    bytes: [u8; SIZE],
    length: usize,
}

impl<const SIZE: usize> ByteBuffer<SIZE> {
    /// Returns an empty buffer.
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; SIZE], length: 0 }
    }

    /// Adds a byte.
    pub(crate) fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.length) {
            *slot = byte;
            self.length += 1;
        }
    }

    /// Adds bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.push(*byte));
    }

    /// Adds the bytes that these hexadecimal digits stand for.
    pub(crate) fn parse(&mut self, digits: &[u8]) -> Result<(), &'static str> {
        let (pairs, rest) = digits.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("half a byte");
        }
        for [high, low] in pairs {
            self.push(digit(*high)? << 4 | digit(*low)?);
        }
        Ok(())
    }

    /// Returns the bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Returns the bytes as text.
    pub(crate) fn text(&self) -> &str {
        core::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }
}

impl<const SIZE: usize> fmt::Write for ByteBuffer<SIZE> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text.as_bytes());
        Ok(())
    }
}

fn digit(byte: u8) -> Result<u8, &'static str> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err("no hexadecimal digit"),
    }
}

/// Writes the digits of at most 256 bytes.
pub(crate) fn hex<'a>(bytes: &[u8], into: &'a mut [u8; 512]) -> &'a [u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in into.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    into.get(..bytes.len() * 2).unwrap_or_default()
}

/// Parses a decimal number.
pub(crate) fn number(word: &[u8]) -> Result<u32, &'static str> {
    core::str::from_utf8(word).ok().and_then(|text| text.parse().ok()).ok_or("no number")
}

/// Returns the words of a line; missing ones are empty.
pub(crate) fn words(line: &[u8]) -> [&[u8]; 5] {
    let mut parts = line.split(|byte| *byte == b' ');
    core::array::from_fn(|_| parts.next().unwrap_or_default())
}
