//! Notices: what the daemon is to log or to do.

use crate::id::{ConnId, DomId};
use crate::limits::NOTICES_MAX;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

/// Why a connection is no longer served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It left more replies and events unread than the limit allows, or left one too long.
    Unread,
    /// Its ring indices are not possible (`XENSTORE_ERROR_RINGIDX`).
    RingIndex,
    /// It announced a payload over the limit (`XENSTORE_ERROR_PROTO`).
    Protocol,
    /// Its event channel or its page cannot be used (`XENSTORE_ERROR_COMM`).
    Communication,
}

/// Something to be logged or done by the daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A line for the log at warning level: what happened, to whom, what to do.
    Warn {
        /// The domain whose doing it is, if one's.
        domid: Option<DomId>,
        /// The line.
        text: String,
    },
    /// A line for the log at info level.
    Info(String),
    /// The connection is no longer served. A socket is to be closed; a ring is to show the error
    /// word and to be left alone until it is reconnected, introduced again or detached.
    Ended {
        /// Which connection.
        conn: ConnId,
        /// Why.
        why: Ended,
    },
}

/// The notices that the daemon has not taken yet.
#[derive(Default)]
pub(crate) struct Notices {
    queue: VecDeque<Notice>,
    /// Number of those for which there was no room.
    lost: u64,
}

impl Notices {
    /// Adds one. Where there are too many, only the end of a connection is kept.
    pub(crate) fn push(&mut self, notice: Notice) {
        let must = matches!(notice, Notice::Ended { .. });
        if must || self.queue.len() < NOTICES_MAX {
            self.queue.push_back(notice);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Takes the next; behind the last, one that says how many were lost.
    pub(crate) fn pop(&mut self) -> Option<Notice> {
        let notice = self.queue.pop_front();
        if notice.is_none() && self.lost > 0 {
            let lost = core::mem::take(&mut self.lost);
            let text = format!("{lost} further messages were not logged");
            return Some(Notice::Warn { domid: None, text });
        }
        notice
    }

    /// Takes back that a connection has ended.
    pub(crate) fn withdraw_end(&mut self, conn: ConnId) {
        let stale =
            |notice: &Notice| matches!(notice, Notice::Ended { conn: told, .. } if *told == conn);
        self.queue.retain(|notice| !stale(notice));
    }

    /// Forgets all that wait.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }
}
