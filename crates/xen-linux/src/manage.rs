//! Domains that were created, shut down or died; and the XenStore ring of this machine's own
//! kernel.
//!
//! Since Xen 4.21 the hypervisor says which domains have changed, and has a number that tells a
//! domain from all that had its domid before. Older ones are asked for the list of all domains,
//! which is compared with the last one; there a domain is told from an earlier one by its handle.

use crate::abi;
use crate::domctl::{Domctl, call, shutdown_reason};
use crate::privcmd::Privcmd;
use crate::sys::DeviceFile;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use xen::domwatch::{DomainEvent, DomainWatch, OwnRing, ShutdownReason};
use xen::gnttab::PageAccess;
use xen::{DomId, Error, Port};

/// The call that tells of domains.
#[derive(Debug)]
enum Source {
    /// `XEN_DOMCTL_get_domain_state`; the reason of a shutdown comes from the older call, where its
    /// version is known.
    State(Option<Domctl>),
    /// The list of all domains.
    List(Lister),
}

#[derive(Debug)]
struct Lister {
    domctl: Domctl,
    /// The domains seen alive, with their identities.
    alive: BTreeMap<u16, u64>,
    changes: VecDeque<DomainEvent>,
    /// The changes since the last interrupt are all in `changes`.
    looked: bool,
}

/// The place of the XenStore ring of this machine's own kernel: here, or given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OwnRingState {
    Here,
    Given,
}

/// The watch over all domains.
#[derive(Debug)]
pub struct Manage {
    privcmd: Rc<Privcmd>,
    source: Source,
    own_ring: OwnRingState,
}

impl Manage {
    /// Opens the watch with the call that this hypervisor has.
    ///
    /// # Errors
    /// [`crate::Error::Version`], [`crate::Error::Refused`].
    pub fn open(privcmd: &Rc<Privcmd>) -> Result<Self, crate::Error> {
        let source = match domain_state(privcmd, DomId::DOM0) {
            Ok(_) => Source::State(Domctl::open(privcmd).ok()),
            Err(_) => Source::List(Lister {
                domctl: Domctl::open(privcmd)?,
                alive: BTreeMap::new(),
                changes: VecDeque::new(),
                looked: false,
            }),
        };
        Ok(Self { privcmd: Rc::clone(privcmd), source, own_ring: OwnRingState::Here })
    }
}

/// Returns the state of `domid`, or of a domain that has changed if that is [`DomId::INVALID`]; and
/// the number of the domain.
fn domain_state(
    privcmd: &Privcmd,
    domid: DomId,
) -> Result<(DomId, abi::xen_domctl_get_domain_state), Error> {
    let mut call = call(abi::XEN_DOMCTL_GET_DOMAIN_STATE, 0, domid);
    privcmd.domctl(&mut call)?;
    Ok((DomId(call.domain), call.get_domain_state()))
}

/// Returns the event that a changed state means.
fn event_of(
    domid: DomId,
    state: u16,
    reason: impl FnOnce() -> Option<ShutdownReason>,
) -> DomainEvent {
    if state & abi::GETDOMSTATE_EXIST == 0 || state & abi::GETDOMSTATE_DEAD != 0 {
        DomainEvent::Died(domid)
    } else if state & abi::GETDOMSTATE_SHUTDOWN != 0 {
        DomainEvent::Shutdown(domid, reason().unwrap_or(ShutdownReason::Other(u8::MAX)))
    } else {
        DomainEvent::Came(domid)
    }
}

