//! The hypervisor's own console: the ring that holds the newest of what Xen has printed.
//!
//! Source: `XEN_SYSCTL_readconsole` in `xen/include/public/sysctl.h`.

use crate::Error;

/// The outcome of one reading of the hypervisor's console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConsoleReading {
    /// The number of bytes that were read.
    pub len: usize,
    /// The index behind the last of them. Indices count all bytes that Xen has printed since it
    /// booted, and wrap.
    pub next: u32,
}

impl ConsoleReading {
    /// Returns the number of bytes between the index `asked`, from which the ring was read, and the
    /// first byte that was read: the ring no longer had them.
    #[must_use]
    pub fn lost(&self, asked: u32) -> u32 {
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        let lost = self.next.wrapping_sub(len).wrapping_sub(asked);
        // An index that Xen has not reached yet reads all that is there, and nothing is lost.
        if lost <= u32::MAX / 2 { lost } else { 0 }
    }
}

/// The hypervisor's console, for domain 0 alone. Reading it does not empty it.
pub trait HypervisorConsole {
    /// Reads what was printed from `index` on, or from the oldest byte that is left, as much as
    /// `buffer` or one call can hold.
    ///
    /// # Errors
    /// [`Error::Perm`] for any domain but domain 0.
    fn read(&mut self, index: u32, buffer: &mut [u8]) -> Result<ConsoleReading, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_the_ring_no_longer_had_are_counted() {
        assert_eq!(ConsoleReading { len: 5, next: 15 }.lost(10), 0);
        assert_eq!(ConsoleReading { len: 5, next: 18 }.lost(10), 3);
        assert_eq!(ConsoleReading { len: 0, next: 18 }.lost(10), 8, "emptied by another");
        assert_eq!(ConsoleReading { len: 5, next: 7 }.lost(u32::MAX - 1), 4, "across the wrap");
        assert_eq!(ConsoleReading { len: 5, next: 5 }.lost(1000), 0, "an index of another boot");
    }
}
