//! Requests about watches.

use crate::path::{SpecialPaths, is_relative};
use crate::quota::Quota;
use crate::server::request::{Request, RequestResult, parse};
use crate::server::sessions::Sessions;
use crate::server::store::StoreState;
use crate::watch;
use crate::wire::{Error, Strings, feature};
use alloc::rc::Rc;
use alloc::vec::Vec;

pub(super) fn watch(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let caller = request.caller;
    let mut strings = Strings::new(request.payload);
    let (given, token) = strings.next().zip(strings.next()).ok_or(Error::Inval)?;
    let StoreState { sessions, announcer, .. } = store;
    let domain = sessions.content.domains.get(caller.domid);
    let may_depth = domain.is_none_or(|domain| domain.features & feature::WATCH_DEPTH != 0);
    let depth = match (strings.next(), strings.next()) {
        (None, _) => None,
        (Some(depth), None) if may_depth => Some(parse(depth)?),
        _ => return Err(Error::Inval.into()),
    };
    let path = sessions.content.path(&caller, given, SpecialPaths::Allowed, scratch)?;
    let hidden =
        if is_relative(given) { path.as_bytes().len().saturating_sub(given.len()) } else { 0 };
    let mut key = Vec::new();
    watch::key(path, token, &mut key);
    let Some(connection) = sessions.conns.get(request.conn) else { return Ok(()) };
    if connection.watches.contains_key(key.as_slice()) {
        return Err(Error::Exist.into());
    }
    let weight = watch::weight(&key);
    if !caller.privileged {
        let domains = &mut sessions.content.domains;
        domains.check_more(caller.domid, Quota::Watches, 1)?;
        domains.check_more(caller.domid, Quota::Memory, weight)?;
    }
    let whose = (request.conn, caller.domid);
    let id = announcer.set(whose, path, Rc::from(key), hidden, depth, sessions);
    request.ok(&mut sessions.conns)?;
    store.push_event(id, &Rc::from(path.as_bytes()));
    Ok(())
}

pub(super) fn unwatch(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
) -> RequestResult {
    let [given, token] = request.strings()?;
    let path =
        store.sessions.content.path(&request.caller, given, SpecialPaths::Allowed, scratch)?;
    let mut key = Vec::new();
    watch::key(path, token, &mut key);
    let Sessions { content, conns, .. } = &mut store.sessions;
    let connection = conns.get_mut(request.conn).ok_or(Error::NoEnt)?;
    let id = connection.watches.remove(key.as_slice()).ok_or(Error::NoEnt)?;
    let looked_through = connection.drop_events(id);
    content.charge_work(looked_through);
    store.announcer.forget(id, request.caller.domid, &mut content.domains);
    request.ok(conns)
}

pub(super) fn reset_watches(store: &mut StoreState, request: Request<'_>) -> RequestResult {
    store.drop_watches(request.conn);
    store.sessions.close_all(request.conn);
    request.ok(&mut store.sessions.conns)
}
