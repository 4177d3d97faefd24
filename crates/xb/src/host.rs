//! The host that a command works on: a hosted one in its folder, or the Xen host that this is.

pub mod bring;
pub(crate) mod creation;
pub mod daemons;
pub(crate) mod files;
pub mod folder;
pub mod guest_end;
pub mod guest_folder;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod saved_config;
pub mod service;
pub(crate) mod signs;

use crate::Error;
use crate::error::TIMED_OUT;
use daemons::BROKER;
use folder::{Folder, FolderContent};
use std::path::Path;
use std::time::Duration;
use xen::DomId;
use xen::domctl::{DomainControl, RunState};
use xen_hosted::domctl::Control;
use xen_linux::Machine;
use xenstore::Client;

/// A host, with a connection to its store and control of its domains.
pub struct Host {
    /// Its store.
    pub store: Client,
    /// Its platform.
    pub platform: HostPlatform,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("store", &self.store.endpoint()).finish_non_exhaustive()
    }
}

/// The platform of a host.
pub enum HostPlatform {
    /// A hosted host: its domains are processes.
    Hosted {
        /// Its folder.
        folder: Folder,
        /// Its broker.
        control: Control,
    },
    /// Xen, of which this is domain 0.
    Xen(xen_linux::domctl::Domctl),
}

impl HostPlatform {
    /// Control of domains.
    pub fn control(&mut self) -> &mut dyn DomainControl {
        match self {
            Self::Hosted { control, .. } => control,
            Self::Xen(control) => control,
        }
    }

    /// True if a domain is there and has not ended; with a `handle`, only if it is still the same
    /// domain.
    pub fn runs(&mut self, domid: DomId, handle: Option<[u8; 16]>) -> bool {
        self.control().info(domid).is_ok_and(|info| {
            let ended = matches!(info.state, RunState::Shutdown(_) | RunState::Dying);
            !ended && handle.is_none_or(|handle| handle == info.handle)
        })
    }
}

/// The host that a command means.
#[derive(Clone, Debug)]
pub enum HostChoice {
    /// The hosted one in this folder.
    Hosted(Folder),
    /// The Xen host that this is.
    Xen,
}

impl HostChoice {
    /// Returns the folder that the command line or `XB_HOST` names; else Xen where this is its
    /// domain 0; else the hosted host of this user.
    #[must_use]
    pub fn of(named: Option<&Path>) -> Self {
        match named {
            Some(folder) => Self::Hosted(Folder::new(folder)),
            None if xen_linux::machine() == Machine::Control => Self::Xen,
            None => Self::Hosted(Folder::default()),
        }
    }

    /// Returns the folder of the hosted host.
    ///
    /// # Errors
    /// A sentence where Xen is meant: `what` is for hosted hosts only.
    pub fn hosted(self, what: &str) -> Result<Folder, Error> {
        match self {
            Self::Hosted(folder) => Ok(folder),
            Self::Xen => Err(Error::Refused(format!(
                "{what} is for hosted hosts; this is domain 0 of a Xen host (--host DIR names a hosted one)"
            ))),
        }
    }
}

/// Returns the error that no hosted host is up in a folder.
pub(crate) fn is_down(folder: &Folder) -> Error {
    let dir = folder.path().display();
    Error::NotFound(format!("no host is up in {dir}; start it with: xb --host {dir} host up"))
}

impl Host {
    /// Connects to a host.
    ///
    /// # Errors
    /// As [`Host::open_within`].
    pub fn open(choice: HostChoice) -> Result<Self, Error> {
        Self::open_within(choice, Duration::from_secs(xen_hosted::limits::ANSWER_WITHIN_S))
    }

    /// Connects to a host whose broker may take `within` for each answer.
    ///
    /// # Errors
    /// A sentence that says what to start; [`Error::Timeout`] where the broker does not answer.
    pub fn open_within(choice: HostChoice, within: Duration) -> Result<Self, Error> {
        match choice {
            HostChoice::Hosted(folder) => {
                if folder.look()? != FolderContent::Host {
                    return Err(is_down(&folder));
                }
                let control = match Control::connect_within(&folder.broker(), within) {
                    Err(xen::Error::NoDev) => return Err(is_down(&folder)),
                    Err(xen::Error::Busy) => {
                        let most = xen_hosted::limits::PEERS_MAX;
                        return Err(Error::Refused(format!(
                            "the broker of the host in {} has all {most} connections in use: programs hold \
                             them that are connected to it",
                            folder.path().display()
                        )));
                    }
                    Err(error) if error.errno() == TIMED_OUT => {
                        let log = BROKER.log(&folder);
                        let what = format!("the broker answers (its log: {})", log.display());
                        return Err(Error::Timeout { what, after: within, reason: None });
                    }
                    control => control.map_err(|error| {
                        let log = BROKER.log(&folder);
                        Error::Refused(format!(
                            "the broker does not answer: {error}; {} says more",
                            log.display()
                        ))
                    })?,
                };
                let store = Client::connect(folder.store()).map_err(|error| {
                    let dir = folder.path().display();
                    Error::Refused(format!("{error}; xb --host {dir} host up starts what is down"))
                })?;
                Ok(Self { store, platform: HostPlatform::Hosted { folder, control } })
            }
            HostChoice::Xen => {
                let said = |error: xen_linux::Error| Error::Refused(error.to_string());
                let privcmd = xen_linux::privcmd::Privcmd::open().map_err(said)?;
                let control = xen_linux::domctl::Domctl::open(&privcmd).map_err(said)?;
                Ok(Self { store: Client::open()?, platform: HostPlatform::Xen(control) })
            }
        }
    }

    /// Control of its domains.
    pub fn control(&mut self) -> &mut dyn DomainControl {
        self.platform.control()
    }

    /// Its folder, where it is hosted.
    #[must_use]
    pub fn folder(&self) -> Option<&Folder> {
        match &self.platform {
            HostPlatform::Hosted { folder, .. } => Some(folder),
            HostPlatform::Xen(_) => None,
        }
    }
}
