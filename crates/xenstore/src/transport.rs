//! The places of the store on this machine, and the transports to it.
//!
//! The order is libxenstore's (`tools/libs/store/xs.c`, `xenstore-common.h`): the socket
//! `$XENSTORED_PATH`, or `socket` in `$XENSTORED_RUNDIR` (default `/var/run/xenstored`); then
//! `$XENSTORED_PATH` as a device, or `/dev/xen/xenbus`, or `/proc/xen/xenbus`.

use crate::error::Error;
use device::XenbusDevice;
use ring::StoreRing;
use rustix::fs::{FileType, stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use stream::CallerStream;
use unix::StoreSocket;
use xenstore_core::client::Client as ClientMachine;

pub mod device;
pub mod ring;
pub mod stream;
pub mod unix;
mod wait;

pub(crate) use wait::Wait;

/// `XEN_RUN_STORED` of Debian's build and of upstream's default configuration.
const RUNDIR: &str = "/var/run/xenstored";

/// A transport to the store.
#[derive(Debug)]
pub(crate) enum Transport {
    Socket(StoreSocket),
    Device(XenbusDevice),
    Ring(StoreRing),
    CallerStream(CallerStream),
}

impl Transport {
    /// Connects to whatever is at `path`, a socket or a device.
    pub(crate) fn connect(path: &Path) -> Result<Self, Errno> {
        if FileType::from_raw_mode(stat(path)?.st_mode) == FileType::Socket {
            StoreSocket::connect(path).map(Self::Socket)
        } else {
            XenbusDevice::open(path).map(Self::Device)
        }
    }

    /// Writes as much of the machine's output as the transport takes without a long wait.
    pub(crate) fn write(&mut self, machine: &mut ClientMachine) -> Result<(), Errno> {
        match self {
            Self::Socket(socket) => socket.write(machine),
            Self::Device(device) => device.write(machine),
            Self::Ring(ring) => ring.write(machine),
            Self::CallerStream(stream) => stream.write(machine),
        }
    }

    /// Reads into `buffer`; 0 means that the other end is gone.
    pub(crate) fn read(&mut self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        match self {
            Self::Socket(socket) => socket.read(buffer, wait),
            Self::Device(device) => device.read(buffer, wait),
            Self::Ring(ring) => ring.read(buffer, wait),
            Self::CallerStream(stream) => stream.read(buffer, wait),
        }
    }

    /// True if there is something to read although the descriptor may not be readable.
    pub(crate) fn has_input(&mut self) -> Result<bool, Errno> {
        match self {
            Self::Socket(_) | Self::Device(_) | Self::CallerStream(_) => Ok(false),
            Self::Ring(ring) => ring.has_input(),
        }
    }

    /// True if the other end takes a depth with WATCH and passes it to the store. Linux's xenbus
    /// device sets the watches itself and leaves the depth out.
    pub(crate) fn passes_depth(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::Ring(_) | Self::CallerStream(_))
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(socket) => socket.as_fd(),
            Self::Device(device) => device.as_fd(),
            Self::Ring(ring) => ring.as_fd(),
            Self::CallerStream(stream) => stream.as_fd(),
        }
    }
}

/// Returns the places to look for the store, in order.
#[must_use]
pub fn places() -> Vec<PathBuf> {
    let named = std::env::var_os("XENSTORED_PATH").map(PathBuf::from);
    let socket = named.clone().unwrap_or_else(|| {
        let rundir = std::env::var_os("XENSTORED_RUNDIR").unwrap_or_else(|| RUNDIR.into());
        let mut path = rundir;
        path.push("/socket");
        PathBuf::from(path)
    });
    let device = named.unwrap_or_else(|| {
        let dev = PathBuf::from("/dev/xen/xenbus");
        if stat(&dev).is_ok() { dev } else { PathBuf::from("/proc/xen/xenbus") }
    });
    if socket == device { vec![socket] } else { vec![socket, device] }
}

/// Connects to the first of `places` that answers.
pub(crate) fn connect_first(places: Vec<PathBuf>) -> Result<(Transport, PathBuf), Error> {
    let mut tried = Vec::new();
    for path in places {
        match Transport::connect(&path) {
            Ok(transport) => return Ok((transport, path)),
            Err(errno) => tried.push((path, errno.raw_os_error())),
        }
    }
    Err(Error::NoDaemon { tried })
}
