//! A device to be added, and the words for it.

use xen::DomId;
use xenbus::toolstack::NewDevice;

/// Kinds whose devices have a command of `xb`; its word is the word for such a device, too.
const COMMANDS: [(&str, &str); 1] = [("vbd", "disk")];

/// The command of `xb` that is for devices of a kind.
pub(super) fn command(kind: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|(of, _)| *of == kind).map(|(_, word)| *word)
}

/// The word for a device of a kind.
pub(super) fn word(kind: &str) -> String {
    command(kind).map_or_else(|| format!("device {kind}"), str::to_owned)
}

/// A device to be added to a domain.
#[derive(Clone, Debug)]
pub struct Device {
    nodes: NewDevice,
    name: String,
    target: Option<String>,
}

impl Device {
    /// A device with these nodes, whose number is its name.
    #[must_use]
    pub fn new(nodes: NewDevice) -> Self {
        let name = nodes.id.devid.to_string();
        Self { nodes, name, target: None }
    }

    /// With a name: `xvda`.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// With what its backend is told to serve, which an error then names.
    #[must_use]
    pub fn serving(self, target: &str) -> Self {
        Self { target: Some(target.into()), ..self }
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &NewDevice {
        &self.nodes
    }

    /// The domain that it is for.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.nodes.id.frontend
    }

    /// The words for it: `disk xvda`.
    pub(super) fn words(&self) -> String {
        format!("{} {}", word(&self.nodes.kind), self.name)
    }

    /// The words for it with what is served: `disk xvda (/images/a.img)`.
    pub(super) fn words_with_target(&self) -> String {
        let target = self.target.as_ref().map(|target| format!(" ({target})"));
        self.words() + &target.unwrap_or_default()
    }

    /// The end of a sentence that refuses it, as it is there already: the command that takes it away.
    pub(super) fn advice(&self) -> String {
        let (domid, name) = (self.domid(), &self.name);
        command(&self.nodes.kind).map_or_else(String::new, |command| {
            format!("; xb {command} detach {domid} {name} takes it away")
        })
    }
}
