//! The broker's epoll, and the tokens of what it waits for.

use crate::Role;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Result;
use std::os::fd::{AsFd, OwnedFd};
use xen::DomId;

/// A connection; a later one in the same place differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PeerId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl PeerId {
    /// Encodes it in 56 bits: a generation of 24 bits does not repeat within the events of one
    /// wait.
    pub(super) fn word(self) -> u64 {
        u64::from(self.generation & 0xff_ffff) << 32 | u64::from(self.index)
    }

    pub(super) fn of(word: u64) -> Self {
        let half = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
        Self { index: half(word), generation: half(word >> 32) }
    }
}

/// The subject of an event, encoded into the word that epoll keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum EventSubject {
    Listener(Role),
    Peer(PeerId),
    Process(DomId),
    Setup(DomId),
    Stop,
}

impl EventSubject {
    pub(super) fn word(self) -> u64 {
        let (kind, rest) = match self {
            Self::Listener(role) => (0, role as u64),
            Self::Peer(id) => (1, id.word()),
            Self::Process(domid) => (2, domid.0.into()),
            Self::Setup(domid) => (3, domid.0.into()),
            Self::Stop => (4, 0),
        };
        kind << 56 | rest
    }

    pub(super) fn of(word: u64) -> Option<Self> {
        let rest = word & ((1 << 56) - 1);
        Some(match word >> 56 {
            0 => Self::Listener(*Role::ALL.get(usize::try_from(rest).ok()?)?),
            1 => Self::Peer(PeerId::of(rest)),
            2 => Self::Process(DomId(u16::try_from(rest).ok()?)),
            3 => Self::Setup(DomId(u16::try_from(rest).ok()?)),
            4 => Self::Stop,
            _ => return None,
        })
    }
}

/// The set of all descriptors that the broker waits for.
#[derive(Debug)]
pub(super) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Waits for these events at `fd` from now on.
    ///
    /// # Errors
    /// The error of epoll_ctl(2).
    pub(super) fn watch(
        &self,
        fd: impl AsFd,
        token: EventSubject,
        flags: EventFlags,
    ) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.word()), flags)
    }

    /// Changes the events that are waited for at `fd`.
    pub(super) fn change(&self, fd: impl AsFd, token: EventSubject, flags: EventFlags) {
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(token.word()), flags);
    }

    /// Stops waiting at `fd`.
    pub(super) fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, and takes as many as `events` has room for.
    ///
    /// # Errors
    /// The error of epoll_wait(2).
    pub(super) fn wait(&self, events: &mut Vec<Event>, timeout: Option<&Timespec>) -> Result<()> {
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout).map(drop)
    }
}