/// Returns the identity of a domain for a hypervisor that has no number for it: FNV-1a of the
/// domain's handle.
fn handle_identity(info: &abi::xen_domctl_getdomaininfo) -> u64 {
    info.handle.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Lister {
    /// Compares the list of domains with the last one. `dying` means dead here: what is left is
    /// what others, and the store's own mapping, hold on to.
    fn look(&mut self) -> Result<(), Error> {
        // Where this fails, nothing is forgotten: the next look compares with the same list.
        let list = self.domctl.raw_list()?;
        let mut before = std::mem::take(&mut self.alive);
        for info in list {
            if info.flags & abi::XEN_DOMINF_DYING != 0 {
                continue;
            }
            let domid = DomId(info.domain);
            let identity = handle_identity(info);
            let known = before.remove(&info.domain);
            if known.is_some_and(|known| known != identity) {
                self.changes.push_back(DomainEvent::Died(domid));
            }
            if known != Some(identity) {
                self.changes.push_back(DomainEvent::Came(domid));
            }
            if let Some(reason) = shutdown_reason(info) {
                self.changes.push_back(DomainEvent::Shutdown(domid, reason));
            }
            self.alive.insert(info.domain, identity);
        }
        self.changes.extend(before.into_keys().map(|domid| DomainEvent::Died(DomId(domid))));
        Ok(())
    }

    fn identity(&mut self, domid: DomId) -> Result<Option<u64>, Error> {
        let info = match self.domctl.raw_info(domid) {
            Ok(info) if info.flags & abi::XEN_DOMINF_DYING == 0 => info,
            Ok(_) | Err(Error::Srch) => return Ok(None),
            Err(error) => return Err(error),
        };
        let identity = handle_identity(&info);
        // Known from now on, so that its death is noticed; where it has replaced another, that
        // one's death is still to be told.
        self.alive.entry(domid.0).or_insert(identity);
        Ok(Some(identity))
    }
}

/// Returns the identity of the living domain `domid`, from its state; `None` if there is none.
fn state_identity(privcmd: &Privcmd, domid: DomId) -> Result<Option<u64>, Error> {
    match domain_state(privcmd, domid) {
        Ok((_, state)) => {
            let alive = state.state & abi::GETDOMSTATE_EXIST != 0
                && state.state & abi::GETDOMSTATE_DEAD == 0;
            Ok(alive.then_some(state.unique_id))
        }
        Err(Error::Srch) => Ok(None),
        Err(error) => Err(error),
    }
}

impl DomainWatch for Manage {
    /// Asks the hypervisor a few times if the call fails (for lack of memory, say): the answer
    /// `None` would take a domain's store away.
    fn identity(&mut self, domid: DomId) -> Option<u64> {
        const ASKED_MAX: usize = 10;
        let answer = (0..ASKED_MAX).find_map(|_| {
            match &mut self.source {
                Source::State(_) => state_identity(&self.privcmd, domid),
                Source::List(lister) => lister.identity(domid),
            }
            .ok()
        });
        answer.flatten()
    }

    fn poll_change(&mut self) -> Result<Option<DomainEvent>, Error> {
        match &mut self.source {
            Source::State(domctl) => match domain_state(&self.privcmd, DomId::INVALID) {
                Ok((domid, state)) => {
                    let reason = || shutdown_reason(&domctl.as_ref()?.raw_info(domid).ok()?);
                    Ok(Some(event_of(domid, state.state, reason)))
                }
                Err(Error::NoEnt) => Ok(None),
                Err(error) => Err(error),
            },
            Source::List(lister) => {
                if !lister.looked {
                    lister.look()?;
                }
                let change = lister.changes.pop_front();
                lister.looked = change.is_some();
                Ok(change)
            }
        }
    }

    fn own_ring(&mut self) -> Result<Option<OwnRing>, Error> {
        if std::mem::replace(&mut self.own_ring, OwnRingState::Given) == OwnRingState::Given {
            return Ok(None);
        }
        let own = own_ring_of_xenfs().or_else(|_| own_ring_of_device());
        match own {
            Err(Error::NoEnt | Error::NoDev) => Ok(None),
            own => own.map(Some),
        }
    }
}

/// Returns the error in [`crate::Error`] without its path.
fn bare(error: &crate::Error) -> Error {
    match error {
        crate::Error::Device { error, .. } | crate::Error::Refused { error, .. } => *error,
        crate::Error::Version { .. } => Error::NoSys,
    }
}

/// The ring as `/proc/xen` offers it: `xsd_port` is a number in text, `xsd_kva` is to be mapped.
fn own_ring_of_xenfs() -> Result<OwnRing, Error> {
    let text = std::fs::read_to_string("/proc/xen/xsd_port")?;
    let port = Port(text.trim().parse().map_err(|_| Error::Inval)?);
    map_own_ring(&DeviceFile::open("/proc/xen/xsd_kva").map_err(|error| bare(&error))?, port)
}

/// The ring as `/dev/xen/xenbus_backend` offers it, where xenfs is not mounted.
#[allow(unsafe_code)]
fn own_ring_of_device() -> Result<OwnRing, Error> {
    let device = DeviceFile::open("/dev/xen/xenbus_backend").map_err(|error| bare(&error))?;
    // SAFETY: the request takes no argument.
    let port = unsafe { device.call(abi::IOCTL_XENBUS_BACKEND_EVTCHN, &mut ()) }?;
    map_own_ring(&device, Port(u32::try_from(port).map_err(|_| Error::Inval)?))
}

fn map_own_ring(device: &DeviceFile, port: Port) -> Result<OwnRing, Error> {
    let mut pages = device.map(0, 1, PageAccess::ReadWrite)?.into_pages();
    Ok(OwnRing { page: pages.next().ok_or(Error::Inval)?, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_says_what_became_of_a_domain() {
        let domid = DomId(4);
        let crash = || Some(ShutdownReason::Crash);
        assert_eq!(event_of(domid, 0, crash), DomainEvent::Died(domid));
        assert_eq!(event_of(domid, 1, crash), DomainEvent::Came(domid));
        assert_eq!(
            event_of(domid, 1 | 2, crash),
            DomainEvent::Shutdown(domid, ShutdownReason::Crash)
        );
        assert_eq!(
            event_of(domid, 1 | 2 | 4, || None),
            DomainEvent::Shutdown(domid, ShutdownReason::Other(u8::MAX)),
            "dying, and not dead yet"
        );
        assert_eq!(event_of(domid, 1 | 2 | 4 | 8, crash), DomainEvent::Died(domid));
    }
}
