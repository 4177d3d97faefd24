//! Locks of what one process alone may do.

use super::ProgramFailure;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The time for which another process's locks are waited for: one that was killed holds them until the kernel is
/// done with what it had begun.
pub const LET_GO_WITHIN: Duration = Duration::from_secs(3);
/// The least number of a lock's descriptor. A process that ends lets go of its descriptors in their order: of its locks
/// last.
const LOCK_DESCRIPTOR: i32 = 1 << 14;

/// Locks the file `name`, in a folder that is made if it is not there; `taken` says who has it otherwise.
///
/// # Errors
/// It is locked by somebody else, or cannot be made.
pub fn lock(dir: &Path, name: &str, taken: &str) -> Result<OwnedFd, ProgramFailure> {
    let path = dir.join(name);
    let failed = |errno: Errno| format!("{}: {errno}", path.display());
    std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let end = Instant::now() + LET_GO_WITHIN;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(format!("{taken} ({} is locked)", path.display()).into());
            }
            Err(errno) => return Err(failed(errno).into()),
        }
    }
    // Where the limit of descriptors is less, it stays where it is.
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, LOCK_DESCRIPTOR).unwrap_or(file))
}
