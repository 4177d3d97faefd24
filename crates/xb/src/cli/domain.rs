//! `xb pause`, `unpause`, `shutdown`, `reboot`, `destroy`.

use super::options::GlobalOptions;
use super::outcomes::Outcomes;
use crate::domain::{self, ControlRequest, Domain};
use crate::host::{Host, HostPlatform};
use crate::lifecycle::destroy::{self, find_remains};
use crate::lifecycle::follow::await_again;
use crate::{Error, doctor};
use clap::Args;
use serde_json::{Value, json};

/// The argument of a command that is for one domain.
#[derive(Args, Debug)]
pub(crate) struct DomainArguments {
    /// Its name or number.
    pub(super) domain: String,
}

/// The arguments of a command that is for several domains.
#[derive(Args, Debug)]
pub(crate) struct SeveralDomains {
    /// Their names or numbers. Each is tried; the exit status is that of the worst.
    #[arg(required = true, value_name = "DOMAIN")]
    domains: Vec<String>,
}

impl SeveralDomains {
    /// Runs `body` for each of them.
    fn each(
        &self,
        options: &GlobalOptions,
        mut body: impl FnMut(&mut Host, &str) -> Result<Value, Error>,
    ) -> Result<u8, Error> {
        let mut host = options.open()?;
        let mut outcomes = Outcomes::new(options, self.domains.len());
        for which in &self.domains {
            let done = body(&mut host, which);
            if let Some(value) = outcomes.take(done)? {
                outcomes.add(value);
            }
        }
        outcomes.finish()
    }
}

#[derive(Args, Debug)]
pub(crate) struct ShutdownArguments {
    /// Their names or numbers. Each is tried; the exit status is that of the worst.
    #[arg(required = true, value_name = "DOMAIN")]
    domains: Vec<String>,
    /// Wait until they have ended; where they reboot, until they run again.
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

/// Returns the value of a command that prints the state of a domain with `--json`.
fn state(host: &mut Host, domain: &Domain) -> Result<Value, Error> {
    let info = host.control().info(domain.info.domid);
    let info = info.map_err(Error::platform(format!("asking for {}", domain.name)))?;
    Ok(as_json(&Domain { info, name: domain.name.clone() }))
}

pub(crate) fn pause(options: &GlobalOptions, which: &SeveralDomains) -> Result<u8, Error> {
    which.each(options, |host, which| {
        domain::with(host, which, |host, domain| {
            let done = host.control().pause(domain.info.domid);
            done.map_err(Error::platform(format!("pausing {which}")))?;
            state(host, domain)
        })
    })
}

pub(crate) fn unpause(options: &GlobalOptions, which: &SeveralDomains) -> Result<u8, Error> {
    which.each(options, |host, which| {
        domain::with(host, which, |host, domain| {
            match host.control().unpause(domain.info.domid) {
                Err(xen::Error::Inval) => {
                    let state = domain.state();
                    Err(Error::Refused(format!("{which} is not paused; it is {state}")))
                }
                done => done.map_err(Error::platform(format!("unpausing {which}"))),
            }?;
            state(host, domain)
        })
    })
}

pub(crate) fn ask(
    options: &GlobalOptions,
    ask: &ShutdownArguments,
    request: ControlRequest,
) -> Result<u8, Error> {
    let mut host = options.open()?;
    let mut outcomes = Outcomes::new(options, ask.domains.len());
    let mut asked = Vec::with_capacity(ask.domains.len());
    // All are asked before the first is waited for.
    for which in &ask.domains {
        asked.extend(outcomes.take(ask_one(&mut host, which, request))?);
    }
    let limit = options.limit();
    for domain in asked {
        let domid = domain.info.domid;
        let done = match (ask.wait, request) {
            (false, _) => Ok((domid, false)),
            (true, ControlRequest::Poweroff) => {
                domain::await_end(&mut host, &domain, limit).map(|()| (domid, true))
            }
            (true, ControlRequest::Reboot) => {
                await_again(&mut host, &domain, limit).map(|new| (new, false))
            }
        };
        let done = done.map_err(|error| {
            error.with_reason(|| doctor::guest_reason(&mut host, domain.info.domid))
        });
        if let Some((domid, ended)) = outcomes.take(done)? {
            let asked = request.word();
            outcomes.add(
                json!({ "name": domain.name, "domid": domid.0, "asked": asked, "ended": ended }),
            );
        }
    }
    outcomes.finish()
}

/// Asks one domain to end.
fn ask_one(host: &mut Host, which: &str, request: ControlRequest) -> Result<Domain, Error> {
    let domain = domain::find(host, which)?;
    if domain.info.domid == xen::DomId::DOM0 {
        return Err(Error::Refused(
            "domain 0 is the host itself; xb host down ends a hosted one".into(),
        ));
    }
    domain::request(host, &domain, request)?;
    Ok(domain)
}

pub(crate) fn destroy(options: &GlobalOptions, which: &SeveralDomains) -> Result<u8, Error> {
    which.each(options, |host, which| {
        let domid = find_remains(host, which)?;
        if let HostPlatform::Xen(_) = host.platform {
            return Err(Error::Refused(format!(
                "on Xen, domains are created and destroyed by xl: xl destroy {which}"
            )));
        }
        destroy::destroy(host, domid, options.limit())?;
        Ok(json!({ "domid": domid.0, "destroyed": true }))
    })
}
