//! All that the daemon's loop serves: consoles, the hypervisor's output, and its own signals.

use super::console::{ServedConsole, time_us};
use super::first::FirstConsoles;
use super::further::FurtherConsoles;
use crate::hypervisor::{HypervisorLog, ReaderError};
use crate::service::{ConsoleId, ConsoleOutput, ConsoleService, OpenConsoles};
use daemon::SignalSockets;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;
use xen_driver::backend::{DescriptorId, DeviceSet, TendOutcome};
use xenbus::bus::DeviceNews;
use xenbus::{Error, Id};
use xenstore::{Client, Event};

/// All that the daemon's loop serves.
#[derive(Debug)]
pub struct ConsoleDevices {
    consoles: AllConsoles,
    hypervisor: Option<ServedHypervisor>,
    service: Option<ConsoleService>,
    signals: SignalSockets,
    hang_up: DescriptorId,
    terminate: DescriptorId,
    notices: DaemonNotices,
}

/// The consoles of all domains.
#[derive(Debug)]
struct AllConsoles {
    first: FirstConsoles,
    further: FurtherConsoles,
}

impl OpenConsoles for AllConsoles {
    fn find(&self, domain: &[u8], number: u32) -> Option<ConsoleId> {
        if number == 0 {
            return self.first.find(domain, number);
        }
        self.further.find(Id { frontend: self.first.domain(domain)?, devid: number })
    }

    fn output(&self, console: ConsoleId) -> ConsoleOutput<'_> {
        match console.number {
            0 => self.first.output(console),
            _ => self.further.output(console),
        }
    }

    fn type_in(&mut self, console: ConsoleId, bytes: &[u8]) -> usize {
        match console.number {
            0 => self.first.type_in(console, bytes),
            _ => self.further.type_in(console, bytes),
        }
    }

    fn set_size(&mut self, console: ConsoleId, columns: u16, rows: u16) {
        match console.number {
            0 => self.first.set_size(console, columns, rows),
            _ => self.further.set_size(console, columns, rows),
        }
    }
}

/// The log of the hypervisor's console, and the name of its descriptor.
#[derive(Debug)]
struct ServedHypervisor {
    log: HypervisorLog,
    stream: DescriptorId,
    /// There may be output.
    ready: bool,
}

/// News for the program between two turns of the loop.
#[derive(Debug, Default)]
pub struct DaemonNotices {
    /// The daemon is to end.
    pub terminate: bool,
    /// The logs are to be opened again.
    pub reopen: bool,
    /// The hypervisor's console is no longer read.
    pub reader: Option<ReaderError>,
}

impl ConsoleDevices {
    /// Serves these consoles, the hypervisor's output where it is logged, and these signals.
    #[must_use]
    pub fn new(
        first: FirstConsoles,
        further: FurtherConsoles,
        hypervisor: Option<HypervisorLog>,
        service: Option<ConsoleService>,
        signals: SignalSockets,
    ) -> Self {
        let hypervisor = hypervisor.map(|log| ServedHypervisor {
            log,
            stream: DescriptorId::new(),
            ready: true,
        });
        let (hang_up, terminate) = (DescriptorId::new(), DescriptorId::new());
        let notices = DaemonNotices::default();
        let consoles = AllConsoles { first, further };
        Self { consoles, hypervisor, service, signals, hang_up, terminate, notices }
    }

    /// Takes what the loop is to be told.
    pub fn take_notices(&mut self) -> DaemonNotices {
        std::mem::take(&mut self.notices)
    }

    /// Opens all logs again, for whoever has renamed them.
    pub fn reopen_logs(&mut self) {
        self.consoles.first.reopen_logs();
        self.consoles.further.reopen_logs();
        if let Some(hypervisor) = &mut self.hypervisor {
            // The one that was open stays in use otherwise.
            let _ = hypervisor.log.log().reopen();
        }
    }

