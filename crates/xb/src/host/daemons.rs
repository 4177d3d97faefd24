//! The daemons of a hosted host: one table. To add a daemon is to add a row.
//!
//! A row is data. Its process is started and ended by its methods, and those of all rows by
//! [`bring`](super::bring).

use super::folder::Folder;
use std::path::PathBuf;

/// All daemons, in the order in which they start; they end in the opposite order.
pub const DAEMONS: &[HostDaemon] = &[BROKER, STORE, CONSOLE, KEEPER, BLOCK, DEVD];

/// `xen-hosted`: plays the hypervisor.
pub const BROKER: HostDaemon = HostDaemon {
    name: "broker",
    part: "broker",
    program: DaemonProgram::Beside { file: "xen-hosted", package: "xen-hosted" },
    arguments: &[DaemonArgument::Place(|folder| folder.broker().path().into())],
    environment: &[],
    ready: ReadyLine::Says("xen-hosted: serving "),
    leaves: &["host"],
    kinds: &[],
};

/// `xenstored`: the store.
pub const STORE: HostDaemon = HostDaemon {
    name: "xenstored",
    part: "store",
    program: DaemonProgram::Beside { file: "xenstored", package: "xenstored" },
    arguments: &[DaemonArgument::Word("--no-fork")],
    environment: &[("XENSTORED_RUNDIR", Folder::run), ("XENSTORED_ROOTDIR", Folder::run)],
    ready: ReadyLine::Logs { field: " pid=", end: " msg=\"serving\"" },
    leaves: &["store", "store.lock"],
    kinds: &[],
};

/// `xenconsoled`: logs and serves the consoles of guests.
pub const CONSOLE: HostDaemon = HostDaemon {
    name: "xenconsoled",
    part: "consoles",
    program: DaemonProgram::Beside { file: "xenconsoled", package: "xen-console" },
    arguments: &[
        DaemonArgument::Word("--interactive"),
        DaemonArgument::Word("--verbose"),
        DaemonArgument::Word("--log=guest"),
        // The folder is in memory on most machines.
        DaemonArgument::Word("--log-max=1048576"),
        DaemonArgument::Word("--log-count=256"),
        DaemonArgument::Word("--log-dir"),
        DaemonArgument::Place(Folder::console),
        DaemonArgument::Word("--guests"),
        DaemonArgument::Place(Folder::guests),
    ],
    environment: &[],
    ready: ReadyLine::Logs {
        field: "level=info ",
        end: "msg=\"serving the consoles of domain 0\"",
    },
    leaves: &[],
    kinds: &[],
};

/// `xb keeper`: acts when guests end.
pub const KEEPER: HostDaemon = HostDaemon {
    name: "keeper",
    part: "keeper",
    program: DaemonProgram::Own,
    arguments: &[
        DaemonArgument::Word("--host"),
        DaemonArgument::Place(|folder| folder.path().into()),
        DaemonArgument::Word("keeper"),
    ],
    environment: &[],
    ready: ReadyLine::Says("keeper: serving "),
    leaves: &["keeper"],
    kinds: &[],
};

/// `xen-blockd`: serves disks.
pub const BLOCK: HostDaemon = HostDaemon {
    name: "xen-blockd",
    part: "block backend",
    program: DaemonProgram::Beside { file: "xen-blockd", package: "xen-block" },
    arguments: &[
        DaemonArgument::Word("--record-dir"),
        DaemonArgument::Place(Folder::record),
        DaemonArgument::ImageDirs("--image-dir"),
    ],
    environment: &[],
    ready: ReadyLine::Says("xen-blockd: serving "),
    leaves: &[],
    kinds: &["vbd", "qdisk"],
};

/// `xb devd`: starts backends again.
pub const DEVD: HostDaemon = HostDaemon {
    name: "devd",
    part: "supervisor of backends",
    program: DaemonProgram::Own,
    arguments: &[
        DaemonArgument::Word("--host"),
        DaemonArgument::Place(|folder| folder.path().into()),
        DaemonArgument::Word("devd"),
    ],
    environment: &[],
    ready: ReadyLine::Says("devd: serving "),
    leaves: &[],
    kinds: &[],
};

/// A path in the folder of a host.
type PathIn = fn(&Folder) -> PathBuf;

/// A daemon of a hosted host.
#[derive(Clone, Copy, Debug)]
pub struct HostDaemon {
    name: &'static str,
    part: &'static str,
    pub(super) program: DaemonProgram,
    pub(super) arguments: &'static [DaemonArgument],
    pub(super) environment: &'static [(&'static str, PathIn)],
    ready: ReadyLine,
    leaves: &'static [&'static str],
    kinds: &'static [&'static str],
}

