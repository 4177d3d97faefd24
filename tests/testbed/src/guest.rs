//! A guest's own end of its ring: the page, and the one event channel that it has.

use crate::page;
use rustix::net::{RecvFlags, SendFlags, recv};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::shared::{PAGE_SIZE, SharedPage};
use xen::{DomId, Error, Port};

/// The port of every guest's channel to the daemon.
pub const STORE_PORT: Port = Port(1);

/// Makes domain `domid` in `directory`, with an empty page. Returns the arguments of
/// `xenstore::Client::over_ring`.
///
/// # Errors
/// Those of the file system.
pub fn create(directory: &Path, domid: DomId) -> Result<(SharedPage, DatagramChannel), Error> {
    let path = directory.join(format!("{domid}.page"));
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.set_len(PAGE_SIZE as u64)?;
    let own = directory.join(format!("{domid}.evt"));
    let _ = fs::remove_file(&own);
    let socket = UnixDatagram::bind(own)?;
    Ok((page::map(&file)?, DatagramChannel { domid, socket, daemon: directory.join("evtchn") }))
}

/// Returns the nodes that libxl makes for a domain before it runs, as far as a device needs them:
/// each with its path and its permissions, as the store writes them.
#[must_use]
pub fn nodes(domid: DomId) -> Vec<(String, Vec<String>)> {
    let home = format!("/local/domain/{domid}");
    let (fixed, own) = (vec!["n0".to_owned(), format!("r{domid}")], vec![format!("n{domid}")]);
    [("", &fixed), ("/device", &fixed), ("/error", &own), ("/data", &own)]
        .map(|(name, perms)| (format!("{home}{name}"), perms.clone()))
        .to_vec()
}

/// The guest's end of the channel.
#[derive(Debug)]
pub struct DatagramChannel {
    domid: DomId,
    socket: UnixDatagram,
    daemon: PathBuf,
}

impl EventChannels for DatagramChannel {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn alloc_unbound(&mut self, _: DomId) -> Result<Port, Error> {
        Err(Error::NoSpc)
    }

    fn bind_interdomain(&mut self, _: DomId, _: Port) -> Result<Port, Error> {
        Err(Error::NoSpc)
    }

    fn bind_virq(&mut self, _: Virq) -> Result<Port, Error> {
        Err(Error::NoSpc)
    }

    fn notify(&self, _: Port) -> Result<(), Error> {
        let number = u32::from(self.domid.0).to_ne_bytes();
        let to = rustix::net::SocketAddrUnix::new(&self.daemon)
            .map_err(|errno| Error::from_errno(errno.raw_os_error()))?;
        // The daemon reads all datagrams before it sleeps, so one that does not fit is not needed.
        let _ = rustix::net::sendto(&self.socket, &number, SendFlags::DONTWAIT, &to);
        Ok(())
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        let came = recv(&self.socket, &mut [0; 4][..], RecvFlags::DONTWAIT);
        Ok(came.is_ok().then_some(STORE_PORT))
    }

    fn unmask(&self, _: Port) -> Result<(), Error> {
        Ok(())
    }

    fn close(&mut self, _: Port) -> Result<(), Error> {
        Err(Error::Inval)
    }

    fn status(&mut self, _: Port) -> Result<PortStatus, Error> {
        Ok(PortStatus::Interdomain { remote: DomId::DOM0, remote_port: Port(self.domid.0.into()) })
    }
}