    /// Moves output of the hypervisor into its log.
    fn tend_hypervisor(&mut self, now: Instant) {
        let Some(hypervisor) = self.hypervisor.as_mut().filter(|hypervisor| hypervisor.ready)
        else {
            return;
        };
        match hypervisor.log.take(now, time_us()) {
            Ok(outcome) => hypervisor.ready = outcome.moved > 0,
            Err(error) => {
                // Its reader had rights that this process has given up: it cannot start another.
                self.hypervisor = None;
                self.notices.reader = Some(error);
            }
        }
    }
}

impl DeviceSet for ConsoleDevices {
    type Backend = ServedConsole;
    /// The domain of a console and its number there; 0 for the first one.
    type Key = Id;

    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        let AllConsoles { first, further } = &mut self.consoles;
        Ok(first.note(store, event)? || further.note(store, event)?)
    }

    fn is_due(&self) -> bool {
        self.consoles.first.is_due() || self.consoles.further.is_due()
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        let looked = self.consoles.first.look_next(store)?;
        Ok(self.consoles.further.look_next(store)? || looked)
    }

    fn note_device(&mut self, id: Id) {
        match id.devid {
            0 => self.consoles.first.note_device(id.frontend),
            _ => self.consoles.further.note_device(id),
        }
    }

    fn waiting(&self) -> impl Iterator<Item = Id> {
        let first = self.consoles.first.waiting().map(|frontend| Id { frontend, devid: 0 });
        first.chain(self.consoles.further.waiting())
    }

    fn backends(&mut self) -> impl Iterator<Item = (Id, &mut ServedConsole)> {
        let AllConsoles { first, further } = &mut self.consoles;
        let first = first.backends();
        let first = first.map(|(frontend, console)| (Id { frontend, devid: 0 }, console));
        first.chain(further.backends())
    }

    fn backends_ref(&self) -> impl Iterator<Item = (Id, &ServedConsole)> {
        let first = self.consoles.first.backends_ref();
        let first = first.map(|(frontend, console)| (Id { frontend, devid: 0 }, console));
        first.chain(self.consoles.further.backends_ref())
    }

    fn fail(&mut self, store: &mut Client, id: Id, error: Error) -> Result<(), Error> {
        match id.devid {
            0 => self.consoles.first.fail(store, id.frontend, error),
            _ => self.consoles.further.fail(store, id, error),
        }
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        let mut news = self.consoles.first.take_news();
        news.extend(self.consoles.further.take_news());
        news
    }

    fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let signals = [
            (self.hang_up, self.signals.hang_up.as_fd()),
            (self.terminate, self.signals.terminate.as_fd()),
        ];
        let hypervisor = self.hypervisor.iter();
        let hypervisor =
            hypervisor.filter_map(|hypervisor| Some((hypervisor.stream, hypervisor.log.fd()?)));
        let service = self.service.iter().flat_map(ConsoleService::streams);
        let consoles = self.consoles.first.streams().chain(self.consoles.further.streams());
        signals.into_iter().chain(hypervisor).chain(service).chain(consoles)
    }

    fn ready(&mut self, stream: DescriptorId) {
        if stream == self.terminate {
            // The socket can also be written, which is news at the start.
            self.notices.terminate |= self.signals.take_terminate();
        } else if stream == self.hang_up {
            self.notices.reopen |= self.signals.take_hang_up();
        } else if let Some(hypervisor) =
            self.hypervisor.as_mut().filter(|hypervisor| hypervisor.stream == stream)
        {
            hypervisor.ready = true;
        } else if self.consoles.further.has_stream(stream) {
            self.consoles.further.ready(stream);
        } else if !self.service.as_mut().is_some_and(|service| service.ready(stream)) {
            self.consoles.first.ready(stream);
        }
    }

    fn tend(&mut self, store: &mut Client, now: Instant) -> Result<TendOutcome, Error> {
        self.tend_hypervisor(now);
        // Before the consoles, which write the sizes of windows that clients have said.
        let served = self.service.as_mut().map(|service| service.serve(&mut self.consoles));
        let served = served.unwrap_or_default();
        let mut outcome = self.consoles.first.tend(store, now)?;
        let further = self.consoles.further.tend(store, now)?;
        outcome.streams_changed |= served.streams_changed | further.streams_changed;
        outcome.more |= served.more;
        Ok(outcome)
    }
}
