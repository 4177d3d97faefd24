//! System calls that read or write guests' pages directly (`preadv` and io_uring), and locks of
//! bytes of a file.
#![allow(unsafe_code)]

use crate::disk::{DiskIo, DiskOp, Piece};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use xen::gnttab::PageAccess;
use xen::shared::PAGE_SIZE;

/// Checks that the pieces lie inside their pages.
fn check(io: &DiskIo) -> Result<(), Errno> {
    let inside = |piece: &Piece| {
        usize::from(piece.offset) + usize::from(piece.len) <= PAGE_SIZE
            && (io.op != DiskOp::Read || piece.page.access() == PageAccess::ReadWrite)
    };
    if io.pieces.iter().all(inside) { Ok(()) } else { Err(Errno::FAULT) }
}

/// Does a request on a file, and waits for it. Starts at byte `done`, if a part has been done
/// before.
pub(crate) fn transfer(
    file: BorrowedFd<'_>,
    io: &mut DiskIo,
    mut done: usize,
) -> Result<(), Errno> {
    match io.op {
        DiskOp::Flush => return rustix::fs::fdatasync(file),
        DiskOp::Discard => {
            return rustix::fs::fallocate(file, PUNCH, io.offset(), io.sectors * 512);
        }
        DiskOp::Read | DiskOp::Write => check(io)?,
    }
    let bytes = io.bytes();
    io.point_at_pieces();
    io.vectors.advance(done);
    while done < bytes {
        let at = libc::off_t::try_from(io.offset() + done as u64).map_err(|_| Errno::INVAL)?;
        let list = &io.vectors.list()[..io.vectors.list().len().min(VECTORS_MAX)];
        let count = libc::c_int::try_from(list.len()).map_err(|_| Errno::INVAL)?;
        let fd = file.as_raw_fd();
        // SAFETY: each vector lies inside a page that `io` holds, which is writable if the file is
        // read (`check`); the kernel copies as another domain may write, which promises nothing.
        let result = unsafe {
            match io.op {
                DiskOp::Read => libc::preadv(fd, list.as_ptr(), count, at),
                _ => libc::pwritev(fd, list.as_ptr(), count, at),
            }
        };
        match usize::try_from(result) {
            Ok(0) => return Err(Errno::IO),
            Ok(moved) => {
                done += moved;
                io.vectors.advance(moved);
            }
            Err(_) => match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                number => return Err(Errno::from_raw_os_error(number.unwrap_or(libc::EIO))),
            },
        }
    }
    Ok(())
}

/// Most vectors of one call (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// The number of requests that are not waited for after one that took too long.
const IMPATIENT: u32 = 16;

/// The result of a call that may wait: it has taken time or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitOutcome {
    /// Time has passed.
    Yes,
    /// No time has passed.
    No,
}

/// An io_uring for one file, with the requests that are under way in it.
pub(crate) struct Uring {
    ring: IoUring,
    slots: Vec<Option<Box<DiskIo>>>,
    free: Vec<usize>,
    unsubmitted: usize,
    /// The most requests that [`Uring::submit_and_wait`] waits for.
    together: usize,
    /// The number of further requests for which it does not wait.
    impatient: u32,
    /// The file, which is registered; kept so that short transfers can be completed.
    file: OwnedFd,
}

impl Uring {
    /// Creates an io_uring with room for `depth` requests on `file`.
    pub(crate) fn new(file: OwnedFd, depth: u32) -> Result<Self, Errno> {
        let wrong = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::NOSYS);
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun();
        let ring = builder.build(depth).or_else(|_| IoUring::new(depth)).map_err(wrong)?;
        // The second slot is for `hold`.
        ring.submitter().register_files(&[file.as_raw_fd(), -1]).map_err(wrong)?;
        let slots: Vec<_> = (0..depth).map(|_| None).collect();
        let free = (0..slots.len()).rev().collect();
        Ok(Self { ring, slots, free, unsubmitted: 0, together: 1, impatient: 0, file })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Keeps a file open until the kernel has ended the last request, however the process ends.
    pub(crate) fn hold(&mut self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let update = self.ring.submitter().register_files_update(1, &[file.as_raw_fd()]);
        let wrong = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        update.map(drop).map_err(wrong)
    }

