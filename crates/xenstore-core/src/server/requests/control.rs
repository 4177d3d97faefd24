//! CONTROL: an operator's commands to the store itself.
//!
//! | command | answer |
//! |---|---|
//! | `check` | checks the whole store; faults are logged |
//! | `quota` | the limits; `quota <domid>` usage, limits and refusals; `quota set`, `quota max` |
//! | `quota-soft` | the soft limits |
//! | `weight <domid> [<weight>]` | a domain's share of the daemon's time, 256 by default |
//! | `subtree <path> <cursor>` | many nodes in one reply; see [`subtree`] |
//! | `help` | all commands |
//!
//! The daemon answers all other commands, through [`StoreHost::control`].

use crate::domain::Domains;
use crate::host::StoreHost;
use crate::id::DomId;
use crate::limits::{PAYLOAD_MAX, WEIGHT_MAX};
use crate::path::{SpecialPaths, push_decimal};
use crate::quota::{ALL, LimitKind, Quota};
use crate::server::connections::Connections;
use crate::server::request::{Request, RequestResult, parse, parse_domid};
use crate::server::store::StoreState;
use crate::transaction::Look;
use crate::tree::{Node, Traversal};
use crate::wire::{Error, Strings};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

const HELP: &str = "\
check           
quota           [set <name> <val>|<domid>|max [-r]]
quota-soft      [set <name> <val>]
subtree         <path> <cursor>
weight          <domid> [<weight>]
";

pub(super) fn control(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    let command = strings.next().ok_or(Error::Inval)?;
    let args: Vec<&[u8]> = strings.collect();
    let domains = &mut store.sessions.content.domains;
    let answer = match (command, args.as_slice()) {
        (b"subtree", [path, cursor]) => return subtree(store, request, path, cursor, scratch),
        (b"check", []) => {
            store.check();
            String::from("OK")
        }
        (b"quota", []) => show_limits(domains, LimitKind::Hard),
        (b"quota-soft", []) => show_limits(domains, LimitKind::Soft),
        (b"quota", [b"set", name, value]) => set_limit(domains, LimitKind::Hard, name, value)?,
        (b"quota-soft", [b"set", name, value]) => set_limit(domains, LimitKind::Soft, name, value)?,
        (b"quota", [b"max"]) => show_max(domains),
        (b"quota", [b"max", b"-r"]) => {
            domains.iter_mut().for_each(|domain| domain.usage.reset_max());
            show_max(domains)
        }
        (b"quota", [domid]) => show_domain(domains, &store.sessions.conns, parse_domid(domid)?)?,
        (b"weight", [domid]) => {
            let domain = domains.get(parse_domid(domid)?).ok_or(Error::NoEnt)?;
            format!("{}", domain.weight)
        }
        (b"weight", [domid, weight]) => {
            let weight = parse(weight)?;
            if !(1..=WEIGHT_MAX).contains(&weight) {
                return Err(Error::Inval.into());
            }
            domains.get_mut(parse_domid(domid)?).ok_or(Error::NoEnt)?.weight = weight;
            String::from("OK")
        }
        (b"help", []) => {
            let more = host.control(b"help", &[]).and_then(Result::ok).unwrap_or_default();
            let mut help = String::from(HELP);
            help.push_str(&String::from_utf8_lossy(&more));
            help
        }
        _ => {
            let answer = host.control(command, &args).ok_or(Error::Inval)??;
            return request.answer(&[&answer, b"\0"], &mut store.sessions.conns);
        }
    };
    request.answer(&[answer.as_bytes(), b"\0"], &mut store.sessions.conns)
}

fn show_limits(domains: &Domains, kind: LimitKind) -> String {
    let mut text = String::from("Quota settings:\n");
    for info in ALL.iter().filter(|info| kind == LimitKind::Hard || info.soft.is_some()) {
        let value = domains.limits.get(info.quota, kind);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<17}: {value:>8} {}", info.name, info.what);
    }
    text
}

