//! Event channels as datagrams of one number.

use crate::domains::DomainLives;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recv,
    sendto, socket_with,
};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::{DomId, Error, Port};

/// The number that stands for `VIRQ_DOM_EXC`.
pub const DOM_EXC: u32 = u32::MAX;
/// Ports that there can be, as with Xen's FIFO event channels.
const PORTS_MAX: usize = 131_072;

/// The daemon's end of all channels.
pub struct Datagrams {
    socket: OwnedFd,
    directory: Option<PathBuf>,
    life: Rc<RefCell<DomainLives>>,
    /// The peer of each port: a domid or [`DOM_EXC`]. Port 0 is never used.
    bound: Vec<Option<u32>>,
    /// Ports that were closed and may be given out again.
    free: Vec<usize>,
}

impl Datagrams {
    /// Binds the socket `directory/evtchn`.
    ///
    /// # Errors
    /// The errors of the socket calls.
    pub fn bind(directory: Option<PathBuf>, life: Rc<RefCell<DomainLives>>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        if let Some(directory) = &directory {
            let path = directory.join("evtchn");
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
        }
        Ok(Self { socket, directory, life, bound: vec![None], free: Vec::new() })
    }

    fn allocate(&mut self, to: u32) -> Result<Port, Error> {
        let at = self.free.pop().unwrap_or(self.bound.len());
        if at >= PORTS_MAX {
            return Err(Error::NoSpc);
        }
        if at == self.bound.len() {
            self.bound.push(None);
        }
        self.bound[at] = Some(to);
        u32::try_from(at).map(Port).map_err(|_| Error::NoSpc)
    }

    fn peer(&self, port: Port) -> Result<u32, Error> {
        self.bound.get(port.0 as usize).copied().flatten().ok_or(Error::Inval)
    }
}

impl EventChannels for Datagrams {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        self.bind_interdomain(remote, Port(0))
    }

    fn bind_interdomain(&mut self, remote: DomId, _: Port) -> Result<Port, Error> {
        if !self.life.borrow_mut().exists(remote) {
            return Err(Error::Srch);
        }
        // A guest's one port has one peer, as on Xen.
        if self.bound.contains(&Some(u32::from(remote.0))) {
            return Err(Error::Inval);
        }
        self.allocate(u32::from(remote.0))
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        match virq {
            Virq::DomExc => self.allocate(DOM_EXC),
            _ => Err(Error::Inval),
        }
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        let peer = self.peer(port)?;
        if let Some(directory) = &self.directory
            && let Ok(address) = SocketAddrUnix::new(directory.join(format!("{peer}.evt")))
        {
            // As with an event channel: a guest that does not read loses nothing and delays no
            // other.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = sendto(&self.socket, &peer.to_ne_bytes(), flags, &address);
        }
        Ok(())
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        let mut word = [0; 4];
        loop {
            match recv(&self.socket, &mut word[..], RecvFlags::DONTWAIT) {
                Ok((4, _)) => {}
                Ok(_) | Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(Error::from_errno(error.raw_os_error())),
            }
            let from = u32::from_ne_bytes(word);
            let port = self.bound.iter().position(|bound| *bound == Some(from));
            if let Some(port) = port.and_then(|port| u32::try_from(port).ok()) {
                return Ok(Some(Port(port)));
            }
        }
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        self.peer(port).map(drop)
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        self.peer(port)?;
        self.bound[port.0 as usize] = None;
        self.free.push(port.0 as usize);
        Ok(())
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        Ok(match self.peer(port)? {
            DOM_EXC => PortStatus::Virq(Virq::DomExc.number()),
            peer => {
                let remote = u16::try_from(peer).map(DomId).map_err(|_| Error::Inval)?;
                PortStatus::Interdomain { remote, remote_port: port }
            }
        })
    }
}
