//! Control of domains, in the version of the interface that this Xen has.

use crate::abi;
use crate::privcmd::Privcmd;
use std::rc::Rc;
use xen::domctl::{DomainControl, DomainInfo, RunState, Scheduling, VcpuActivity};
use xen::domwatch::ShutdownReason;
use xen::{DomId, Error};

/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// Domain control by hypercalls.
#[derive(Debug)]
pub struct Domctl {
    privcmd: Rc<Privcmd>,
    domctl: u32,
    sysctl: u32,
    /// Reused by each listing.
    list: Vec<abi::xen_domctl_getdomaininfo>,
}

/// The machine under a Xen host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysicalMachine {
    /// Its memory, in KiB.
    pub memory_kib: u64,
    /// Memory that no domain has, in KiB.
    pub memory_free_kib: u64,
    /// Its processors.
    pub processors: u32,
}

/// The grant table of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantTableSize {
    /// The frames that it has.
    pub frames: u32,
    /// The most that it may have.
    pub frames_max: u32,
}

/// A call, to be filled in.
pub(crate) fn call(cmd: u32, version: u32, domid: DomId) -> abi::xen_domctl {
    abi::xen_domctl {
        cmd,
        interface_version: version,
        domain: domid.0,
        pad: [0; 3],
        u: abi::xen_domctl_u { pad: [0; 16] },
    }
}

/// Returns the first of `versions` that the hypervisor accepts; it answers EACCES to others.
pub(crate) fn negotiate(
    xen_version: impl FnOnce() -> String,
    interface: &'static str,
    versions: &'static [u32],
    mut ask: impl FnMut(u32) -> Result<(), Error>,
) -> Result<u32, crate::Error> {
    for version in versions {
        match ask(*version) {
            Ok(()) => return Ok(*version),
            Err(Error::Access) => {}
            Err(error) => return Err(crate::Error::Refused { what: interface, error }),
        }
    }
    Err(crate::Error::Version { xen: xen_version(), interface, tried: versions })
}

impl Domctl {
    /// Negotiates the version of the interface with the hypervisor.
    ///
    /// # Errors
    /// [`crate::Error::Version`] none that is known; [`crate::Error::Refused`] this domain may not.
    pub fn open(privcmd: &Rc<Privcmd>) -> Result<Self, crate::Error> {
        let domctl = negotiate(
            || privcmd.xen_version(),
            "domctl",
            abi::DOMCTL_VERSIONS,
            |version| {
                privcmd.domctl(&mut call(abi::XEN_DOMCTL_GETDOMAININFO, version, DomId::DOM0))
            },
        )?;
        let mut list = Vec::new();
        let sysctl = negotiate(
            || privcmd.xen_version(),
            "sysctl",
            abi::SYSCTL_VERSIONS,
            |version| privcmd.domain_list(version, DomId::DOM0, &mut list).map(drop),
        )?;
        Ok(Self { privcmd: Rc::clone(privcmd), domctl, sysctl, list })
    }

    /// Returns the memory and processors of the machine.
    ///
    /// # Errors
    /// [`Error::Perm`] for any domain but domain 0.
    pub fn physical_machine(&self) -> Result<PhysicalMachine, Error> {
        let info = self.privcmd.physinfo(self.sysctl)?;
        Ok(PhysicalMachine {
            memory_kib: info.total_pages.saturating_mul(PAGE_KIB),
            memory_free_kib: info.free_pages.saturating_mul(PAGE_KIB),
            processors: info.nr_cpus,
        })
    }

    /// Returns the size of a domain's grant table.
    ///
    /// # Errors
    /// [`Error::Srch`] no such domain, or one that this may not ask about.
    pub fn grant_table_size(&self, domid: DomId) -> Result<GrantTableSize, Error> {
        let (frames, frames_max) = self.privcmd.grant_table_size(domid)?;
        Ok(GrantTableSize { frames, frames_max })
    }

    fn call(&self, cmd: u32, domid: DomId) -> abi::xen_domctl {
        call(cmd, self.domctl, domid)
    }

    fn simple(&self, cmd: u32, domid: DomId) -> Result<(), Error> {
        self.privcmd.domctl(&mut self.call(cmd, domid))
    }

    /// Returns the hypervisor's information about all domains, by number.
    pub(crate) fn raw_list(&mut self) -> Result<&[abi::xen_domctl_getdomaininfo], Error> {
        self.list.clear();
        let mut first = DomId::DOM0;
        while self.privcmd.domain_list(self.sysctl, first, &mut self.list)? > 0 {
            let last = self.list.last().map_or(first.0, |info| info.domain);
            first = DomId(last.saturating_add(1));
        }
        Ok(&self.list)
    }

