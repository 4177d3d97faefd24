//! The configuration of a domain: `xl.cfg` or TOML, and the one description that both lead to.
//!
//! A file is a list of [`Setting`]s in either syntax; [`Description::read`] makes a domain of them.
//! `xb config convert` converts between the syntaxes on the level of settings, so it keeps those
//! that this version does not understand.
//!
//! Source: `xl.cfg(5)`, `xl-disk-configuration(5)`, `xen-vbd-interface(7)`.

pub mod description;
pub mod disk;
pub mod keys;
pub mod setting;
pub mod toml;
pub mod xl;

use std::path::Path;

pub use description::{Action, Description};
pub use disk::DiskSpec;
pub(crate) use setting::NO_TEXT;
pub use setting::{DEPTH_MAX, Error, Place, Setting, Value, ValueKind, Warning, number};

/// The limit of a configuration file, in bytes.
pub const FILE_MAX: u64 = 1 << 20;
/// The two ways to write a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syntax {
    /// `xl.cfg`.
    Xl,
    /// TOML.
    Toml,
}

impl Syntax {
    /// Returns the syntax of a file by its name: `.toml` is TOML, all else is `xl.cfg`.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|ending| ending == "toml") { Self::Toml } else { Self::Xl }
    }
}

/// Parses the settings in a text; `file` is for errors.
///
/// # Errors
/// [`Error`] at the first that cannot be parsed.
pub fn parse(file: &str, text: &str, syntax: Syntax) -> Result<Vec<Setting>, Error> {
    match syntax {
        Syntax::Xl => xl::parse(file, text),
        Syntax::Toml => toml::parse(file, text),
    }
}

/// Writes settings as a text from which [`parse`] reads them again.
///
/// # Errors
/// [`Error`] at a key of TOML that `xl.cfg` cannot have.
pub fn write(settings: &[Setting], syntax: Syntax) -> Result<String, Error> {
    match syntax {
        Syntax::Xl => xl::write(settings),
        Syntax::Toml => Ok(toml::write(settings)),
    }
}

/// Reads the text of a file for [`parse`], which reports the place of a byte that is no UTF-8.
///
/// # Errors
/// A sentence: the file cannot be read, or is too large.
pub fn load(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let said =
        |error: std::io::Error| format!("{}: {}", path.display(), crate::text::cause(&error));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(said)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(said)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("{}: over {FILE_MAX} bytes, no configuration", path.display()));
    }
    Ok(text(&bytes))
}

/// Converts bytes to text.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| NO_TEXT));
    }
    text
}
