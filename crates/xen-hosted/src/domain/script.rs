//! Programs that are scripts: `#!`, an interpreter, and perhaps one argument for it.
//!
//! The kernel would give the interpreter the script as `/dev/fd/N`, which a domain does not have.
//! The sandbox therefore copies the script into the domain's root, and runs the interpreter that
//! the domain sees.

use crate::limits::SCRIPT_MAX;
use rustix::fs::{Mode, OFlags, open, readlink};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

/// The script's name in the root of a domain with namespaces.
const NAME: &str = "kernel";
/// The number of bytes in which the first line has to end (`BINPRM_BUF_SIZE`).
const LINE_MAX: usize = 256;

/// A script's first line, and the path at which the domain finds the script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Script {
    interpreter: CString,
    argument: Option<CString>,
    path: CString,
}

impl Script {
    /// Reads the program in this file as a script; `None` where it is none. To be called before the
    /// root is entered.
    pub(super) fn of(program: &OwnedFd, has_root: bool) -> Result<Option<Self>, Errno> {
        let mut head = [0; LINE_MAX];
        let count = rustix::io::pread(program, &mut head, 0).unwrap_or(0);
        let Some((interpreter, argument)) = first_line(head.get(..count).unwrap_or_default())
        else {
            return Ok(None);
        };
        let path = if has_root {
            CString::new(format!("/{NAME}")).map_err(|_| Errno::INVAL)?
        } else {
            readlink(format!("/proc/self/fd/{}", program.as_raw_fd()), Vec::new())?
        };
        Ok(Some(Self { interpreter, argument, path }))
    }

    /// Reads the script's text, for [`Script::put`].
    pub(super) fn text(program: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let mut text = vec![0; SCRIPT_MAX];
        let mut end = 0;
        loop {
            let room = text.get_mut(end..).unwrap_or_default();
            if room.is_empty() {
                return Err(Errno::TOOBIG);
            }
            match rustix::io::pread(program, room, end as u64)? {
                0 => break,
                count => end += count,
            }
        }
        text.truncate(end);
        Ok(text)
    }

    /// Writes a script into the new root, which is assembled at `root`.
    pub(super) fn put(root: &str, mut text: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH;
        let file = open(format!("{root}/{NAME}"), flags, mode)?;
        while !text.is_empty() {
            let count = rustix::io::write(&file, text)?;
            text = text.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Opens the interpreter, as the domain sees it.
    pub(super) fn open_interpreter(&self) -> Result<OwnedFd, Errno> {
        open(&self.interpreter, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// Returns the interpreter's arguments, its name first, for a script that has `arguments`.
    pub(super) fn arguments(self, arguments: Vec<CString>) -> Vec<CString> {
        let own = [self.interpreter].into_iter().chain(self.argument).chain([self.path]);
        own.chain(arguments.into_iter().skip(1)).collect()
    }
}

/// Parses the interpreter and its argument in a first line.
fn first_line(head: &[u8]) -> Option<(CString, Option<CString>)> {
    let rest = head.strip_prefix(b"#!")?;
    let line = rest.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (interpreter, argument) = line.split_at(end);
    let argument = argument.trim_ascii();
    let argument = if argument.is_empty() { None } else { Some(CString::new(argument).ok()?) };
    interpreter.starts_with(b"/").then_some(())?;
    Some((CString::new(interpreter).ok()?, argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_has_an_interpreter_and_one_argument_at_most() {
        let line = |text: &str| {
            first_line(text.as_bytes()).map(|(interpreter, argument)| {
                let text = |text: CString| text.into_string().unwrap();
                (text(interpreter), argument.map(text))
            })
        };
        let sh = || "/bin/sh".to_owned();
        assert_eq!(line("#!/bin/sh\necho"), Some((sh(), None)));
        assert_eq!(line("#! /bin/sh  -e -u \r\n"), Some((sh(), Some("-e -u".to_owned()))));
        assert_eq!(line("#!/bin/sh"), Some((sh(), None)));
        for none in ["", "#!", "#!\n/bin/sh", "#!sh\n", "/bin/sh", "\x7fELF"] {
            assert_eq!(line(none), None, "{none:?}");
        }
    }
}
