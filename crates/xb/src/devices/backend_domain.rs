//! The domain that is to serve a device: found by its name, and awaited.
//!
//! A driver domain is trusted with the data of its guests, and no more. What it writes about itself
//! is believed as far as it is a word that is known here, and quoted else; no wait for it is without
//! an end.

use super::attached::list;
use super::backend_choice::BackendChoiceError;
use super::ends::watched;
use crate::devd::answer::{self, ANSWERED, ASKED, FAULTS, KINDS};
use crate::domain::{self, Domain};
use crate::host::Host;
use crate::host::service::DomainAbsence;
use crate::wait::Limit;
use crate::{Error, text};
use std::collections::BTreeSet;
use std::time::Duration;
use xen::DomId;
use xen::domctl::RunState;
use xenstore::{Client, Store};

/// The names of domain 0, which serves what names no other.
const OWN: [&str; 3] = ["", "0", "Domain-0"];
/// The most kinds that a driver domain is believed to serve.
const KINDS_MAX: usize = 32;
/// The longest name of a kind.
const KIND_MAX: usize = 32;
/// The most faults of a driver domain that are looked at.
const FAULTS_MAX: usize = 8;

/// The user of a device whose backend is looked for.
#[derive(Clone, Copy, Debug)]
pub struct BackendUser<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number; `None` if it does not exist yet.
    pub domid: Option<DomId>,
}

/// True if this names domain 0.
#[must_use]
pub fn is_own(named: Option<&str>) -> bool {
    named.is_none_or(|name| OWN.contains(&name))
}

/// Finds the domain with this name or number, which is to serve a device; `None` for domain 0.
///
/// # Errors
/// [`Error::BackendChoice`]: it is not there, or cannot be.
pub fn find(
    host: &mut Host,
    named: Option<&str>,
    user: BackendUser<'_>,
) -> Result<Option<Domain>, Error> {
    let Some(name) = named.filter(|name| !is_own(Some(name))) else { return Ok(None) };
    if name == user.name || user.domid.is_some_and(|domid| name == domid.to_string()) {
        let domain = user.name.to_owned();
        return Err(BackendChoiceError::Itself { domain }.into());
    }
    let found = domain::list(host)?.into_iter().find(|domain| domain.is(name));
    let Some(found) = found else {
        return Err(BackendChoiceError::NoDomain { backend: name.to_owned() }.into());
    };
    if let Some(domid) = user.domid
        && is_served_by(&mut host.store, found.info.domid, domid)?
    {
        let (backend, user) = (name.to_owned(), user.name.to_owned());
        return Err(BackendChoiceError::Circle { backend, user }.into());
    }
    Ok(Some(found))
}

/// True if a domain uses a device that `server` serves, itself or through the domains that serve it.
fn is_served_by(store: &mut Client, domid: DomId, server: DomId) -> Result<bool, Error> {
    let (mut known, mut left) = (BTreeSet::from([domid]), vec![domid]);
    while let Some(domid) = left.pop() {
        for device in list(store, domid)? {
            if device.backend == server {
                return Ok(true);
            }
            if device.backend != DomId::DOM0 && known.insert(device.backend) {
                left.push(device.backend);
            }
        }
    }
    Ok(false)
}

/// A driver domain's answer, or the lack of one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DriverDomainAnswer {
    /// True if its supervisor has answered with the number that it was asked.
    pub answers: bool,
    /// True if it has answered an earlier question.
    pub has_answered: bool,
    /// The kinds that it says it serves.
    pub kinds: Vec<String>,
    /// Faults of its backends, in its own words.
    pub faults: Vec<String>,
}