    /// Puts a request into the queue; gives it back if there is no room, or it is not possible.
    pub(crate) fn push(&mut self, mut io: Box<DiskIo>) -> Result<(), (Box<DiskIo>, Errno)> {
        if matches!(io.op, DiskOp::Read | DiskOp::Write)
            && let Err(errno) = check(&io)
        {
            return Err((io, errno));
        }
        let Some(slot) = self.free.pop() else { return Err((io, Errno::AGAIN)) };
        let entry = entry(&mut io).user_data(slot as u64);
        // The kernel finds the vectors in the request's box, whose contents do not move.
        self.slots[slot] = Some(io);
        // SAFETY: the vectors lie inside pages that the request holds (`check`), and the list of them
        // inside the request; it stays in `slots` until the kernel has said that it is done.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.free.push(slot);
            let io = self.slots[slot].take().unwrap_or_else(|| unreachable!("just put there"));
            return Err((io, Errno::AGAIN));
        }
        self.unsubmitted += 1;
        Ok(())
    }

    /// Submits the queued requests to the kernel.
    pub(crate) fn submit(&mut self) -> Result<(), Errno> {
        if self.unsubmitted == 0 {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(count) => {
                self.unsubmitted = self.unsubmitted.saturating_sub(count);
                Ok(())
            }
            Err(error) => match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
                // Retried with the next call.
                Errno::INTR | Errno::AGAIN | Errno::BUSY => Ok(()),
                errno => Err(errno),
            },
        }
    }

    /// Submits the queued requests and waits at most `patience`. If some requests are new, it waits
    /// for half of those under way, so that the caller has work meanwhile; otherwise for all of
    /// them. The number that ends within that time is learnt: it starts at one, doubles each time,
    /// and falls back to the number that ended if that was too few. If not even one request ends,
    /// it does not wait for a while, as the file is on a slow disk.
    pub(crate) fn submit_and_wait(&mut self, patience: Duration) -> WaitOutcome {
        let (in_flight, fresh) = (self.in_flight(), self.unsubmitted > 0);
        if in_flight == 0 || self.impatient > 0 || !self.ring.params().is_feature_ext_arg() {
            self.impatient = self.impatient.saturating_sub(u32::from(fresh));
            // As in `start`.
            let _ = self.submit();
            return WaitOutcome::No;
        }
        let want = if fresh { in_flight.div_ceil(2) } else { in_flight }.min(self.together);
        let limit = types::Timespec::from(patience);
        let args = types::SubmitArgs::new().timespec(&limit);
        let called = self.ring.submitter().submit_with_args(want, &args);
        let called = called.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        match called {
            Ok(count) => self.unsubmitted = self.unsubmitted.saturating_sub(count),
            Err(Errno::TIME) => {}
            // The call was interrupted. The kernel takes the remaining requests with the next call.
            Err(_) => return WaitOutcome::Yes,
        }
        let ended = self.ring.completion().len();
        if ended >= want {
            self.together = (want * 2).max(self.together);
        } else if ended == 0 && want == 1 {
            self.impatient = IMPATIENT;
        } else {
            self.together = ended.max(1);
        }
        WaitOutcome::Yes
    }

    /// Returns a finished request.
    pub(crate) fn pop(&mut self) -> Option<(Box<DiskIo>, Result<(), Errno>)> {
        let entry = self.ring.completion().next()?;
        let slot = usize::try_from(entry.user_data()).ok()?;
        let mut io = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        let result = match usize::try_from(entry.result()) {
            Err(_) => Err(Errno::from_raw_os_error(-entry.result())),
            Ok(moved) if matches!(io.op, DiskOp::Read | DiskOp::Write) && moved < io.bytes() => {
                transfer(self.file.as_fd(), &mut io, moved)
            }
            Ok(_) => Ok(()),
        };
        Some((io, result))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Waits until there is a request to pop.
    pub(crate) fn wait(&mut self) -> Result<(), Errno> {
        match self.ring.submit_and_wait(1) {
            Ok(count) => {
                self.unsubmitted = self.unsubmitted.saturating_sub(count);
                Ok(())
            }
            Err(error) => match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
                Errno::INTR => Ok(()),
                errno => Err(errno),
            },
        }
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    /// Waits for the last request: the kernel writes into guests' pages until then.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.pop().is_none() && self.wait().is_err() {
                // The state of the requests is unknown, so their pages stay mapped permanently.
                self.slots.drain(..).for_each(std::mem::forget);
                return;
            }
        }
        // Without this, the kernel would release the file and its lock only some time later.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// The entry of a request whose pieces are checked.
fn entry(io: &mut DiskIo) -> squeue::Entry {
    let file = types::Fixed(0);
    let offset = io.offset();
    match io.op {
        DiskOp::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        DiskOp::Discard => opcode::Fallocate::new(file, io.sectors * 512)
            .offset(offset)
            .mode(PUNCH.bits().cast_signed())
            .build(),
        DiskOp::Read | DiskOp::Write => {
            io.point_at_pieces();
            let list = io.vectors.list();
            let count = u32::try_from(list.len().min(VECTORS_MAX)).unwrap_or(0);
            match (io.op, list) {
                (DiskOp::Read, [one]) => {
                    let len = u32::try_from(one.iov_len).unwrap_or(0);
                    opcode::Read::new(file, one.iov_base.cast(), len).offset(offset).build()
                }
                (_, [one]) => {
                    let len = u32::try_from(one.iov_len).unwrap_or(0);
                    opcode::Write::new(file, one.iov_base.cast(), len).offset(offset).build()
                }
                (DiskOp::Read, _) => {
                    opcode::Readv::new(file, list.as_ptr(), count).offset(offset).build()
                }
                _ => opcode::Writev::new(file, list.as_ptr(), count).offset(offset).build(),
            }
        }
    }
}

