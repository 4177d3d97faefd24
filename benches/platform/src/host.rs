//! A whole host for one measurement: broker, daemon, and domains that run this program.

use crate::result::Result;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen::domctl::DomainControl;
use xen_hosted::domain::{DomainConfig, Files};
use xen_hosted::domctl::{Control, CreatedDomain, Descriptors};
use xen_hosted::{HostDir, Role};

/// The longest time that any operation may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// Broker and daemon, ended when dropped.
pub(crate) struct MeasuredHost {
    dir: TempDir,
    pub(crate) broker: Child,
    pub(crate) store: Option<Child>,
    /// The sender of the watchdog, which ends the broker unless this sender is dropped in time.
    _watchdog: Sender<()>,
}

/// Starts a thread that ends the broker after `limit`, and its domains with it. A wait for one of
/// these domains then fails.
fn watchdog(broker: &Child, limit: Duration) -> Sender<()> {
    let (done, waits) = mpsc::channel::<()>();
    let pid = i32::try_from(broker.id()).ok().and_then(Pid::from_raw);
    std::thread::spawn(move || {
        if let (Err(RecvTimeoutError::Timeout), Some(pid)) = (waits.recv_timeout(limit), pid) {
            eprintln!("platform-bench: not done within {limit:?}: the broker is ended");
            let _ = kill_process(pid, Signal::TERM);
        }
    });
    done
}

impl MeasuredHost {
    /// Starts the broker that lies beside this program, and the daemon as a process of this
    /// program.
    pub(crate) fn start(limit: Duration) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let beside = std::env::current_exe()?.with_file_name("xen-hosted");
        let mut broker = Command::new(&beside)
            .arg(dir.path().join("host"))
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}; build it first", beside.display()))?;
        let mut line = String::new();
        let output = broker.stdout.take().ok_or("the broker has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let mut host = Self { _watchdog: watchdog(&broker, limit), dir, broker, store: None };
        if !line.contains("serving") {
            return Err("the broker does not start".into());
        }
        let log = File::create(host.dir.path().join("store.log"))?;
        let store = Command::new(std::env::current_exe()?)
            .args(["store", &host.dir.path().join("host").to_string_lossy()])
            .env("XENSTORED_PATH", host.socket())
            .env("XENSTORED_RUNDIR", host.dir.path())
            .env("XENSTORED_ROOTDIR", host.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        host.store = Some(store);
        let end = Instant::now() + WITHIN;
        while UnixStream::connect(host.socket()).is_err() {
            if Instant::now() > end {
                return Err("the store does not serve".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(host)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn dir(&self) -> HostDir {
        HostDir::new(self.dir.path().join("host"))
    }

    pub(crate) fn control(&self) -> Result<Control> {
        Ok(Control::connect(&self.dir())?)
    }

    pub(crate) fn backend(&self) -> Result<xen_hosted::Platform> {
        Ok(xen_hosted::Platform::connect(&self.dir(), Role::Backend)?)
    }

    pub(crate) fn client(&self) -> Result<xenstore::Client> {
        Ok(xenstore::Client::connect(self.socket())?)
    }
}

impl Drop for MeasuredHost {
    fn drop(&mut self) {
        if let Some(store) = &mut self.store {
            let _ = store.kill();
            let _ = store.wait();
        }
        if let Some(pid) = i32::try_from(self.broker.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.broker.wait();
    }
}

/// Creates a domain that runs this program with these arguments and writes to `output`.
pub(crate) fn create(control: &mut Control, args: &[&str], output: &File) -> Result<CreatedDomain> {
    let mut config = DomainConfig::default();
    config.files = Files::System;
    config.args = ["guest"].iter().chain(args).map(Into::into).collect();
    let program = File::open(std::env::current_exe()?)?;
    let input = File::open("/dev/null")?;
    use std::os::fd::AsFd;
    let error = std::io::stderr();
    let descriptors = Descriptors {
        program: program.as_fd(),
        input: input.as_fd(),
        output: output.as_fd(),
        error: error.as_fd(),
    };
    Ok(control.create(&config, descriptors)?)
}

/// Introduces a domain to the store and runs it.
pub(crate) fn run(
    control: &mut Control,
    client: &mut xenstore::Client,
    created: &CreatedDomain,
) -> Result<()> {
    client.introduce(created.domid.0, created.store_gfn.0, created.store_port.0)?;
    control.unpause(created.domid)?;
    Ok(())
}

/// Runs the daemon over the host in `dir`.
pub(crate) fn play_store(dir: &Path) -> Result<()> {
    let platform = xen_hosted::store_platform(&HostDir::new(dir))?;
    let environment = xenstored::paths::Environment::of_process();
    let args = ["--no-fork".into()];
    let asked = xenstored::config::parse(args, &environment)?;
    let xenstored::config::Invocation::Run(config) = asked else { return Ok(()) };
    let platform = xenstored::Platform {
        evtchn: Box::new(platform.evtchn),
        grants: Box::new(platform.grants),
        domains: Box::new(platform.domains),
        ioctls: &[],
        name: format!("the broker of {}", dir.display()),
    };
    Ok(xenstored::run(&config, xenstored::PlatformChoice::Platform(platform))?)
}
