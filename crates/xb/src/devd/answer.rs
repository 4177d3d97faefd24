//! The supervisor's part in the store: what it serves, what is wrong, and its answers to the
//! toolstack's question whether it is there.
//!
//! All of it is below `data/devd` of its own domain, as a domain's `data` is its own on Xen, too.

use crate::Error;
use xen::DomId;
use xenstore::{Client, Event, Store};

/// The longest text of a fault in the store, in bytes.
const FAULT_MAX: usize = 512;

/// Returns the path of the supervisor's nodes in a domain.
#[must_use]
pub(crate) fn nodes(domid: DomId) -> String {
    format!("{}/data/devd", xenbus::path::home(domid))
}

/// The node with the toolstack's number, below [`nodes`].
pub(crate) const ASKED: &str = "asked";
/// The node with the number that was answered last.
pub(crate) const ANSWERED: &str = "answered";
/// The node with the kinds that are served, separated by blanks.
pub(crate) const KINDS: &str = "kinds";
/// The folder with a node for each backend that has a fault.
pub(crate) const FAULTS: &str = "fault";

/// The account that a supervisor gives of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct ServiceReport {
    /// The kinds that are served.
    pub(super) kinds: Vec<String>,
    /// Each backend that has a fault, and the fault.
    pub(super) faults: Vec<(&'static str, String)>,
}

/// The supervisor's nodes.
#[derive(Debug)]
pub(super) struct Answers {
    nodes: String,
    asked: String,
    /// The report that was told last; `None` before the first.
    told: Option<ServiceReport>,
    is_asked: bool,
}

impl Answers {
    /// Begins to listen for questions.
    ///
    /// # Errors
    /// The store refuses.
    pub(super) fn start(store: &mut Client, domid: DomId) -> Result<Self, Error> {
        let nodes = nodes(domid);
        let asked = format!("{nodes}/{ASKED}");
        store.watch(&asked, &asked)?;
        Ok(Self { nodes, asked, told: None, is_asked: true })
    }

    /// Takes an event of the store.
    pub(super) fn take(&mut self, event: &Event) {
        self.is_asked |= *event.token == *self.asked.as_bytes();
    }

    /// Tells the report where it has changed, and answers the question that was asked last.
    ///
    /// # Errors
    /// The store refuses.
    pub(super) fn tell(&mut self, store: &mut Client, report: &ServiceReport) -> Result<(), Error> {
        if !self.is_asked && self.told.as_ref() == Some(report) {
            return Ok(());
        }
        let (nodes, is_new) = (&self.nodes, self.told.as_ref() != Some(report));
        store.transaction(|tx| {
            if is_new {
                tx.write(format!("{nodes}/{KINDS}"), report.kinds.join(" "))?;
                tx.remove(format!("{nodes}/{FAULTS}"))?;
                for (name, fault) in &report.faults {
                    let fault = crate::text::cut(fault, FAULT_MAX);
                    tx.write(format!("{nodes}/{FAULTS}/{name}"), fault)?;
                }
            }
            if let Some(number) = tx.try_read(format!("{nodes}/{ASKED}"))? {
                tx.write(format!("{nodes}/{ANSWERED}"), number)?;
            }
            Ok(())
        })?;
        self.told = Some(report.clone());
        self.is_asked = false;
        Ok(())
    }
}
