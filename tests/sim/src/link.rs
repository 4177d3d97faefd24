//! A client's connection to the daemon: a domain's own ring, or domain 0's socket.

use crate::hypervisor::Hypervisor;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::OwnedFd;
use xen::evtchn::EventChannels;
use xen::shared::SharedPage;
use xen::{DomId, Port};
use xen_io::xs_ring::{ClientRing, RingError, offset};

/// A domain's end of its ring.
pub(crate) struct RingLink {
    evtchn: Box<dyn EventChannels>,
    port: Port,
    ring: ClientRing,
    /// True if bytes have moved since the last notification.
    notification_due: bool,
}

fn text(error: xen::Error) -> String {
    error.to_string()
}

fn ring_text(error: RingError) -> String {
    error.to_string()
}

impl RingLink {
    /// Makes a link over the ring in `page`, with a new port that waits for domain 0.
    pub(crate) fn new(
        hypervisor: &Hypervisor,
        domid: DomId,
        page: SharedPage,
    ) -> Result<Self, String> {
        let mut evtchn = hypervisor.event_channels(domid).map_err(text)?;
        let port = evtchn.alloc_unbound(DomId::DOM0).map_err(text)?;
        Ok(Self { evtchn, port, ring: ClientRing::new(page), notification_due: false })
    }

    pub(crate) fn port(&self) -> Port {
        self.port
    }

    /// Replaces the port by another one, as a restarted kernel does.
    pub(crate) fn renew_port(&mut self) -> Result<(), String> {
        self.evtchn.close(self.port).map_err(text)?;
        self.port = self.evtchn.alloc_unbound(DomId::DOM0).map_err(text)?;
        self.notification_due = false;
        Ok(())
    }

    /// True if the daemon has raised an event since the last call.
    pub(crate) fn take_event(&mut self) -> Result<bool, String> {
        let mut woken = false;
        while let Some(port) = self.evtchn.pending().map_err(text)? {
            self.evtchn.unmask(port).map_err(text)?;
            woken = true;
        }
        Ok(woken)
    }

    /// Takes at most `max` bytes off the ring.
    pub(crate) fn read(&mut self, max: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; max];
        let count = self.ring.read(&mut bytes).map_err(ring_text)?;
        self.notification_due |= count > 0;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Puts bytes onto the ring. Returns the number that fitted.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let count = self.ring.write(bytes).map_err(ring_text)?;
        self.notification_due |= count > 0;
        Ok(count)
    }

    /// Notifies the daemon of bytes that have moved. True if there were any.
    pub(crate) fn notify(&mut self) -> Result<bool, String> {
        let owed = std::mem::take(&mut self.notification_due);
        if owed {
            self.evtchn.notify(self.port).map_err(text)?;
        }
        Ok(owed)
    }

    pub(crate) fn request_reconnect(&mut self) -> Result<(), String> {
        self.ring.request_reconnect().map_err(ring_text)?;
        self.notification_due = true;
        Ok(())
    }

    pub(crate) fn is_connected(&self) -> Result<bool, String> {
        self.ring.connected().map_err(ring_text)
    }

    /// Returns the daemon's error word.
    pub(crate) fn error(&self) -> Result<u32, String> {
        self.ring.error().map_err(ring_text)
    }
}

/// Empties the ring in `page`, as a domain builder does.
pub(crate) fn clear(page: &SharedPage) {
    for word in [offset::REQ_CONS, offset::REQ_PROD, offset::RSP_CONS, offset::RSP_PROD] {
        // All four lie in the page, which its own domain may write.
        let _ = page.store_u32(word, 0);
    }
}

/// Domain 0's connection to the daemon.
pub(crate) enum DaemonLink {
    Ring(RingLink),
    Socket(OwnedFd),
}

impl DaemonLink {
    /// Reads the bytes that have come, at most `max`; a ring is read only after an event.
    pub(crate) fn read(&mut self, max: usize) -> Result<Vec<u8>, String> {
        match self {
            Self::Ring(ring) => {
                let mut all = Vec::new();
                if ring.take_event()? {
                    loop {
                        let bytes = ring.read(max)?;
                        if bytes.is_empty() {
                            break;
                        }
                        all.extend(bytes);
                    }
                    ring.notify()?;
                }
                Ok(all)
            }
            Self::Socket(fd) => {
                let mut bytes = vec![0; max];
                match recv(&*fd, &mut bytes[..], RecvFlags::DONTWAIT) {
                    Ok((0, _)) => Err("the daemon has closed its end of the socket".to_owned()),
                    Ok((count, _)) => {
                        bytes.truncate(count);
                        Ok(bytes)
                    }
                    Err(rustix::io::Errno::AGAIN) => Ok(Vec::new()),
                    Err(error) => Err(format!("the toolstack's socket: {error}")),
                }
            }
        }
    }

    /// Sends as much as fits. Returns the number of bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self {
            Self::Ring(ring) => {
                let count = ring.write(bytes)?;
                ring.notify()?;
                Ok(count)
            }
            Self::Socket(fd) => match send(&*fd, bytes, SendFlags::DONTWAIT) {
                Ok(count) => Ok(count),
                Err(rustix::io::Errno::AGAIN) => Ok(0),
                Err(error) => Err(format!("the toolstack's socket: {error}")),
            },
        }
    }
}
