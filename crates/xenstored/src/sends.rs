//! Sends many small outputs in one system call, through an io_uring that can do nothing else.
//!
//! A change that a thousand clients watch causes a thousand sends, and entering the kernel is a
//! third of the cost of each. If the kernel has no io_uring, or is configured to refuse it, the
//! caller sends one by one. The ring is restricted when it is made: it accepts sends, and the
//! kernel refuses any other request, no matter who writes it to the ring.
#![allow(unsafe_code)]

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// The most sends of one call, which is the number of entries of the ring.
const BATCH: usize = 256;
/// The largest output, in bytes, that is worth copying for a common send.
pub(crate) const SMALL_MAX: usize = 1024;
/// The fewest sends for which one call is cheaper than one call each.
pub(crate) const WORTH_IT: usize = 8;

/// The ring, and the bytes to be sent.
pub(crate) struct Sends {
    ring: IoUring,
    bytes: Vec<u8>,
    /// The socket of each output, and the end of the output in `bytes`.
    queue: Vec<(RawFd, usize)>,
    results: Vec<Result<usize, Errno>>,
    broken: bool,
}

impl Sends {
    /// Makes the ring.
    ///
    /// # Errors
    /// The kernel's reason for refusing the ring.
    pub(crate) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_r_disabled().setup_single_issuer();
        let entries = u32::try_from(BATCH).unwrap_or(u32::MAX);
        let ring: IoUring = builder.build(entries)?;
        let mut only = [Restriction::sqe_op(opcode::Send::CODE)];
        ring.submitter().register_restrictions(&mut only)?;
        ring.submitter().register_enable_rings()?;
        let bytes = Vec::with_capacity(BATCH * SMALL_MAX / 4);
        let queue = Vec::with_capacity(BATCH);
        Ok(Self { ring, bytes, queue, results: Vec::with_capacity(BATCH), broken: false })
    }

    /// Queues `output` for `socket`. Returns false if the queue is full.
    pub(crate) fn push(&mut self, socket: BorrowedFd<'_>, output: &[u8]) -> bool {
        if self.queue.len() == BATCH || output.len() > SMALL_MAX {
            return false;
        }
        self.bytes.extend_from_slice(output);
        self.queue.push((socket.as_raw_fd(), self.bytes.len()));
        true
    }

    /// True if the kernel has refused work from the ring. The ring must not be used any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Drops the queued outputs.
    pub(crate) fn forget(&mut self) {
        self.queue.clear();
        self.bytes.clear();
    }

    /// Sends all queued outputs. Returns the number of bytes that each socket has taken, in the
    /// order of the queue. A socket must not be closed between [`Sends::push`] and this call.
    ///
    /// # Errors
    /// The kernel's error. Nothing was sent, and nothing will be.
    pub(crate) fn send(&mut self) -> io::Result<&[Result<usize, Errno>]> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        self.results.clear();
        self.results.resize(self.queue.len(), Err(Errno::AGAIN));
        let mut begin = 0;
        for (at, (fd, end)) in self.queue.iter().enumerate() {
            let output = &self.bytes[begin..*end];
            begin = *end;
            let len = u32::try_from(output.len()).unwrap_or(u32::MAX);
            let entry = opcode::Send::new(types::Fd(*fd), output.as_ptr(), len)
                .flags(flags)
                .build()
                .user_data(at as u64);
            // SAFETY: the bytes stay in place until this call has all results, as nothing is queued
            // before it returns; the ring has as many entries as the queue.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            pushed.map_err(|_| io::Error::from(Errno::BUSY))?;
        }
        let mut left = self.queue.len();
        self.queue.clear();
        while left > 0 {
            match self.ring.submit_and_wait(left) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel may still read the bytes of entries that it has taken, so these bytes
                // are never reused. The results that it has reported are valid. The rest is to be
                // tried again when the socket takes bytes.
                Err(_) => {
                    std::mem::take(&mut self.bytes).leak();
                    self.broken = true;
                    break;
                }
            }
            for done in self.ring.completion() {
                let result = match done.result() {
                    error if error < 0 => Err(Errno::from_raw_os_error(error.saturating_neg())),
                    count => Ok(usize::try_from(count).unwrap_or(0)),
                };
                let at = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
                if let Some(slot) = self.results.get_mut(at) {
                    *slot = result;
                    left = left.saturating_sub(1);
                }
            }
        }
        self.bytes.clear();
        Ok(&self.results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn each_socket_gets_its_own() {
        let mut sends = match Sends::new() {
            Ok(sends) => sends,
            Err(error) => return eprintln!("skipped: no io_uring here: {error}"),
        };
        for _ in 0..3 {
            let pairs: Vec<_> = (0..BATCH).map(|_| UnixStream::pair().unwrap()).collect();
            drop(pairs[7].1.try_clone().unwrap().shutdown(std::net::Shutdown::Both));
            for (at, (here, _)) in pairs.iter().enumerate() {
                assert!(sends.push(here.as_fd(), format!("for {at}").as_bytes()));
            }
            assert!(!sends.push(pairs[0].0.as_fd(), b"one too many"));
            let results = sends.send().unwrap();
            assert_eq!(results.len(), BATCH);
            assert_eq!(results[7], Err(Errno::PIPE), "and no signal");
            assert_eq!(results[8], Ok(5));
            for (at, (here, mut there)) in pairs.into_iter().enumerate() {
                drop(here);
                let mut text = String::new();
                there.read_to_string(&mut text).unwrap();
                assert_eq!(text, if at == 7 { String::new() } else { format!("for {at}") });
            }
        }
        assert!(!sends.push(io::stdin().as_fd(), &[0; SMALL_MAX + 1]), "too large");
        assert_eq!(sends.send().unwrap(), []);
    }

    #[test]
    fn a_full_socket_is_not_waited_for() {
        let Ok(mut sends) = Sends::new() else { return eprintln!("skipped: no io_uring here") };
        let (here, _there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        while io::Write::write(&mut &here, &[0; 4096]).is_ok() {}
        assert!(sends.push(here.as_fd(), b"no room"));
        assert_eq!(sends.send().unwrap(), [Err(Errno::AGAIN)]);
    }

    #[test]
    fn the_ring_does_nothing_else() {
        let Ok(mut sends) = Sends::new() else { return eprintln!("skipped: no io_uring here") };
        let entry = opcode::Nop::new().build();
        // SAFETY: the request points to nothing.
        unsafe { sends.ring.submission().push(&entry) }.unwrap();
        sends.ring.submit_and_wait(1).unwrap();
        let result = sends.ring.completion().next().map(|done| done.result());
        assert_eq!(result, Some(-libc::EACCES));
    }
}
