//! `xb tree`: domains and their devices, with their states.

use super::options::GlobalOptions;
use super::out;
use crate::devices::disk;
use crate::host::Host;
use crate::{Error, domain, text};
use xen_io::xenbus::State;

pub(crate) fn run(options: &GlobalOptions) -> Result<u8, Error> {
    let mut host = options.open()?;
    if options.json {
        let mut values = Vec::new();
        for domain in domain::list(&mut host)? {
            let disks = disk::list_served(&mut host, domain.info.domid)?;
            let mut value = super::domain::as_json(&domain);
            value["disks"] = disks.iter().map(super::disk::as_json).collect();
            values.push(value);
        }
        return out::json(&serde_json::Value::Array(values));
    }
    let drawn = draw(&mut host)?;
    out::print(&drawn)
}

/// Draws the tree as text.
pub(crate) fn draw(host: &mut Host) -> Result<String, Error> {
    let mut tree = String::new();
    let domains = domain::list(host)?;
    for (at, domain) in domains.iter().enumerate() {
        let last = at + 1 == domains.len();
        let (branch, pad) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        let (name, domid, state) = (out::clean(&domain.name), domain.info.domid, domain.state());
        tree.push_str(&format!("{branch} {name} (domain {domid}) {state}\n"));
        let disks = disk::list_served(host, domid)?;
        for (at, disk) in disks.iter().enumerate() {
            let branch = if at + 1 == disks.len() { "└─" } else { "├─" };
            let state = if disk.is_served() {
                State::Connected.to_string()
            } else {
                format!("frontend {}, backend {}", disk.attached.front, disk.backend_state())
            };
            let size =
                disk.bytes.map(|bytes| format!(" {}", text::size(bytes))).unwrap_or_default();
            let access = if disk.mode.starts_with('w') { "" } else { " read-only" };
            let error = disk
                .attached
                .error
                .as_ref()
                .map(|error| format!(": {}", error))
                .unwrap_or_default();
            tree.push_str(&format!(
                "{pad} {branch} vbd {}{size}{access} {state} <- {}{error}\n",
                out::clean(&disk.vdev),
                out::clean(&disk.target)
            ));
        }
    }
    Ok(tree)
}
