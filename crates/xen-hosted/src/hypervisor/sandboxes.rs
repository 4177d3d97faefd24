//! The setting up of domains' sandboxes on this machine, and the parts that they run without.

use super::budget::Budget;
use super::connections::{FuseConnection, FuseConnections};
use super::facilities::HostFacilities;
use super::process::map_ids;
use super::remains::{Holdings, Remainder, end};
use super::say::say;
use crate::domain::cgroup::{Cgroups, Group, Share};
use crate::domain::devices::DeviceMount;
use crate::domain::filter::{Processes, Sandbox, SandboxFilters};
use crate::domain::sandbox::{self, Plan};
use crate::domain::user::User;
use crate::domain::{ConsoleTerminal, Devices, DomainConfig, MISSING_FEATURES, MissingFeature};
use crate::errno::from_errno;
use crate::limits::{PORT_DESCRIPTORS, TASKS_DEFAULT};
use crate::sys;
use rustix::process::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use xen::{DomId, Error};

/// The descriptors that a domain's first process is given.
pub(super) struct ProcessFiles {
    /// Its socket to the broker.
    pub(super) link: OwnedFd,
    /// Its end of the socket for its set-up, until its program runs.
    pub(super) setup: OwnedFd,
    /// The program, standard input, output, error.
    pub(super) files: [OwnedFd; 4],
}

/// The sandboxes of all domains.
pub(super) struct Sandboxes {
    facilities: HostFacilities,
    cgroups: Cgroups,
    filters: SandboxFilters,
    /// The bits of the parts that all domains run without.
    lacks: u64,
    ports_max: u32,
    /// The groups of domains that are gone, which the kernel does not let be removed yet: a process
    /// may leave its group after it was waited for.
    lingering: Vec<Group>,
}

impl Sandboxes {
    /// Makes the set. `cgroups` are made last of all that can fail, as nobody removes them while
    /// there is no owner.
    ///
    /// # Errors
    /// There is no filter for this machine.
    pub(super) fn new(
        facilities: HostFacilities,
        budget: Budget,
        cgroups: impl FnOnce() -> Cgroups,
    ) -> io::Result<Self> {
        let mut lacks = budget.lacks() | facilities.lacks();
        let own_user = lacks & MissingFeature::OwnUser.bit() == 0;
        let terminal = ConsoleTerminal::None;
        let sandbox = Sandbox { processes: Processes::OfItsOwn, own_user, terminal };
        let filters = SandboxFilters::of(sandbox).map_err(io::Error::other)?;
        let cgroups = cgroups();
        let bounded = [
            MissingFeature::MemoryLimit,
            MissingFeature::CpuLimit,
            MissingFeature::TaskLimit,
            MissingFeature::Freezer,
            MissingFeature::Accounting,
        ];
        for (lack, has) in bounded.iter().zip(cgroups.bounds()) {
            lacks |= if has { 0 } else { lack.bit() };
        }
        let lingering = Vec::new();
        Ok(Self { facilities, cgroups, filters, lacks, ports_max: budget.ports, lingering })
    }

    /// Returns the means of ending domains' connections to FUSE.
    pub(super) fn connections(&self) -> &FuseConnections {
        &self.facilities.connections
    }

    /// Returns the connection that a domain's process has reported; `None` where it has none.
    pub(super) fn connection_from(&self, number: u32, fds: Vec<OwnedFd>) -> Option<FuseConnection> {
        self.facilities.connections.connection_from(number, fds)
    }

    /// Logs the parts that all domains run without.
    pub(super) fn say_lacks(&self) {
        self.say(self.lacks);
    }

    /// Notes parts that domains run without, and logs each once.
    pub(super) fn add_lacks(&mut self, lacks: u64) {
        let new = lacks & !self.lacks;
        self.lacks |= lacks;
        self.say(new);
    }

    fn say(&self, lacks: u64) {
        for (lack, text) in MISSING_FEATURES {
            if lacks & lack.bit() == 0 {
                continue;
            }
            if lack == MissingFeature::Ports {
                say(&format!("{text} (here: {} ports)", self.ports_max));
            } else {
                say(text);
            }
        }
    }

    /// Makes the groups of a domain.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn group(&self, domid: DomId, config: &DomainConfig) -> io::Result<Group> {
        let DomainConfig { tasks_max, weight, cap, .. } = *config;
        self.cgroups.create(&domid.to_string(), Share::of(tasks_max, weight, cap))
    }

    /// Starts a domain's first process in its group. The process waits for the message that its ids
    /// are mapped.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn start(
        &self,
        domid: DomId,
        config: &DomainConfig,
        group: &mut Group,
        given: ProcessFiles,
    ) -> Result<(Pid, OwnedFd), Error> {
        let (join, into) = group.entrances();
        let descriptors_max = u64::from(self.ports_max) * u64::from(PORT_DESCRIPTORS);
        let outer = self.facilities.id_of(domid);
        let (user, flags) = self.facilities.namespaces.birth(outer);
        let ProcessFiles { link, setup, files } = given;
        let mut plan = Plan {
            config,
            user,
            lacks: self.lacks,
            host: &self.facilities.name,
            join,
            link,
            devices: None,
            setup,
            files,
            filters: &self.filters,
            descriptors_max: descriptors_max + u64::from(TASKS_DEFAULT),
            hostname: format!("dom{domid}"),
        };
        if let Some(id) = outer
            && config.devices == Devices::KernelFiles
            && self.lacks & MissingFeature::Devices.bit() == 0
        {
            plan.devices = DeviceMount::of_the_host(id, &self.facilities.name).ok();
        }
        // This process has one thread: see `Broker`.
        let into = into.as_ref().map(AsFd::as_fd);
        let process_identity = sys::clone_process(flags, into, || sandbox::become_domain(plan));
        process_identity.map_err(from_errno)
    }

    /// Maps the ids of a domain's first process, if it has a user namespace.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn map_ids(&self, domid: DomId, pid: Pid) -> Result<(), Error> {
        let outer = self.facilities.id_of(domid);
        match self.facilities.namespaces.birth(outer) {
            (User::Mapped, _) => map_ids(pid, outer),
            _ => Ok(()),
        }
    }

    /// Removes the groups of a domain that is gone, now or later.
    pub(super) fn retire(&mut self, mut group: Group) {
        if !group.remove().is_empty() {
            self.lingering.push(group);
        }
    }

    /// True while there are groups of domains that are gone.
    pub(super) fn are_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Removes the groups of domains that are gone. Returns true if none is left.
    pub(super) fn remove_lingering(&mut self) -> bool {
        self.lingering.retain_mut(|group| !group.remove().is_empty());
        self.lingering.is_empty()
    }

    /// Removes all groups of domains and those above them by the time `until`, and ends what an
    /// earlier broker has left. Returns what is left.
    pub(super) fn end(&mut self, inherited: &Holdings, until: Instant) -> Vec<Remainder> {
        while !self.remove_lingering() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let groups = self.lingering.drain(..).flat_map(|mut group| group.remove());
        let mut left: Vec<Remainder> = groups.map(Remainder::Group).collect();
        std::mem::take(&mut self.cgroups).remove();
        left.extend(end(&self.facilities.name, inherited, None, &self.facilities.connections));
        left
    }
}
