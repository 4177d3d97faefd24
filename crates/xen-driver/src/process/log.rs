//! Lines about devices: so many of each, as a guest may connect and close all the time.

use super::clock::coarse_time;
use super::report::write_line;
use crate::backend::{Backend, BackendServer, Buses};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Bus, Driver, Id, State};

/// Most lines that the log has of one device in [`A_MINUTE`].
const LINES_MAX: u32 = 100;
const A_MINUTE: Duration = Duration::from_secs(60);
const A_SECOND: Duration = Duration::from_secs(1);

/// The log of a process.
pub(super) struct Log {
    /// The name of the program.
    name: &'static str,
    /// When a device's minute has begun, and how many lines it has had since.
    said: BTreeMap<Id, (Option<Instant>, u32)>,
    /// A backend may have a complaint that was not told.
    complaints: bool,
    /// When complaints were told last.
    complaints_told: Duration,
}

impl Log {
    pub(super) fn new(name: &'static str) -> Self {
        let (said, complaints_told) = (BTreeMap::new(), Duration::ZERO);
        Self { name, said, complaints: false, complaints_told }
    }

    /// True if a further line of this device may be said; says when it is the first that may not.
    fn allows(&mut self, id: Id) -> bool {
        let (since, lines) = self.said.entry(id).or_default();
        if since.is_none_or(|since| since.elapsed() >= A_MINUTE) {
            (*since, *lines) = (Some(Instant::now()), 0);
        }
        *lines = lines.saturating_add(1);
        if *lines == LINES_MAX + 1 {
            write_line(
                self.name,
                format_args!("{id}: more than {LINES_MAX} lines a minute; the others are left out"),
            );
        }
        *lines <= LINES_MAX
    }

    /// Tells the complaints of backends since the last time; not more often than each second.
    pub(super) fn write_complaints<B: Driver + Backend>(
        &mut self,
        server: &mut BackendServer<Buses<B>>,
        kinds: &[&str],
    ) {
        self.complaints |= server.take_complaints();
        if self.complaints && coarse_time().saturating_sub(self.complaints_told) >= A_SECOND {
            (self.complaints, self.complaints_told) = (false, coarse_time());
            self.write_complaints_of(server, kinds, None);
        }
    }

    /// Tells those of one device, or of all.
    fn write_complaints_of<B: Driver + Backend>(
        &mut self,
        server: &mut BackendServer<Buses<B>>,
        kinds: &[&str],
        only: Option<Id>,
    ) {
        for kind in kinds {
            let all = server.bus(kind).into_iter().flat_map(Bus::drivers);
            for (id, back) in all.filter(|(id, _)| only.is_none_or(|only| only == *id)) {
                if let Some(complaint) = back.complaint()
                    && self.allows(id)
                {
                    write_line(self.name, format_args!("{id}: {complaint}"));
                }
            }
        }
    }

    /// Tells what has happened to a device.
    pub(super) fn write_news<B: Driver + Backend>(
        &mut self,
        server: &mut BackendServer<Buses<B>>,
        kinds: &[&str],
        news: &DeviceNews,
    ) {
        let id = news.id;
        let allowed = self.allows(id);
        if matches!(news.event, DeviceEvent::Removed) {
            self.said.remove(&id);
        }
        if !allowed {
            return;
        }
        match &news.event {
            DeviceEvent::State(State::Connected) => {
                let summary = |kind| {
                    let bus = server.bus(kind)?;
                    let connected = bus.state(id) == Some(State::Connected);
                    connected.then(|| bus.driver(id).map(|back| back.summary()))?
                };
                let summary = kinds.iter().copied().find_map(summary).unwrap_or_default();
                write_line(self.name, format_args!("{id}: {}; {summary}", State::Connected));
            }
            DeviceEvent::State(state) => {
                if matches!(state, State::Closing | State::Closed) {
                    self.write_complaints_of(server, kinds, Some(id));
                }
                write_line(self.name, format_args!("{id}: {state}"));
            }
            DeviceEvent::Error(error) => write_line(self.name, format_args!("{id}: {error}")),
            DeviceEvent::Removed => write_line(self.name, format_args!("{id}: removed")),
            // An event of a later version, which has no words yet.
            _ => {}
        }
    }
}
