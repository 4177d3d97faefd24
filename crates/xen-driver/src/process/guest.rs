//! The program of a guest: its connections to the store and to its platform.

use super::ProgramFailure;
use super::platform::own_domid;
use crate::frontend::{Guest, Platform};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use xen::evtchn::SharedEventChannels;
use xen::shared::SharedPage;
use xen::{DomId, Port};
use xen_hosted::GuestError;
use xen_linux::Machine;
use xenstore::Client;

/// The connections of a guest's program.
pub struct GuestConnections {
    /// The guest's number.
    pub domid: DomId,
    /// The connection to the store.
    pub store: Client,
    /// Event channels and grants.
    pub platform: Platform,
    /// The ring of the guest's first console, and the port at which the guest waits for it. None on Xen, where the guest's
    /// kernel has it.
    pub console: Option<(SharedPage, Port)>,
    /// The hosted platform; `None` on Xen.
    pub hosted: Option<xen_hosted::Platform>,
}

impl fmt::Debug for GuestConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestConnections").field("domid", &self.domid).finish_non_exhaustive()
    }
}

impl GuestConnections {
    /// Opens them: those of the hosted domain whose program this is, else those of a guest's kernel on Xen. To be called
    /// once in a process.
    ///
    /// # Errors
    /// This is no guest, or the store or the platform cannot be reached.
    pub fn open() -> Result<Self, ProgramFailure> {
        match xen_hosted::Platform::guest() {
            Ok(platform) => Self::over(platform),
            Err(GuestError::Missing(missing)) if xen_linux::machine() == Machine::Bare => {
                Err(format!("no domain of a Xen host, and none of a hosted one: {missing}").into())
            }
            Err(GuestError::Missing(_)) => Self::on_xen(),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens those of the hosted domain whose program this is. To be called once in a process.
    ///
    /// # Errors
    /// This is no such program, or its broker cannot be reached.
    pub fn hosted() -> Result<Self, ProgramFailure> {
        Self::over(xen_hosted::Platform::guest()?)
    }

    fn over(hosted: xen_hosted::Platform) -> Result<Self, ProgramFailure> {
        let failed = |what| move |error| format!("{what}: {error}");
        let evtchn = hosted
            .channels()
            .and_then(SharedEventChannels::new)
            .map_err(failed("event channels"))?;
        let mut grants = hosted.offers();
        let ring = hosted.store_ring(&mut grants);
        let (page, port) = ring.map_err(failed("the store's ring"))?;
        let store = Client::over_ring(page, port, Box::new(evtchn.clone()));
        let console = hosted.console_ring(&mut grants).map_err(failed("the console's ring"))?;
        let (evtchn, grants) = (Rc::new(RefCell::new(evtchn)), Rc::new(RefCell::new(grants)));
        let platform = Platform { evtchn, grants };
        let (domid, console) = (hosted.domid(), Some(console));
        Ok(Self { domid, store, platform, console, hosted: Some(hosted) })
    }

    fn on_xen() -> Result<Self, ProgramFailure> {
        let evtchn = Rc::new(RefCell::new(xen_linux::evtchn::Evtchn::open(None)?));
        let grants = Rc::new(RefCell::new(xen_linux::gntalloc::Gntalloc::open()?));
        let mut store = Client::open()?;
        let domid = own_domid(&mut store)?;
        let platform = Platform { evtchn, grants };
        Ok(Self { domid, store, platform, console: None, hosted: None })
    }

    /// The guest that has these.
    #[must_use]
    pub fn guest(self) -> Guest {
        Guest::new(self.store, self.platform.evtchn)
    }
}
