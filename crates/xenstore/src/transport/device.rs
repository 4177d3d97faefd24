//! `/dev/xen/xenbus` of Linux (`drivers/xen/xenbus/xenbus_dev_frontend.c`), through which a guest,
//! or domain 0 without a socket, uses the kernel's own connection to the store.
//!
//! The kernel takes one request per write and drops the bytes after it, so each write is exactly
//! one message. It sends the payload from the single buffer of the descriptor, at a time of its
//! choice, and the next write overwrites that buffer: a request that is written before the previous
//! one is answered may be sent twice, in place of the previous one. Therefore one request is in
//! flight at a time, however many are queued. Replies and events come by read, several at once if
//! there are. The kernel handles WATCH and UNWATCH itself and does not know a depth; see
//! [`crate::Client::watch_depth`].

use super::wait::Wait;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::time::Timespec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use xenstore_core::client::Client as ClientMachine;
use xenstore_core::wire::{ERRORS, Header, MsgType};

/// An open device.
#[derive(Debug)]
pub struct XenbusDevice {
    fd: OwnedFd,
    /// The id of the request that was written last.
    last_request: Option<u32>,
}

impl XenbusDevice {
    /// Opens the device at `path`.
    ///
    /// # Errors
    /// The error of open(2): ENOENT without Xen, EACCES for an ordinary user.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let fd = open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
        Ok(Self { fd, last_request: None })
    }

    /// Writes the output up to the first request that awaits its reply. The kernel keeps replies in
    /// its own memory, so this write never waits for a read of this process.
    pub(crate) fn write(&mut self, machine: &mut ClientMachine) -> Result<(), Errno> {
        while !self.last_request.is_some_and(|id| machine.awaits(id)) {
            let Some(header) = Header::parse(machine.output_message()) else { return Ok(()) };
            self.last_request = Some(header.req_id);
            match write(&self.fd, machine.output_message()) {
                // The kernel assembles a message from any number of writes.
                Ok(count) if count < machine.output_message().len() => {
                    self.write_rest(machine, count)?;
                }
                Ok(count) => machine.consume_output(count),
                Err(Errno::INTR) => self.last_request = None,
                Err(errno) => refused(machine, errno)?,
            }
        }
        Ok(())
    }

    /// Writes the rest of a message, of which `done` bytes have been written.
    fn write_rest(&mut self, machine: &mut ClientMachine, mut done: usize) -> Result<(), Errno> {
        let len = machine.output_message().len();
        while done < len {
            match write(&self.fd, machine.output_message().get(done..).unwrap_or_default()) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done = done.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return refused(machine, errno),
            }
        }
        machine.consume_output(len);
        Ok(())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        if wait == Wait::Poll {
            // The descriptor stays without O_NONBLOCK, which would affect another holder of it.
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
                return Err(Errno::AGAIN);
            }
        }
        loop {
            match read(&self.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

/// Handles the kernel's refusal of the first message of the output. The kernel has dropped the
/// message, and the connection goes on. The kernel refuses a WATCH that is malformed or that the
/// store refuses, and sends no reply to it; this function supplies the reply that the store would
/// send. An error that the store does not have is an error of the device.
fn refused(machine: &mut ClientMachine, errno: Errno) -> Result<(), Errno> {
    let message = machine.output_message();
    let (len, last_request) = (message.len(), Header::parse(message));
    let known = ERRORS.iter().find(|(_, _, number)| *number == errno.raw_os_error());
    let (Some((_, name, _)), Some(last_request)) =
        (known.filter(|_| errno != Errno::IO), last_request)
    else {
        return Err(errno);
    };
    let payload = [name.as_bytes(), b"\0"].concat();
    let length = u32::try_from(payload.len()).map_err(|_| errno)?;
    let header = Header { kind: MsgType::Error.code(), len: length, ..last_request };
    machine.consume_output(len);
    machine.receive(&[header.to_bytes().as_slice(), &payload].concat()).map_err(|_| errno)
}

impl AsFd for XenbusDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// Returns the messages that the other end of a device has received. The device keeps each
    /// write apart.
    fn given(end: &OwnedFd) -> Vec<Header> {
        let mut buffer = [0; 4096];
        let mut headers = Vec::new();
        loop {
            let mut fds = [PollFd::new(end, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec::default())).unwrap() == 0 {
                return headers;
            }
            let count = read(end, &mut buffer).unwrap();
            headers.push(Header::parse(&buffer[..count]).unwrap());
        }
    }

    #[test]
    fn one_request_is_in_flight_at_a_time() {
        let flags = SocketFlags::CLOEXEC;
        let (fd, end) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut device = XenbusDevice { fd, last_request: None };
        let mut machine = ClientMachine::new();
        let ids: Vec<u32> = [b"a\0", b"b\0", b"c\0"]
            .map(|path| machine.send(MsgType::Read, 0, &[path]).unwrap().get())
            .to_vec();
        for id in ids {
            device.write(&mut machine).unwrap();
            device.write(&mut machine).unwrap();
            let [header] = given(&end)[..] else { panic!("not one message for {id}") };
            assert_eq!(header.req_id, id);
            machine.receive(&Header { len: 0, ..header }.to_bytes()).unwrap();
        }
        device.write(&mut machine).unwrap();
        assert!(machine.output().is_empty() && given(&end).is_empty());
    }

    /// A device that refuses every write, with ENOSPC.
    #[test]
    fn a_refused_write_is_an_error_reply_and_no_end() {
        let mut device = XenbusDevice::open(Path::new("/dev/full")).unwrap();
        let mut machine = ClientMachine::new();
        let mut send = |path: &[u8]| machine.send(MsgType::Watch, 0, &[path, b"\0t\0"]).unwrap();
        let (one, other) = (send(b"a"), send(b"b"));
        device.write(&mut machine).unwrap();
        assert!(machine.output().is_empty());
        for id in [one, other] {
            let reply = machine.take_reply(id).unwrap();
            assert!(format!("{reply:?}").contains("NoSpc"), "{reply:?}");
        }
    }
}
