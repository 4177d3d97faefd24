//! Pieces of a log as lines: bytes as they are, with times, or JSON.

use super::lines::LineCollector;
use super::moment::{ShownZone, utc};
use super::output::ForeignOutput;
use crate::text;
use serde_json::json;
use std::io;
use xen_console::log::LogPiece;

/// The form of a log's lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineStyle {
    /// The bytes.
    Plain,
    /// The time before each line.
    Stamped,
    /// An object for each line.
    Json,
}

/// A printer of a log.
#[derive(Debug)]
pub(super) struct LogPrinter {
    out: ForeignOutput,
    style: LineStyle,
    zone: ShownZone,
    /// The next byte does not begin a line.
    is_inside_line: bool,
    /// The line of JSON.
    line: LineCollector,
}

impl LogPrinter {
    pub(super) fn new(style: LineStyle) -> Self {
        let (out, zone) = (ForeignOutput::of_standard_output(), ShownZone::of_process());
        Self { out, style, zone, is_inside_line: false, line: LineCollector::default() }
    }

    /// Prints a piece.
    pub(super) fn print(&mut self, piece: LogPiece<'_>) -> io::Result<()> {
        match piece {
            LogPiece::Output { bytes, time_us } if self.style == LineStyle::Json => {
                let Self { line, out, .. } = self;
                line.push(bytes, time_us, &mut |line, time_us| print_object(out, line, time_us))
            }
            LogPiece::Output { bytes, time_us } => self.print_text(bytes, time_us),
            // An earlier life may have ended within a line.
            LogPiece::Life => self.end_line(),
            LogPiece::Lost { bytes, time_us } => {
                self.end_line()?;
                self.print_lost(bytes, time_us)
            }
        }
    }

    /// Prints the line that has no end, if a program reads the output: it may get no other part.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.style == LineStyle::Json {
            self.end_line()?;
        }
        self.out.flush()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn print_text(&mut self, bytes: &[u8], time_us: Option<u64>) -> io::Result<()> {
        if self.style == LineStyle::Plain {
            self.is_inside_line = !bytes.ends_with(b"\n");
            return self.out.foreign(bytes);
        }
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.is_inside_line {
                self.out.own(&(self.zone.format(time_us) + " "))?;
            }
            self.out.foreign(line)?;
            self.is_inside_line = !line.ends_with(b"\n");
        }
        Ok(())
    }

    fn end_line(&mut self) -> io::Result<()> {
        let Self { line, out, .. } = self;
        line.finish(&mut |line, time_us| print_object(out, line, time_us))?;
        if std::mem::take(&mut self.is_inside_line) { self.out.own("\n") } else { Ok(()) }
    }

    fn print_lost(&mut self, bytes: Option<u64>, time_us: Option<u64>) -> io::Result<()> {
        let words = match bytes {
            Some(1) => "[1 byte of output was lost]\n".into(),
            Some(bytes) => format!("[{bytes} bytes of output were lost]\n"),
            None => "[output may be missing here]\n".into(),
        };
        match self.style {
            LineStyle::Plain => self.out.own(&words),
            LineStyle::Stamped => self.out.own(&(self.zone.format(time_us) + " " + &words)),
            LineStyle::Json => {
                self.out.json(&json!({ "time": utc(time_us), "text": "", "lost": bytes }))
            }
        }
    }
}

fn print_object(out: &mut ForeignOutput, line: &[u8], time_us: Option<u64>) -> io::Result<()> {
    out.json(&json!({ "time": utc(time_us), "text": text::lossy(line.to_vec()) }))
}
