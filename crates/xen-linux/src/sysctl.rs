//! The hypervisor's own console, in the version of the interface that this Xen has.

use crate::abi;
use crate::domctl::negotiate;
use crate::privcmd::Privcmd;
use std::rc::Rc;
use xen::Error;
use xen::conring::{ConsoleReading, HypervisorConsole};

/// The hypervisor's console ring, read by hypercalls.
#[derive(Debug)]
pub struct ConsoleRing {
    privcmd: Rc<Privcmd>,
    version: u32,
}

impl ConsoleRing {
    /// Negotiates the version of the interface with the hypervisor.
    ///
    /// # Errors
    /// [`crate::Error::Version`] none that is known; [`crate::Error::Refused`] this domain may not.
    pub fn open(privcmd: &Rc<Privcmd>) -> Result<Self, crate::Error> {
        let version = negotiate(
            || privcmd.xen_version(),
            "sysctl",
            abi::SYSCTL_VERSIONS,
            |version| privcmd.read_console(version, 0, &mut []).map(drop),
        )?;
        Ok(Self { privcmd: Rc::clone(privcmd), version })
    }
}

impl HypervisorConsole for ConsoleRing {
    fn read(&mut self, index: u32, buffer: &mut [u8]) -> Result<ConsoleReading, Error> {
        let (len, next) = self.privcmd.read_console(self.version, index, buffer)?;
        Ok(ConsoleReading { len, next })
    }
}
