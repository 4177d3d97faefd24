//! The pseudoterminal of a console, for `xl console`, `virsh console` and all that open a terminal by
//! its path.
//!
//! The far end stays open here. Without that, a reader that closes it would leave a terminal that
//! reports a hang-up for ever, and output that nobody has read would be dropped.

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A pseudoterminal in raw mode.
#[derive(Debug)]
pub struct Pty {
    near: File,
    /// Held open, and never read.
    far: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// Opens one. Its far end belongs to this process's user, and has no window size yet.
    ///
    /// # Errors
    /// There is no `/dev/ptmx`, or no pseudoterminal is left (`kernel.pty.max`).
    pub fn open() -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let near = openpt(flags)?;
        grantpt(&near)?;
        unlockpt(&near)?;
        let path = ptsname(&near, Vec::new())?;
        // By the near end, as another mount of devpts may have that path.
        let far = ioctl_tiocgptpeer(&near, flags)?;
        let mut raw = tcgetattr(&far)?;
        raw.make_raw();
        tcsetattr(&far, OptionalActions::Now, &raw)?;
        rustix::io::ioctl_fionbio(&near, true)?;
        let path = OsStr::from_bytes(path.to_bytes()).into();
        Ok(Self { near: near.into(), far, path })
    }

    /// Returns the path of the far end.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what was typed, at most `into.len()` bytes; returns how many, 0 if nothing was typed.
    ///
    /// # Errors
    /// The pseudoterminal is unusable.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        none_if_blocked(self.near.read(into))
    }

    /// Writes output; returns how many bytes, 0 if the terminal is full as nobody reads it.
    ///
    /// # Errors
    /// The pseudoterminal is unusable.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        none_if_blocked(self.near.write(from))
    }

    /// Sets the size of the window, in characters.
    ///
    /// # Errors
    /// The pseudoterminal is unusable.
    pub fn set_size(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.far, size)?)
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}

/// Opens the far end of a pseudoterminal by a path from the store, for a client. The path must lead
/// to a terminal of devpts: a guest or a backend may have written another there (XSA-57).
///
/// # Errors
/// It cannot be opened, or is no pseudoterminal.
pub fn open_far_end(path: &Path) -> io::Result<OwnedFd> {
    let flags =
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    // Looked at before it is opened: to open a device may do something.
    let place =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    if !is_far_end(&place)? {
        return Err(io::Error::other("it is no pseudoterminal"));
    }
    let far = rustix::fs::open(path, flags, Mode::empty())?;
    if !is_far_end(&far)? {
        return Err(io::Error::other("it is no pseudoterminal"));
    }
    Ok(far)
}

/// True if it is a character device with the numbers of Linux's pseudoterminals (majors 136 to 143).
fn is_far_end(file: &OwnedFd) -> io::Result<bool> {
    let about = rustix::fs::fstat(file)?;
    let is_device =
        rustix::fs::FileType::from_raw_mode(about.st_mode) == rustix::fs::FileType::CharacterDevice;
    Ok(is_device && (136..=143).contains(&rustix::fs::major(about.st_rdev)))
}

fn none_if_blocked(outcome: io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Err(error)
            if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) =>
        {
            Ok(0)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::tcgetwinsize;

    #[test]
    fn bytes_pass_unchanged_in_both_directions_and_outlive_a_reader() {
        let mut pty = Pty::open().unwrap();
        let mut far = File::from(open_far_end(pty.path()).unwrap());
        assert_eq!(pty.write(b"login:\r\n\x04").unwrap(), 9);
        let mut bytes = [0; 20];
        assert_eq!(far.read(&mut bytes).unwrap(), 9);
        assert_eq!(&bytes[..9], b"login:\r\n\x04");
        assert_eq!(far.write(b"root\r\x03").unwrap(), 6);
        assert_eq!(pty.read(&mut bytes).unwrap(), 6);
        assert_eq!(&bytes[..6], b"root\r\x03");
        drop(far);
        // Nobody has it open: output waits, nothing is echoed, and there is no hang-up.
        assert_eq!(pty.write(b"more").unwrap(), 4);
        assert_eq!(pty.read(&mut bytes).unwrap(), 0);
        let mut far = File::from(open_far_end(pty.path()).unwrap());
        assert_eq!(far.read(&mut bytes).unwrap(), 4);
    }

    #[test]
    fn a_terminal_that_nobody_reads_takes_a_part_and_then_nothing() {
        let mut pty = Pty::open().unwrap();
        let mut taken = 0;
        loop {
            match pty.write(&[b'x'; 1024]).unwrap() {
                0 => break,
                count => taken += count,
            }
            assert!(taken < 1 << 20);
        }
        assert!(taken > 0);
    }

    #[test]
    fn the_size_of_the_window_reaches_the_far_end() {
        let pty = Pty::open().unwrap();
        pty.set_size(132, 43).unwrap();
        let far = open_far_end(pty.path()).unwrap();
        let size = tcgetwinsize(&far).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pty = Pty::open().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(pty.path(), &link).unwrap();
        for path in
            [Path::new("/etc/hostname"), Path::new("/dev/null"), Path::new("/dev/zero"), &link]
        {
            assert!(open_far_end(path).is_err(), "{}", path.display());
        }
    }
}
