//! The requests, one function each.

use super::Server;
use super::turn::Class;
use super::waiting::{Attempt, WaitsFor};
use crate::host::Host;
use crate::id::{ConnId, DomId};
use crate::limits::{self, COST_PER_NODE, LOGGED_WEIGHT, PAYLOAD_MAX};
use crate::path::{Path, Special, push_decimal};
use crate::perms::{Access, Caller, Incarnation, Perms};
use crate::quota::{Kind, Quota};
use crate::transaction::{Change, Touch, Transaction, What};
use crate::tree::{Node, Put};
use crate::wire::{Error, Header, MsgType, Strings, feature};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A request on its way.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) conn: ConnId,
    pub(super) header: &'a Header,
    pub(super) kind: MsgType,
    pub(super) payload: &'a [u8],
    pub(super) caller: Caller,
}

/// Why a request has not been answered by its function.
pub(super) enum Stop {
    Error(Error),
    Wait(WaitsFor),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

pub(super) type Outcome = Result<(), Stop>;

/// Whether only the privileged may ask this.
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

impl Request<'_> {
    /// The only string of the payload, which must end it.
    pub(super) fn only_string(&self) -> Result<&[u8], Error> {
        let mut strings = Strings::new(self.payload);
        strings.next().filter(|_| strings.rest().is_empty()).ok_or(Error::Inval)
    }

    /// Exactly so many strings; bytes behind the last NUL are passed over.
    pub(super) fn strings<const N: usize>(&self) -> Result<[&[u8]; N], Error> {
        let mut strings = Strings::new(self.payload);
        let mut all = [&[][..]; N];
        for to in &mut all {
            *to = strings.next().ok_or(Error::Inval)?;
        }
        if strings.next().is_some() { Err(Error::Inval) } else { Ok(all) }
    }
}

/// A decimal number as `atoi` reads it, or none.
pub(super) fn parse<T: core::str::FromStr>(text: &[u8]) -> Result<T, Error> {
    let text = core::str::from_utf8(text).map_err(|_| Error::Inval)?;
    text.parse().map_err(|_| Error::Inval)
}

pub(super) fn parse_domid(text: &[u8]) -> Result<DomId, Error> {
    parse(text).map(DomId)
}

impl Server {
    /// Runs a request, and answers it unless it must wait.
    pub(super) fn attempt(
        &mut self,
        conn: ConnId,
        header: &Header,
        payload: &[u8],
        host: &mut dyn Host,
    ) -> Attempt {
        let Some(connection) = self.conns.get(conn) else { return Attempt::Done };
        let caller = self.content.domains.caller(connection.domid);
        let outcome = match MsgType::from_code(header.kind) {
            None | Some(MsgType::WatchEvent | MsgType::Error) => Err(Stop::Error(Error::NoSys)),
            Some(kind) if is_privileged(kind) && !caller.privileged => {
                Err(Stop::Error(Error::Access))
            }
            Some(kind) => self.dispatch(Request { conn, header, kind, payload, caller }, host),
        };
        match outcome {
            Ok(()) => Attempt::Done,
            Err(Stop::Wait(why)) => Attempt::Wait(why),
            Err(Stop::Error(error)) => {
                if let Some(connection) = self.conns.get_mut(conn) {
                    connection.reply_error(header, error);
                }
                Attempt::Done
            }
        }
    }

