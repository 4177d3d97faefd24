//! The nodes of a new domain: those that libxl makes, with the same permissions, so that every tool
//! for the store of a Xen host can use them.

use super::home;
use crate::Error;
use crate::config::{self, Description};
use crate::lifecycle::succession::{self, NextNumber};
use xen::DomId;
use xen_console::front::WINDOW;
use xen_console::serve::nodes::SERVED;
use xen_hosted::domctl::CreatedDomain;
use xenstore::{Client, NodeAccess, Perm, Store, Transaction};

/// The most bytes of output that wait for a reader of the console's terminal: as much as libxl says.
const CONSOLE_LIMIT: &str = "1048576";
/// The size of a console's window before a client has said another.
const CONSOLE_WINDOW: &str = "80x24";

/// The folders that a domain may read, its home first.
const READABLE: [&str; 6] = ["", "/cpu", "/memory", "/device", "/control", "/console"];
/// The folders and nodes that belong to a domain.
const OWNED: [&str; 10] = [
    "/control/shutdown",
    "/control/feature-poweroff",
    "/control/feature-reboot",
    "/control/feature-suspend",
    "/control/sysrq",
    "/data",
    "/drivers",
    "/feature",
    "/attr",
    "/error",
];
/// Those that belong to a driver domain besides.
const OF_DRIVER_DOMAIN: [&str; 3] = ["/backend", "/device-model", "/libxl"];

/// Writes the nodes of a new domain, in one transaction.
pub(crate) fn write(
    store: &mut Client,
    description: &Description,
    created: &CreatedDomain,
    handle: &[u8; 16],
    next: NextNumber,
) -> Result<(), Error> {
    let domid = created.domid;
    let perm = |access, domid: DomId| Perm { access, domid: domid.0.into() };
    let own = [perm(NodeAccess::None, domid)];
    let read = [perm(NodeAccess::None, DomId::DOM0), perm(NodeAccess::Read, domid)];
    let hidden = [perm(NodeAccess::None, DomId::DOM0)];
    let (home, libxl) = (home(domid), format!("/libxl/{domid}"));
    let uuid = config::description::write_uuid(handle);
    let vm = format!("/vm/{uuid}");
    let memory = (description.memory_mib * 1024).to_string();
    let number = domid.to_string();
    let readable = READABLE.iter().map(|name| (*name, &read[..]));
    // A driver domain removes the folders of devices that it no longer serves.
    let of_driver_domain = OF_DRIVER_DOMAIN.iter().filter(|_| description.driver_domain);
    let owned = OWNED.iter().chain(of_driver_domain).map(|name| (*name, &own[..]));
    let folders: Vec<(&str, &[Perm])> = readable.chain(owned).collect();
    let values = [
        ("/name", description.name.as_str()),
        ("/domid", &number),
        ("/vm", &vm),
        ("/memory/static-max", &memory),
        ("/memory/target", &memory),
        ("/control/platform-feature-xs_reset_watches", "1"),
    ];
    store.transaction(|tx| {
        // The devices that an earlier domain of the number served are those of its successor.
        match next {
            NextNumber::Same => succession::clear(tx, &home)?,
            NextNumber::Free => tx.remove(&home)?,
        }
        for path in [&vm, &libxl] {
            tx.remove(path)?;
        }
        for (name, perms) in &folders {
            let path = format!("{home}{name}");
            tx.mkdir(&path)?;
            tx.set_perms(&path, perms)?;
        }
        for (name, value) in values {
            // As the folder: readable for the domain.
            tx.write(format!("{home}{name}"), value)?;
        }
        write_console(tx, &home, created)?;
        tx.mkdir(&vm)?;
        tx.set_perms(&vm, &read)?;
        tx.write(format!("{vm}/uuid"), &uuid)?;
        tx.write(format!("{vm}/name"), &description.name)?;
        tx.mkdir(&libxl)?;
        tx.set_perms(&libxl, &hidden)?;
        tx.mkdir(format!("{libxl}/device"))?;
        if description.kernel_block {
            tx.write(format!("{libxl}/kernel-block"), "1")?;
        }
        tx.write(format!("{libxl}/type"), "hosted")
    })?;
    Ok(())
}

/// Writes the nodes of the domain's first console, readable for the domain as their folder is.
fn write_console(
    tx: &mut Transaction<'_>,
    home: &str,
    created: &CreatedDomain,
) -> Result<(), xenstore::Error> {
    for (name, value) in [
        // The ring is granted; its frame only tells it from another ring.
        ("console/ring-ref", "0"),
        ("console/port", &created.console_port.to_string()),
        ("console/limit", CONSOLE_LIMIT),
        ("console/type", "xenconsoled"),
        ("console/output", "pty"),
        ("console/tty", ""),
        (SERVED, ""),
        (WINDOW, CONSOLE_WINDOW),
    ] {
        tx.write(format!("{home}/{name}"), value)?;
    }
    Ok(())
}
