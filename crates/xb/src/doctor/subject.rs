//! The subject of a finding, and the command that helps it.

use crate::text::shell_word;
use std::path::PathBuf;
use xen::DomId;

/// The device, guest or host that a cause is about, with the words for commands on it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultSubject {
    /// The beginning of each command: `xb`, or `xb --host DIR`.
    pub xb: String,
    /// True on a hosted host, false on Xen.
    pub hosted: bool,
    /// The domain's number; `None` for the host.
    pub domid: Option<DomId>,
    /// The domain's name, or its number where it has none.
    pub domain: String,
    /// The device's name; `None` for a domain or the host.
    pub device: Option<String>,
    /// The command of `xb` for devices of this kind.
    pub command: Option<&'static str>,
    /// The path of the device's backend in the store.
    pub backend: String,
    /// The log of the backend, if it is known.
    pub log: Option<PathBuf>,
}

/// A command that helps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remedy {
    /// The effect of the command, as the beginning of a phrase: `start it with`.
    pub effect: &'static str,
    /// The command line; words in it that others have chosen are quoted for a shell.
    pub command: String,
}

impl Remedy {
    /// Makes the remedy with this effect.
    #[must_use]
    pub fn new(effect: &'static str, command: impl Into<String>) -> Self {
        Self { effect, command: command.into() }
    }
}

impl FaultSubject {
    /// Returns the device's name, or the domain's.
    #[must_use]
    pub fn name(&self) -> &str {
        self.device.as_deref().unwrap_or(&self.domain)
    }

    /// Returns the domain's name as a word of a command.
    #[must_use]
    pub fn domain_word(&self) -> String {
        shell_word(&self.domain)
    }

    /// Makes a remedy of a command of `xb`.
    #[must_use]
    pub fn xb(&self, effect: &'static str, arguments: &str) -> Remedy {
        Remedy::new(effect, format!("{} {arguments}", self.xb))
    }

    /// Makes the remedy that takes the device away.
    #[must_use]
    pub fn detach(&self, effect: &'static str) -> Remedy {
        let (domain, device) = (self.domain_word(), shell_word(self.name()));
        match self.command {
            Some(command) => {
                self.xb(effect, &format!("{command} detach {domain} {device} --force"))
            }
            None => self.nodes(),
        }
    }

    /// Makes the remedy that shows the nodes of the device's backend.
    #[must_use]
    pub fn nodes(&self) -> Remedy {
        self.xb("see its nodes with", &format!("store ls -f {}", shell_word(&self.backend)))
    }

    /// Makes the remedy that shows the backend's log, or its nodes where the log is not known.
    #[must_use]
    pub fn backend_log(&self) -> Remedy {
        match &self.log {
            Some(log) => {
                let log = shell_word(&log.to_string_lossy());
                Remedy::new("see its log with", format!("tail {log}"))
            }
            None => self.nodes(),
        }
    }

    /// Makes the remedy that shows what the guest prints.
    #[must_use]
    pub fn guest_log(&self) -> Remedy {
        let (effect, domain) = ("see what it prints with", self.domain_word());
        if self.hosted {
            self.xb(effect, &format!("log {domain}"))
        } else {
            Remedy::new(effect, format!("xl console {domain}"))
        }
    }
}
