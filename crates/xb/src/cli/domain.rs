//! `xb pause`, `unpause`, `shutdown`, `reboot`, `destroy`.

use super::options::GlobalOptions;
use super::out;
use crate::Error;
use crate::domain::{self, ControlRequest, Domain};
use crate::host::{Host, HostPlatform};
use crate::lifecycle::destroy::{self, find_remains};
use crate::lifecycle::follow::await_again;
use clap::Args;
use serde_json::{Value, json};

/// The argument of a command that is for one domain.
#[derive(Args, Debug)]
pub(crate) struct DomainArguments {
    /// Its name or number.
    pub(super) domain: String,
}

#[derive(Args, Debug)]
pub(crate) struct ShutdownArguments {
    /// Its name or number.
    domain: String,
    /// Wait until it has ended; where it reboots, until it runs again.
    #[arg(long)]
    wait: bool,
}

/// Returns a domain as JSON.
pub(crate) fn as_json(domain: &Domain) -> Value {
    let info = &domain.info;
    json!({
        "name": domain.name,
        "domid": info.domid.0,
        "uuid": domain::uuid(info),
        "state": domain.state(),
        "memory_kib": info.memory_kib,
        "memory_max_kib": info.memory_max_kib,
        "vcpus": info.vcpus_online,
        "cpu_time_ns": info.cpu_time_ns,
    })
}

pub(crate) fn pause(options: &GlobalOptions, which: &DomainArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    domain::with(&mut host, &which.domain, |host, domain| {
        let done = host.control().pause(domain.info.domid);
        done.map_err(Error::platform(format!("pausing {}", which.domain)))?;
        print_state(options, host, domain)
    })
}

pub(crate) fn unpause(options: &GlobalOptions, which: &DomainArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    domain::with(&mut host, &which.domain, |host, domain| {
        match host.control().unpause(domain.info.domid) {
            Err(xen::Error::Inval) => {
                let state = domain.state();
                Err(Error::Refused(format!("{} is not paused; it is {state}", which.domain)))
            }
            done => done.map_err(Error::platform(format!("unpausing {}", which.domain))),
        }?;
        print_state(options, host, domain)
    })
}

/// Prints the present state of the domain with --json.
fn print_state(options: &GlobalOptions, host: &mut Host, domain: &Domain) -> Result<u8, Error> {
    if !options.json {
        return Ok(0);
    }
    let info = host.control().info(domain.info.domid);
    let info = info.map_err(Error::platform(format!("asking for {}", domain.name)))?;
    out::json(&as_json(&Domain { info, name: domain.name.clone() }))
}

pub(crate) fn ask(
    options: &GlobalOptions,
    ask: &ShutdownArguments,
    request: ControlRequest,
) -> Result<u8, Error> {
    let mut host = options.open()?;
    let domain = domain::find(&mut host, &ask.domain)?;
    if domain.info.domid == xen::DomId::DOM0 {
        return Err(Error::Refused(
            "domain 0 is the host itself; xb host down ends a hosted one".into(),
        ));
    }
    domain::request(&mut host, &domain, request)?;
    let mut domid = domain.info.domid;
    let ended = match (ask.wait, request) {
        (false, _) => false,
        (true, ControlRequest::Poweroff) => {
            domain::await_end(&mut host, &domain, options.limit())?;
            true
        }
        (true, ControlRequest::Reboot) => {
            domid = await_again(&mut host, &domain, options.limit())?;
            false
        }
    };
    let so =
        json!({ "name": domain.name, "domid": domid.0, "asked": request.word(), "ended": ended });
    if options.json { out::json(&so) } else { Ok(0) }
}

pub(crate) fn destroy(options: &GlobalOptions, which: &DomainArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    let domid = find_remains(&mut host, &which.domain)?;
    if let HostPlatform::Xen(_) = host.platform {
        let name = &which.domain;
        return Err(Error::Refused(format!(
            "on Xen, domains are created and destroyed by xl: xl destroy {name}"
        )));
    }
    destroy::destroy(&mut host, domid, options.limit())?;
    let so = json!({ "domid": domid.0, "destroyed": true });
    if options.json { out::json(&so) } else { Ok(0) }
}
