//! The requests, one function each.

mod control;
mod domains;
mod limits;
mod nodes;
mod transactions;
mod watches;

use super::request::{Request, RequestResult};
use super::sessions::Sessions;
use super::store::StoreState;
use crate::host::StoreHost;
use crate::wire::{Error, MsgType};
use alloc::vec::Vec;

/// True if only privileged callers may make this request.
fn is_privileged(kind: MsgType) -> bool {
    use MsgType as M;
    matches!(
        kind,
        M::Control
            | M::Introduce
            | M::Release
            | M::IsDomainIntroduced
            | M::Resume
            | M::SetTarget
            | M::SetFeature
            | M::GetQuota
            | M::SetQuota
    )
}

/// Runs a request, and replies unless it fails. `scratch` is a buffer for the path that it names.
pub(super) fn run(
    store: &mut StoreState,
    request: Request<'_>,
    scratch: &mut Vec<u8>,
    host: &mut dyn StoreHost,
) -> RequestResult {
    use MsgType as M;
    if is_privileged(request.kind) && !request.caller.privileged {
        return Err(Error::Access.into());
    }
    let in_transaction =
        request.header.tx_id != 0 && !matches!(request.kind, M::Watch | M::Unwatch);
    if in_transaction && !store.sessions.has_transaction(request.conn, request.header.tx_id) {
        return Err(Error::NoEnt.into());
    }
    // Requests about domains get no access to the rest of the store.
    let Sessions { content, conns, .. } = &mut store.sessions;
    let known = &mut content.domains;
    match request.kind {
        M::Read => nodes::read(store, request, scratch),
        M::Write => nodes::write(store, request, scratch),
        M::Mkdir => nodes::mkdir(store, request, scratch),
        M::Rm => nodes::rm(store, request, scratch),
        M::Directory => nodes::directory(store, request, scratch),
        M::DirectoryPart => nodes::directory_part(store, request, scratch),
        M::GetPerms => nodes::get_perms(store, request, scratch),
        M::SetPerms => nodes::set_perms(store, request, scratch, host),
        M::Watch => watches::watch(store, request, scratch),
        M::Unwatch => watches::unwatch(store, request, scratch),
        M::ResetWatches => watches::reset_watches(store, request),
        M::TransactionStart => transactions::transaction_start(store, request),
        M::TransactionEnd => transactions::transaction_end(store, request),
        M::Control => control::control(store, request, scratch, host),
        M::Introduce => domains::introduce(store, request, host),
        M::Release => domains::release(store, request, host),
        M::Resume => domains::resume(known, request, conns),
        M::GetDomainPath => domains::get_domain_path(request, conns),
        M::IsDomainIntroduced => domains::is_domain_introduced(known, request, conns),
        M::SetTarget => domains::set_target(known, request, conns),
        M::GetFeature => limits::get_feature(known, request, conns, host),
        M::SetFeature => limits::set_feature(known, request, conns, host),
        M::GetQuota => limits::get_quota(known, request, conns, host),
        M::SetQuota => limits::set_quota(known, request, conns, host),
        M::WatchEvent | M::Error => Err(Error::NoSys.into()),
    }
}
