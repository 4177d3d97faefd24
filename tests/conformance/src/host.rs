//! A host: a daemon, and the hypervisor whose domains it serves.

use crate::daemon::{Daemon, Kind};
use crate::peer::Peer;

/// Whose differences hold on a host; tables name them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A daemon's.
    Daemon(Kind),
    /// Those of a host that runs Xen, whose daemon serves more than the test.
    Xen,
    /// Those that Debian's C daemon has on such a host only.
    XenC,
    /// Those of Linux' `/dev/xen/xenbus`, where domain 0 speaks over it.
    Xenbus,
}

impl Mark {
    /// All that a table may name.
    pub const NAMED: [Self; 5] =
        [Self::Daemon(Kind::C), Self::Daemon(Kind::OCaml), Self::Xen, Self::XenC, Self::Xenbus];

    /// The name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Daemon(kind) => kind.name(),
            Self::Xen => "xen",
            Self::XenC => "xen-c",
            Self::Xenbus => "xenbus",
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
        vec![Mark::Daemon(self.kind())]
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
