//! The error that an end of a device has reported, in its node `error`.

use crate::text;
use std::fmt;

/// An error of an end: a number of errno(3), and a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportedError {
    /// The number, if there is one.
    pub errno: Option<i32>,
    /// The text, without the number and its name.
    pub text: String,
}

impl ReportedError {
    /// Parses the value of a node `error`: `16 EBUSY: /images/a.img is held for writing`.
    pub(crate) fn parse(node: Vec<u8>) -> Self {
        let whole = text::clean(text::lossy(node).trim());
        let number = whole.split_once(' ').and_then(|(number, rest)| {
            let number: i32 = number.parse().ok().filter(|number| (1..4096).contains(number))?;
            Some((number, rest))
        });
        let Some((errno, rest)) = number else { return Self { errno: None, text: whole } };
        // The name of the number is for programs, as the number is.
        let words: Vec<&str> = rest.split(": ").filter(|word| !is_name_of_errno(word)).collect();
        let text = if words.is_empty() { rest.to_owned() } else { words.join(": ") };
        Self { errno: Some(errno), text }
    }

    /// True if the guest has no more pages to grant to a backend.
    pub(crate) fn is_out_of_pages(&self) -> bool {
        self.errno == Some(xen::Error::NoSpc.errno())
    }

    /// True if the domain of the end has no memory for the device.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.errno == Some(xen::Error::NoMem.errno())
    }

    /// True if the error is about what the other end has offered: its rings, its ports, its nodes.
    /// That holds for errors of this project's own backends alone.
    pub(crate) fn is_of_offer(&self) -> bool {
        self.errno.is_some_and(|errno| errno != xenbus::error::EIO)
    }

    /// True if the end may not open what it needs.
    pub(crate) fn is_of_access(&self) -> bool {
        use rustix::io::Errno;
        let refusals = [Errno::PERM, Errno::ACCESS, Errno::ROFS].map(Errno::raw_os_error);
        self.errno.is_some_and(|errno| refusals.contains(&errno))
    }

    /// True if what the end needs is in use elsewhere.
    pub(crate) fn is_busy(&self) -> bool {
        self.errno == Some(xen::Error::Busy.errno())
    }
}

/// True for names like `EBUSY`.
fn is_name_of_errno(name: &str) -> bool {
    name.starts_with('E') && name.len() > 2 && name.bytes().all(|byte| byte.is_ascii_uppercase())
}

impl fmt::Display for ReportedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_name_are_not_for_people() {
        let of = |node: &str| {
            let error = ReportedError::parse(node.into());
            (error.errno, error.text)
        };
        assert_eq!(of("16 EBUSY: it is in use\n"), (Some(16), "it is in use".into()));
        assert_eq!(of("22 /x: No such file"), (Some(22), "/x: No such file".into()));
        assert_eq!(of("5 E: lost"), (Some(5), "E: lost".into()));
        let pages = "granting the buffers: 20 pages were asked for";
        assert_eq!(
            of("28 granting the buffers: ENOSPC: 20 pages were asked for"),
            (Some(28), pages.into())
        );
        assert_eq!(of("it is gone"), (None, "it is gone".into()));
        assert_eq!(of("16"), (None, "16".into()));
    }
}
