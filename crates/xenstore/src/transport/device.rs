//! `/dev/xen/xenbus` of Linux (`drivers/xen/xenbus/xenbus_dev_frontend.c`): how a guest, or
//! domain 0 without a socket, reaches the store through the kernel's own connection.
//!
//! The kernel takes one request per write and drops what follows it, so each write is exactly one
//! message. Replies and events come by read, several at once if there are. It handles WATCH and
//! UNWATCH itself and knows no depth; see [`crate::Client::watch_depth`].

use super::Wait;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::time::Timespec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use xenstore_core::client::Client as Machine;

/// An open device.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Opens the device at `path`.
    ///
    /// # Errors
    /// What open(2) says: ENOENT without Xen, EACCES for an ordinary user.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map(Self)
    }

    /// Writes all of the output, one message at a time. The kernel keeps replies in memory of its
    /// own, so this cannot wait for us to read.
    pub(crate) fn write(&mut self, machine: &mut Machine) -> Result<(), Errno> {
        while !machine.output_message().is_empty() {
            match write(&self.0, machine.output_message()) {
                // The kernel puts a message together from any number of writes.
                Ok(count) if count < machine.output_message().len() => {
                    self.write_rest(machine, count)?;
                }
                Ok(count) => machine.consume_output(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Finishes a message of which `done` bytes have been written.
    fn write_rest(&mut self, machine: &mut Machine, mut done: usize) -> Result<(), Errno> {
        let len = machine.output_message().len();
        while done < len {
            match write(&self.0, machine.output_message().get(done..).unwrap_or_default()) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done = done.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        machine.consume_output(len);
        Ok(())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        if wait == Wait::Poll {
            // Without O_NONBLOCK, which another holder of the descriptor would notice.
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
                return Err(Errno::AGAIN);
            }
        }
        loop {
            match read(&self.0, &mut *buffer) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
