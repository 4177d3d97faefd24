//! Requests about the limits of a domain: features and quotas.

use crate::domain::Domains;
use crate::host::StoreHost;
use crate::quota::{ALL, Quota};
use crate::server::connections::Connections;
use crate::server::request::{Request, RequestResult, parse, parse_domid};
use crate::wire::{Error, Strings, feature};
use alloc::vec::Vec;

pub(super) fn get_feature(
    domains: &mut Domains,
    request: Request<'_>,
    conns: &mut Connections,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    let features = match (strings.next(), strings.next()) {
        (None, _) => {
            domains.get(request.caller.domid).map_or(feature::ALL, |domain| domain.features)
        }
        (Some(_), None) if !request.caller.privileged => return Err(Error::Access.into()),
        (Some(domid), None) => {
            let domain = domains.get_or_insert_existing(parse_domid(domid)?, host);
            domain.ok_or(Error::NoEnt)?.features
        }
        _ => return Err(Error::Inval.into()),
    };
    request.answer_number(features, conns)
}

pub(super) fn set_feature(
    domains: &mut Domains,
    request: Request<'_>,
    conns: &mut Connections,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let [domid, features] = request.strings()?;
    let (domid, features) = (parse_domid(domid)?, parse::<u32>(features)?);
    let domain = domains.get_or_insert_existing(domid, host).ok_or(Error::NoEnt)?;
    if domain.conn.is_some() {
        return Err(Error::Busy.into());
    }
    if features & !feature::ALL != 0 {
        return Err(Error::Inval.into());
    }
    domain.features = features;
    request.ok(conns)
}

pub(super) fn get_quota(
    domains: &mut Domains,
    request: Request<'_>,
    conns: &mut Connections,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    match (strings.next(), strings.next(), strings.next()) {
        (None, ..) => {
            let body = quota_names();
            request.answer(&[&body, b"\0"], conns)
        }
        (Some(name), None, _) => {
            let (quota, kind) = Quota::named(name)?;
            let value = domains.limits.get(quota, kind);
            request.answer_number(value, conns)
        }
        (Some(domid), Some(name), None) => {
            let domid = parse_domid(domid)?;
            domains.get_or_insert_existing(domid, host).ok_or(Error::NoEnt)?;
            let (quota, kind) = Quota::named(name)?;
            let value = domains.limit(domid, quota, kind);
            request.answer_number(value, conns)
        }
        _ => Err(Error::Inval.into()),
    }
}

pub(super) fn set_quota(
    domains: &mut Domains,
    request: Request<'_>,
    conns: &mut Connections,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    match (strings.next(), strings.next(), strings.next(), strings.next()) {
        (Some(name), Some(value), None, _) => {
            let (quota, kind) = Quota::named(name)?;
            domains.limits.set(quota, kind, parse(value)?)?;
        }
        (Some(domid), Some(name), Some(value), None) => {
            let (quota, kind) = Quota::named(name)?;
            let value = parse(value)?;
            let domain =
                domains.get_or_insert_existing(parse_domid(domid)?, host).ok_or(Error::NoEnt)?;
            domain.limits.set(quota, kind, value)?;
        }
        _ => return Err(Error::Inval.into()),
    }
    request.ok(conns)
}

/// Returns the names of all quotas, separated by blanks.
fn quota_names() -> Vec<u8> {
    let mut names = Vec::new();
    for info in ALL {
        let soft = info.soft.map(|_| "soft-");
        for prefix in core::iter::once("").chain(soft) {
            if !names.is_empty() {
                names.push(b' ');
            }
            names.extend_from_slice(prefix.as_bytes());
            names.extend_from_slice(info.name.as_bytes());
        }
    }
    names
}
