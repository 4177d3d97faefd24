//! A host: a daemon, and the hypervisor of the domains that it serves.

use crate::daemon::{Daemon, DaemonKind};
use crate::peer::Peer;
use crate::version::Version;

/// A set of listed differences that applies to a host; tables name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// The differences of a daemon, of any version.
    Daemon(DaemonKind),
    /// The differences of one version of a daemon.
    Version(DaemonKind, Version),
    /// The differences of a host that runs Xen, whose daemon serves others than the test.
    Xen,
    /// The differences that Debian's C daemon has only on such a host.
    XenC,
    /// The differences of Linux' `/dev/xen/xenbus`, if domain 0 uses it.
    Xenbus,
}

impl Mark {
    /// All marks without a version.
    const PLAIN: [Self; 5] = [
        Self::Daemon(DaemonKind::C),
        Self::Daemon(DaemonKind::OCaml),
        Self::Xen,
        Self::XenC,
        Self::Xenbus,
    ];

    /// Returns the mark of this name in a table: `ox`, or `ox-4.17.5+72` for one version.
    ///
    /// # Errors
    /// A sentence that describes the fault of the name.
    pub fn named(name: &str) -> Result<Self, String> {
        if let Some(mark) = Self::PLAIN.into_iter().find(|mark| mark.name() == name) {
            return Ok(mark);
        }
        let (peer, version) = name.split_once('-').ok_or_else(|| format!("`{name}` is no peer"))?;
        let kind = [DaemonKind::C, DaemonKind::OCaml].into_iter().find(|kind| kind.name() == peer);
        let kind = kind.ok_or_else(|| format!("`{peer}` is no peer that has versions"))?;
        let known = || Version::KNOWN.map(Version::name).join(", ");
        let version = Version::named(version)
            .ok_or_else(|| format!("`{version}` is no known version: {}", known()))?;
        Ok(Self::Version(kind, version))
    }

    /// Returns the name in tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Daemon(kind) => kind.name().to_owned(),
            Self::Version(kind, version) => format!("{}-{}", kind.name(), version.name()),
            Self::Xen => "xen".to_owned(),
            Self::XenC => "xen-c".to_owned(),
            Self::Xenbus => "xenbus".to_owned(),
        }
    }
}

/// A daemon and the domains that it serves.
///
/// Its methods panic if the host itself fails: there is nothing to test then.
pub trait Host {
    /// Returns the kind of the daemon.
    fn kind(&self) -> DaemonKind;

    /// Returns the marks whose differences apply here, the most specific first.
    fn marks(&self) -> Vec<Mark>;

    /// Returns the reason why the daemon no longer runs, if so.
    fn ended(&mut self) -> Option<String>;

    /// Opens a new connection of domain 0.
    fn connect(&mut self) -> Peer;

    /// True if making this domain changes the store.
    fn disturbs(&self, domid: u16) -> bool;

    /// Makes a domain with this number, whose ring is unused and which is not introduced.
    fn guest(&mut self, domid: u16) -> Peer;

    /// Returns the payload with which domain 0 introduces it.
    fn introduction(&self, domid: u16) -> String;

    /// Destroys the domain; the daemon is signalled by VIRQ_DOM_EXC.
    fn destroy(&mut self, domid: u16);

    /// Shuts the domain down, which exists still; the daemon is signalled by VIRQ_DOM_EXC.
    fn shut_down(&mut self, domid: u16);

    /// Lets the domain run again after a shutdown, as after a cancelled suspend.
    fn run_again(&mut self, domid: u16);
}

impl Host for Daemon {
    fn kind(&self) -> DaemonKind {
        self.kind()
    }

    fn marks(&self) -> Vec<Mark> {
        let kind = self.kind();
        let version = self.version().map(|version| Mark::Version(kind, version));
        version.into_iter().chain([Mark::Daemon(kind)]).collect()
    }

    fn ended(&mut self) -> Option<String> {
        (!self.runs()).then(|| self.exit())
    }

    fn connect(&mut self) -> Peer {
        Daemon::connect(self)
    }

    fn disturbs(&self, _: u16) -> bool {
        false
    }

    fn guest(&mut self, domid: u16) -> Peer {
        Daemon::guest(self, domid)
    }

    fn introduction(&self, domid: u16) -> String {
        format!("{domid}|1|1|")
    }

    fn destroy(&mut self, domid: u16) {
        Daemon::destroy(self, domid);
    }

    fn shut_down(&mut self, domid: u16) {
        Daemon::shut_down(self, domid);
    }

    fn run_again(&mut self, domid: u16) {
        Daemon::run_again(self, domid);
    }
}
