//! `xenstored`: the daemon for the machine on which it runs, or for the hosted one that
//! `XEN_HOSTED_HOST` names.

use std::process::ExitCode;
use xen_hosted::{HOST_VARIABLE, HostDir};
use xen_linux::Machine;
use xenstored::{Error, Platform, PlatformChoice};

fn main() -> ExitCode {
    xenstored::main_with(|_config| {
        if let Some(dir) = std::env::var_os(HOST_VARIABLE) {
            return hosted(&HostDir::new(dir)).map(PlatformChoice::Platform);
        }
        match xen_linux::machine() {
            Machine::Bare => Ok(PlatformChoice::SocketOnly("no Xen here")),
            Machine::Guest => {
                Ok(PlatformChoice::SocketOnly("this domain does not control its Xen host"))
            }
            Machine::Control => {
                let platform = real_xen().map_err(|error| Error::start(error.to_string()));
                platform.map(PlatformChoice::Platform)
            }
        }
    })
}

/// Returns the platform of domain 0 on real Xen.
fn real_xen() -> Result<Platform, xen_linux::Error> {
    let privcmd = xen_linux::privcmd::Privcmd::open()?;
    Ok(Platform {
        evtchn: Box::new(xen_linux::evtchn::Evtchn::open(None)?),
        grants: Box::new(xen_linux::gntdev::Gntdev::open()?),
        domains: Box::new(xen_linux::manage::Manage::open(&privcmd)?),
        ioctls: xen_linux::IOCTLS_OF_A_DAEMON,
        name: "Xen".to_owned(),
    })
}

/// Returns the platform of domain 0 of a hosted host.
fn hosted(host: &HostDir) -> Result<Platform, Error> {
    let platform = xen_hosted::store_platform(host).map_err(|error| {
        Error::start(format!(
            "the broker of {} cannot be reached: {error}; start it with: xen-hosted {0}",
            host.path().display()
        ))
    })?;
    Ok(Platform {
        evtchn: Box::new(platform.evtchn),
        grants: Box::new(platform.grants),
        domains: Box::new(platform.domains),
        ioctls: &[],
        name: format!("the broker of the hosted host in {}", host.path().display()),
    })
}