    /// Returns the hypervisor's information about one domain.
    pub(crate) fn raw_info(&self, domid: DomId) -> Result<abi::xen_domctl_getdomaininfo, Error> {
        let mut call = self.call(abi::XEN_DOMCTL_GETDOMAININFO, domid);
        self.privcmd.domctl(&mut call)?;
        let info = call.getdomaininfo();
        // Up to Xen 4.18 the answer may be the next domain's.
        if info.domain == domid.0 { Ok(info) } else { Err(Error::Srch) }
    }

    fn scheduler_op(
        &self,
        domid: DomId,
        op: abi::xen_domctl_scheduler_op,
    ) -> Result<Scheduling, Error> {
        let mut answer = Err(Error::Inval);
        // Which scheduler runs is not asked: the wrong one is refused with EINVAL.
        for sched_id in [abi::XEN_SCHEDULER_CREDIT2, abi::XEN_SCHEDULER_CREDIT] {
            let mut call = self.call(abi::XEN_DOMCTL_SCHEDULER_OP, domid);
            call.u.scheduler_op = abi::xen_domctl_scheduler_op { sched_id, ..op };
            answer = self.privcmd.domctl(&mut call).map(|()| {
                let op = call.scheduler_op();
                Scheduling { weight: op.weight, cap: op.cap }
            });
            if answer != Err(Error::Inval) {
                break;
            }
        }
        answer
    }
}

