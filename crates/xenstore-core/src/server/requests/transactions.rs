//! Requests that begin and end transactions.

use crate::limits::TRANSACTION_WEIGHT;
use crate::quota::Quota;
use crate::server::request::{Request, RequestResult};
use crate::server::store::StoreState;
use crate::wire::Error;

pub(super) fn transaction_start(store: &mut StoreState, request: Request<'_>) -> RequestResult {
    let caller = request.caller;
    if request.header.tx_id != 0 {
        return Err(Error::Busy.into());
    }
    if !caller.privileged {
        let domains = &mut store.sessions.content.domains;
        domains.check_more(caller.domid, Quota::Transactions, 1)?;
        domains.check_more(caller.domid, Quota::Memory, TRANSACTION_WEIGHT)?;
    }
    let Some(id) = store.sessions.open(request.conn, &caller) else { return Ok(()) };
    request.answer_number(id, &mut store.sessions.conns)
}

pub(super) fn transaction_end(store: &mut StoreState, request: Request<'_>) -> RequestResult {
    let commit = match request.only_string()? {
        b"T" => true,
        b"F" => false,
        _ => return Err(Error::Inval.into()),
    };
    store.end_transaction(request, commit)?;
    request.ok(&mut store.sessions.conns)
}
