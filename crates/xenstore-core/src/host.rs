//! The machine around the store, as the store asks it.

use crate::id::{ConnId, DomId};
use crate::wire::Error;
use alloc::vec::Vec;

/// The machine around the store, as far as the store needs it to answer a request. Nothing here blocks.
pub trait Host {
    /// The mark that tells the domain of this number from all that had it before; `None` where the hypervisor
    /// knows no domain of this number at the moment.
    fn domain_identity(&mut self, domid: DomId) -> Option<u64>;

    /// INTRODUCE of a domain that has no connection yet: map its ring page (reserved grant 1, or
    /// `gfn`), bind `port`, write `features` into the page; its requests arrive as `conn` from now on.
    ///
    /// # Errors
    /// The one that the caller of INTRODUCE is told; nothing is left mapped or bound then.
    fn attach(&mut self, at: Attach) -> Result<(), Error>;

    /// INTRODUCE of a domain that has a connection: bind the new port, reset the ring's indices,
    /// forget half-read requests.
    ///
    /// # Errors
    /// The one that the caller of INTRODUCE is told.
    fn reattach(&mut self, at: Attach) -> Result<(), Error>;

    /// The domain's connection is gone (RELEASE, or its death): unbind and unmap.
    fn detach(&mut self, domid: DomId, conn: ConnId);

    /// A CONTROL command that is not about the store itself (`log`, `logfile`, `memreport`, `print`,
    /// `live-update`, …). `None` where the machine does not know it either.
    fn control(&mut self, command: &[u8], args: &[&[u8]]) -> Option<Result<Vec<u8>, Error>>;
}

/// The arguments of INTRODUCE, as [`Host::attach`] needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    /// The domain.
    pub domid: DomId,
    /// Guest frame number of its ring page.
    pub gfn: u64,
    /// Its unbound event channel port.
    pub port: u32,
    /// Feature bits for the ring page, [`crate::wire::feature`].
    pub features: u32,
    /// The name of its connection.
    pub conn: ConnId,
}
