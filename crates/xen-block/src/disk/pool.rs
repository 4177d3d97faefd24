//! Threads for disks whose calls block.

use super::escaped_path::EscapedPath;
use super::open::in_memory;
use super::{Disk, DiskIo, DiskOp, Finished, Geometry};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The most requests that one thread does before it settles them.
const BATCH_MAX: usize = 16;

/// The work of one thread.
pub trait RequestHandler: Send + 'static {
    /// Does a request.
    ///
    /// # Errors
    /// The error of the disk.
    fn run(&mut self, io: &mut DiskIo) -> Result<RunOutcome, Errno>;

    /// Completes the unsettled requests, all of them at once.
    ///
    /// # Errors
    /// The error of the disk; then none of them is done.
    fn settle(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

/// The state of a request after [`RequestHandler::run`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunOutcome {
    /// The request may be answered.
    Settled,
    /// The request may be answered after [`RequestHandler::settle`].
    Unsettled,
}

impl<F: FnMut(&mut DiskIo) -> Result<(), Errno> + Send + 'static> RequestHandler for F {
    fn run(&mut self, io: &mut DiskIo) -> Result<RunOutcome, Errno> {
        self(io).map(|()| RunOutcome::Settled)
    }
}

/// The state of one thread.
struct Worker<W> {
    handler: W,
    requests: Arc<Mutex<Receiver<Box<DiskIo>>>>,
    results: Sender<Finished>,
    wake: Arc<OwnedFd>,
    /// True once a thread has panicked.
    broken: Arc<AtomicBool>,
    #[expect(clippy::vec_box, reason = "each goes back in the box it came in")]
    unsettled: Vec<Box<DiskIo>>,
}

