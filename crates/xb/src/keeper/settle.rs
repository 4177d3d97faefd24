//! The settling of a guest that has ended, as its configuration says: it is destroyed, started
//! again, or left.

use super::log::say;
use crate::config::Action;
use crate::domain::{self, reason_word};
use crate::host::folder::Folder;
use crate::host::guest_end::GuestEnd;
use crate::host::{Host, HostChoice, HostPlatform, saved_config, service};
use crate::lifecycle::create::{self, Predecessor, StartMode};
use crate::lifecycle::destroy;
use crate::lifecycle::succession::{self, NextNumber, VacateOutcome};
use crate::wait::Limit;
use crate::{Error, devices, text};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use xen::DomId;
use xen::domctl::DomainInfo;
use xen::domwatch::ShutdownReason;
use xenstore::Store;

/// The shortest life of a guest that has not ended hastily.
const LIVED_MIN: Duration = Duration::from_secs(1);
/// The number of restarts in a row of a guest that requests them hastily; one that ends hastily in
/// another way is never restarted.
const HASTY_MAX: u32 = 3;

/// The life of a guest after which a crash is not one of a loop.
const LASTED: Duration = Duration::from_secs(60);
/// The delay of the restart after the first crash of a loop; it doubles with each.
const DELAY_FIRST: Duration = Duration::from_secs(1);
/// The longest delay of a restart.
const DELAY_MAX: Duration = Duration::from_secs(300);