    fn dispatch(&mut self, request: Request<'_>, host: &mut dyn Host) -> Outcome {
        use MsgType as M;
        let in_transaction =
            request.header.tx_id != 0 && !matches!(request.kind, M::Watch | M::Unwatch);
        if in_transaction && !self.has_transaction(request.conn, request.header.tx_id) {
            return Err(Error::NoEnt.into());
        }
        let mut scratch = core::mem::take(&mut self.path_scratch);
        let outcome = match request.kind {
            M::Read => self.read(request, &mut scratch),
            M::Write => self.write(request, &mut scratch),
            M::Mkdir => self.mkdir(request, &mut scratch),
            M::Rm => self.rm(request, &mut scratch),
            M::Directory => self.directory(request, &mut scratch),
            M::DirectoryPart => self.directory_part(request, &mut scratch),
            M::GetPerms => self.get_perms(request, &mut scratch),
            M::SetPerms => self.set_perms(request, &mut scratch, host),
            M::Watch => self.watch(request, &mut scratch),
            M::Unwatch => self.unwatch(request, &mut scratch),
            M::TransactionStart => self.transaction_start(request),
            M::TransactionEnd => self.transaction_end(request),
            M::Control => self.control(request, &mut scratch, host),
            M::Introduce => self.introduce_request(request, host),
            M::Release => self.release_request(request, host),
            M::Resume => self.resume(request, host),
            M::GetDomainPath => self.get_domain_path(request),
            M::IsDomainIntroduced => self.is_domain_introduced(request),
            M::SetTarget => self.set_target(request),
            M::ResetWatches => self.reset_watches(request),
            M::GetFeature => self.get_feature(request, host),
            M::SetFeature => self.set_feature(request, host),
            M::GetQuota => self.get_quota(request, host),
            M::SetQuota => self.set_quota_request(request, host),
            M::WatchEvent | M::Error => Err(Error::NoSys.into()),
        };
        self.path_scratch = scratch;
        outcome
    }

    pub(super) fn answer(&mut self, request: Request<'_>, payload: &[&[u8]]) -> Outcome {
        let len = payload.iter().map(|part| part.len()).fold(0, usize::saturating_add);
        if len > PAYLOAD_MAX {
            return Err(Error::TooBig.into());
        }
        if let Some(connection) = self.conns.get_mut(request.conn) {
            connection.reply(request.header, request.kind, payload);
        }
        Ok(())
    }

    pub(super) fn ok(&mut self, request: Request<'_>) -> Outcome {
        self.answer(request, &[b"OK\0"])
    }

    fn has_transaction(&self, conn: ConnId, id: u32) -> bool {
        self.conns.get(conn).is_some_and(|conn| conn.transactions.contains(id))
    }

    /// Lends the request's transaction to `body`; it is put back whatever happens.
    fn in_transaction<R>(
        &mut self,
        request: Request<'_>,
        body: impl FnOnce(&mut Self, &mut Transaction) -> R,
    ) -> Result<R, Error> {
        let id = request.header.tx_id;
        let taken = self.conns.get_mut(request.conn).and_then(|conn| conn.transactions.lend(id));
        let mut transaction = taken.ok_or(Error::NoEnt)?;
        let before = transaction.weight();
        let result = body(self, &mut transaction);
        let more = transaction.weight().saturating_sub(before);
        if more != 0 {
            self.content.domains.charge(request.caller.domid, Quota::Memory, more);
        }
        if let Some(connection) = self.conns.get_mut(request.conn) {
            connection.transactions.give_back(id, transaction);
        }
        Ok(result)
    }

    /// Refuses an access to `path` that would make the log `more` bytes and the path longer, where a quota forbids it.
    fn check_access(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        path: Path<'_>,
        more: i64,
    ) -> Result<(), Error> {
        if caller.privileged {
            return Ok(());
        }
        self.check_cost(caller, transaction, path)?;
        let (accessed, known) = transaction.accessed(path);
        if !known {
            let nodes = (accessed as i64).saturating_add(1);
            self.content.domains.check(caller.domid, Quota::TransactionNodes, nodes)?;
            self.content.domains.saw(caller.domid, Quota::TransactionNodes, nodes);
        }
        let more = (path.as_bytes().len() as i64).saturating_add(more);
        self.content.domains.check_more(caller.domid, Quota::Memory, more)
    }