/// Puts a shared lock of the file's description on one byte; it ends with the last descriptor.
///
/// # Errors
/// An error of fcntl(2).
pub(crate) fn lock_byte(file: BorrowedFd<'_>, at: u64) -> Result<(), Errno> {
    byte_lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, at).map(drop)
}

/// True if another description of the file has a lock on this byte.
///
/// # Errors
/// An error of fcntl(2).
pub(crate) fn is_byte_locked(file: BorrowedFd<'_>, at: u64) -> Result<bool, Errno> {
    let found = byte_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, at)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn byte_lock(
    file: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    at: u64,
) -> Result<libc::flock, Errno> {
    // SAFETY: all of its fields are numbers, for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    (lock.l_start, lock.l_len) = (at.cast_signed(), 1);
    // SAFETY: the call reads and writes this struct, and nothing else.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done == -1 {
        let number = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(number.unwrap_or(libc::EINVAL)));
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// An error of syncing is reported, through the io_uring and without it: so a flush that is
    /// answered did get to the kernel.
    #[test]
    fn a_flush_asks_the_kernel() {
        let (_, pipe) = std::io::pipe().unwrap();
        let pipe = OwnedFd::from(pipe);
        let mut io = DiskIo::empty();
        assert_eq!(io.op, DiskOp::Flush);
        assert_eq!(transfer(pipe.as_fd(), &mut io, 0), Err(Errno::INVAL));
        let mut ring = Uring::new(pipe, 8).unwrap();
        assert!(ring.push(io).is_ok());
        ring.submit().unwrap();
        let ended = loop {
            match ring.pop() {
                Some((_, result)) => break result,
                None => ring.wait().unwrap(),
            }
        };
        assert_eq!(ended, Err(Errno::INVAL));
    }

    /// Pushes reads of 512 bytes from a pipe, so that the test decides when they end.
    fn push_reads(ring: &mut Uring, count: u64) {
        for sector in 0..count {
            let mut io = DiskIo::empty();
            (io.op, io.sector, io.sectors) = (DiskOp::Read, sector, 1);
            io.pieces.push(Piece { page: crate::RequestPage::private(), offset: 0, len: 512 });
            assert!(ring.push(io).is_ok());
        }
    }

    fn pop_all(ring: &mut Uring) -> usize {
        std::iter::from_fn(|| ring.pop()).map(|(_, result)| result.unwrap()).count()
    }

    #[test]
    fn as_many_are_waited_for_as_have_ended_in_time() {
        let (long, short) = (Duration::from_secs(10), Duration::from_millis(2));
        let (read, mut write) = std::io::pipe().unwrap();
        let mut ring = Uring::new(read.into(), 32).unwrap();
        assert_eq!(ring.submit_and_wait(long), WaitOutcome::No, "there is nothing to wait for");
        let begin = std::time::Instant::now();

        // It waits for one before it has learnt the number.
        push_reads(&mut ring, 4);
        write.write_all(&[7; 512]).unwrap();
        assert_eq!((ring.submit_and_wait(long), pop_all(&mut ring)), (WaitOutcome::Yes, 1));
        // Three more are under way, but it waits for at most twice the learnt number.
        let (go, next) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            for _ in 0..3 {
                let () = next.recv().unwrap();
                std::thread::sleep(Duration::from_millis(5));
                write.write_all(&[7; 512]).unwrap();
            }
            write
        });
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!((ring.submit_and_wait(long), pop_all(&mut ring)), (WaitOutcome::Yes, 2));
        go.send(()).unwrap();
        assert_eq!((ring.submit_and_wait(long), pop_all(&mut ring)), (WaitOutcome::Yes, 1));
        let mut write = writer.join().unwrap();
        // Half of the new ones.
        push_reads(&mut ring, 4);
        write.write_all(&[7; 1024]).unwrap();
        assert_eq!((ring.submit_and_wait(long), pop_all(&mut ring)), (WaitOutcome::Yes, 2));
        assert!(begin.elapsed() < long, "it was broken off");

        // None ends: then it tries one alone, then does not wait for a while.
        assert_eq!((ring.submit_and_wait(short), pop_all(&mut ring)), (WaitOutcome::Yes, 0));
        assert_eq!((ring.submit_and_wait(short), pop_all(&mut ring)), (WaitOutcome::Yes, 0));
        for _ in 0..IMPATIENT {
            assert_eq!(ring.submit_and_wait(long), WaitOutcome::No);
            push_reads(&mut ring, 1);
            assert_eq!(ring.submit_and_wait(long), WaitOutcome::No);
        }
        write.write_all(&vec![7; 512 * ring.in_flight()]).unwrap();
        assert_eq!(ring.submit_and_wait(long), WaitOutcome::Yes);
    }
}
