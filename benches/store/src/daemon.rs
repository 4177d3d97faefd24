//! The daemons under test: their start without Xen, and their costs.

use crate::Result;
use crate::client::Conn;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The bench's own argument that runs [`become_program`].
pub(crate) const EXEC: &str = "--exec";

/// Turns this process into a program that is killed when the bench ends, however it ends.
///
/// # Errors
/// Always, if it returns: the program could not be run.
pub(crate) fn become_program(mut words: impl Iterator<Item = String>) -> Result<()> {
    let program = words.next().ok_or("--exec needs a program")?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let error = Command::new(&program).args(words).exec();
    Err(format!("cannot run {program}: {error}").into())
}

/// A daemon that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum MeasuredDaemon {
    /// This project's daemon.
    Ours,
    /// Debian's C `xenstored`.
    C,
    /// Debian's `oxenstored` as Debian configures it: with its access log.
    O,
    /// `oxenstored --no-access-log`.
    On,
    /// The bare echo, the limit.
    Echo,
}

impl MeasuredDaemon {
    /// All kinds, in the order of the table's columns.
    pub(crate) const ALL: [Self; 5] = [Self::Ours, Self::C, Self::O, Self::On, Self::Echo];

    /// Returns the column's title.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::C => "C",
            Self::O => "oxenstored",
            Self::On => "oxenstored, no log",
            Self::Echo => "echo",
        }
    }

    /// Returns the short name in progress lines and JSON.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::C => "c",
            Self::O => "o",
            Self::On => "on",
            Self::Echo => "echo",
        }
    }
}

/// The places of the programs.
pub(crate) struct Places {
    /// Cargo's folder with this project's release binaries.
    pub(crate) release: PathBuf,
    /// Debian's packages, unpacked, and the stand-in library; `None` where they are not wanted.
    pub(crate) peers: Option<&'static conformance::Peers>,
    /// A folder of this run, for sockets and logs.
    pub(crate) scratch: PathBuf,
}

impl Places {
    /// Returns the path of Debian's file at `path` below `/`.
    pub(crate) fn debian(&self, path: &str) -> PathBuf {
        self.peers.map_or_else(PathBuf::new, |peers| peers.root().join(path))
    }

    /// Returns the folders of the libraries of Debian's programs.
    pub(crate) fn debian_libs(&self) -> PathBuf {
        self.debian("usr/lib/x86_64-linux-gnu")
    }

    /// Returns the program that `kind` runs; with `guests`, one that can introduce domains.
    fn program(&self, kind: MeasuredDaemon, guests: Guests<'_>) -> Result<PathBuf> {
        match (kind, guests) {
            (MeasuredDaemon::Ours, Guests::None) => Ok(self.release.join("xenstored")),
            (MeasuredDaemon::Ours, _) => Ok(self.release.join("xenstored-testbed")),
            (MeasuredDaemon::C, _) => Ok(self.debian("usr/lib/xen-4.17/bin/xenstored")),
            (MeasuredDaemon::O | MeasuredDaemon::On, _) => {
                Ok(self.debian("usr/lib/xen-4.17/bin/oxenstored"))
            }
            (MeasuredDaemon::Echo, _) => Ok(std::env::current_exe()?),
        }
    }

    /// Returns the reason if `kind` cannot be started.
    pub(crate) fn missing(&self, kind: MeasuredDaemon, guests: Guests<'_>) -> Option<String> {
        let program = self.program(kind, guests).ok()?;
        if !program.exists() {
            let name = program.file_name().unwrap_or_default().display();
            return Some(format!("{name} is missing"));
        }
        None
    }
}