    /// Refuses to go on with a transaction that would take long to run again.
    fn check_cost(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        path: Path<'_>,
    ) -> Result<(), Error> {
        let nodes = self.content.domains.limit(caller.domid, Quota::TransactionNodes, Kind::Hard);
        let most = nodes.saturating_mul(COST_PER_NODE);
        let wanted = transaction.cost.saturating_add(path.cost()).saturating_add(1);
        if nodes == 0 || wanted <= most {
            return Ok(());
        }
        let accessed =
            (transaction.accessed(path).0 as i64).max(i64::from(nodes)).saturating_add(1);
        self.content.domains.check(caller.domid, Quota::TransactionNodes, accessed)
    }

    /// The node at `path` as the caller may see it, in or outside a transaction.
    pub(super) fn see(
        &mut self,
        request: Request<'_>,
        path: Path<'_>,
        what: What,
    ) -> Result<Node, Stop> {
        let caller = request.caller;
        if request.header.tx_id == 0 {
            return Ok(self.content.tree.find(&caller, path, Access::READ)?.clone());
        }
        self.in_transaction(request, |server, transaction| {
            if transaction.lost {
                // It will be refused; what it is told until then is what is there.
                transaction.torn = true;
                return Ok(server.content.tree.find(&caller, path, Access::READ)?.clone());
            }
            if !caller.privileged && !transaction.has_seen(path, what) {
                server.check_access(&caller, transaction, path, LOGGED_WEIGHT)?;
            }
            let (conn, id) = (request.conn, request.header.tx_id);
            match server.want_turn((conn, id), transaction, &caller, path, what) {
                Attempt::Wait(why) => Err(Stop::Wait(why)),
                Attempt::Done => {
                    Ok(transaction.see(&caller, path, what, &server.content.domains)?)
                }
            }
        })?
    }

    /// Changes the node at `path`, in or outside a transaction.
    pub(super) fn change(
        &mut self,
        request: Request<'_>,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> Outcome {
        let caller = request.caller;
        if request.header.tx_id == 0 {
            return self.change_now(request, path, change);
        }
        self.in_transaction(request, |server, transaction| {
            if transaction.lost {
                // It will be refused: what is asked is judged, and not done.
                transaction.torn = true;
                return Ok(server.content.judge(&caller, path, change)?);
            }
            // Every change is logged, whatever came of it, so each counts.
            server.check_access(&caller, transaction, path, change.weight())?;
            Ok(server.content.change_in(transaction, &caller, path, change)?)
        })?
    }

    fn change_now(&mut self, request: Request<'_>, path: Path<'_>, change: &Change<'_>) -> Outcome {
        let caller = request.caller;
        let class = Class::of(&caller);
        if self.has_turns(class) {
            let touch = match change {
                Change::SetPerms(_) => Touch::Perms,
                Change::Put(_) if self.content.tree.get(path).is_some() => Touch::Value,
                Change::Put(_) | Change::Remove => Touch::existence(&self.content.tree, path),
            };
            if self.must_wait(class, (request.conn, 0), path, touch) {
                return Err(Stop::Wait(WaitsFor::AnEnd));
            }
        }
        let done = self.content.change(&caller, path, change)?;
        self.book(Some(request.conn));
        self.fire(path, &done);
        self.discard_done(path, done, Some(request.conn));
        Ok(())
    }

    fn read(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let path = self.content.path(
            &request.caller,
            request.only_string()?,
            Special::Refused,
            scratch,
        )?;
        let node = self.see(request, path, What::Value)?;
        self.content.charge_bytes(node.value().len());
        self.answer(request, &[node.value()])
    }

    fn write(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let mut strings = Strings::new(request.payload);
        let given = strings.next().ok_or(Error::Inval)?;
        let value = strings.rest();
        let path = self.content.path(&request.caller, given, Special::Refused, scratch)?;
        self.content.charge_bytes(value.len());
        self.change(request, path, &Change::Put(Put::Value(value)))?;
        self.ok(request)
    }

    fn mkdir(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let path = self.content.path(
            &request.caller,
            request.only_string()?,
            Special::Refused,
            scratch,
        )?;
        self.change(request, path, &Change::Put(Put::Nothing))?;
        self.ok(request)
    }

