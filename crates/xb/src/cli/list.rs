//! `xb list`.

use super::options::GlobalOptions;
use super::out;
use super::outcomes::Outcomes;
use crate::domain::{self, Domain, EndedGuest};
use crate::host::Host;
use crate::{Error, text};
use clap::Args;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    /// Names or numbers; all domains without them.
    domains: Vec<String>,
    /// List hosted guests that have ended, too, with their exit status and restarts.
    #[arg(long, short)]
    all: bool,
}

pub(crate) fn run(options: &GlobalOptions, list: &ListArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    let (mut domains, mut ended) = if list.all {
        domain::list_with_ended(&mut host)?
    } else {
        (domain::list(&mut host)?, Vec::new())
    };
    let mut outcomes = Outcomes::new(options, list.domains.len());
    for which in &list.domains {
        let known = domains.iter().any(|domain| domain.is(which))
            || ended.iter().any(|guest| guest.name == *which);
        outcomes.take(if known { Ok(()) } else { Err(domain::missing(which)) })?;
    }
    if !list.domains.is_empty() {
        domains.retain(|domain| list.domains.iter().any(|which| domain.is(which)));
        ended.retain(|guest| list.domains.contains(&guest.name));
    }
    if options.json {
        let there = domains.iter().map(|domain| {
            let mut value = super::domain::as_json(domain);
            add_restart(&mut value, &host, domain);
            value
        });
        out::json(&there.chain(ended.iter().map(ended_as_json)).collect())?;
    } else {
        out::table(&rows(&mut host, list, &domains, &ended))?;
    }
    Ok(outcomes.code())
}

fn rows(
    host: &mut Host,
    list: &ListArguments,
    domains: &[Domain],
    ended: &[EndedGuest],
) -> Vec<Vec<String>> {
    let mut rows =
        vec![["NAME", "ID", "STATE", "MEMORY", "VCPUS", "CPU TIME"].map(str::to_owned).to_vec()];
    for domain in domains {
        let info = &domain.info;
        rows.push(vec![
            out::clean(&domain.name),
            info.domid.to_string(),
            match domain.restarts_in(host) {
                Some(left) => format!("{}, restarts in {}", domain.state(), text::took(left)),
                None => domain.state().into(),
            },
            format!("{} KiB", info.memory_kib),
            info.vcpus_online.to_string(),
            format!("{:.1} s", info.cpu_time_ns as f64 / 1e9),
        ]);
    }
    let none = || "-".to_owned();
    for guest in ended {
        let (name, domid) = (out::clean(&guest.name), guest.lineage.last.to_string());
        rows.push(vec![name, domid, guest.state().into(), none(), none(), none()]);
    }
    if !list.all {
        return rows;
    }
    let of_domain = |domain: &Domain| {
        let restarts = domain.lineage(host).map(|lineage| lineage.restarts);
        [none(), restarts.map_or_else(none, |restarts| restarts.to_string())]
    };
    let of_ended = |guest: &EndedGuest| {
        let status = guest.status().map_or_else(none, |status| status.to_string());
        [status, guest.lineage.restarts.to_string()]
    };
    let head = ["EXIT STATUS", "RESTARTS"].map(str::to_owned);
    let cells = domains.iter().map(of_domain).chain(ended.iter().map(of_ended));
    let cells = std::iter::once(head).chain(cells);
    rows.into_iter().zip(cells).map(|(row, cells)| [row, cells.to_vec()].concat()).collect()
}

/// Adds the time until a domain is started again, if it waits for that.
pub(crate) fn add_restart(value: &mut Value, host: &Host, domain: &Domain) {
    if let Some(left) = domain.restarts_in(host) {
        value["restarts_in_s"] = json!(left.as_secs_f64().ceil());
    }
}

/// Returns a guest that has ended as JSON.
pub(crate) fn ended_as_json(guest: &EndedGuest) -> Value {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok();
    json!({
        "name": guest.name,
        "domid": guest.lineage.last.0,
        "state": guest.state(),
        "ended": true,
        "exit_status": guest.status(),
        "restarts": guest.lineage.restarts,
        "ended_at": guest.ended_at.and_then(since).map(|since| since.as_secs()),
        "log": guest.log,
    })
}
