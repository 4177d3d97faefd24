//! The platform's part of the suite: event channels, grants and the life of domains, as the traits
//! of `xen` promise them, on any provider.
//!
//! A case takes two domains and answers `Ok`, or one line that says what was expected and what came.
//! On real Xen both may be domain 0: a domain may bind to itself and map what it has granted itself.
//!
//! | module | what it is about |
//! |---|---|
//! | [`evtchn`] | binding, notifying, masking, closing |
//! | [`grants`] | offering, mapping, copying, ending |
//! | [`life`] | who exists, who came, shut down, died; control |

pub mod evtchn;
pub mod grants;
pub mod life;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen::DomId;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer};

/// One domain, as one process of it holds the traits.
pub struct Party {
    /// Its number.
    pub domid: DomId,
    /// Its event channels.
    pub evtchn: Box<dyn EventChannels>,
    /// What it maps.
    pub maps: Box<dyn GrantMap>,
    /// What it grants.
    pub offers: Box<dyn GrantOffer>,
}

/// What a case found; an error is one line.
pub type Verdict = Result<(), String>;

/// A case that two domains are enough for.
pub type Case = fn(&mut Party, &mut Party) -> Verdict;

/// All cases of event channels and of grants, by name.
#[must_use]
pub fn cases() -> Vec<(&'static str, Case)> {
    [evtchn::CASES, grants::CASES].concat()
}

/// How long an event may take to arrive, in seconds; far more than any machine needs.
const PATIENCE_S: i64 = 10;

/// Fails with the line that `text` makes where `holds` does not.
pub(crate) fn expect(holds: bool, text: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(text()) }
}

/// The value of an `Ok`, or a line that says what was tried.
pub(crate) fn done<T>(what: &str, result: Result<T, xen::Error>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Fails where something was done that had to be refused.
pub(crate) fn refused<T>(what: &str, result: &Result<T, xen::Error>) -> Result<xen::Error, String> {
    match result {
        Ok(_) => Err(format!("{what}: was done, and had to be refused")),
        Err(error) => Ok(*error),
    }
}

/// Fails where something was not refused with exactly this error.
pub(crate) fn refused_with<T>(
    what: &str,
    result: &Result<T, xen::Error>,
    error: xen::Error,
) -> Verdict {
    let came = refused(what, result)?;
    expect(came == error, || format!("{what}: expected {error}, got {came}"))
}

/// Whether the descriptor of the channels polls readable within the time given, in seconds.
fn readable(evtchn: &dyn EventChannels, seconds: i64) -> Result<bool, String> {
    let fd = evtchn.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut fds, Some(&time)).map(|ready| ready > 0).map_err(|error| format!("poll: {error}"))
}
