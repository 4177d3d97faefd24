//! The FIFOs that the guests of a hosted host print into, and the domains that they are of.

use super::nodes::Naming;
use crate::fifo::{FifoError, OutputFifo, OutputFolder};
use crate::record::LoggedState;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use xen::DomId;
use xen_driver::backend::DescriptorId;

/// The FIFOs of all guests.
#[derive(Debug)]
pub(super) struct GuestOutputs {
    folder: OutputFolder,
    /// The domains that have one open, by its inode.
    owners: BTreeMap<u64, DomId>,
}

/// The reason why a domain's FIFO is not read.
#[derive(Debug)]
pub(super) enum OutputRefusal {
    /// The domain, or another one, may write the node that leads to it.
    Name,
    /// It cannot be opened.
    File(FifoError),
    /// It is not the one that the domain had in the beginning: the domain has another name now.
    Another,
    /// It is that of another domain.
    Taken(DomId),
}

impl fmt::Display for OutputRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => {
                f.write_str("not the toolstack alone may change its name, which leads to it")
            }
            Self::File(error) => write!(f, "{error}"),
            Self::Another => {
                f.write_str("what its name leads to is none that it had when it was first served")
            }
            Self::Taken(owner) => write!(f, "its name leads to that of domain {owner}"),
        }
    }
}

impl GuestOutputs {
    pub(super) fn new(folder: OutputFolder) -> Self {
        Self { folder, owners: BTreeMap::new() }
    }

    /// Opens the FIFO of a domain by its name: in the life of a domain always the same one, and never
    /// that of another domain. `earlier` is the record of an earlier daemon in this life.
    ///
    /// # Errors
    /// [`OutputRefusal`].
    pub(super) fn open(
        &mut self,
        domid: DomId,
        name: &[u8],
        naming: Naming,
        earlier: Option<LoggedState>,
    ) -> Result<OutputFifo, OutputRefusal> {
        let fifo = self.folder.open_fifo(name).map_err(OutputRefusal::File)?;
        if naming == Naming::ByOthers {
            return Err(OutputRefusal::Name);
        }
        if earlier.is_some_and(|earlier| earlier.fifo != fifo.inode()) {
            return Err(OutputRefusal::Another);
        }
        if let Some(owner) = self.owners.get(&fifo.inode()) {
            return Err(OutputRefusal::Taken(*owner));
        }
        self.owners.insert(fifo.inode(), domid);
        Ok(fifo)
    }

    /// Gives up the FIFO of a domain that is gone.
    pub(super) fn forget(&mut self, domid: DomId) {
        self.owners.retain(|_, owner| *owner != domid);
    }

    /// Returns the descriptor that is readable while [`GuestOutputs::take_ready`] finds a FIFO.
    pub(super) fn stream(&self) -> (DescriptorId, BorrowedFd<'_>) {
        self.folder.stream()
    }

    /// Returns the inodes of all FIFOs that can be read again, and their domains; none for a domain
    /// that is gone.
    pub(super) fn take_ready(&self) -> Vec<(u64, Option<DomId>)> {
        let mut all = Vec::new();
        loop {
            let found = self.folder.take_ready();
            if found.is_empty() {
                return all;
            }
            all.extend(found.iter().map(|inode| (*inode, self.owners.get(inode).copied())));
        }
    }
}