/// The guests that a daemon serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests<'a> {
    /// Sockets only.
    None,
    /// Every domid exists, with a private ring page that no guest fills.
    Any,
    /// The domains whose ring pages are in this folder.
    In(&'a Path),
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// Its socket.
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts `kind` on the CPU `cpu` and waits until it answers.
    pub(crate) fn start(
        places: &Places,
        kind: MeasuredDaemon,
        cpu: usize,
        guests: Guests<'_>,
    ) -> Result<Self> {
        let dir = places.scratch.join(kind.short());
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let socket = dir.join("socket");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(EXEC).arg(places.program(kind, guests)?);
        match kind {
            MeasuredDaemon::Echo => {
                command.arg("--echo").arg(&socket);
            }
            MeasuredDaemon::Ours | MeasuredDaemon::C => {
                command.arg("-N").env("XENSTORED_PATH", &socket);
                command.env("XENSTORED_RUNDIR", &dir).env("XENSTORED_ROOTDIR", &dir);
            }
            MeasuredDaemon::O | MeasuredDaemon::On => {
                configure_oxenstored(places, kind, &dir, &mut command)?;
            }
        }
        if matches!(kind, MeasuredDaemon::C | MeasuredDaemon::O | MeasuredDaemon::On) {
            command.env("LD_LIBRARY_PATH", places.debian_libs());
            if let Some(peers) = places.peers {
                command.env("LD_PRELOAD", peers.shim());
            }
        }
        // The stand-in and our test bed use the same variable.
        match guests {
            Guests::None | Guests::Any => command.env_remove("XENSHIM_GUESTS"),
            Guests::In(folder) => command.env("XENSHIM_GUESTS", folder),
        };
        let log = fs::File::create(dir.join("output"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let daemon = Self { child, socket };
        crate::machine::pin(Some(daemon.pid()), cpu)?;
        daemon.wait(kind, &dir)
    }

    /// Waits, with a bound, until the daemon takes connections.
    fn wait(mut self, kind: MeasuredDaemon, dir: &Path) -> Result<Self> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if Conn::open(&self.socket).is_ok() {
                return Ok(self);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                let output = fs::read_to_string(dir.join("output")).unwrap_or_default();
                let how = ended.map_or("does not answer in 20 s".into(), |e| format!("ended: {e}"));
                let output = output.trim();
                return Err(format!("{} {how}; its output: {output:?}", kind.title()).into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the processor time that it has used.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid()))?;
        let nanos = text.split_whitespace().next().unwrap_or_default().parse()?;
        Ok(Duration::from_nanos(nanos))
    }

    /// Returns a line of `/proc/PID/status`, in bytes: `VmRSS`, `VmHWM`.
    pub(crate) fn memory(&self, line: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = text
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB"))
            .ok_or_else(|| format!("no {line} in /proc/PID/status"))?;
        Ok(kib.trim().parse::<f64>()? * 1024.0)
    }

    /// Resets `VmHWM` to the memory that is resident now.
    pub(crate) fn reset_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about that here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes Debian's own oxenstored.conf with its pid and log files moved to `dir`.
fn configure_oxenstored(
    places: &Places,
    kind: MeasuredDaemon,
    dir: &Path,
    command: &mut Command,
) -> Result<()> {
    use std::fmt::Write as _;
    let debian = fs::read_to_string(places.debian("etc/xen/oxenstored.conf"))?;
    let mut conf = String::new();
    for line in debian.lines().filter(|line| !line.starts_with("pid-file")) {
        writeln!(conf, "{line}")?;
    }
    let dir_name = dir.display();
    writeln!(conf, "pid-file = {dir_name}/oxenstored.pid")?;
    writeln!(conf, "xenstored-log-file = {dir_name}/xenstored.log")?;
    writeln!(conf, "access-log-file = {dir_name}/access.log")?;
    let file = dir.join("oxenstored.conf");
    fs::write(&file, conf)?;
    command.arg("--no-fork").arg("--config-file").arg(file);
    if kind == MeasuredDaemon::On {
        command.arg("--no-access-log");
    }
    command.env("XENSHIM_SOCKET", dir.join("socket"));
    Ok(())
}
