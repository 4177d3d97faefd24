//! Requests about domains. Most are for privileged callers only.

use crate::domain::Domains;
use crate::host::StoreHost;
use crate::id::DomId;
use crate::limits::{DOMID_FIRST_RESERVED, DOMID_SELF};
use crate::path::home_of;
use crate::server::connections::Connections;
use crate::server::request::{Request, RequestResult, parse, parse_domid};
use crate::server::store::StoreState;
use crate::wire::{Error, Strings};
use alloc::vec::Vec;

pub(super) fn introduce(
    store: &mut StoreState,
    request: Request<'_>,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    let mut next = || strings.next().ok_or(Error::Inval);
    let (domid, gfn, port) = (next()?, next()?, next()?);
    let domid = parse_domid(domid)?;
    // The number is signed in the protocol, but it is a page number.
    let gfn = parse::<i64>(gfn).map(i64::cast_unsigned).or_else(|_| parse(gfn)).unwrap_or(0);
    let port: u32 = parse(port)?;
    if port == 0 || domid.0 >= DOMID_FIRST_RESERVED {
        return Err(Error::Inval.into());
    }
    store.introduce(domid, gfn, port, host)?;
    request.ok(&mut store.sessions.conns)
}

pub(super) fn release(
    store: &mut StoreState,
    request: Request<'_>,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let domid = other_domain(&store.sessions.content.domains, request)?;
    store.release(domid, host);
    request.ok(&mut store.sessions.conns)
}

/// Returns the introduced domain that the only argument names. It may be neither the store's own
/// domain nor the privileged one.
fn other_domain(domains: &Domains, request: Request<'_>) -> Result<DomId, Error> {
    let domid = parse_domid(request.only_string()?)?;
    if domains.is_privileged(domid) {
        return Err(Error::Inval);
    }
    domains.is_introduced(domid).then_some(domid).ok_or(Error::NoEnt)
}

pub(super) fn resume(
    domains: &mut Domains,
    request: Request<'_>,
    conns: &mut Connections,
) -> RequestResult {
    let domid = other_domain(domains, request)?;
    if let Some(domain) = domains.get_mut(domid) {
        domain.shutdown = false;
    }
    request.ok(conns)
}

pub(super) fn get_domain_path(request: Request<'_>, conns: &mut Connections) -> RequestResult {
    let domid = parse_domid(request.only_string()?)?;
    let mut body = Vec::new();
    home_of(domid.0, &mut body);
    request.answer(&[&body, b"\0"], conns)
}

pub(super) fn is_domain_introduced(
    domains: &Domains,
    request: Request<'_>,
    conns: &mut Connections,
) -> RequestResult {
    let domid = parse_domid(request.only_string()?)?;
    // The sockets of the store's domain are served in any case.
    let introduced =
        domid.0 == DOMID_SELF || domid == domains.store_domain || domains.is_introduced(domid);
    request.answer(&[if introduced { b"T\0" } else { b"F\0" }], conns)
}

pub(super) fn set_target(
    domains: &mut Domains,
    request: Request<'_>,
    conns: &mut Connections,
) -> RequestResult {
    let [domid, target] = request.strings()?;
    let (domid, target) = (parse_domid(domid)?, parse_domid(target)?);
    if !domains.is_introduced(domid) || !domains.is_introduced(target) {
        return Err(Error::NoEnt.into());
    }
    domains.set_target(domid, target);
    request.ok(conns)
}
