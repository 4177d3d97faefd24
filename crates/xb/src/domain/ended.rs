//! Hosted guests that have ended: what their folders record of them.

use super::{Domain, list};
use crate::Error;
use crate::host::Host;
use crate::host::guest_end::GuestEnd;
use crate::host::guest_folder::{GuestFolder, Lineage};
use std::path::PathBuf;
use std::time::SystemTime;

/// The state of a guest that a client has destroyed, or whose creation was undone.
const DESTROYED: &str = "destroyed";

/// A guest that no longer exists.
#[derive(Clone, Debug)]
pub struct EndedGuest {
    /// Its name.
    pub name: String,
    /// The domains that it has been.
    pub lineage: Lineage,
    /// Its end; `None` if it has not ended by itself.
    pub end: Option<GuestEnd>,
    /// The time of its end.
    pub ended_at: Option<SystemTime>,
    /// The path of its log.
    pub log: PathBuf,
}

impl EndedGuest {
    /// Reads the record of the guest that last had a name.
    fn read(guest: &GuestFolder) -> Option<Self> {
        let lineage = guest.lineage()?;
        let end = GuestEnd::of_domain(guest, lineage.last);
        let ended_at = end.as_ref().and_then(|_| GuestEnd::time(guest));
        Some(Self { name: guest.name().into(), lineage, end, ended_at, log: guest.log() })
    }

    /// Returns the reason of its end in a word.
    #[must_use]
    pub fn state(&self) -> &str {
        self.end.as_ref().map_or(DESTROYED, |end| &end.reason)
    }

    /// Returns the exit status of its program, if it is known.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        self.end.as_ref().and_then(|end| end.status)
    }

    fn is(&self, domain: &Domain) -> bool {
        // A domain that is being created has no name yet.
        let unnamed = domain.name.is_empty() && domain.info.domid == self.lineage.last;
        domain.name == self.name || unnamed
    }
}

/// Lists all domains, and the guests that have ended, by name. On Xen nothing is recorded of these.
///
/// # Errors
/// As [`list`].
pub fn list_with_ended(host: &mut Host) -> Result<(Vec<Domain>, Vec<EndedGuest>), Error> {
    // In this order: a guest that ends in between is listed once.
    let folders = host.folder().map(|folder| folder.guest_folders().collect::<Vec<_>>());
    let folders = folders.unwrap_or_default();
    let mut ended: Vec<EndedGuest> = folders.iter().filter_map(EndedGuest::read).collect();
    let domains = list(host)?;
    ended.retain(|guest| !domains.iter().any(|domain| guest.is(domain)));
    ended.sort_by(|one, other| one.name.cmp(&other.name));
    Ok((domains, ended))
}

/// Finds the ended guest of a name.
///
/// # Errors
/// As [`list`].
pub fn find_ended(host: &mut Host, name: &str) -> Result<Option<EndedGuest>, Error> {
    let (_, ended) = list_with_ended(host)?;
    Ok(ended.into_iter().find(|guest| guest.name == name))
}
