//! The end of a guest, and the action that follows: recorded in its folder by the keeper, read by
//! commands that wait for it.

use super::files::replace;
use super::guest_folder::GuestFolder;
use crate::config::Action;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xen::DomId;

/// Returns the time of this many ms since 1970.
fn from_millis(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

/// The end of a guest, as the keeper recorded it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestEnd {
    /// Its number.
    pub domid: DomId,
    /// The reason: a word of [`reason_word`](crate::domain::reason_word).
    pub reason: String,
    /// The exit status of its program, if it was reported.
    pub status: Option<u8>,
    /// The action that follows.
    pub action: Action,
    /// The time before which it is not started again.
    pub again_at: Option<SystemTime>,
}

impl GuestEnd {
    /// Reads the recorded end of the guest that last had this name.
    #[must_use]
    pub fn of(guest: &GuestFolder) -> Option<Self> {
        let text = std::fs::read_to_string(guest.ended()).ok()?;
        let mut words = text.split_whitespace();
        let domid = DomId(words.next()?.parse().ok()?);
        let reason = words.next()?.to_owned();
        let action = Action::parse(words.next()?)?;
        let (mut status, mut again_at) = (None, None);
        for word in words {
            match word.strip_prefix('@') {
                Some(at) => again_at = at.parse().ok().map(from_millis),
                None => status = word.parse().ok(),
            }
        }
        Some(Self { domid, reason, status, action, again_at })
    }

    /// Reads the recorded end of the domain with this name and number; `None` where it has not
    /// ended by itself.
    #[must_use]
    pub fn of_domain(guest: &GuestFolder, domid: DomId) -> Option<Self> {
        Self::of(guest).filter(|ended| ended.domid == domid)
    }

    /// Returns the time at which the end was recorded.
    pub(crate) fn time(guest: &GuestFolder) -> Option<SystemTime> {
        std::fs::metadata(guest.ended()).and_then(|data| data.modified()).ok()
    }

    pub(crate) fn note(&self, guest: &GuestFolder) -> std::io::Result<()> {
        let status = self.status.map(|status| format!(" {status}")).unwrap_or_default();
        let again_at = self.again_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let again_at = again_at.map(|at| format!(" @{}", at.as_millis())).unwrap_or_default();
        let (domid, reason, action) = (self.domid, &self.reason, self.action.word());
        let text = format!("{domid} {reason} {action}{status}{again_at}\n");
        replace(&guest.ended(), &text)
    }
}