impl DriverDomainAnswer {
    /// Reads what a driver domain says about itself.
    fn read(store: &mut Client, nodes: &str, number: &str) -> Result<Self, Error> {
        let answered = store.try_read(format!("{nodes}/{ANSWERED}"))?;
        let kinds = store.try_read(format!("{nodes}/{KINDS}"))?.map(text::lossy);
        let kinds = kinds.unwrap_or_default();
        let is_kind = |kind: &&str| {
            kind.len() <= KIND_MAX && kind.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let kinds: BTreeSet<&str> = kinds.split_whitespace().filter(is_kind).collect();
        let mut faults = Vec::new();
        for name in store.list(format!("{nodes}/{FAULTS}"))?.into_iter().take(FAULTS_MAX) {
            let fault = store.try_read(format!("{nodes}/{FAULTS}/{name}"))?;
            faults.extend(fault.map(text::lossy));
        }
        Ok(Self {
            answers: answered.as_deref() == Some(number.as_bytes()),
            has_answered: answered.is_some(),
            kinds: kinds.into_iter().take(KINDS_MAX).map(str::to_owned).collect(),
            faults,
        })
    }

    /// True if it serves this kind now.
    #[must_use]
    pub fn serves(&self, kind: &str) -> bool {
        self.answers && self.kinds.iter().any(|served| served == kind)
    }

    /// Returns what is missing so that a domain serves a kind: a clause and what to do, if it is
    /// known.
    #[must_use]
    pub fn missing(&self, domain: &str, kind: &str) -> Option<String> {
        let domain = text::clean(domain);
        if self.serves(kind) {
            return None;
        }
        if !self.answers {
            let so = if self.has_answered {
                "its xb devd does not answer any more"
            } else {
                "it runs no xb devd"
            };
            return Some(format!("{so}; start it in {domain} with: systemctl restart xb-devd"));
        }
        if let Some(fault) = self.faults.first() {
            return Some(format!("{domain} says: {}", text::foreign(fault)));
        }
        let kinds = if self.kinds.is_empty() { "nothing".into() } else { self.kinds.join(", ") };
        Some(format!(
            "its xb devd answers, and {domain} serves {kinds}; load the kernel's backend of {kind} there, or see: journalctl -u xb-devd"
        ))
    }
}

/// Asks the supervisor of a driver domain for an answer. Returns the number of the question.
fn put_question(store: &mut Client, domid: DomId) -> Result<String, Error> {
    let mut random = [0; 8];
    let got = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    got.map_err(|errno| Error::io("random numbers")(errno.into()))?;
    let number = u64::from_ne_bytes(random).to_string();
    let (home, nodes) = (domain::home(domid), answer::nodes(domid));
    let is_put = store.transaction(|tx| {
        let is_there = tx.exists(&home)?;
        if is_there {
            tx.write(format!("{nodes}/{ASKED}"), &number)?;
        }
        Ok(is_there)
    })?;
    if is_put { Ok(number) } else { Err(Error::destroyed(format!("domain {domid}"))) }
}

/// Asks a driver domain, and waits a while for the answer.
///
/// # Errors
/// The errors of the store and the hypervisor; [`Error::Interrupted`].
pub fn ask(host: &mut Host, domid: DomId, within: Duration) -> Result<DriverDomainAnswer, Error> {
    let (nodes, limit) = (answer::nodes(domid), Limit::new(within));
    watched(host, &[&nodes], |host| {
        let number = put_question(&mut host.store, domid)?;
        let mut last = DriverDomainAnswer::default();
        let what = || format!("domain {domid} answers");
        let answered = limit.until(&mut host.store, &what, |store| {
            last = DriverDomainAnswer::read(store, &nodes, &number)?;
            Ok(last.answers.then_some(()))
        });
        match answered {
            Ok(()) | Err(Error::Timeout { .. }) => Ok(last),
            Err(error) => Err(error),
        }
    })
}

/// Returns what the supervisor of a domain has told last, without a question: it may be over.
///
/// # Errors
/// [`Error::Store`].
pub fn told(store: &mut Client, domid: DomId) -> Result<DriverDomainAnswer, Error> {
    DriverDomainAnswer::read(store, &answer::nodes(domid), "")
}

/// Waits until a domain serves a kind of devices. Domain 0, which is `None`, is not asked.
///
/// # Errors
/// [`Error::Refused`] if it has ended; [`Error::Timeout`], with what is missing.
pub fn await_served(
    host: &mut Host,
    backend: Option<&Domain>,
    kind: &str,
    limit: Limit,
) -> Result<(), Error> {
    let Some(Domain { info, name }) = backend else { return Ok(()) };
    let (domid, handle) = (info.domid, info.handle);
    let nodes = answer::nodes(domid);
    let what = || format!("domain {} serves {kind}", text::clean(name));
    let mut last = DriverDomainAnswer::default();
    let mut is_paused = false;
    let served = watched(host, &[&nodes, "@releaseDomain"], |Host { store, platform }| {
        let number = put_question(store, domid)?;
        limit.until(store, &what, |store| {
            let state = match platform.control().info(domid) {
                Ok(info) if info.handle == handle => Some(info.state),
                _ => None,
            };
            is_paused = state == Some(RunState::Paused);
            let absence = match state {
                None | Some(RunState::Dying) => Some(DomainAbsence::Gone),
                Some(RunState::Shutdown(_)) => Some(DomainAbsence::Ended),
                _ => None,
            };
            if let Some(absence) = absence {
                let (name, words) = (text::clean(name), absence.words());
                return Err(Error::Refused(format!(
                    "domain {name} {words}, which is to serve {kind}; start it again, or name \
                     another one with backend="
                )));
            }
            last = DriverDomainAnswer::read(store, &nodes, &number)?;
            Ok(last.serves(kind).then_some(()))
        })
    });
    served.map_err(|error| {
        error.with_reason(|| match is_paused {
            true => Some(format!("{name} is paused; let it go on with: xb unpause {name}")),
            false => last.missing(name, kind),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_one_sentence() {
        let answer = |answers, has_answered, kinds: &[&str], faults: &[&str]| DriverDomainAnswer {
            answers,
            has_answered,
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        };
        let missing = |answer: DriverDomainAnswer| answer.missing("disks", "vbd");
        assert_eq!(missing(answer(true, true, &["qdisk", "vbd"], &[])), None);
        // An old word counts for nothing.
        let said = missing(answer(false, true, &["vbd"], &[])).unwrap();
        assert!(said.starts_with("its xb devd does not answer any more; "), "{said}");
        let said = missing(answer(false, false, &[], &[])).unwrap();
        assert!(said.starts_with("it runs no xb devd; "), "{said}");
        let said = missing(answer(true, true, &["vif"], &[])).unwrap();
        assert!(said.contains("disks serves vif; "), "{said}");
        let said = missing(answer(true, true, &[], &["a\u{202e} \"b\""])).unwrap();
        assert_eq!(said, "disks says: \"a 'b'\"");
    }

    #[test]
    fn domain_0_has_its_names() {
        assert!([None, Some(""), Some("0"), Some("Domain-0")].into_iter().all(is_own));
        assert!(!is_own(Some("disks")));
    }
}
