//! The removal of the nodes that dead domains have left in the store, by the keeper, whoever had to
//! do it.
//!
//! A client that destroys a domain removes its nodes. One that dies before that does not, and for a
//! domain that dies with its creating client there is no other.

use super::log::say;
use crate::domain::{home, uuid};
use crate::host::folder::Folder;
use crate::host::{Host, HostChoice};
use crate::lifecycle::destroy::remove_nodes;
use crate::wait::Limit;
use crate::{Error, text};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use xen::DomId;
use xen::domctl::RunState;
use xenstore::Store;

/// The time for which the nodes of a domain are left to the client that has destroyed it.
const GRACE: Duration = Duration::from_millis(300);
/// The time between two looks. The requests that a client sent before it died are done by then.
const AGAIN: Duration = Duration::from_secs(1);
/// The number of looks after each change.
const LOOKS: u32 = 2;
/// The longest time that backends may take to let go of the devices that one look finds.
const CLOSES_WITHIN: Duration = Duration::from_secs(30);
/// The number of looks that may fail after one change, for instance while the store does not
/// answer.
const FAILURES_MAX: u32 = 60;

/// The sender by which the keeper reports changes; the receiving thread ends with it.
pub(super) struct Cleaner(Sender<()>);

impl Cleaner {
    /// Starts the thread, which looks at once: a change that an earlier keeper has not seen may be
    /// there already.
    pub(super) fn start(folder: &Folder) -> Self {
        let (tell, told) = channel();
        let folder = folder.clone();
        std::thread::spawn(move || clean(&folder, &told));
        let cleaner = Self(tell);
        cleaner.look();
        cleaner
    }

    /// Reports that a domain may have died.
    pub(super) fn look(&self) {
        // The thread ends with the keeper alone.
        let _ = self.0.send(());
    }
}

fn clean(folder: &Folder, told: &Receiver<()>) {
    while told.recv().is_ok() {
        std::thread::sleep(GRACE);
        let (mut looks, mut failures) = (LOOKS, 0);
        while looks > 0 && failures < FAILURES_MAX {
            while told.try_recv().is_ok() {
                looks = LOOKS;
            }
            match look(folder) {
                Ok(LookOutcome::Dying) => {}
                Ok(LookOutcome::AllDone) => looks -= 1,
                Err(error) => {
                    say(&format!("nodes of dead domains: {error}"));
                    failures += 1;
                }
            }
            if looks > 0 && told.recv_timeout(AGAIN).is_ok() {
                looks = LOOKS;
            }
        }
    }
}

/// The outcome of a look, after its removals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LookOutcome {
    /// All nodes are of existing domains.
    AllDone,
    /// A domain is dying: another look is needed.
    Dying,
}

/// Removes the devices and nodes of each domain that the store names and the broker does not have.
fn look(folder: &Folder) -> Result<LookOutcome, Error> {
    let mut host = Host::open(HostChoice::Hosted(folder.clone()))?;
    let mut named = Vec::new();
    for child in host.store.list("/libxl")? {
        let Some(domid) = child.parse().ok().map(DomId) else { continue };
        if domid != DomId::DOM0 {
            named.push((
                domid,
                host.store.try_read(format!("{}/vm", home(domid)))?.map(text::lossy),
            ));
        }
    }
    // Listed after the store: a domain that is created in between was not named there.
    let there = host.control().list().map_err(Error::platform("listing the domains"))?;
    let limit = Limit::new(CLOSES_WITHIN);
    let mut all = Ok(());
    for (domid, vm) in named {
        // Another domain may have this number by now; the nodes tell which one they belong to.
        let is_there = there.iter().any(|info| {
            let same = |vm: &String| *vm == format!("/vm/{}", uuid(info));
            info.domid == domid && vm.as_ref().is_none_or(same)
        });
        if !is_there {
            match remove_nodes(&mut host, domid, vm.as_deref(), limit) {
                Ok(()) => say(&format!("domain {domid} is gone, and its nodes are taken away")),
                // A failure does not stop the removal of the others.
                Err(error) => all = all.and(Err(error)),
            }
        }
    }
    all?;
    let dying = there.iter().any(|info| info.state == RunState::Dying);
    Ok(if dying { LookOutcome::Dying } else { LookOutcome::AllDone })
}
