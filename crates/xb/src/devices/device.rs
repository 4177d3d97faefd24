//! A device to be added, and its name in messages.

use super::disk::users;
use crate::Error;
use xen::DomId;
use xen_block::vbd;
use xenbus::toolstack::NewDevice;
use xenstore::Client;

/// The kinds whose devices have a command of `xb`; the command's name is also the word for such a
/// device.
const COMMANDS: [(&str, &str); 1] = [("vbd", "disk")];

/// Returns the command of `xb` for devices of a kind.
pub(crate) fn command(kind: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|(of, _)| *of == kind).map(|(_, word)| *word)
}

/// Returns the word for a device of a kind.
pub(super) fn word(kind: &str) -> String {
    command(kind).map_or_else(|| format!("device {kind}"), str::to_owned)
}

/// Returns the name in messages of a device that is there: `disk xvda`, `device adder 0`.
pub(super) fn words(device: &NewDevice) -> String {
    let (kind, devid) = (&device.kind, device.id.devid);
    match command(kind) {
        Some("disk") => format!("disk {}", vbd::name(devid)),
        _ => format!("{} {devid}", word(kind)),
    }
}

/// A device to be added to a domain.
#[derive(Clone, Debug)]
pub struct AttachableDevice {
    nodes: NewDevice,
    name: String,
    target: Option<String>,
}

impl AttachableDevice {
    /// Makes a device with these nodes, whose number is its name.
    #[must_use]
    pub fn new(nodes: NewDevice) -> Self {
        let name = nodes.id.devid.to_string();
        Self { nodes, name, target: None }
    }

    /// Sets its name: `xvda`.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Sets the target that its backend serves, which an error then names.
    #[must_use]
    pub fn serving(self, target: &str) -> Self {
        Self { target: Some(target.into()), ..self }
    }

    /// Returns its nodes.
    #[must_use]
    pub fn nodes(&self) -> &NewDevice {
        &self.nodes
    }

    /// Returns the domain that it is for.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.nodes.id.frontend
    }

    /// Returns its name in messages: `disk xvda`.
    pub(super) fn words(&self) -> String {
        format!("{} {}", word(&self.nodes.kind), self.name)
    }

    /// Returns its name in messages, with its target: `disk xvda (/images/a.img)`.
    pub(super) fn words_with_target(&self) -> String {
        let target = self.target.as_ref().map(|target| format!(" ({target})"));
        self.words() + &target.unwrap_or_default()
    }

    /// Returns the sentence that others use its file, and which these are; `None` if none is found.
    pub(super) fn users(&self, store: &mut Client) -> Result<Option<String>, Error> {
        let Some(target) = &self.target else { return Ok(None) };
        let users = users::find(store, target, self.nodes.id)?;
        let users: Vec<String> = users.iter().map(ToString::to_string).collect();
        Ok((!users.is_empty()).then(|| format!("its image is in use by {}", users.join(", "))))
    }

    /// Returns the end of the message that it exists already: the command that detaches it.
    pub(super) fn advice(&self) -> String {
        let (domid, name) = (self.domid(), &self.name);
        command(&self.nodes.kind).map_or_else(String::new, |command| {
            format!("; xb {command} detach {domid} {name} takes it away")
        })
    }
}
