//! Event channels and grants of the machine: a hosted host's where the environment names one, else Xen's.

use super::ProgramFailure;
use crate::backend::Platform;
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use xen::DomId;
use xen_hosted::{HOST_VARIABLE, HostDir, Role};
use xen_linux::Machine;
use xenstore::{Client, Store};

/// The folder of a backend's files in a hosted guest.
const GUEST_DIR: &str = "/tmp";

/// The means of a machine.
#[derive(Debug)]
pub struct MachinePlatform {
    /// Event channels and grants.
    pub platform: Platform,
    /// The domain where this runs, if the platform says so.
    pub domid: Option<DomId>,
    /// The folder of the records, unless it is said.
    pub run_dir: PathBuf,
    /// The folder of the locks of what is served.
    pub lock_dir: PathBuf,
    /// Memory that the successor of this domain gets after it.
    pub keepsake: Option<OwnedFd>,
}

impl MachinePlatform {
    /// Opens the means for a program of this name.
    ///
    /// # Errors
    /// This machine is neither a Xen host nor a hosted one, or does not let this process be a backend.
    pub fn open(name: &str) -> Result<Self, ProgramFailure> {
        if let Some(hosted) = xen_hosted::Platform::process()? {
            let dir = Path::new(GUEST_DIR).join(name);
            let machine = Self::over(&hosted, dir.clone(), dir)?;
            // Where there is none, the records end with the domain.
            return Ok(Self { keepsake: hosted.keepsake().ok(), ..machine });
        }
        if let Some(dir) = std::env::var_os(HOST_VARIABLE) {
            let host = HostDir::new(dir);
            let hosted = xen_hosted::Platform::connect(&host, Role::Backend).map_err(|error| {
                let dir = host.path().display();
                format!("no broker serves the host in {dir}: {error}; xen-hosted {dir} starts one")
            })?;
            return Self::over(&hosted, host.path().join(name), host.path().to_owned());
        }
        if xen_linux::machine() == Machine::Bare {
            return Err(format!("no Xen here, and {HOST_VARIABLE} names no hosted host").into());
        }
        let evtchn = Rc::new(RefCell::new(xen_linux::evtchn::Evtchn::open(None)?));
        let grants = Rc::new(RefCell::new(xen_linux::gntdev::Gntdev::open()?));
        let run_dir = Path::new("/run").join(name);
        Ok(Self {
            platform: Platform { evtchn, grants },
            domid: None,
            lock_dir: run_dir.clone(),
            run_dir,
            keepsake: None,
        })
    }

    /// Returns the means of a process of a hosted host.
    fn over(
        hosted: &xen_hosted::Platform,
        run_dir: PathBuf,
        lock_dir: PathBuf,
    ) -> Result<Self, ProgramFailure> {
        let evtchn = Rc::new(RefCell::new(hosted.channels()?));
        let grants = Rc::new(RefCell::new(hosted.grants()));
        let platform = Platform { evtchn, grants };
        Ok(Self { platform, domid: Some(hosted.domid()), run_dir, lock_dir, keepsake: None })
    }
}

/// Returns the number of the domain where this runs; a node of its own.
///
/// # Errors
/// The node is not there, or is no number.
pub fn own_domid(store: &mut Client) -> Result<DomId, ProgramFailure> {
    let text = store.read("domid").map_err(|error| {
        format!(
            "which domain is this? its node domid cannot be read ({error}); xen-init-dom0 writes it"
        )
    })?;
    let text = String::from_utf8_lossy(&text);
    Ok(DomId(text.trim().parse().map_err(|_| format!("node domid is {text:?}, no domain"))?))
}
