//! Digests of answers: a transaction remembers the answers that it got, not the nodes that they
//! came from.
//!
//! They are SipHash-2-4 with a secret of the daemon, so no outsider can search for two values with
//! one digest.

use crate::perms::Perms;
use core::hash::Hasher;
#[expect(deprecated, reason = "it is keyed, stable and in core; the new one takes no key")]
use core::hash::SipHasher;

/// The secret of the digests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Secret(pub(crate) [u64; 2]);

impl Secret {
    #[expect(deprecated, reason = "as above")]
    fn hasher(self) -> SipHasher {
        let Self([one, two]) = self;
        SipHasher::new_with_keys(one, two)
    }

    /// Returns the digest of some bytes.
    pub(crate) fn bytes(self, bytes: &[u8]) -> u64 {
        let mut hasher = self.hasher();
        hasher.write(bytes);
        hasher.finish()
    }

    /// Returns the digest of permissions with `alive` entries for living domains.
    pub(crate) fn perms(self, perms: &Perms, alive: usize) -> u64 {
        let mut hasher = self.hasher();
        hasher.write_usize(alive);
        for perm in perms.entries() {
            hasher.write_u16(perm.domid.0);
            hasher.write_u8(perm.access.letter());
            hasher.write_u32(perm.incarnation.0);
        }
        hasher.finish()
    }
}
