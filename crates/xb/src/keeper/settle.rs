//! The settling of a guest that has ended, as its configuration says: it is destroyed, started
//! again, or left.

use super::log::say;
use crate::config::Action;
use crate::domain::{self, reason_word};
use crate::host::folder::Folder;
use crate::host::guest_end::GuestEnd;
use crate::host::{Host, HostChoice, HostPlatform, saved_config};
use crate::lifecycle::create::{self, Predecessor, StartMode};
use crate::lifecycle::destroy;
use crate::wait::Limit;
use crate::{Error, devices, text};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use xen::domctl::DomainInfo;
use xen::domwatch::ShutdownReason;
use xenstore::Store;

/// The shortest life of a guest that has not ended hastily.
const LIVED_MIN: Duration = Duration::from_secs(1);
/// The number of restarts in a row of a guest that requests them hastily; one that ends hastily in
/// another way is never restarted.
const HASTY_MAX: u32 = 3;

/// A guest's life, over its restarts.
struct Life {
    since: Instant,
    /// The number of hasty ends in a row.
    hasty: u32,
}

/// The lives of guests, by name. A guest that existed before the keeper has none.
#[derive(Clone, Default)]
pub(super) struct LifeTable(Arc<Mutex<HashMap<String, Life>>>);

impl LifeTable {
    fn with<T>(&self, body: impl FnOnce(&mut HashMap<String, Life>) -> T) -> T {
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes the beginning of a guest's life.
    pub(super) fn begin(&self, name: &str) {
        let begun = Life { since: Instant::now(), hasty: 0 };
        self.with(|lives| {
            lives.entry(name.to_owned()).or_insert(begun).since = Instant::now();
        });
    }

    /// Removes a guest's life.
    pub(super) fn forget(&self, name: &str) {
        self.with(|lives| lives.remove(name));
    }

    /// Returns the action for a guest that is to be restarted: not without end, where it ends at
    /// once each time.
    fn restart(&self, name: &str, reason: ShutdownReason) -> Action {
        let hasty = self.with(|lives| {
            let life = lives.get_mut(name)?;
            let lived = life.since.elapsed();
            life.hasty = if lived < LIVED_MIN { life.hasty + 1 } else { 0 };
            (life.hasty > 0).then_some((lived, life.hasty))
        });
        match hasty {
            Some((lived, times)) if reason != ShutdownReason::Reboot || times > HASTY_MAX => {
                let (lived, times) = (text::took(lived), text::times(times));
                say(&format!("{name} has ended {times} after {lived}: too soon to start it again"));
                Action::Destroy
            }
            _ => Action::Restart,
        }
    }
}

/// Does the action of an ended guest's configuration.
pub(super) fn settle(
    folder: &Folder,
    info: &DomainInfo,
    reason: ShutdownReason,
    lives: &LifeTable,
) -> Result<(), Error> {
    let domid = info.domid;
    let mut host = Host::open(HostChoice::Hosted(folder.clone()))?;
    let home = domain::home(domid);
    let Some(name) = host.store.try_read(format!("{home}/name"))? else { return Ok(()) };
    let name = text::lossy(name);
    let guest = folder.guest(&name);
    let (description, settings) = saved_config::read(&guest)?;
    let action = match description.after(reason) {
        Action::Restart => lives.restart(&name, reason),
        other => other,
    };
    let status = domain::exit_status(&mut host.store, domid)?;
    let mut ended = GuestEnd { domid, reason: reason_word(reason).into(), status, action };
    ended.note(&guest).map_err(Error::io(guest.path().display()))?;
    host.store.transaction(|tx| {
        // The guest's creator may be destroying it at this moment: a destroyed guest is not
        // restarted.
        if tx.exists(format!("/libxl/{domid}"))? {
            tx.write(format!("/libxl/{domid}/ended"), &ended.reason)?;
        }
        Ok(())
    })?;
    say(&format!(
        "{name} (domain {domid}): {}, exit status {status:?}: {}",
        ended.reason,
        action.word()
    ));
    if action == Action::Preserve {
        return Ok(());
    }
    let limit = || Limit::new(devices::CLOSES_WITHIN);
    // The creator holds the new guest until it is complete, and this lock as long; a process that
    // holds the lock after that waits for the guest.
    let created = match action {
        Action::Restart => Some(guest.lock()?),
        _ => None,
    };
    let holder = match &mut host.platform {
        HostPlatform::Hosted { control, .. } => control.holder(domid).ok().flatten(),
        HostPlatform::Xen(_) => None,
    };
    // A client that has destroyed it meanwhile does not want it to run again.
    let others = matches!(host.control().destroy(domid), Err(xen::Error::Srch));
    if others && action == Action::Restart {
        ended.action = Action::Destroy;
        ended.note(&guest).map_err(Error::io(guest.path().display()))?;
    }
    let gone = destroy::destroy(&mut host, domid, limit());
    if ended.action == Action::Destroy {
        lives.forget(&name);
        return gone;
    }
    drop(created);
    let origin = guest.lineage_of(domid).origin;
    let mode = StartMode::RunAgain(Predecessor { domid, holder });
    let again =
        gone.and_then(|()| create::create(&mut host, &description, &settings, mode, limit()));
    match again {
        Ok(new) => say(&format!("{name} runs again, as domain {}", new.domid)),
        Err(error) => {
            // Commands that wait for it to run again stop waiting, by either number.
            ended.action = Action::Destroy;
            match guest.lineage() {
                Some(lineage) if lineage.origin == origin => ended.domid = lineage.last,
                // Another guest has the name by now.
                Some(_) => return Err(error),
                None => {}
            }
            ended.note(&guest).map_err(Error::io(guest.path().display()))?;
            return Err(error);
        }
    }
    Ok(())
}
