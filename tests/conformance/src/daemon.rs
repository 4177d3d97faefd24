//! A running daemon: started in a folder of its own with guests enabled, stopped by its pid when
//! dropped, its log kept for the message of a failing test.

use crate::peer::Peer;
use crate::peers::{Peers, PeersPurpose};
use crate::ring::files::{FileRing, signal};
use crate::skip::skip;
use crate::version::Version;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest time until a daemon answers on its socket.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A kind of daemon.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DaemonKind {
    /// Debian's `xenstored`, in C.
    C,
    /// Debian's `oxenstored`, in OCaml.
    OCaml,
    /// This project's daemon over its test platform.
    Ours,
}

impl DaemonKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::C, Self::OCaml, Self::Ours];

    /// Returns the short name: `c`, `ox`, `ours`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::OCaml => "ox",
            Self::Ours => "ours",
        }
    }
}

/// The options of a daemon's start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments for its command line.
    pub args: Vec<OsString>,
    /// If true, every domain exists, with a ring that no guest fills; there are no
    /// [`Daemon::guest`]s then.
    pub everybody: bool,
    /// Oxenstored's access log, which Debian has on. Only one daemon on a machine may have it.
    pub access_log: bool,
    /// The purpose of a peer.
    pub purpose: PeersPurpose,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    kind: DaemonKind,
    dir: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts a daemon and waits until it answers. Returns `None` and prints one line with the
    /// reason if that daemon is not available here, or is a peer of an unknown version.
    ///
    /// # Panics
    /// If the daemon ends or stays silent, and if it is not available although `CI` is `true`.
    #[must_use]
    pub fn start(kind: DaemonKind) -> Option<Self> {
        Self::start_with(kind, &Options::default())
    }

    /// Starts a daemon, as [`Daemon::start`] does, with options.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    #[must_use]
    pub fn start_with(kind: DaemonKind, options: &Options) -> Option<Self> {
        let dir = fresh_dir();
        let mut command = command(kind, dir.path(), options)?;
        let log = File::create(dir.path().join("log")).expect("a log file in the temporary folder");
        command
            .args(&options.args)
            .env("XENSTORED_PATH", dir.path().join("sock"))
            .env("XENSTORED_RUNDIR", dir.path())
            .env("XENSTORED_ROOTDIR", dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        if options.everybody {
            command.env_remove("XENSHIM_GUESTS");
        } else {
            command.env("XENSHIM_GUESTS", dir.path().join("guests"));
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut daemon = Self { kind, dir, child };
        daemon.wait_until_ready();
        Some(daemon)
    }

    fn wait_until_ready(&mut self) {
        let end = Instant::now() + READY_WITHIN;
        while UnixStream::connect(self.socket()).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("daemon `{}` ended: {status}; its log:\n{}", self.kind.name(), self.log());
            }
            assert!(
                Instant::now() < end,
                "daemon `{}` did not open {} within {READY_WITHIN:?}; its log:\n{}",
                self.kind.name(),
                self.socket().display(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the kind of this daemon.
    #[must_use]
    pub fn kind(&self) -> DaemonKind {
        self.kind
    }

    /// Returns the version of a peer, if it is a known one.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match self.kind {
            DaemonKind::C | DaemonKind::OCaml => Peers::get().ok().and_then(Peers::version),
            DaemonKind::Ours => None,
        }
    }

    /// True if this is a peer of this kind and version.
    #[must_use]
    pub fn is(&self, kind: DaemonKind, version: Version) -> bool {
        (self.kind, self.version()) == (kind, Some(version))
    }

    /// Returns the path of its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Returns the folder that stands for the hypervisor: ring pages and event channels of its
    /// guests.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.dir.path().join("guests")
    }

    /// Returns its working folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True while it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Describes its exit status.
    pub fn exit(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it runs".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Returns its log up to now.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap_or_default())
            .into_owned()
    }

    /// Opens a new connection over its socket, as domain 0.
    ///
    /// # Panics
    /// If it cannot be reached.
    #[must_use]
    pub fn connect(&self) -> Peer {
        Peer::socket(&self.socket()).unwrap_or_else(|error| {
            panic!(
                "no connection to daemon `{}`: {error}; its log:\n{}",
                self.kind.name(),
                self.log()
            )
        })
    }

    /// Creates a domain with this number and introduces it over `dom0`.
    ///
    /// # Panics
    /// If it is refused.
    pub fn introduce(&self, dom0: &mut Peer, domid: u16) -> Peer {
        let guest = self.guest(domid);
        dom0.expect_ok("INTRODUCE", format!("{domid}|1|1|"));
        guest
    }

    /// Creates a domain with this number, which is not introduced yet.
    ///
    /// # Panics
    /// If its page cannot be written.
    #[must_use]
    pub fn guest(&self, domid: u16) -> Peer {
        FileRing::create(&self.guests(), domid)
            .map(|ring| Peer::ring_of(Box::new(ring)))
            .unwrap_or_else(|error| panic!("domain {domid} cannot be made: {error}"))
    }

    /// Destroys the domain: removes its page, and signals VIRQ_DOM_EXC to the daemon.
    ///
    /// # Panics
    /// If the daemon cannot be signalled.
    pub fn destroy(&self, domid: u16) {
        let _ = fs::remove_file(self.guests().join(format!("{domid}.page")));
        let _ = fs::remove_file(self.guests().join(format!("{domid}.shutdown")));
        let _ = fs::remove_file(self.guests().join(format!("{domid}.evt")));
        self.virq();
    }

    /// Shuts the domain down, which exists still, and signals VIRQ_DOM_EXC to the daemon.
    ///
    /// # Panics
    /// If the daemon cannot be signalled.
    pub fn shut_down(&self, domid: u16) {
        File::create(self.guests().join(format!("{domid}.shutdown"))).expect("the shutdown mark");
        self.virq();
    }

    /// Lets the domain run again after [`Daemon::shut_down`], as after a cancelled suspend.
    pub fn run_again(&self, domid: u16) {
        let _ = fs::remove_file(self.guests().join(format!("{domid}.shutdown")));
    }

    fn virq(&self) {
        signal(&self.guests(), u32::MAX).expect("VIRQ_DOM_EXC");
    }

    /// Returns the resident memory in KiB (`VmRSS`).
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Returns the number of open file descriptors.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of daemon `{}`:\n{}", self.kind.name(), tail(&self.log(), 40));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Makes a folder with a name short enough for a socket inside it.
fn fresh_dir() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder under the temporary folder");
    fs::create_dir(dir.path().join("guests")).expect("a folder in it");
    dir
}

