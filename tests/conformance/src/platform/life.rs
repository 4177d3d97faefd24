//! The life of domains, and control over it.

use super::case::{CaseResult, done, expect, refused_with};
use xen::domctl::{DomainControl, RunState, Scheduling};
use xen::domwatch::{DomainEvent, DomainWatch, ShutdownReason};
use xen::{DomId, Error};

/// A host on which domains can be made.
pub struct LifeHost<'a> {
    /// Its control.
    pub control: &'a mut dyn DomainControl,
    /// Its watch, which no other code polls.
    pub watch: &'a mut dyn DomainWatch,
    /// Makes a domain that runs and does nothing.
    pub create: &'a mut dyn FnMut() -> Result<DomId, String>,
    /// Waits until a change may have come; returns false after a timeout.
    pub wait: &'a mut dyn FnMut() -> bool,
}

/// A case that needs a host.
pub type LifeCase = fn(&mut LifeHost<'_>) -> CaseResult;

/// The cases.
pub const CASES: &[(&str, LifeCase)] = &[
    ("life/who is there", who_is_there),
    ("life/came, shut down, died", came_shut_down_died),
    ("life/paused and not", paused_and_not),
    ("life/bounds", bounds),
    ("life/nobody", nobody),
];

/// A number that no domain has.
const NOBODY: DomId = DomId(DomId::FIRST_RESERVED.0 - 1);

/// Waits for the first change of `domid` that `wanted` accepts.
fn until(host: &mut LifeHost<'_>, what: &str, wanted: impl Fn(DomainEvent) -> bool) -> CaseResult {
    loop {
        while let Some(event) = done("poll_change", host.watch.poll_change())? {
            if wanted(event) {
                return Ok(());
            }
        }
        if !(host.wait)() {
            return Err(format!("{what}: not told"));
        }
    }
}

fn who_is_there(host: &mut LifeHost<'_>) -> CaseResult {
    let list = done("list", host.control.list())?;
    let first = list.first().ok_or("no domain at all")?;
    expect(first.domid == DomId::DOM0, || format!("the first is {}", first.domid))?;
    expect(first.state == RunState::Running, || format!("domain 0 is {:?}", first.state))?;
    expect(host.watch.identity(DomId::DOM0).is_some(), || "domain 0 has no identity".to_owned())?;
    let domid = (host.create)()?;
    let list = done("list", host.control.list())?;
    let sorted = list.is_sorted_by_key(|info| info.domid);
    expect(sorted, || "the list is not in the order of numbers".to_owned())?;
    expect(list.iter().any(|info| info.domid == domid), || format!("{domid} is not listed"))?;
    let info = done("info", host.control.info(domid))?;
    expect(info.vcpus_online > 0, || format!("{info:?}"))?;
    done("destroy", host.control.destroy(domid))
}

fn came_shut_down_died(host: &mut LifeHost<'_>) -> CaseResult {
    let domid = (host.create)()?;
    until(host, "that it came", |event| event == DomainEvent::Came(domid))?;
    let identity = host.watch.identity(domid);
    expect(identity.is_some(), || "no identity".to_owned())?;
    let reason = ShutdownReason::Crash;
    done("shutdown", host.control.shutdown(domid, reason))?;
    until(host, "that it crashed", |event| event == DomainEvent::Shutdown(domid, reason))?;
    let state = done("info", host.control.info(domid))?.state;
    expect(state == RunState::Shutdown(reason), || format!("{state:?}"))?;
    expect(host.watch.identity(domid) == identity, || "another identity".to_owned())?;
    done("destroy", host.control.destroy(domid))?;
    until(host, "that it died", |event| event == DomainEvent::Died(domid))?;
    expect(host.watch.identity(domid).is_none(), || "still an identity".to_owned())?;
    let next = (host.create)()?;
    expect(host.watch.identity(next) != identity, || "the dead one's identity".to_owned())?;
    done("destroy", host.control.destroy(next))
}

fn paused_and_not(host: &mut LifeHost<'_>) -> CaseResult {
    let domid = (host.create)()?;
    let state =
        |host: &mut LifeHost<'_>| Ok::<_, String>(done("info", host.control.info(domid))?.state);
    done("pause", host.control.pause(domid))?;
    done("pause", host.control.pause(domid))?;
    let now = state(host)?;
    expect(now == RunState::Paused, || format!("paused: {now:?}"))?;
    done("unpause", host.control.unpause(domid))?;
    let now = state(host)?;
    expect(now == RunState::Running, || format!("unpaused once: {now:?}"))?;
    refused_with("unpause", &host.control.unpause(domid), Error::Inval)?;
    done("destroy", host.control.destroy(domid))
}

fn bounds(host: &mut LifeHost<'_>) -> CaseResult {
    let domid = (host.create)()?;
    let wanted = Scheduling { weight: 512, cap: 50 };
    done("set_scheduling", host.control.set_scheduling(domid, wanted))?;
    let now = done("scheduling", host.control.scheduling(domid))?;
    expect(now == wanted, || format!("expected {wanted:?}, got {now:?}"))?;
    let none = Scheduling { weight: 0, cap: 0 };
    refused_with("a weight of 0", &host.control.set_scheduling(domid, none), Error::Inval)?;
    let before = done("info", host.control.info(domid))?;
    let more = before.memory_max_kib + 1024;
    done("set_memory_max", host.control.set_memory_max(domid, more))?;
    let now = done("info", host.control.info(domid))?.memory_max_kib;
    expect(now == more, || format!("expected {more} KiB, got {now}"))?;
    done("destroy", host.control.destroy(domid))
}

fn nobody(host: &mut LifeHost<'_>) -> CaseResult {
    let control = &mut *host.control;
    refused_with("info", &control.info(NOBODY), Error::Srch)?;
    refused_with("pause", &control.pause(NOBODY), Error::Srch)?;
    refused_with("unpause", &control.unpause(NOBODY), Error::Srch)?;
    refused_with("shutdown", &control.shutdown(NOBODY, ShutdownReason::Poweroff), Error::Srch)?;
    refused_with("destroy", &control.destroy(NOBODY), Error::Srch)?;
    expect(host.watch.identity(NOBODY).is_none(), || "nobody has an identity".to_owned())
}