    fn rm(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let path = self.content.path(
            &request.caller,
            request.only_string()?,
            Special::Refused,
            scratch,
        )?;
        self.change(request, path, &Change::Remove)?;
        self.ok(request)
    }

    fn directory(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let path = self.content.path(
            &request.caller,
            request.only_string()?,
            Special::Refused,
            scratch,
        )?;
        let node = self.see(request, path, What::Children)?;
        let len = node.dir().map_or(0, |dir| dir.names_len() as usize);
        self.content.charge_bytes(len.min(PAYLOAD_MAX));
        if len > PAYLOAD_MAX {
            return Err(Error::TooBig.into());
        }
        let Some(connection) = self.conns.get_mut(request.conn) else { return Ok(()) };
        connection.reply_with(request.header, request.kind, PAYLOAD_MAX, |out| {
            for child in node.children() {
                out.extend_from_slice(child.name());
                out.push(0);
            }
        })?;
        Ok(())
    }

    fn directory_part(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let [given, offset] = request.strings()?;
        let path = self.content.path(&request.caller, given, Special::Refused, scratch)?;
        let node = self.see(request, path, What::Children)?;
        let offset: usize = parse(offset)?;
        self.content.charge_bytes(PAYLOAD_MAX);
        let mut body = Vec::new();
        push_decimal(node.dir().map_or(0, |dir| dir.generation()), &mut body);
        body.push(0);
        let mut names =
            node.dir().into_iter().flat_map(|dir| dir.iter_from(offset)).map(Node::name);
        let complete = loop {
            let Some(name) = names.next() else { break true };
            // One byte is kept for the empty name that ends the list.
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
        self.answer(request, &[&body])
    }

    fn get_perms(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let path = self.content.path(
            &request.caller,
            request.only_string()?,
            Special::Allowed,
            scratch,
        )?;
        let node = self.see(request, path, What::Perms)?;
        let mut body = Vec::new();
        self.write_perms(node.perms(), 0, &mut body);
        self.answer(request, &[&body])
    }

    /// Permissions as GET_PERMS gives them, without those of dead domains.
    pub(super) fn write_perms(&self, perms: &Perms, end: u8, to: &mut Vec<u8>) {
        let shown = |perm: &crate::perms::Perm| {
            perm.incarnation == Incarnation::NEVER
                || self.content.domains.incarnation(perm.domid) == perm.incarnation
        };
        perms.write(end, shown, to);
    }

    fn set_perms(
        &mut self,
        request: Request<'_>,
        scratch: &mut Vec<u8>,
        host: &mut dyn Host,
    ) -> Outcome {
        let mut strings = Strings::new(request.payload);
        let given = strings.next().ok_or(Error::Inval)?;
        let caller = request.caller;
        let rest = strings.rest();
        let count = Strings::new(rest).count() as i64;
        // Before they are read: the hypervisor is asked about each of them.
        if !caller.privileged {
            self.content.domains.check(caller.domid, Quota::NodePermissions, count)?;
            self.content.domains.saw(caller.domid, Quota::NodePermissions, count);
        }
        let any = self
            .content
            .domains
            .get(caller.domid)
            .is_none_or(|domain| domain.features & feature::DOMID_ANY != 0);
        let domains = &mut self.content.domains;
        let perms = Perms::parse(rest, |domid| match domid.0 {
            // Not a domain: the entry holds for every one, or, without the feature, for none.
            limits::DOMID_ANY if any => Incarnation::NEVER,
            limits::DOMID_ANY => Incarnation::VOID,
            _ => domains
                .know_existing(domid, host)
                .map_or(Incarnation::NEVER, |domain| domain.incarnation),
        })?;
        let owner = perms.owner();
        if owner.incarnation == Incarnation::NEVER && owner.domid.0 != limits::DOMID_ANY {
            return Err(Error::NoEnt.into());
        }
        let path = self.content.path(&caller, given, Special::Allowed, scratch)?;
        self.change(request, path, &Change::SetPerms(Rc::new(perms)))?;
        self.ok(request)
    }
}