/// The program that is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DaemonProgram {
    /// This one.
    Own,
    /// A program in the folder of this one.
    Beside {
        /// The name of its file.
        file: &'static str,
        /// The cargo package that builds it, which is also its folder in `crates`.
        package: &'static str,
    },
}

/// An argument of a daemon's program.
#[derive(Clone, Copy, Debug)]
pub(super) enum DaemonArgument {
    /// A word as it stands.
    Word(&'static str),
    /// A path in the host's folder.
    Place(PathIn),
    /// An option that is repeated with each folder that `xb host up --image-dir` has named.
    ImageDirs(&'static str),
}

/// The line of a daemon's log that says that it serves.
#[derive(Clone, Copy, Debug)]
enum ReadyLine {
    /// A line with this beginning.
    Says(&'static str),
    /// A line with this field and this end, as logfmt has them.
    Logs { field: &'static str, end: &'static str },
}

impl HostDaemon {
    /// Returns its name in lists and errors, which its log and its pid file have too.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns its role in a host, in a word or two: `block backend`.
    #[must_use]
    pub fn part(&self) -> &'static str {
        self.part
    }

    /// Returns the program that it runs.
    pub(crate) fn program(&self) -> DaemonProgram {
        self.program
    }

    /// Returns the path of its log.
    #[must_use]
    pub fn log(&self, folder: &Folder) -> PathBuf {
        folder.log(self.name)
    }

    /// Returns the files and folders that it makes in the host's folder and does not remove.
    pub(super) fn leaves(&self) -> &'static [&'static str] {
        self.leaves
    }

    /// Returns the kinds of devices whose backend it is.
    #[must_use]
    pub fn kinds(&self) -> &'static [&'static str] {
        self.kinds
    }

    /// True if it is a backend. The supervisor starts it again, and ends one that gives no sign of
    /// life: each has to give some ([`daemon::LifeSigns`]).
    #[must_use]
    pub fn is_backend(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// True if it takes image folders as arguments.
    pub(super) fn takes_image_dirs(&self) -> bool {
        self.arguments.iter().any(|argument| matches!(argument, DaemonArgument::ImageDirs(_)))
    }

    /// True if this line of its log says that it serves.
    pub(super) fn says_serving(&self, line: &str) -> bool {
        match self.ready {
            ReadyLine::Says(start) => line.starts_with(start),
            ReadyLine::Logs { field, end } => line.contains(field) && line.ends_with(end),
        }
    }
}

/// Returns the daemons that are backends.
pub fn backends() -> impl Iterator<Item = &'static HostDaemon> {
    DAEMONS.iter().filter(|daemon| daemon.is_backend())
}

/// Returns the daemon that is the backend of a kind.
#[must_use]
pub fn backend(kind: &str) -> Option<&'static HostDaemon> {
    DAEMONS.iter().find(|daemon| daemon.kinds.contains(&kind))
}

/// Joins a word of each daemon: `broker, xenstored`.
pub(crate) fn words(word: fn(&HostDaemon) -> &'static str) -> String {
    DAEMONS.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../../systemd/xb-host.service");

    #[test]
    fn each_is_one_of_its_name_and_kind() {
        for (at, daemon) in DAEMONS.iter().enumerate() {
            for other in &DAEMONS[..at] {
                assert_ne!(daemon.name, other.name);
                assert!(!daemon.kinds.iter().any(|kind| other.kinds.contains(kind)));
            }
        }
        assert_eq!(backend("qdisk").map(HostDaemon::name), Some("xen-blockd"));
        assert!(backend("vif").is_none());
    }

    #[test]
    fn a_line_says_that_a_daemon_serves() {
        assert!(BLOCK.says_serving("xen-blockd: serving vbd, qdisk"));
        assert!(!BLOCK.says_serving("keeper: serving /run/xb"));
        assert!(STORE.says_serving("ts=1 level=info pid=7 msg=\"serving\""));
        assert!(!STORE.says_serving("ts=1 level=info pid=7 msg=\"not serving\""));
    }

    #[test]
    fn the_unit_of_systemd_names_each_program() {
        for daemon in DAEMONS {
            if let DaemonProgram::Beside { file, .. } = daemon.program {
                assert!(UNIT.contains(&format!(" {file}")), "{file}");
            }
        }
    }
}
