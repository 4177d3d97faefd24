//! Lines of a log, one after the other.

use std::io;

/// The bytes from which on a line is told in parts.
const LINE_MAX: usize = 64 << 10;

/// The function that is told a line without its end, and the time of its first byte.
type LineTeller<'t> = dyn FnMut(&[u8], Option<u64>) -> io::Result<()> + 't;

/// The part of a line that has come so far.
#[derive(Debug, Default)]
pub(in crate::cli) struct LineCollector {
    line: Vec<u8>,
    /// The time of its first byte.
    time_us: Option<u64>,
}

impl LineCollector {
    /// Adds output that came at a time, and tells each line that is complete, without its end, with the
    /// time of its first byte.
    pub(in crate::cli) fn push(
        &mut self,
        bytes: &[u8],
        time_us: Option<u64>,
        tell: &mut LineTeller<'_>,
    ) -> io::Result<()> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.is_empty() {
                self.time_us = time_us;
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() >= LINE_MAX {
                self.finish(tell)?;
            }
        }
        Ok(())
    }

    /// Tells the line that is not complete, if there is one.
    pub(in crate::cli) fn finish(&mut self, tell: &mut LineTeller<'_>) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let mut line = self.line.as_slice();
        if let Some(ended) = line.strip_suffix(b"\n") {
            line = ended;
            // Consoles end lines by both, some by several of these.
            while let Some(ended) = line.strip_suffix(b"\r") {
                line = ended;
            }
        }
        tell(line, self.time_us)?;
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of chunks that come a second after each other.
    fn lines(chunks: &[&[u8]]) -> Vec<(String, Option<u64>)> {
        let (mut all, mut collector) = (Vec::new(), LineCollector::default());
        let mut tell = |line: &[u8], time_us: Option<u64>| {
            all.push((String::from_utf8(line.to_vec()).unwrap(), time_us));
            Ok(())
        };
        for (at, chunk) in (0..).zip(chunks) {
            collector.push(chunk, Some(at), &mut tell).unwrap();
        }
        collector.finish(&mut tell).unwrap();
        all
    }

    #[test]
    fn a_line_has_the_time_of_its_first_byte() {
        let line = |text: &str, time| (text.to_owned(), Some(time));
        assert_eq!(
            lines(&[b"one\r\ntw", b"o\n\n", b"three\r\r\n\rfour\r"]),
            [line("one", 0), line("two", 0), line("", 1), line("three", 2), line("\rfour\r", 2)]
        );
        assert_eq!(lines(&[]), []);
    }

    #[test]
    fn a_line_without_end_comes_in_parts() {
        let chunk = [b'x'; 40 << 10];
        let lens: Vec<usize> =
            lines(&[&chunk, &chunk, &chunk, b"\n"]).iter().map(|(line, _)| line.len()).collect();
        assert_eq!(lens, [80 << 10, 40 << 10]);
    }
}
