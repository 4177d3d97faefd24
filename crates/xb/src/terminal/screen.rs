//! The whole screen of a terminal: what ratatui draws, as the bytes that crossterm knows for it.

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::queue;
use crossterm::style::{Attribute, Color as Colour, Print, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    Clear, ClearType as Cleared, EnterAlternateScreen, LeaveAlternateScreen,
};
use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};
use std::io;

/// The size of a terminal that tells none.
const USUAL: Size = Size { width: 80, height: 24 };

/// A screen whose bytes are taken and written by its user.
#[derive(Debug)]
pub(crate) struct ScreenBytes {
    bytes: Vec<u8>,
    size: Size,
    cursor: Position,
}

impl ScreenBytes {
    /// Begins with an empty screen of its own beside the one that the user sees now.
    ///
    /// # Errors
    /// None: bytes can always be added.
    pub(crate) fn enter() -> io::Result<Self> {
        let mut bytes = Vec::new();
        queue!(bytes, EnterAlternateScreen, Hide, Clear(Cleared::All))?;
        Ok(Self { bytes, size: USUAL, cursor: Position::ORIGIN })
    }

    /// Returns the bytes that give the user the earlier screen back.
    pub(crate) fn leave() -> Vec<u8> {
        let mut bytes = Vec::new();
        // Bytes can always be added.
        let _ = queue!(bytes, SetAttribute(Attribute::Reset), LeaveAlternateScreen, Show);
        bytes
    }

    /// Sets the size in columns and rows, if the terminal tells it.
    pub(crate) fn set_size(&mut self, size: Option<(u16, u16)>) {
        self.size = size.map_or(USUAL, |(width, height)| Size { width, height });
    }

    /// Takes the bytes that are to be written.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Returns crossterm's word for a colour; those that nothing here uses are the terminal's own.
fn colour(of: Color) -> Colour {
    match of {
        Color::Red => Colour::DarkRed,
        Color::Yellow => Colour::DarkYellow,
        Color::Cyan => Colour::DarkCyan,
        Color::DarkGray => Colour::DarkGrey,
        _ => Colour::Reset,
    }
}

impl Backend for ScreenBytes {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let mut next = None;
        let mut style = None;
        for (x, y, cell) in content {
            if next != Some((x, y)) {
                queue!(self.bytes, MoveTo(x, y))?;
            }
            next = x.checked_add(1).map(|x| (x, y));
            if style != Some((cell.fg, cell.modifier)) {
                style = Some((cell.fg, cell.modifier));
                queue!(
                    self.bytes,
                    SetAttribute(Attribute::Reset),
                    SetForegroundColor(colour(cell.fg))
                )?;
                for (modifier, attribute) in [
                    (Modifier::BOLD, Attribute::Bold),
                    (Modifier::REVERSED, Attribute::Reverse),
                    (Modifier::UNDERLINED, Attribute::Underlined),
                ] {
                    if cell.modifier.contains(modifier) {
                        queue!(self.bytes, SetAttribute(attribute))?;
                    }
                }
            }
            queue!(self.bytes, Print(cell.symbol()))?;
        }
        queue!(self.bytes, SetAttribute(Attribute::Reset))
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        queue!(self.bytes, Hide)
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        queue!(self.bytes, Show)
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(self.cursor)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        self.cursor = position.into();
        queue!(self.bytes, MoveTo(self.cursor.x, self.cursor.y))
    }

    fn clear(&mut self) -> io::Result<()> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, region: ClearType) -> io::Result<()> {
        let region = match region {
            ClearType::All => Cleared::All,
            ClearType::AfterCursor => Cleared::FromCursorDown,
            ClearType::BeforeCursor => Cleared::FromCursorUp,
            ClearType::CurrentLine => Cleared::CurrentLine,
            ClearType::UntilNewLine => Cleared::UntilNewLine,
        };
        queue!(self.bytes, Clear(region))
    }

    fn size(&self) -> io::Result<Size> {
        Ok(self.size)
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        // Nobody here draws by pixels.
        Ok(WindowSize { columns_rows: self.size, pixels: Size { width: 0, height: 0 } })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui_core::style::Style;
    use ratatui_core::terminal::Terminal;

    #[test]
    fn a_screen_is_drawn_once_and_then_what_has_changed() {
        let mut terminal = Terminal::new(ScreenBytes::enter().unwrap()).unwrap();
        let mut drawn = |text: &str, size| {
            terminal.backend_mut().set_size(size);
            let style = Style::new().fg(Color::Red);
            let draw = terminal.draw(|frame| {
                frame.buffer_mut().set_string(0, 0, text, style);
            });
            draw.unwrap();
            String::from_utf8(terminal.backend_mut().take()).unwrap()
        };
        let first = drawn("one", Some((20, 2)));
        assert!(first.starts_with("\x1b[?1049h\x1b[?25l"), "{first:?}");
        assert!(first.contains("one"), "{first:?}");
        let second = drawn("ore", Some((20, 2)));
        assert!(second.contains('r') && !second.contains("ore"), "{second:?}");
        let larger = drawn("ore", None);
        assert!(larger.contains("\x1b[2J") && larger.contains("ore"), "{larger:?}");
        let last = String::from_utf8(ScreenBytes::leave()).unwrap();
        assert!(last.ends_with("\x1b[?1049l\x1b[?25h"), "{last:?}");
    }
}