/// The longest time between two looks whether a guest that waits was destroyed. The store tells of
/// most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A guest's life, over its restarts.
struct Life {
    since: Instant,
    /// The number of hasty ends in a row.
    hasty: u32,
    /// The number of crashes in a row after lives that did not last.
    crashes: u32,
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
        let begun = Life { since: Instant::now(), hasty: 0, crashes: 0 };
        self.with(|lives| {
            lives.entry(name.to_owned()).or_insert(begun).since = Instant::now();
        });
    }

    /// Removes a guest's life.
    pub(super) fn forget(&self, name: &str) {
        self.with(|lives| lives.remove(name));
    }

    /// Begins to count anew, for a guest that was not restarted yet.
    fn count_anew(&self, name: &str) {
        self.with(|lives| {
            if let Some(life) = lives.get_mut(name) {
                (life.hasty, life.crashes) = (0, 0);
            }
        });
    }

    /// Returns the delay of the restart after a crash. It grows while the guest crashes again and
    /// again, and is zero after a life that lasted.
    fn delay(&self, name: &str) -> Duration {
        let crashes = self.with(|lives| {
            let life = lives.get_mut(name)?;
            life.crashes =
                if life.since.elapsed() < LASTED { life.crashes.saturating_add(1) } else { 0 };
            life.crashes.checked_sub(1)
        });
        crashes.map_or(Duration::ZERO, |before| {
            DELAY_FIRST.saturating_mul(1 << before.min(16)).min(DELAY_MAX)
        })
    }

    /// Returns the action for a guest whose configuration has `configured` for its end, and the delay
    /// of a restart.
    fn action(&self, name: &str, configured: Action, reason: ShutdownReason) -> (Action, Duration) {
        match configured {
            Action::Restart if is_crash(reason) => (Action::Restart, self.delay(name)),
            Action::Restart => (self.restart(name, reason), Duration::ZERO),
            other => (other, Duration::ZERO),
        }
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

/// True for the ends that `on_crash` is for.
fn is_crash(reason: ShutdownReason) -> bool {
    matches!(reason, ShutdownReason::Crash | ShutdownReason::Watchdog)
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
    if guest.lineage_of(domid).restarts == 0 {
        lives.count_anew(&name);
    }
    let (action, delay) = lives.action(&name, description.after(reason), reason);
    let status = domain::exit_status(&mut host.store, domid)?;
    let again_at = SystemTime::now().checked_add(delay).filter(|_| !delay.is_zero());
    let mut ended =
        GuestEnd { domid, reason: reason_word(reason).into(), status, action, again_at };
    ended.note(&guest).map_err(Error::io(guest.path().display()))?;
    host.store.transaction(|tx| {
        // The guest's creator may be destroying it at this moment: a destroyed guest is not
        // restarted.
        if tx.exists(format!("/libxl/{domid}"))? {
            tx.write(format!("/libxl/{domid}/ended"), &ended.reason)?;
        }
        Ok(())
    })?;
    tell(&name, &ended, delay);
    if action == Action::Preserve {
        return Ok(());
    }
    // It stays as it ended until then: its name is taken, and who destroys it ends the loop.
    await_restart(&mut host, info, delay)?;
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
    let has_successor = action == Action::Restart && description.driver_domain;
    let TakenDown { was_destroyed, next, gone } = take_down(&mut host, domid, has_successor);
    // A client that has destroyed it meanwhile does not want it to run again.
    if was_destroyed && action == Action::Restart {
        ended.action = Action::Destroy;
        ended.note(&guest).map_err(Error::io(guest.path().display()))?;
    }
    if ended.action == Action::Destroy {
        lives.forget(&name);
        return gone;
    }
    drop(created);
    let origin = guest.lineage_of(domid).origin;
    let mode = StartMode::RunAgain(Predecessor { domid, holder, next });
    let again =
        gone.and_then(|()| create::create(&mut host, &description, &settings, mode, limit()));
    match again {
        Ok(new) => {
            say(&format!("{name} runs again, as domain {}", new.domid));
            if service::of_console(&host).is_away() {
                say(&format!("nothing serves the console of {name}: xb host up starts it"));
            }
        }
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

/// A domain that was taken down.
struct TakenDown {
    /// True if another client has destroyed it before.
    was_destroyed: bool,
    /// The number of the one that replaces it.
    next: NextNumber,
    /// The error of what could not be done.
    gone: Result<(), Error>,
}

/// Takes a domain down. The successor of a driver domain gets its number, which those that use its
/// devices name.
fn take_down(host: &mut Host, domid: DomId, has_successor: bool) -> TakenDown {
    let limit = || Limit::new(devices::CLOSES_WITHIN);
    if has_successor {
        match succession::vacate(host, domid, limit()) {
            Ok(VacateOutcome::WasDestroyed) => {}
            vacated => {
                let gone = vacated.map(drop);
                return TakenDown { was_destroyed: false, next: NextNumber::Same, gone };
            }
        }
    }
    let was_destroyed = matches!(host.control().destroy(domid), Err(xen::Error::Srch));
    let gone = destroy::destroy(host, domid, limit());
    TakenDown { was_destroyed, next: NextNumber::Free, gone }
}

/// Logs the end of a guest.
fn tell(name: &str, ended: &GuestEnd, delay: Duration) {
    let status = ended.status.map(|status| format!(", exit status {status}")).unwrap_or_default();
    let (domid, why, after) = (ended.domid, &ended.reason, ended.action.word());
    let later = ended.again_at.map(|_| format!(" in {}", text::took(delay))).unwrap_or_default();
    say(&format!("{name} (domain {domid}): {why}{status}: {after}{later}"));
}

/// Waits until a guest that has crashed may be started again, or was destroyed.
fn await_restart(host: &mut Host, info: &DomainInfo, delay: Duration) -> Result<(), Error> {
    const TOKEN: &str = "restart";
    if delay.is_zero() {
        return Ok(());
    }
    let begin = Instant::now();
    host.store.watch("@releaseDomain", TOKEN)?;
    while let Some(left) = delay.checked_sub(begin.elapsed())
        && host.control().info(info.domid).is_ok_and(|now| now.handle == info.handle)
    {
        host.store.next_event(Some(left.min(LOOK_AGAIN)))?;
    }
    host.store.unwatch("@releaseDomain", TOKEN)?;
    Ok(())
}
