//! The nodes that dead domains have left in the store are taken away by the keeper, whoever was to do it.
//!
//! A client that destroys a domain takes its nodes away. One that dies on the way does not, and a domain that dies with
//! the client which was creating it has nobody else.

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

/// The time for which a client that has destroyed a domain is left alone with its nodes.
const GRACE: Duration = Duration::from_millis(300);
/// Between two looks. What a client has sent before it died is carried out by then.
const AGAIN: Duration = Duration::from_secs(1);
/// Looks after each change.
const LOOKS: u32 = 2;
/// The longest time that backends may take to let go of the devices that one look finds.
const CLOSES_WITHIN: Duration = Duration::from_secs(30);
/// Looks that may fail after one change, as while the store does not answer.
const FAILURES_MAX: u32 = 60;

/// The end at which the keeper tells of changes; who is told ends with it.
pub(super) struct Cleaner(Sender<()>);

impl Cleaner {
    /// Begins to look, and looks at once: what a keeper before this one has not seen is there already.
    pub(super) fn start(folder: &Folder) -> Self {
        let (tell, told) = channel();
        let folder = folder.clone();
        std::thread::spawn(move || clean(&folder, &told));
        let cleaner = Self(tell);
        cleaner.look();
        cleaner
    }

    /// A domain may have died.
    pub(super) fn look(&self) {
        // It ends with the keeper alone.
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

/// The outcome of a look, once it has done what there was to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LookOutcome {
    /// All nodes are those of domains that are there.
    AllDone,
    /// A domain is dying: it is looked for again.
    Dying,
}

/// Takes away the devices and nodes of each domain that the store names and the broker does not.
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
    // After the store: a domain that came in between was not named there.
    let there = host.control().list().map_err(Error::platform("listing the domains"))?;
    let limit = Limit::new(CLOSES_WITHIN);
    let mut all = Ok(());
    for (domid, vm) in named {
        // Another domain may have this number by now; its own nodes say whose they are.
        let is_there = there.iter().any(|info| {
            let same = |vm: &String| *vm == format!("/vm/{}", uuid(info));
            info.domid == domid && vm.as_ref().is_none_or(same)
        });
        if !is_there {
            match remove_nodes(&mut host, domid, vm.as_deref(), limit) {
                Ok(()) => say(&format!("domain {domid} is gone, and its nodes are taken away")),
                // The others do not wait for this one.
                Err(error) => all = all.and(Err(error)),
            }
        }
    }
    all?;
    let dying = there.iter().any(|info| info.state == RunState::Dying);
    Ok(if dying { LookOutcome::Dying } else { LookOutcome::AllDone })
}