/// Returns the command that starts a daemon; or `None`, and prints one line with the reason, if it
/// is not available.
fn command(kind: DaemonKind, dir: &Path, options: &Options) -> Option<Command> {
    let what = format!("daemon `{}`", kind.name());
    if kind != DaemonKind::Ours {
        let peers = Peers::find(&what, options.purpose)?;
        return Some(peer_command(kind, peers, dir, options));
    }
    match testbed() {
        Ok(path) => {
            let mut command = Command::new(path);
            command.arg("--no-fork");
            Some(command)
        }
        Err(why) => {
            skip(&what, why);
            None
        }
    }
}

fn peer_command(kind: DaemonKind, peers: &Peers, dir: &Path, options: &Options) -> Command {
    let mut command = match kind {
        DaemonKind::OCaml => {
            let mut command = peers.command("oxenstored");
            command.arg("--config-file").arg(oxenstored_conf(peers, dir));
            command.env("XENSHIM_SOCKET", dir.join("sock"));
            if !options.access_log {
                command.arg("--no-access-log");
            }
            command
        }
        _ => peers.command("xenstored"),
    };
    command.arg("--no-fork").env("LD_PRELOAD", peers.shim());
    command
}

/// Writes Debian's own configuration with its log and pid files moved into `dir`.
fn oxenstored_conf(peers: &Peers, dir: &Path) -> PathBuf {
    let debian = fs::read_to_string(peers.root().join("etc/xen/oxenstored.conf"))
        .expect("the configuration of Debian's oxenstored");
    let mut conf: String = debian.lines().filter(|line| !line.starts_with("pid-file")).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    );
    let dir_name = dir.display();
    conf.push_str(&format!(
        "pid-file = {dir_name}/oxenstored.pid\nxenstored-log-file = {dir_name}/xenstored.log\n\
         access-log-file = {dir_name}/xenstored-access.log\n"
    ));
    let path = dir.join("oxenstored.conf");
    fs::write(&path, conf).expect("oxenstored's configuration in the temporary folder");
    path
}

/// Returns the path of our daemon, `xenstored-testbed`, of the same profile as this program, built
/// if it is old.
fn testbed() -> &'static Result<PathBuf, String> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(given) = std::env::var_os("XENBUS_TESTBED") {
            return Ok(given.into());
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        if !workspace.join("tests/testbed").exists() {
            return Err("the workspace has no package `testbed`".to_owned());
        }
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        // Cargo's build folders, each with the profile that fills it.
        let profiles = [("debug", "dev"), ("release", "release"), ("dist", "dist")];
        let profile_of = |dir: &&Path| {
            profiles.iter().find(|(name, _)| dir.ends_with(name)).map(|found| found.1)
        };
        let profile_dir = this
            .ancestors()
            .find(|dir| profile_of(dir).is_some())
            .ok_or("this program is in no profile folder of a build")?;
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build.args(["build", "--quiet", "-p", "testbed", "--profile"]);
        build.arg(profile_of(&profile_dir).unwrap_or("dev")).current_dir(&workspace);
        let built = build.output().map_err(|error| format!("cargo build: {error}"))?;
        let path = profile_dir.join("xenstored-testbed");
        if built.status.success() && path.exists() {
            return Ok(path);
        }
        Err(format!("cargo build -p testbed: {}", tail(&String::from_utf8_lossy(&built.stderr), 8)))
    })
}