impl<W: RequestHandler> Worker<W> {
    /// Serves requests until the pool is dropped.
    fn serve(&mut self) {
        loop {
            let job = self.requests.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(io) = job else { return };
            self.run(io);
            for _ in 1..BATCH_MAX {
                if self.unsettled.is_empty() {
                    break;
                }
                // A thread that holds the lock is waiting, so there is no request.
                let next =
                    self.requests.try_lock().ok().and_then(|requests| requests.try_recv().ok());
                let Some(io) = next else { break };
                self.run(io);
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        if !self.unsettled.is_empty() {
            let result = self.call_guarded(W::settle);
            let mut unsettled = std::mem::take(&mut self.unsettled);
            for io in unsettled.drain(..) {
                self.send_result(io, result);
            }
            self.unsettled = unsettled;
        }
    }

    fn run(&mut self, mut io: Box<DiskIo>) {
        if matches!(io.op, DiskOp::Flush | DiskOp::Discard) {
            // The request may take long, and the unsettled ones are not to wait for it.
            self.settle();
        }
        match self.call_guarded(|handler| handler.run(&mut io)) {
            Ok(RunOutcome::Unsettled) => self.unsettled.push(io),
            result => self.send_result(io, result.map(drop)),
        }
    }

    /// Calls the work and catches a panic, whose message is already printed. The state after a
    /// panic is unknown: from then on every request fails with `EIO`.
    fn call_guarded<T>(
        &mut self,
        call: impl FnOnce(&mut W) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        let done = catch_unwind(AssertUnwindSafe(|| call(&mut self.handler)));
        self.broken.fetch_or(done.is_err(), Ordering::AcqRel);
        done.unwrap_or(Err(Errno::IO))
    }

    fn send_result(&self, io: Box<DiskIo>, result: Result<(), Errno>) {
        if self.results.send((io, result)).is_ok() {
            // The eventfd blocks only after 2^64 - 2 of these.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

/// Threads that do requests, each thread one after the other.
#[derive(Debug)]
pub struct Pool {
    jobs: Option<Sender<Box<DiskIo>>>,
    done: Receiver<Finished>,
    /// An eventfd; each finished request adds one, after its result is sent.
    wake: Arc<OwnedFd>,
    /// The number of results taken minus the count read from `wake`. Below zero, `wake` has
    /// announced results that are still to be taken.
    unread: i64,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl Pool {
    /// Starts a thread for each of `workers`, which does its requests.
    ///
    /// # Errors
    /// The error of the system from the eventfd or the threads.
    pub fn new<W: RequestHandler>(workers: Vec<W>) -> Result<Self, Errno> {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (jobs, requests) = channel();
        let (results, done) = channel();
        let (requests, broken) = (Arc::new(Mutex::new(requests)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for handler in workers {
            let mut worker = Worker {
                handler,
                requests: Arc::clone(&requests),
                results: results.clone(),
                wake: Arc::clone(&wake),
                broken: Arc::clone(&broken),
                unsettled: Vec::new(),
            };
            let thread = std::thread::Builder::new().name("disk".to_owned());
            threads.push(thread.spawn(move || worker.serve()).map_err(|_| Errno::AGAIN)?);
        }
        Ok(Self { jobs: Some(jobs), done, wake, unread: 0, threads, in_flight: 0 })
    }

    /// Gives a request to the next thread that is free.
    ///
    /// # Errors
    /// Gives the request back if all threads have ended.
    pub fn submit(&mut self, io: Box<DiskIo>) -> Result<(), Box<DiskIo>> {
        let Some(jobs) = &self.jobs else { return Err(io) };
        jobs.send(io).map_err(|refused| refused.0)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Returns a finished request.
    pub fn finished(&mut self) -> Option<Finished> {
        // An idle pool is asked every turn, which is to cost no system call.
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
            // The count read may include results that came later, and `wake` will not announce
            // these again.
            if self.unread >= 0 {
                return None;
            }
        }
    }

    /// Returns the number of requests that are not finished, or not taken.
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
pub struct PooledDisk {
    pool: Pool,
    geometry: Geometry,
    path: PathBuf,
    /// A descriptor that stays open with the disk, as a lock against other writers.
    _held: Option<OwnedFd>,
}

impl fmt::Debug for PooledDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("path", &self.path).finish_non_exhaustive()
    }
}

impl PooledDisk {
    /// Creates the disk at `path`; `held` is closed with it, once its threads have ended.
    pub(super) fn new(pool: Pool, geometry: Geometry, path: &Path, held: Option<OwnedFd>) -> Self {
        Self { pool, geometry, path: path.to_owned(), _held: held }
    }
}

impl Disk for PooledDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn describe(&self) -> String {
        format!("{}, threads", EscapedPath(&self.path))
    }

    fn is_in_memory(&self) -> bool {
        File::open(&self.path).is_ok_and(|file| in_memory(file).unwrap_or(false))
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
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
        let worker = move |_: &mut DiskIo| {
            assert!(left > 0, "a panic of the test's");
            left -= 1;
            Ok(())
        };
        let mut pool = Pool::new(vec![worker]).unwrap();
        for _ in 0..4 {
            pool.submit(DiskIo::empty()).unwrap();
        }
        let mut results = Vec::new();
        while results.len() < 4 {
            results.extend(pool.finished().map(|(_, result)| result));
        }
        assert_eq!(results, [Ok(()), Err(Errno::IO), Err(Errno::IO), Err(Errno::IO)]);
    }

    /// A handler that counts how often it settles, and fails to settle on demand.
    struct CountingHandler {
        times: Arc<std::sync::atomic::AtomicUsize>,
        result: Result<(), Errno>,
    }

    impl RequestHandler for CountingHandler {
        fn run(&mut self, _: &mut DiskIo) -> Result<RunOutcome, Errno> {
            std::thread::sleep(std::time::Duration::from_millis(2));
            Ok(RunOutcome::Unsettled)
        }

        fn settle(&mut self) -> Result<(), Errno> {
            self.times.fetch_add(1, Ordering::Relaxed);
            self.result
        }
    }

    #[test]
    fn what_waits_to_be_settled_is_settled_together() {
        for result in [Ok(()), Err(Errno::NOSPC)] {
            let times = Arc::default();
            let mut pool =
                Pool::new(vec![CountingHandler { times: Arc::clone(&times), result }]).unwrap();
            let asked = 3 * BATCH_MAX;
            for _ in 0..asked {
                let mut io = DiskIo::empty();
                io.op = DiskOp::Write;
                pool.submit(io).unwrap();
            }
            let mut results = Vec::new();
            while results.len() < asked {
                results.extend(pool.finished().map(|(_, result)| result));
            }
            assert!(results.iter().all(|one| *one == result), "{results:?}");
            // The first request may be settled alone, before the others come.
            assert!((3..=4).contains(&times.load(Ordering::Relaxed)), "{times:?}");
        }
    }

    /// A reader of the eventfd is woken once for each result, and not for a result that was taken.
    #[test]
    fn each_result_is_told_of() {
        let worker = |_: &mut DiskIo| Ok(());
        let mut pool = Pool::new(vec![worker; 4]).unwrap();
        for _ in 0..2000 {
            for _ in 0..5 {
                pool.submit(DiskIo::empty()).unwrap();
            }
            while pool.in_flight() > 0 {
                if pool.finished().is_none() {
                    assert!(readable(&pool, 10), "{} results are not told of", pool.in_flight());
                }
            }
        }
        // The last notifications may come after their results.
        while pool.unread > 0 {
            assert!(pool.finished().is_none());
        }
        assert_eq!(pool.unread, 0);
        assert!(!readable(&pool, 0));
    }
}
