//! `xb info`, `pause`, `unpause`, `shutdown`, `reboot`, `destroy`.

use super::{All, out};
use crate::domain::{self, Domain, Request};
use crate::host::{Host, Platform};
use crate::{Error, devices};
use clap::Args;
use serde_json::{Value, json};

/// Which domain.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// Its name or number.
    domain: String,
}

#[derive(Args, Debug)]
pub(crate) struct Ask {
    /// Its name or number.
    domain: String,
    /// Wait until it has ended; where it reboots, until it runs again.
    #[arg(long)]
    wait: bool,
}

/// A domain for programs.
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

pub(crate) fn info(all: &All, which: &Which) -> Result<u8, Error> {
    let mut host = all.open()?;
    let domain = domain::find(&mut host, &which.domain)?;
    let domid = domain.info.domid;
    let disks = devices::disks(&mut host.store, domid)?;
    let mut value = as_json(&domain);
    value["disks"] = disks.iter().map(super::disk::as_json).collect();
    if let Platform::Hosted { control, folder } = &mut host.platform
        && domid != xen::DomId::DOM0
    {
        let used = control
            .accounts(domid)
            .map_err(Error::platform(format!("asking for domain {domid}")))?;
        value["uses"] = json!({
            "ports": used.ports, "arenas": used.arenas, "granted_pages": used.granted, "mapped_pages": used.mapped,
            "notifications": used.notified, "refused_requests": used.refused,
        });
        value["log"] = json!(crate::keeper::log_of(folder, &domain.name));
    }
    if all.json { out::json(&value) } else { out::print(&lines(&value, 0)) }
}

/// An object as indented lines.
fn lines(value: &Value, depth: usize) -> String {
    let mut text = String::new();
    let pad = "  ".repeat(depth);
    let pairs: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('_', " "), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(at, value)| (format!("{}.", at + 1), value)).collect()
        }
        _ => return text,
    };
    for (key, value) in pairs {
        let (plain, below) = match value {
            Value::String(text) => (out::clean(text), String::new()),
            Value::Object(_) | Value::Array(_) => (String::new(), lines(value, depth + 1)),
            Value::Null => ("-".into(), String::new()),
            other => (other.to_string(), String::new()),
        };
        text.push_str(format!("{pad}{key}: {plain}").trim_end());
        text.push('\n');
        text.push_str(&below);
    }
    text
}

pub(crate) fn pause(all: &All, which: &Which) -> Result<u8, Error> {
    let mut host = all.open()?;
    let domain = domain::find(&mut host, &which.domain)?;
    let done = host.control().pause(domain.info.domid);
    done.map_err(Error::platform(format!("pausing {}", which.domain)))?;
    now(all, &mut host, &domain)
}

pub(crate) fn unpause(all: &All, which: &Which) -> Result<u8, Error> {
    let mut host = all.open()?;
    let domain = domain::find(&mut host, &which.domain)?;
    match host.control().unpause(domain.info.domid) {
        Err(xen::Error::Inval) => {
            let state = domain.state();
            Err(Error::Refused(format!("{} is not paused; it is {state}", which.domain)))
        }
        done => done.map_err(Error::platform(format!("unpausing {}", which.domain))),
    }?;
    now(all, &mut host, &domain)
}

/// With --json, how the domain is now.
fn now(all: &All, host: &mut Host, domain: &Domain) -> Result<u8, Error> {
    if !all.json {
        return Ok(0);
    }
    let info = host.control().info(domain.info.domid);
    let info = info.map_err(Error::platform(format!("asking for {}", domain.name)))?;
    out::json(&as_json(&Domain { info, name: domain.name.clone() }))
}

pub(crate) fn ask(all: &All, ask: &Ask, request: Request) -> Result<u8, Error> {
    let mut host = all.open()?;
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
        (true, Request::Poweroff) => {
            domain::await_end(&mut host, &domain, all.limit())?;
            true
        }
        (true, Request::Reboot) => {
            domid = domain::await_again(&mut host, &domain, all.limit())?;
            false
        }
    };
    let so =
        json!({ "name": domain.name, "domid": domid.0, "asked": request.word(), "ended": ended });
    if all.json { out::json(&so) } else { Ok(0) }
}

pub(crate) fn destroy(all: &All, which: &Which) -> Result<u8, Error> {
    let mut host = all.open()?;
    let domid = domain::find_remains(&mut host, &which.domain)?;
    if let Platform::Xen(_) = host.platform {
        let name = &which.domain;
        return Err(Error::Refused(format!(
            "on Xen, domains are created and destroyed by xl: xl destroy {name}"
        )));
    }
    domain::destroy(&mut host, domid, all.limit())?;
    let so = json!({ "domid": domid.0, "destroyed": true });
    if all.json { out::json(&so) } else { Ok(0) }
}
