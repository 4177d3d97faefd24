//! A case: two domains, a verdict, and the checks that most cases share.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen::DomId;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer};

/// One domain, as the traits that one of its processes holds.
pub struct Party {
    /// Its number.
    pub domid: DomId,
    /// Its event channels.
    pub evtchn: Box<dyn EventChannels>,
    /// The grants that it maps.
    pub maps: Box<dyn GrantMap>,
    /// The pages that it grants.
    pub offers: Box<dyn GrantOffer>,
}

/// The verdict of a case; an error is one line.
pub type CaseResult = Result<(), String>;

/// A case that needs only two domains.
pub type PartyCase = fn(&mut Party, &mut Party) -> CaseResult;

/// The time in which an event has to arrive, in seconds; far more than any machine needs.
pub(super) const PATIENCE_S: i64 = 10;

/// Fails with the text of `text` unless `holds` is true.
pub(crate) fn expect(holds: bool, text: impl FnOnce() -> String) -> CaseResult {
    if holds { Ok(()) } else { Err(text()) }
}

/// Returns the value of an `Ok`, or a line that names the attempt.
pub(crate) fn done<T>(what: &str, result: Result<T, xen::Error>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Fails if an operation succeeded that had to be refused.
pub(crate) fn refused<T>(what: &str, result: &Result<T, xen::Error>) -> Result<xen::Error, String> {
    match result {
        Ok(_) => Err(format!("{what}: was done, and had to be refused")),
        Err(error) => Ok(*error),
    }
}

/// Fails if an operation was not refused with exactly this error.
pub(crate) fn refused_with<T>(
    what: &str,
    result: &Result<T, xen::Error>,
    error: xen::Error,
) -> CaseResult {
    let came = refused(what, result)?;
    expect(came == error, || format!("{what}: expected {error}, got {came}"))
}

/// True if the descriptor of the channels polls readable within the given time, in seconds.
pub(super) fn readable(evtchn: &dyn EventChannels, seconds: i64) -> Result<bool, String> {
    let fd = evtchn.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut fds, Some(&time)).map(|ready| ready > 0).map_err(|error| format!("poll: {error}"))
}
