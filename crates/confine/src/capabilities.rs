//! Capabilities of this thread.

use rustix::io::Result;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Keeps those of a set that it may have, and no others. Those of the ambient set go as well.
///
/// # Errors
/// The kernel refuses.
pub fn keep(set: CapabilitySet) -> Result<()> {
    let kept = if set.is_empty() { set } else { capabilities(None)?.permitted & set };
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}

/// Sees to it that no program which it runs gets a capability that it has not itself. Nothing happens to who has no right
/// to that; such a process has no capability either.
pub fn empty_bounding_set() {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if remove_capability_from_bounding_set(capability).is_err() {
            // The kernel knows no more of them.
            break;
        }
    }
}
