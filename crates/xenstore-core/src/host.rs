//! The store's interface to the machine around it.

use crate::id::{ConnId, DomId};
use crate::wire::Error;
use alloc::vec::Vec;

/// The part of the machine that the store needs to answer a request. No method blocks.
pub trait StoreHost {
    /// Returns the identity that distinguishes the domain from all earlier domains of its number;
    /// `None` if the hypervisor knows no domain of this number now.
    fn domain_identity(&mut self, domid: DomId) -> Option<u64>;

    /// Attaches a domain without a connection at INTRODUCE: maps its ring page (reserved grant 1,
    /// or `gfn`), binds `port` and writes `features` into the page. Its requests arrive as `conn`
    /// from now on.
    ///
    /// # Errors
    /// The error for the caller of INTRODUCE. Nothing stays mapped or bound then.
    fn attach(&mut self, at: AttachRequest) -> Result<(), Error>;

    /// Attaches a domain with a connection again at INTRODUCE: binds the new port, resets the
    /// ring's indices and drops half-read requests.
    ///
    /// # Errors
    /// The error for the caller of INTRODUCE.
    fn reattach(&mut self, at: AttachRequest) -> Result<(), Error>;

    /// Unbinds and unmaps the domain's connection, which is gone (by RELEASE, or its death).
    fn detach(&mut self, domid: DomId, conn: ConnId);

    /// Runs a CONTROL command that does not concern the store itself (`log`, `logfile`,
    /// `memreport`, `print`, `live-update`, …). `None` if the machine does not know it either.
    fn control(&mut self, command: &[u8], args: &[&[u8]]) -> Option<Result<Vec<u8>, Error>>;
}

/// The arguments of INTRODUCE, as [`StoreHost::attach`] needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachRequest {
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
