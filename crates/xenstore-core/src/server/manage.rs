//! Requests about domains, features and quotas; most are for the privileged only.

use super::Server;
use super::request::{Outcome, Request, parse, parse_domid};
use crate::host::Host;
use crate::id::DomId;
use crate::limits::{DOMID_FIRST_RESERVED, DOMID_SELF};
use crate::path::{home_of, push_decimal};
use crate::quota::{ALL, Kind, Quota};
use crate::wire::{Error, Strings, feature};
use alloc::vec::Vec;

impl Server {
    pub(super) fn introduce_request(
        &mut self,
        request: Request<'_>,
        host: &mut dyn Host,
    ) -> Outcome {
        let mut strings = Strings::new(request.payload);
        let mut next = || strings.next().ok_or(Error::Inval);
        let (domid, gfn, port) = (next()?, next()?, next()?);
        let domid = parse_domid(domid)?;
        // Signed in the protocol; a page number all the same.
        let gfn = parse::<i64>(gfn).map(i64::cast_unsigned).or_else(|_| parse(gfn)).unwrap_or(0);
        let port: u32 = parse(port)?;
        if port == 0 || domid.0 >= DOMID_FIRST_RESERVED {
            return Err(Error::Inval.into());
        }
        self.introduce_domain(domid, gfn, port, host)?;
        self.ok(request)
    }

    /// The introduced domain that the only argument names; not the store's own, nor the privileged one.
    pub(super) fn other_domain(&mut self, request: Request<'_>) -> Result<DomId, Error> {
        let domid = parse_domid(request.only_string()?)?;
        if self.content.domains.is_privileged(domid) {
            return Err(Error::Inval);
        }
        self.introduced(domid).then_some(domid).ok_or(Error::NoEnt)
    }

    pub(super) fn introduced(&self, domid: DomId) -> bool {
        self.content.domains.get(domid).is_some_and(|domain| domain.conn.is_some())
    }

    pub(super) fn release_request(&mut self, request: Request<'_>, host: &mut dyn Host) -> Outcome {
        let domid = self.other_domain(request)?;
        self.release_domain(domid, host);
        self.ok(request)
    }

    pub(super) fn resume(&mut self, request: Request<'_>, _host: &mut dyn Host) -> Outcome {
        let domid = self.other_domain(request)?;
        if let Some(domain) = self.content.domains.get_mut(domid) {
            domain.shutdown = false;
        }
        self.ok(request)
    }

    pub(super) fn get_domain_path(&mut self, request: Request<'_>) -> Outcome {
        let domid = parse_domid(request.only_string()?)?;
        let mut body = Vec::new();
        home_of(domid.0, &mut body);
        self.answer(request, &[&body, b"\0"])
    }

    pub(super) fn is_domain_introduced(&mut self, request: Request<'_>) -> Outcome {
        let domid = parse_domid(request.only_string()?)?;
        // The domain of the store is served through its sockets in any case.
        let introduced = domid.0 == DOMID_SELF
            || domid == self.content.domains.store_domain
            || self.introduced(domid);
        self.answer(request, &[if introduced { b"T\0" } else { b"F\0" }])
    }

    pub(super) fn set_target(&mut self, request: Request<'_>) -> Outcome {
        let [domid, target] = request.strings()?;
        let (domid, target) = (parse_domid(domid)?, parse_domid(target)?);
        if !self.introduced(domid) || !self.introduced(target) {
            return Err(Error::NoEnt.into());
        }
        self.content.domains.set_target(domid, target);
        self.ok(request)
    }

    pub(super) fn get_feature(&mut self, request: Request<'_>, host: &mut dyn Host) -> Outcome {
        let mut strings = Strings::new(request.payload);
        let features = match (strings.next(), strings.next()) {
            (None, _) => self
                .content
                .domains
                .get(request.caller.domid)
                .map_or(feature::ALL, |domain| domain.features),
            (Some(_), None) if !request.caller.privileged => return Err(Error::Access.into()),
            (Some(domid), None) => {
                let domain = self.content.domains.know_existing(parse_domid(domid)?, host);
                domain.ok_or(Error::NoEnt)?.features
            }
            _ => return Err(Error::Inval.into()),
        };
        self.answer_number(request, features)
    }