fn set_limit(
    domains: &mut Domains,
    kind: LimitKind,
    name: &[u8],
    value: &[u8],
) -> Result<String, Error> {
    let name = core::str::from_utf8(name).map_err(|_| Error::Inval)?;
    let value: u32 = parse(value)?;
    if value == 0 {
        return Err(Error::Inval);
    }
    let quota = Quota::from_name(name).ok_or(Error::Inval)?;
    domains.limits.set(quota, kind, value)?;
    // Unlike SET_QUOTA, this also changes existing domains: the operator wants a domain to continue
    // at once.
    domains.iter_mut().try_for_each(|domain| domain.limits.set(quota, kind, value))?;
    Ok(String::from("OK"))
}

fn show_max(domains: &Domains) -> String {
    let mut text = String::from("Max. seen accounting values:\n");
    for info in ALL {
        let guests = domains.iter().filter(|(domid, _)| !domains.is_privileged(*domid));
        let max = guests.map(|(_, domain)| domain.usage.max(info.quota)).max().unwrap_or(0);
        let _ = writeln!(text, "{:<17}: {max:>8}", info.name);
    }
    text
}

/// Returns a domain's usage, limits and refusals as text.
fn show_domain(domains: &Domains, conns: &Connections, domid: DomId) -> Result<String, Error> {
    let domain = domains.get(domid).ok_or(Error::NoEnt)?;
    let mut text = format!("Domain {}:\n", domid.0);
    for info in ALL {
        let usage = &domain.usage;
        let now = match info.quota {
            Quota::Outstanding => domain
                .conn
                .and_then(|conn| conns.get(conn))
                .map_or(0, |connection| connection.outstanding() as i64),
            quota => usage.now(quota),
        };
        let max = usage.max(info.quota);
        let _ = write!(text, "{:<17}: {now:>8} (max {max:>8})", info.name);
        if domains.is_privileged(domid) {
            text.push_str(" no limit\n");
            continue;
        }
        let limit = domains.limit(domid, info.quota, LimitKind::Hard);
        let _ = write!(text, " limit {limit:>8}");
        let refusal = usage.refusal(info.quota);
        if refusal.count > 0 {
            let ago = domains.now.saturating_sub(refusal.last) / 1_000_000;
            let _ = write!(text, ", refused {} times, last {ago} s ago", refusal.count);
        }
        text.push('\n');
    }
    Ok(text)
}

/// Replies with many nodes: the next cursor and a NUL (an empty cursor: this was the last part),
/// then one record a node, parents first, children by name, from `path` itself on. A record is the
/// path relative to `path`, NUL, permissions separated by commas, NUL, length of the value in
/// decimal, NUL, value. A record that is too long for a message gives E2BIG: the caller has to read
/// node by node.
fn subtree(
    store: &mut StoreState,
    request: Request<'_>,
    path: &[u8],
    cursor: &[u8],
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let path =
        store.sessions.content.path(&request.caller, path, SpecialPaths::Refused, scratch)?;
    let root = store.sessions.see(request, path, Look::Subtree)?;
    store.sessions.content.charge_bytes(PAYLOAD_MAX);
    // A cursor is `+` and the path of the last node that was sent.
    let mut walk = match cursor.strip_prefix(b"+") {
        None if !cursor.is_empty() => return Err(Error::Inval.into()),
        None => Traversal::whole(&root),
        Some(last) => Traversal::after(&root, last),
    };
    let mut records = Vec::new();
    let mut last = Vec::new();
    let complete = loop {
        let Some(node) = walk.next() else { break true };
        let start = records.len();
        write_record(&store.sessions.content.domains, walk.path(), node, &mut records);
        let taken = records.len().saturating_add(walk.path().len()).saturating_add(2);
        if taken > PAYLOAD_MAX {
            records.truncate(start);
            break false;
        }
        last.clear();
        last.extend_from_slice(walk.path());
    };
    match (complete, records.is_empty()) {
        (true, _) => request.answer(&[b"\0", &records], &mut store.sessions.conns),
        (false, true) => Err(Error::TooBig.into()),
        (false, false) => {
            request.answer(&[b"+", &last, b"\0", &records], &mut store.sessions.conns)
        }
    }
}

fn write_record(domains: &Domains, path: &[u8], node: &Node, to: &mut Vec<u8>) {
    to.extend_from_slice(path);
    to.push(0);
    domains.write_perms(node.perms(), b',', to);
    // The comma after the last entry.
    to.pop();
    to.push(0);
    push_decimal(node.value().len() as u64, to);
    to.push(0);
    to.extend_from_slice(node.value());
}
