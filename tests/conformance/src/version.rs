//! Versions of Debian's packages of Xen: the installed one, and those that the suite knows.
//!
//! Debian brings new point releases into the archive of a stable release, and a machine has the one
//! in its lists of packages. The answers of a peer are compared if its version is a known one:
//! tables and tests state the behaviour of each. `docs/testing.md` says how another becomes known.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The package whose version counts: that of both daemons.
const PACKAGE: &str = "xen-utils-4.17";

/// A known version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// `4.17.5+72-g01140da4e8-1`.
    V4_17_5_72,
    /// `4.17.7+13-g2445b30a44-0+deb12u1`.
    V4_17_7_13,
}

impl Version {
    /// All known versions, the oldest first.
    pub const KNOWN: [Self; 2] = [Self::V4_17_5_72, Self::V4_17_7_13];

    /// Returns the version in Debian's notation.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::V4_17_5_72 => "4.17.5+72-g01140da4e8-1",
            Self::V4_17_7_13 => "4.17.7+13-g2445b30a44-0+deb12u1",
        }
    }

    /// Returns the name in tables and in `docs/compatibility.md`: Xen's release, and the number of
    /// changes since.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.debian().split('-').next().unwrap_or_default()
    }

    /// Returns the known version of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|version| version.name() == name)
    }

    /// Returns the known version with this text in Debian's notation.
    ///
    /// # Errors
    /// The text, if it is no known version.
    pub fn of_debian(text: &str) -> Result<Self, UnknownVersion> {
        let known = Self::KNOWN.into_iter().find(|version| version.debian() == text);
        known.ok_or_else(|| UnknownVersion { here: text.to_owned() })
    }
}

/// A version that the suite does not know; its text is one line with it and the known ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownVersion {
    /// The version in Debian's notation.
    pub here: String,
}

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Version::KNOWN.map(Version::debian).join(" and ");
        let here = &self.here;
        write!(
            f,
            "{PACKAGE} {here} is here, and known are {known}; docs/testing.md says how to add one"
        )
    }
}

impl std::error::Error for UnknownVersion {}

/// Returns the version of the packages below `root`, in Debian's notation: that of the newest entry
/// of their changelog.
///
/// # Errors
/// One line that names the file or the entry that cannot be read.
pub fn installed(root: &Path) -> Result<String, String> {
    let path = root.join(format!("usr/share/doc/{PACKAGE}/changelog.Debian.gz"));
    let fail =
        |why: &str| format!("the packages' version is read from {}, but {why}", path.display());
    let output = Command::new("gzip").arg("-dc").arg(&path).stdin(Stdio::null()).output();
    let output = output.map_err(|error| fail(&format!("gzip cannot be run: {error}")))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    newest(&text).map(str::to_owned).ok_or_else(|| fail("it begins with no `xen (VERSION)`"))
}

/// Returns the version in the first line of a changelog of Debian: `xen (VERSION) bookworm; …`.
fn newest(changelog: &str) -> Option<&str> {
    let (version, _) = changelog.strip_prefix("xen (")?.split_once(')')?;
    Some(version).filter(|version| !version.is_empty() && !version.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_versions_are_found_by_both_of_their_names() {
        for version in Version::KNOWN {
            assert_eq!(Version::of_debian(version.debian()), Ok(version));
            assert_eq!(Version::named(version.name()), Some(version));
        }
        assert_eq!(Version::KNOWN.map(Version::name), ["4.17.5+72", "4.17.7+13"]);
    }

    #[test]
    fn one_that_is_nearly_known_is_unknown_and_both_are_named() {
        // The short name, another build of the same source, an empty text.
        for here in ["4.17.5+72", "4.17.5+72-g01140da4e8-1+b1", "4.17.9-1", ""] {
            let unknown = Version::of_debian(here).unwrap_err();
            let text = unknown.to_string();
            assert!(text.contains(here) && !text.contains('\n'), "{text}");
            for version in Version::KNOWN {
                assert!(text.contains(version.debian()), "{text}");
            }
        }
    }

    #[test]
    fn the_newest_entry_of_a_changelog_counts() {
        let text = "xen (4.17.7-0+deb12u1) bookworm-security; urgency=medium\n\nxen (4.17.5-1) x";
        assert_eq!(newest(text), Some("4.17.7-0+deb12u1"));
        for text in ["", "xen", "xen ()", "xen (4.17", "xen (4 17) x", "linux (6.1) x"] {
            assert_eq!(newest(text), None, "{text}");
        }
    }
}
