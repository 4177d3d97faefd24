//! `xb info`.

use super::domain::DomainArguments;
use super::options::GlobalOptions;
use super::out;
use crate::devices::disk;
use crate::domain::Domain;
use crate::host::{Host, HostPlatform};
use crate::{Error, domain, text};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

pub(crate) fn run(options: &GlobalOptions, which: &DomainArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    let found = match domain::find(&mut host, &which.domain) {
        Err(Error::NotFound(text)) => match domain::find_ended(&mut host, &which.domain)? {
            Some(guest) => return print(options, &super::list::ended_as_json(&guest)),
            None => Err(Error::NotFound(text)),
        },
        found => found,
    }?;
    describe(&mut host, &found)
        .map_err(|error| domain::explain(&mut host, &found, error))
        .and_then(|value| print(options, &value))
}

fn print(options: &GlobalOptions, value: &Value) -> Result<u8, Error> {
    if options.json { out::json(value) } else { out::print(&lines(value, 0)) }
}

/// Returns all that is known of a domain.
fn describe(host: &mut Host, domain: &Domain) -> Result<Value, Error> {
    let domid = domain.info.domid;
    let disks = disk::list_served(host, domid)?;
    let mut value = super::domain::as_json(domain);
    value["disks"] = disks.iter().map(super::disk::as_json).collect();
    if let HostPlatform::Hosted { control, folder } = &mut host.platform
        && domid != xen::DomId::DOM0
    {
        let used = control
            .accounts(domid)
            .map_err(Error::platform(format!("asking for domain {domid}")))?;
        value["uses"] = json!({
            "ports": used.ports, "arenas": used.arenas, "granted_pages": used.granted,
            "mapped_pages": used.mapped, "notifications": used.notified, "refused_requests": used.refused,
        });
        value["log"] = json!(folder.guest(&domain.name).log());
    }
    super::list::add_restart(&mut value, host, domain);
    if let Some(lineage) = domain.lineage(host) {
        value["restarts"] = json!(lineage.restarts);
    }
    Ok(value)
}

/// Formats a number whose unit is the end of its key. Returns the key without it, and the number.
fn with_unit(key: &str, value: &Value) -> Option<(String, String)> {
    let seconds = |time: f64| text::took(Duration::from_secs_f64(time.max(0.0)));
    let shown = match key.rsplit_once(' ').map_or(key, |(_, unit)| unit) {
        "kib" => text::size(value.as_u64()?.saturating_mul(1024)),
        "bytes" => return Some(("size".into(), text::size(value.as_u64()?))),
        "ns" => seconds(value.as_f64()? / 1e9),
        "s" => seconds(value.as_f64()?),
        "at" => {
            let then = UNIX_EPOCH.checked_add(Duration::from_secs(value.as_u64()?))?;
            format!("{} ago", text::took(then.elapsed().unwrap_or_default()))
        }
        _ => return None,
    };
    Some((key.rsplit_once(' ')?.0.to_owned(), shown))
}

/// Formats an object as indented lines.
fn lines(value: &Value, depth: usize) -> String {
    let mut drawn = String::new();
    let pad = "  ".repeat(depth);
    let pairs: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('_', " "), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(at, value)| (format!("{}.", at + 1), value)).collect()
        }
        _ => return drawn,
    };
    for (key, value) in pairs {
        if let Some((key, shown)) = with_unit(&key, value) {
            drawn.push_str(&format!("{pad}{key}: {shown}\n"));
            continue;
        }
        let (plain, below) = match value {
            Value::String(text) => (out::clean(text), String::new()),
            Value::Object(_) | Value::Array(_) => (String::new(), lines(value, depth + 1)),
            Value::Null => ("-".into(), String::new()),
            other => (other.to_string(), String::new()),
        };
        drawn.push_str(format!("{pad}{key}: {plain}").trim_end());
        drawn.push('\n');
        drawn.push_str(&below);
    }
    drawn
}
