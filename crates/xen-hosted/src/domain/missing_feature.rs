//! The parts of its sandbox that a domain runs without.

use std::fmt;

/// A part of its sandbox that a domain runs without, since the machine or the user does not allow
/// it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MissingFeature {
    /// No user namespace of its own.
    UserNamespace,
    /// No namespaces at all: it sees the host's processes and network interfaces.
    Namespaces,
    /// No limit to the memory of all its processes together.
    MemoryLimit,
    /// Neither share nor cap of the processors.
    CpuLimit,
    /// No limit to its processes other than the user's.
    TaskLimit,
    /// No freezer: a pause stops its first process alone.
    Freezer,
    /// A user of its own: it runs as the broker's.
    OwnUser,
    /// Landlock, where there are no namespaces: it sees the host's files.
    Landlock,
    /// The full number of ports: there are too few descriptors.
    Ports,
    /// Files at `/dev`, where they were requested.
    Devices,
    /// An account of its processor time, or of its memory.
    Accounting,
    /// A terminal, where it was requested.
    Terminal,
}

/// Each part with the text that tells of it.
pub(crate) const MISSING_FEATURES: [(MissingFeature, &str); 12] = [
    (
        MissingFeature::UserNamespace,
        "domains get no user namespace of their own: this kernel or its security policy refuses them",
    ),
    (
        MissingFeature::Namespaces,
        "domains get no namespaces (this kernel or its security policy refuses them to this user) and are \
         one process each; Landlock, seccomp and resource limits remain",
    ),
    (
        MissingFeature::MemoryLimit,
        "a domain's memory is bounded for each process and not in all, and what its processes share not at \
         all: no memory control group may be made here (run in a delegated one)",
    ),
    (
        MissingFeature::CpuLimit,
        "weight and cap have no effect: no cpu control group may be made here (run in a delegated one)",
    ),
    (
        MissingFeature::TaskLimit,
        "processes are bounded by RLIMIT_NPROC alone, and threads not at all where there are no \
         namespaces: no pids control group here",
    ),
    (
        MissingFeature::Freezer,
        "a pause stops a domain's first process alone: no freezer may be used here",
    ),
    (
        MissingFeature::OwnUser,
        "domains run as the broker's own user: only root can give them others (and in a container only where it has \
         the ids from 0x60000000 on)",
    ),
    (
        MissingFeature::Landlock,
        "domains see the host's files: neither namespaces nor Landlock are to be had",
    ),
    (
        MissingFeature::Ports,
        "a domain has fewer than 4096 ports: raise the hard limit of open files",
    ),
    (
        MissingFeature::Devices,
        "domains get no files for their devices: they have no namespaces, or /dev/fuse is not there \
         (modprobe fuse) or may not be opened by this user, or the broker could not end their connections \
         (mount -t fusectl fusectl /sys/fs/fuse/connections)",
    ),
    (
        MissingFeature::Accounting,
        "processor time or memory of domains is not counted, and reads 0: no control group for it here",
    ),
    (
        MissingFeature::Terminal,
        "a domain's console gets no terminal: the domain has no namespaces, or this kernel makes no devpts in them, \
         or all pseudoterminals that are for them are in use (sysctl kernel.pty.max and kernel.pty.reserve)",
    ),
];

impl MissingFeature {
    /// Returns its bit in a set.
    pub(crate) fn bit(self) -> u64 {
        let at = MISSING_FEATURES.iter().position(|row| row.0 == self).unwrap_or(0);
        1 << at
    }

    /// Returns those in a set of bits.
    pub(crate) fn all_of(bits: u64) -> Vec<Self> {
        MISSING_FEATURES.iter().map(|row| row.0).filter(|lack| bits & lack.bit() != 0).collect()
    }
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MISSING_FEATURES.iter().find(|row| row.0 == *self).map_or("?", |row| row.1))
    }
}
