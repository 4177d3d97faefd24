//! Following a guest to its end, over its restarts.

use super::destroy::is_forgotten;
use crate::Error;
use crate::config::Action;
use crate::domain::{self, Domain};
use crate::host::Host;
use crate::host::daemons::KEEPER;
use crate::host::folder::Folder;
use crate::host::guest_end::GuestEnd;
use crate::wait::Limit;
use xen::DomId;
use xen::domctl::RunState;

/// The state of a guest that is followed.
enum FollowedState {
    /// It runs, or the keeper is settling its end.
    Runs,
    /// It has been started again, with this number.
    Again(DomId),
    /// It has ended, and the action that follows is done.
    Ended(GuestEnd),
    /// It was destroyed by another client.
    Destroyed,
}

/// Waits until a guest has ended and is not started again; `again` is called at each restart.
///
/// # Errors
/// It was destroyed, the host is gone, or [`Error::Interrupted`].
pub fn follow(
    host: &mut Host,
    name: &str,
    origin: DomId,
    again: &mut dyn FnMut(DomId),
) -> Result<GuestEnd, Error> {
    let Some(folder) = host.folder().cloned() else {
        return Err(Error::Refused("only hosted guests are waited for".into()));
    };
    let guest = folder.guest(name);
    let watch = guest.watch().map_err(Error::io(guest.path().display()))?;
    let for_ever = Limit::never();
    let mut domid = origin;
    loop {
        match standing(host, &folder, name, (domid, origin))? {
            FollowedState::Runs => watch.wait(for_ever, &|| format!("{name} ends"))?,
            FollowedState::Again(new) => {
                domid = new;
                again(new);
            }
            FollowedState::Ended(ended) => return Ok(ended),
            FollowedState::Destroyed => return Err(Error::destroyed(name)),
        }
    }
}

/// Waits until a domain that was asked to reboot has ended and runs again: under another number, or as
/// the successor under the same.
///
/// # Errors
/// It is not started again, [`Error::Timeout`], [`Error::Interrupted`].
pub fn await_again(host: &mut Host, domain: &Domain, limit: Limit) -> Result<DomId, Error> {
    let lineage = domain.lineage(host);
    domain::await_end(host, domain, limit)?;
    let (name, before) = (&domain.name, domain.info.domid);
    loop {
        let found = domain::find(host, name).ok();
        let found = found.filter(|found| found.info.state == RunState::Running);
        if let Some(found) = found
            && (found.info.domid != before || found.lineage(host) != lineage)
        {
            return Ok(found.info.domid);
        }
        // In this order: the keeper records an end before it destroys the domain.
        let is_gone = matches!(host.control().info(before), Err(xen::Error::Srch));
        let guest = host.folder().map(|folder| folder.guest(name));
        match guest.as_ref().and_then(|guest| GuestEnd::of_domain(guest, before)) {
            Some(ended) if ended.action != Action::Restart => {
                let why = "and is not started again (on_reboot, or it reboots all the time)";
                return Err(Error::Refused(format!(
                    "{name} has ended {why}; xb log {name} says more"
                )));
            }
            None if is_gone && guest.is_some_and(|guest| guest.last() == Some(before)) => {
                return Err(Error::destroyed(name));
            }
            _ => {}
        }
        let slice = limit.slice(&|| format!("{name} runs again"))?;
        host.store.next_event(Some(slice))?;
    }
}

/// Returns the state of the guest with number `domid`, which is a restart of `origin`.
fn standing(
    host: &mut Host,
    folder: &Folder,
    name: &str,
    (domid, origin): (DomId, DomId),
) -> Result<FollowedState, Error> {
    // In this order: the keeper records an end before it destroys the domain, and the creator of
    // the next one records its number before it removes that record.
    let state = match host.control().info(domid) {
        Ok(info) => Some(info.state),
        Err(xen::Error::Srch) => None,
        Err(error) => return Err(Error::platform(format!("asking for {name}"))(error)),
    };
    let guest = folder.guest(name);
    let ended = GuestEnd::of_domain(&guest, domid);
    match guest.lineage().filter(|lineage| lineage.last != domid) {
        Some(lineage) if lineage.origin == origin => {
            return Ok(FollowedState::Again(lineage.last));
        }
        // Another guest has the name by now; the record of this one's end is gone.
        Some(_) if state.is_none() => {
            return Ok(ended.map_or(FollowedState::Destroyed, FollowedState::Ended));
        }
        _ => {}
    }
    let keeper = KEEPER.running(folder).is_some();
    match (ended, state) {
        (Some(ended), state) => {
            let is_over = match ended.action {
                Action::Preserve => true,
                // With its disks: the waiting client may create the next guest on them.
                Action::Destroy => state.is_none() && is_forgotten(&mut host.store, domid)?,
                Action::Restart => false,
            };
            Ok(if is_over || !keeper { FollowedState::Ended(ended) } else { FollowedState::Runs })
        }
        (None, None) => Ok(FollowedState::Destroyed),
        (None, Some(RunState::Shutdown(reason))) if !keeper => {
            let status = domain::exit_status(&mut host.store, domid)?;
            let reason = domain::reason_word(reason).to_owned();
            Ok(FollowedState::Ended(GuestEnd {
                domid,
                reason,
                status,
                action: Action::Preserve,
                again_at: None,
            }))
        }
        (None, Some(_)) => Ok(FollowedState::Runs),
    }
}
