//! A host: a daemon, and the hypervisor whose domains it serves.

use crate::daemon::{Daemon, Kind};
use crate::peer::Peer;
use crate::version::Version;

/// One whose differences hold on a host; tables name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A daemon's, of any version.
    Daemon(Kind),
    /// Those of one version of a daemon.
    Version(Kind, Version),
    /// Those of a host that runs Xen, whose daemon serves more than the test.
    Xen,
    /// Those that Debian's C daemon has on such a host only.
    XenC,
    /// Those of Linux' `/dev/xen/xenbus`, where domain 0 speaks over it.
    Xenbus,
}

impl Mark {
    /// All without a version.
    const PLAIN: [Self; 5] =
        [Self::Daemon(Kind::C), Self::Daemon(Kind::OCaml), Self::Xen, Self::XenC, Self::Xenbus];

    /// The mark that a table names like this: `ox`, or `ox-4.17.5+72` for one version.
    ///
    /// # Errors
    /// A sentence that says what the name lacks.
    pub fn named(name: &str) -> Result<Self, String> {
        if let Some(mark) = Self::PLAIN.into_iter().find(|mark| mark.name() == name) {
            return Ok(mark);
        }
        let (peer, version) = name.split_once('-').ok_or_else(|| format!("`{name}` is no peer"))?;
        let kind = [Kind::C, Kind::OCaml].into_iter().find(|kind| kind.name() == peer);
        let kind = kind.ok_or_else(|| format!("`{peer}` is no peer that has versions"))?;
        let known = || Version::KNOWN.map(Version::name).join(", ");
        let version = Version::named(version)
            .ok_or_else(|| format!("`{version}` is no known version: {}", known()))?;
        Ok(Self::Version(kind, version))
    }

    /// The name in tables.
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
/// Its methods panic where the host itself fails: there is nothing to test then.
pub trait Host {
    /// Which daemon it is.
    fn kind(&self) -> Kind;

    /// Whose differences hold here, the most special first.
    fn marks(&self) -> Vec<Mark>;

    /// Why the daemon no longer runs, if so.
    fn ended(&mut self) -> Option<String>;

    /// A new connection of domain 0.
    fn connect(&mut self) -> Peer;

    /// Whether making this domain would be seen in the store.
    fn disturbs(&self, domid: u16) -> bool;

    /// A domain with this number, whose ring nobody has used and nobody has introduced.
    fn guest(&mut self, domid: u16) -> Peer;

    /// The payload with which domain 0 introduces it.
    fn introduction(&self, domid: u16) -> String;

    /// The domain is destroyed; the daemon is told by VIRQ_DOM_EXC.
    fn destroy(&mut self, domid: u16);

    /// The domain shuts down but exists still; the daemon is told by VIRQ_DOM_EXC.
    fn shut_down(&mut self, domid: u16);

    /// The domain runs again after it shut down, as after a suspend that was cancelled.
    fn run_again(&mut self, domid: u16);
}

impl Host for Daemon {
    fn kind(&self) -> Kind {
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
