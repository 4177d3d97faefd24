//! Locks on the files of disks.
//!
//! There are two kinds, for two kinds of programs: a lock of the whole file (flock(2)), which Xen's
//! hotplug scripts and this crate take, and QEMU's locks of single bytes (open file description
//! locks, fcntl(2)). QEMU has two bytes for each use of a file (`block/file-posix.c`): the byte
//! from 100 is locked by a program that uses the file so, and the byte from 200 by a program that
//! does not permit that others do. All are shared locks: a program takes some, and then checks that
//! nobody has the opposite ones. The locks end with the last descriptor of the opened file.

use crate::sys::{is_byte_locked, lock_byte};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The first byte of the locks for uses of the file.
const USED: u64 = 100;
/// The first byte of the locks for uses that others may not make.
const EXCLUDED: u64 = 200;
/// Reading data that must not change meanwhile.
const READ: u64 = 0;
/// Writing.
const WRITE: u64 = 1;
/// Changing the size.
const RESIZE: u64 = 3;

/// A use of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FileUse {
    /// The file is read, also while others write to it.
    Reading,
    /// The file is read, and nobody writes to it.
    Keeping,
    /// The file is written, and nobody else writes it or needs it unchanged.
    Writing,
}

impl FileUse {
    fn uses(self) -> &'static [u64] {
        if self == Self::Writing { &[READ, WRITE, RESIZE] } else { &[READ] }
    }

    fn excludes(self) -> &'static [u64] {
        if self == Self::Reading { &[] } else { &[WRITE, RESIZE] }
    }
}

/// The time until which [`lock`] waits for locks that others hold.
static PATIENT_UNTIL: OnceLock<Instant> = OnceLock::new();

/// Makes every opening of a file wait for locks that others hold, for this long from now on. An
/// earlier process that was killed holds its files until the kernel has finished the requests that
/// it had begun. Only the first call counts.
pub fn wait_for_locks(within: Duration) {
    PATIENT_UNTIL.get_or_init(|| Instant::now() + within);
}

/// Locks a file.
///
/// # Errors
/// `EWOULDBLOCK` if somebody uses the file in a way that conflicts with this one.
pub(super) fn lock(file: BorrowedFd<'_>, usage: FileUse) -> Result<(), Errno> {
    loop {
        match lock_now(file, usage) {
            Err(Errno::WOULDBLOCK)
                if PATIENT_UNTIL.get().is_some_and(|until| Instant::now() < *until) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            locked => return locked,
        }
    }
}

fn lock_now(file: BorrowedFd<'_>, usage: FileUse) -> Result<(), Errno> {
    match usage {
        FileUse::Reading => {}
        FileUse::Keeping => flock(file, FlockOperation::NonBlockingLockShared)?,
        FileUse::Writing => flock(file, FlockOperation::NonBlockingLockExclusive)?,
    }
    let of = |base: u64, what: &[u64]| what.iter().map(|bit| base + bit).collect::<Vec<_>>();
    let own = [of(USED, usage.uses()), of(EXCLUDED, usage.excludes())].concat();
    let opposite = [of(EXCLUDED, usage.uses()), of(USED, usage.excludes())].concat();
    for byte in own {
        match lock_byte(file, byte) {
            // The file system has no such locks, so QEMU has none there either.
            Err(Errno::INVAL | Errno::NOLCK | Errno::OPNOTSUPP) => return Ok(()),
            locked => locked?,
        }
    }
    for byte in opposite {
        if is_byte_locked(file, byte)? {
            return Err(Errno::WOULDBLOCK);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// Each use is tried with each, in both orders. QEMU's half is tried with its tools, in
    /// `tests/suite/images`.
    #[test]
    fn what_goes_together_is_locked_and_nothing_else() {
        use FileUse::{Keeping, Reading, Writing};
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        for (one, two, together) in [
            (Reading, Reading, true),
            (Reading, Keeping, true),
            (Reading, Writing, true),
            (Keeping, Keeping, true),
            (Keeping, Writing, false),
            (Writing, Writing, false),
        ] {
            for (first, second) in [(one, two), (two, one)] {
                let (holder, other) = (open(), open());
                lock(holder.as_fd(), first).unwrap();
                let wanted = if together { Ok(()) } else { Err(Errno::WOULDBLOCK) };
                assert_eq!(lock(other.as_fd(), second), wanted, "{first:?}, then {second:?}");
            }
        }
    }
}