    pub(super) fn set_feature(&mut self, request: Request<'_>, host: &mut dyn Host) -> Outcome {
        let [domid, features] = request.strings()?;
        let (domid, features) = (parse_domid(domid)?, parse::<u32>(features)?);
        let domain = self.content.domains.know_existing(domid, host).ok_or(Error::NoEnt)?;
        if domain.conn.is_some() {
            return Err(Error::Busy.into());
        }
        if features & !feature::ALL != 0 {
            return Err(Error::Inval.into());
        }
        domain.features = features;
        self.ok(request)
    }

    pub(super) fn answer_number(&mut self, request: Request<'_>, number: u32) -> Outcome {
        let mut body = Vec::new();
        push_decimal(u64::from(number), &mut body);
        self.answer(request, &[&body, b"\0"])
    }

    pub(super) fn get_quota(&mut self, request: Request<'_>, host: &mut dyn Host) -> Outcome {
        let mut strings = Strings::new(request.payload);
        match (strings.next(), strings.next(), strings.next()) {
            (None, ..) => {
                let body = quota_names();
                self.answer(request, &[&body, b"\0"])
            }
            (Some(name), None, _) => {
                let (quota, kind) = quota_named(name)?;
                let value = self.content.domains.limits.get(quota, kind);
                self.answer_number(request, value)
            }
            (Some(domid), Some(name), None) => {
                let domid = parse_domid(domid)?;
                self.content.domains.know_existing(domid, host).ok_or(Error::NoEnt)?;
                let (quota, kind) = quota_named(name)?;
                let value = self.content.domains.limit(domid, quota, kind);
                self.answer_number(request, value)
            }
            _ => Err(Error::Inval.into()),
        }
    }

    pub(super) fn set_quota_request(
        &mut self,
        request: Request<'_>,
        host: &mut dyn Host,
    ) -> Outcome {
        let mut strings = Strings::new(request.payload);
        match (strings.next(), strings.next(), strings.next(), strings.next()) {
            (Some(name), Some(value), None, _) => {
                let (quota, kind) = quota_named(name)?;
                self.content.domains.limits.set(quota, kind, parse(value)?)?;
            }
            (Some(domid), Some(name), Some(value), None) => {
                let (quota, kind) = quota_named(name)?;
                let value = parse(value)?;
                let domain = self
                    .content
                    .domains
                    .know_existing(parse_domid(domid)?, host)
                    .ok_or(Error::NoEnt)?;
                domain.limits.set(quota, kind, value)?;
            }
            _ => return Err(Error::Inval.into()),
        }
        self.ok(request)
    }
}

/// A quota by its name in GET_QUOTA and SET_QUOTA, where `soft-` stands before a soft one's.
pub(super) fn quota_named(name: &[u8]) -> Result<(Quota, Kind), Error> {
    let name = core::str::from_utf8(name).map_err(|_| Error::Inval)?;
    let (name, kind) = match name.strip_prefix("soft-") {
        Some(name) => (name, Kind::Soft),
        None => (name, Kind::Hard),
    };
    let quota = Quota::from_name(name).ok_or(Error::Inval)?;
    if kind == Kind::Soft && quota.about().soft.is_none() {
        Err(Error::Inval)
    } else {
        Ok((quota, kind))
    }
}

/// All quotas, separated by blanks.
fn quota_names() -> Vec<u8> {
    let mut names = Vec::new();
    for about in ALL {
        let soft = about.soft.map(|_| "soft-");
        for prefix in core::iter::once("").chain(soft) {
            if !names.is_empty() {
                names.push(b' ');
            }
            names.extend_from_slice(prefix.as_bytes());
            names.extend_from_slice(about.name.as_bytes());
        }
    }
    names
}
