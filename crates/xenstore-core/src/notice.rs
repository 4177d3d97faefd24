//! Notices for the daemon: lines to log, or actions to take.

use crate::id::{ConnId, DomId};
use crate::limits::NOTICES_MAX;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

/// The reason why a connection is no longer served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// It left more replies and events unread than the limit allows, or left one too long.
    Unread,
    /// Its ring indices are impossible (`XENSTORE_ERROR_RINGIDX`).
    RingIndex,
    /// It announced a payload over the limit (`XENSTORE_ERROR_PROTO`).
    Protocol,
    /// Its event channel or its page cannot be used (`XENSTORE_ERROR_COMM`).
    Communication,
}

/// A notice for the daemon, which logs it or acts on it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A line for the log at warning level: the occurrence, the domain affected, the advised
    /// action.
    Warn {
        /// The domain that caused it, if there is one.
        domid: Option<DomId>,
        /// The line.
        text: String,
    },
    /// A line for the log at info level.
    Info(String),
    /// The connection is no longer served. The daemon must close a socket. It must show the error
    /// word in a ring, and leave the ring alone until it is reconnected, introduced again or
    /// detached.
    Ended {
        /// The connection.
        conn: ConnId,
        /// The reason.
        why: EndReason,
    },
}

/// The notices that the daemon has not taken yet.
#[derive(Default)]
pub(crate) struct Notices {
    queue: VecDeque<Notice>,
    /// The number of notices that were dropped for lack of room.
    lost: u64,
}

impl Notices {
    /// Adds a notice. If there are too many, only the end of a connection is kept.
    pub(crate) fn push(&mut self, notice: Notice) {
        let must = matches!(notice, Notice::Ended { .. });
        if must || self.queue.len() < NOTICES_MAX {
            self.queue.push_back(notice);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Takes the next notice. After the last one, returns a notice with the number of dropped ones.
    pub(crate) fn pop(&mut self) -> Option<Notice> {
        let notice = self.queue.pop_front();
        if notice.is_none() && self.lost > 0 {
            let lost = core::mem::take(&mut self.lost);
            let text = format!("{lost} further messages were not logged");
            return Some(Notice::Warn { domid: None, text });
        }
        notice
    }

    /// Withdraws the notice of a connection's end.
    pub(crate) fn withdraw_end(&mut self, conn: ConnId) {
        let stale =
            |notice: &Notice| matches!(notice, Notice::Ended { conn: told, .. } if *told == conn);
        self.queue.retain(|notice| !stale(notice));
    }

    /// Drops all notices.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }
}
