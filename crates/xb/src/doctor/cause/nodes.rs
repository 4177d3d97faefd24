//! Causes of a device's nodes in the store.

use crate::doctor::facts::BarredNode;
use crate::doctor::subject::{FaultSubject, Remedy};
use crate::text;
use xen_io::xenbus::State;
use xenbus::Side;

/// A fault of a device's nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeFault {
    /// One end has no nodes.
    EndMissing {
        /// The end.
        side: Side,
        /// Its path.
        path: String,
    },
    /// A domain may not read or write a node that it needs.
    Barred(BarredNode),
    /// The states of the ends do not lead anywhere.
    States {
        /// The frontend's state.
        front: State,
        /// The backend's state.
        back: State,
    },
    /// The rings or ports that the frontend has named cannot be used.
    Ring {
        /// The backend's text.
        text: String,
    },
}

impl NodeFault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::EndMissing { .. } => "end-missing",
            Self::Barred(_) => "node-barred",
            Self::States { .. } => "states-do-not-fit",
            Self::Ring { .. } => "ring-not-mappable",
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::EndMissing { side, path } => format!("its {side} has no nodes ({path})"),
            Self::Barred(BarredNode { path, domid, access, .. }) => {
                format!("domain {domid} may not {access} {path}")
            }
            Self::States { front, back } => {
                format!("its ends are in states that do not fit: frontend {front}, backend {back}")
            }
            Self::Ring { text } => {
                format!(
                    "its backend cannot use the rings that the frontend names: {}",
                    text::foreign(text)
                )
            }
        }
    }

    pub(super) fn remedy(&self, of: &FaultSubject) -> Remedy {
        match self {
            Self::Barred(node) => {
                let (path, perms) = (text::shell_word(&node.path), &node.perms);
                of.xb("let it with", &format!("store chmod {path} {perms}"))
            }
            _ => of.detach("take it away and attach it again with"),
        }
    }
}