/// Returns the reason of the domain's shutdown; `None` if it has not shut down.
pub(crate) fn shutdown_reason(info: &abi::xen_domctl_getdomaininfo) -> Option<ShutdownReason> {
    let code = (info.flags >> abi::XEN_DOMINF_SHUTDOWNSHIFT) & abi::XEN_DOMINF_SHUTDOWNMASK;
    let shutdown = info.flags & abi::XEN_DOMINF_SHUTDOWN != 0;
    shutdown.then(|| ShutdownReason::from_code(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Returns the activity that flags of a domain stand for.
fn activity(flags: u32) -> VcpuActivity {
    if flags & abi::XEN_DOMINF_RUNNING != 0 {
        VcpuActivity::Running
    } else if flags & abi::XEN_DOMINF_BLOCKED != 0 {
        VcpuActivity::Blocked
    } else {
        VcpuActivity::Ready
    }
}

fn described(info: &abi::xen_domctl_getdomaininfo) -> DomainInfo {
    let state = if info.flags & abi::XEN_DOMINF_DYING != 0 {
        RunState::Dying
    } else if let Some(reason) = shutdown_reason(info) {
        RunState::Shutdown(reason)
    } else if info.flags & abi::XEN_DOMINF_PAUSED != 0 {
        RunState::Paused
    } else {
        RunState::Running
    };
    DomainInfo {
        domid: DomId(info.domain),
        handle: info.handle,
        state,
        memory_kib: info.tot_pages.saturating_mul(PAGE_KIB),
        memory_max_kib: info.max_pages.saturating_mul(PAGE_KIB),
        vcpus_online: info.nr_online_vcpus,
        // Up to the largest number in use; a domain without any has no such number.
        vcpus: info.max_vcpu_id.wrapping_add(1),
        activity: Some(activity(info.flags)),
        ssid: Some(info.ssidref),
        cpu_time_ns: info.cpu_time,
    }
}

impl DomainControl for Domctl {
    fn list(&mut self) -> Result<Vec<DomainInfo>, Error> {
        Ok(self.raw_list()?.iter().map(described).collect())
    }

    fn info(&mut self, domid: DomId) -> Result<DomainInfo, Error> {
        self.raw_info(domid).map(|info| described(&info))
    }

    fn pause(&mut self, domid: DomId) -> Result<(), Error> {
        // Xen counts pauses; here they do not add up.
        match self.info(domid)?.state {
            RunState::Paused => Ok(()),
            _ => self.simple(abi::XEN_DOMCTL_PAUSEDOMAIN, domid),
        }
    }

    fn unpause(&mut self, domid: DomId) -> Result<(), Error> {
        self.simple(abi::XEN_DOMCTL_UNPAUSEDOMAIN, domid)
    }

    fn shutdown(&mut self, domid: DomId, reason: ShutdownReason) -> Result<(), Error> {
        let argument =
            abi::sched_remote_shutdown { domain_id: domid.0, reason: reason.code().into() };
        self.privcmd.sched_op(abi::SCHEDOP_REMOTE_SHUTDOWN, argument)
    }

    /// Xen frees a large domain in pieces and answers EAGAIN in between (`ERESTART` inside): the
    /// call goes on until it is done.
    fn destroy(&mut self, domid: DomId) -> Result<(), Error> {
        /// `EAGAIN`.
        const AGAIN: Error = Error::Other(11);
        loop {
            match self.simple(abi::XEN_DOMCTL_DESTROYDOMAIN, domid) {
                Err(AGAIN) => {}
                done => return done,
            }
        }
    }

    fn set_memory_max(&mut self, domid: DomId, memory_max_kib: u64) -> Result<(), Error> {
        let mut call = self.call(abi::XEN_DOMCTL_MAX_MEM, domid);
        call.u.max_memkb = memory_max_kib;
        self.privcmd.domctl(&mut call)
    }

    fn scheduling(&mut self, domid: DomId) -> Result<Scheduling, Error> {
        let op = abi::xen_domctl_scheduler_op {
            cmd: abi::XEN_DOMCTL_SCHEDOP_GETINFO,
            ..Default::default()
        };
        self.scheduler_op(domid, op)
    }

    fn set_scheduling(&mut self, domid: DomId, scheduling: Scheduling) -> Result<(), Error> {
        if scheduling.weight == 0 {
            return Err(Error::Inval);
        }
        let op = abi::xen_domctl_scheduler_op {
            cmd: abi::XEN_DOMCTL_SCHEDOP_PUTINFO,
            weight: scheduling.weight,
            cap: scheduling.cap,
            ..Default::default()
        };
        self.scheduler_op(domid, op).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Negotiates with a hypervisor that answers so; returns the result and the versions that were
    /// tried.
    fn negotiated(
        answer: impl Fn(u32) -> Result<(), Error>,
    ) -> (Result<u32, crate::Error>, Vec<u32>) {
        let mut tried = Vec::new();
        let found = negotiate(
            || "5.1.0".to_owned(),
            "domctl",
            abi::DOMCTL_VERSIONS,
            |version| {
                tried.push(version);
                answer(version)
            },
        );
        (found, tried)
    }

    #[test]
    fn versions_are_tried_until_one_fits() {
        let speaks = |known: u32| {
            negotiated(move |version| if version == known { Ok(()) } else { Err(Error::Access) })
        };
        assert_eq!(speaks(0x15), (Ok(0x15), vec![0x15]));
        assert_eq!(speaks(0x18), (Ok(0x18), vec![0x15, 0x16, 0x17, 0x18]));
        let (none, tried) = speaks(0x19);
        assert_eq!(tried, abi::DOMCTL_VERSIONS);
        assert_eq!(
            none.unwrap_err().to_string(),
            "Xen 5.1.0 speaks no known version of domctl: tried 0x15, 0x16, 0x17, 0x18 (Xen 4.17 to 4.23)"
        );
        let (refused, tried) = negotiated(|_| Err(Error::Perm));
        assert_eq!(tried, [0x15], "what is no answer about the version ends the search");
        assert_eq!(refused, Err(crate::Error::Refused { what: "domctl", error: Error::Perm }));
    }

    #[test]
    fn flags_say_how_a_domain_is() {
        let mut info = abi::xen_domctl_getdomaininfo { domain: 7, ..Default::default() };
        assert_eq!(described(&info).state, RunState::Running);
        assert_eq!(described(&info).activity, Some(VcpuActivity::Ready));
        info.flags = abi::XEN_DOMINF_BLOCKED;
        assert_eq!(described(&info).activity, Some(VcpuActivity::Blocked));
        info.flags |= abi::XEN_DOMINF_RUNNING;
        assert_eq!(described(&info).activity, Some(VcpuActivity::Running));
        info.max_vcpu_id = u32::MAX;
        assert_eq!(described(&info).vcpus, 0, "it has none yet");
        info.flags = abi::XEN_DOMINF_PAUSED;
        assert_eq!(described(&info).state, RunState::Paused);
        info.flags = abi::XEN_DOMINF_SHUTDOWN | (3 << abi::XEN_DOMINF_SHUTDOWNSHIFT);
        assert_eq!(described(&info).state, RunState::Shutdown(ShutdownReason::Crash));
        info.flags |= abi::XEN_DOMINF_DYING;
        assert_eq!(described(&info).state, RunState::Dying);
    }
}
