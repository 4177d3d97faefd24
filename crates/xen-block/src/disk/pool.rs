//! Threads for disks that can only be waited for.

use super::{Disk, Finished, Geometry, Io};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads that do requests, each one at a time.
#[derive(Debug)]
pub struct Pool {
    jobs: Option<Sender<Box<Io>>>,
    done: Receiver<Finished>,
    /// Each request that is done adds one, behind its result.
    wake: Arc<OwnedFd>,
    /// Results that were taken, less what was read from `wake`; below zero, that has told of some still to be taken.
    unread: i64,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl Pool {
    /// Starts a thread for each of `workers`, which does what it is given.
    ///
    /// # Errors
    /// What the system said to the eventfd or the threads.
    pub fn new<W>(workers: Vec<W>) -> Result<Self, Errno>
    where
        W: FnMut(&mut Io) -> Result<(), Errno> + Send + 'static,
    {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (jobs, takes) = channel::<Box<Io>>();
        let (tells, done) = channel();
        let takes = Arc::new(Mutex::new(takes));
        let mut threads = Vec::new();
        let broken = Arc::new(AtomicBool::new(false));
        for mut worker in workers {
            let (takes, tells, wake) = (Arc::clone(&takes), tells.clone(), Arc::clone(&wake));
            let broken = Arc::clone(&broken);
            let run = move || {
                loop {
                    let job = takes.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(mut io) = job else { return };
                    // One that panics has said so. Who knows what it has left: nothing more is done, and everything answered.
                    let mut result = Err(Errno::IO);
                    if !broken.load(Ordering::Acquire) {
                        let done = catch_unwind(AssertUnwindSafe(|| worker(&mut io)));
                        broken.fetch_or(done.is_err(), Ordering::AcqRel);
                        result = done.unwrap_or(result);
                    }
                    if tells.send((io, result)).is_err() {
                        return;
                    }
                    // It takes 2^64 - 2 of these before it would block.
                    let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
                }
            };
            let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(run);
            threads.push(thread.map_err(|_| Errno::AGAIN)?);
        }
        Ok(Self { jobs: Some(jobs), done, wake, unread: 0, threads, in_flight: 0 })
    }

    /// Gives a request to the next thread that is free.
    ///
    /// # Errors
    /// Gives it back where all threads have ended.
    pub fn submit(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        let Some(jobs) = &self.jobs else { return Err(io) };
        jobs.send(io).map_err(|refused| refused.0)?;
        self.in_flight += 1;
        Ok(())
    }

    /// A request that is done.
    pub fn finished(&mut self) -> Option<Finished> {
        // An idle pool is asked every turn: without a system call.
        if self.in_flight == 0 && self.unread <= 0 {
            return None;
        }
        loop {
            if let Ok(finished) = self.done.try_recv() {
                self.in_flight -= 1;
                self.unread += 1;
                return Some(finished);
            }
            let mut ones = [0; 8];
            if self.unread <= 0 || rustix::io::read(&self.wake, &mut ones).is_err() {
                return None;
            }
            self.unread = self.unread.saturating_sub_unsigned(u64::from_ne_bytes(ones));
            // Where some were of results that have come since, nothing else tells of these.
            if self.unread >= 0 {
                return None;
            }
        }
    }

    /// Requests that are not done, or not taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A disk whose requests are all done by threads.
pub struct Pooled {
    pool: Pool,
    geometry: Geometry,
    path: PathBuf,
    /// What is held while the disk is open, as a lock against other writers.
    _held: Option<OwnedFd>,
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Pooled {
    /// The disk at `path`; `held` is closed with it, once its threads have ended.
    pub(super) fn new(pool: Pool, geometry: Geometry, path: &Path, held: Option<OwnedFd>) -> Self {
        Self { pool, geometry, path: path.to_owned(), _held: held }
    }
}

impl Disk for Pooled {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, io: Box<Io>) -> Result<Option<Finished>, Box<Io>> {
        self.pool.submit(io).map(|()| None)
    }

    fn finished(&mut self) -> Option<Finished> {
        self.pool.finished()
    }

    fn in_flight(&self) -> usize {
        self.pool.in_flight()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pool.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(pool: &Pool, seconds: i64) -> bool {
        let mut fds = [PollFd::new(pool, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn a_panic_is_an_error_of_its_request_and_of_all_that_come_after_it() {
        let mut left = 1;
        let worker = move |_: &mut Io| {
            assert!(left > 0, "a panic of the test's");
            left -= 1;
            Ok(())
        };
        let mut pool = Pool::new(vec![worker]).unwrap();
        for _ in 0..4 {
            pool.submit(Io::empty()).unwrap();
        }
        let mut results = Vec::new();
        while results.len() < 4 {
            results.extend(pool.finished().map(|(_, result)| result));
        }
        assert_eq!(results, [Ok(()), Err(Errno::IO), Err(Errno::IO), Err(Errno::IO)]);
    }

    /// Whoever sleeps while nothing is to be had is woken for each result, and by no result that was taken.
    #[test]
    fn each_result_is_told_of() {
        let worker = |_: &mut Io| Ok(());
        let mut pool = Pool::new(vec![worker; 4]).unwrap();
        for _ in 0..2000 {
            for _ in 0..5 {
                pool.submit(Io::empty()).unwrap();
            }
            while pool.in_flight() > 0 {
                if pool.finished().is_none() {
                    assert!(readable(&pool, 10), "{} results are not told of", pool.in_flight());
                }
            }
        }
        // The last ones may come behind their results.
        while pool.unread > 0 {
            assert!(pool.finished().is_none());
        }
        assert_eq!(pool.unread, 0);
        assert!(!readable(&pool, 0));
    }
}
