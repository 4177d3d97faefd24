//! Capabilities of this thread.

use rustix::io::Result;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Keeps those capabilities of a set that the thread may have, and no others. The ambient set is
/// reduced as well.
///
/// # Errors
/// The kernel refuses.
pub fn keep(set: CapabilitySet) -> Result<()> {
    let kept = if set.is_empty() { set } else { capabilities(None)?.permitted & set };
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}

/// Prevents every program that this thread runs from getting a capability that the thread does not
/// have. Has no effect in a process that has no right to do that; such a process has no capability
/// either.
pub fn empty_bounding_set() {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if remove_capability_from_bounding_set(capability).is_err() {
            // The kernel has no further capabilities.
            break;
        }
    }
}
