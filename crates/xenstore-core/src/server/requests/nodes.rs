//! Requests about nodes.

use crate::host::StoreHost;
use crate::limits::{self, PAYLOAD_MAX};
use crate::path::{Path, SpecialPaths, push_decimal};
use crate::perms::{Incarnation, Perms};
use crate::quota::Quota;
use crate::server::request::{Request, RequestResult, parse};
use crate::server::store::StoreState;
use crate::transaction::{Change, Look};
use crate::tree::{Node, NodeWrite};
use crate::wire::{Error, Strings, feature};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Returns the path that is the only string of the payload.
fn only_path<'p>(
    store: &mut StoreState,
    request: Request<'p>,
    special: SpecialPaths,
    scratch: &'p mut Vec<u8>,
) -> Result<Path<'p>, Error> {
    store.sessions.content.path(&request.caller, request.only_string()?, special, scratch)
}

pub(super) fn read(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let path = only_path(store, request, SpecialPaths::Refused, scratch)?;
    let node = store.sessions.see(request, path, Look::Value)?;
    store.sessions.content.charge_bytes(node.value().len());
    request.answer(&[node.value()], &mut store.sessions.conns)
}

pub(super) fn write(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    let given = strings.next().ok_or(Error::Inval)?;
    let value = strings.rest();
    let path =
        store.sessions.content.path(&request.caller, given, SpecialPaths::Refused, scratch)?;
    store.sessions.content.charge_bytes(value.len());
    store.change(request, path, &Change::Put(NodeWrite::Value(value)))?;
    request.ok(&mut store.sessions.conns)
}

pub(super) fn mkdir(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let path = only_path(store, request, SpecialPaths::Refused, scratch)?;
    store.change(request, path, &Change::Put(NodeWrite::Mkdir))?;
    request.ok(&mut store.sessions.conns)
}

pub(super) fn rm(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let path = only_path(store, request, SpecialPaths::Refused, scratch)?;
    store.change(request, path, &Change::Remove)?;
    request.ok(&mut store.sessions.conns)
}

pub(super) fn directory(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let path = only_path(store, request, SpecialPaths::Refused, scratch)?;
    let node = store.sessions.see(request, path, Look::Children)?;
    let len = node.child_list().map_or(0, |children| children.names_len() as usize);
    store.sessions.content.charge_bytes(len.min(PAYLOAD_MAX));
    if len > PAYLOAD_MAX {
        return Err(Error::TooBig.into());
    }
    let Some(connection) = store.sessions.conns.get_mut(request.conn) else { return Ok(()) };
    connection.reply_with(request.header, request.kind, PAYLOAD_MAX, |out| {
        for child in node.children() {
            out.extend_from_slice(child.name());
            out.push(0);
        }
    })?;
    Ok(())
}

pub(super) fn directory_part(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let [given, offset] = request.strings()?;
    let path =
        store.sessions.content.path(&request.caller, given, SpecialPaths::Refused, scratch)?;
    let node = store.sessions.see(request, path, Look::Children)?;
    let offset: usize = parse(offset)?;
    store.sessions.content.charge_bytes(PAYLOAD_MAX);
    let mut body = Vec::new();
    push_decimal(node.child_list().map_or(0, |children| children.generation()), &mut body);
    body.push(0);
    let mut names = node
        .child_list()
        .into_iter()
        .flat_map(|children| children.iter_from(offset))
        .map(Node::name);
    let complete = loop {
        let Some(name) = names.next() else { break true };
        // One byte is reserved for the empty name that ends the list.
        let room = PAYLOAD_MAX.saturating_sub(body.len()).saturating_sub(1);
        if name.len() >= room {
            break false;
        }
        body.extend_from_slice(name);
        body.push(0);
    };
    if complete {
        body.push(0);
    }
    request.answer(&[&body], &mut store.sessions.conns)
}

pub(super) fn get_perms(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let path = only_path(store, request, SpecialPaths::Allowed, scratch)?;
    let node = store.sessions.see(request, path, Look::Perms)?;
    let mut body = Vec::new();
    store.sessions.content.domains.write_perms(node.perms(), 0, &mut body);
    request.answer(&[&body], &mut store.sessions.conns)
}

pub(super) fn set_perms(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
    host: &mut dyn StoreHost,
) -> RequestResult {
    let mut strings = Strings::new(request.payload);
    let given = strings.next().ok_or(Error::Inval)?;
    let caller = request.caller;
    let rest = strings.rest();
    let count = Strings::new(rest).count() as i64;
    let domains = &mut store.sessions.content.domains;
    // This check precedes the parsing, which queries the hypervisor for each entry.
    if !caller.privileged {
        domains.check(caller.domid, Quota::NodePermissions, count)?;
        domains.record_size(caller.domid, Quota::NodePermissions, count);
    }
    let domain = domains.get(caller.domid);
    let any = domain.is_none_or(|domain| domain.features & feature::DOMID_ANY != 0);
    let perms = Perms::parse(rest, |domid| match domid.0 {
        // DOMID_ANY is no domain. The entry is valid for every domain, or, without the feature, for
        // none.
        limits::DOMID_ANY if any => Incarnation::NEVER,
        limits::DOMID_ANY => Incarnation::VOID,
        _ => domains
            .get_or_insert_existing(domid, host)
            .map_or(Incarnation::NEVER, |domain| domain.incarnation),
    })?;
    let owner = perms.owner();
    if owner.incarnation == Incarnation::NEVER && owner.domid.0 != limits::DOMID_ANY {
        return Err(Error::NoEnt.into());
    }
    let path = store.sessions.content.path(&caller, given, SpecialPaths::Allowed, scratch)?;
    store.change(request, path, &Change::SetPerms(Rc::new(perms)))?;
    request.ok(&mut store.sessions.conns)
}
