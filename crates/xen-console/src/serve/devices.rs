//! All that the daemon's loop serves: consoles, the hypervisor's output, and its own signals.

use super::console::{ServedConsole, time_us};
use super::first::FirstConsoles;
use crate::hypervisor::{HypervisorLog, ReaderError};
use crate::service::ConsoleService;
use daemon::SignalSockets;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;
use xen::DomId;
use xen_driver::backend::{DescriptorId, DeviceSet, TendOutcome};
use xenbus::Error;
use xenbus::bus::DeviceNews;
use xenstore::{Client, Event};

/// All that the daemon's loop serves.
#[derive(Debug)]
pub struct ConsoleDevices {
    consoles: FirstConsoles,
    hypervisor: Option<ServedHypervisor>,
    service: Option<ConsoleService>,
    signals: SignalSockets,
    hang_up: DescriptorId,
    terminate: DescriptorId,
    notices: DaemonNotices,
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
        consoles: FirstConsoles,
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
        Self { consoles, hypervisor, service, signals, hang_up, terminate, notices }
    }

    /// Takes what the loop is to be told.
    pub fn take_notices(&mut self) -> DaemonNotices {
        std::mem::take(&mut self.notices)
    }

    /// Opens all logs again, for whoever has renamed them.
    pub fn reopen_logs(&mut self) {
        self.consoles.reopen_logs();
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
    type Key = DomId;

    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        self.consoles.note(store, event)
    }

    fn is_due(&self) -> bool {
        self.consoles.is_due()
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        self.consoles.look_next(store)
    }

    fn note_device(&mut self, domid: DomId) {
        self.consoles.note_device(domid);
    }

    fn waiting(&self) -> impl Iterator<Item = DomId> {
        self.consoles.waiting()
    }

    fn backends(&mut self) -> impl Iterator<Item = (DomId, &mut ServedConsole)> {
        self.consoles.backends()
    }

    fn backends_ref(&self) -> impl Iterator<Item = (DomId, &ServedConsole)> {
        self.consoles.backends_ref()
    }

    fn fail(&mut self, store: &mut Client, domid: DomId, error: Error) -> Result<(), Error> {
        self.consoles.fail(store, domid, error)
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        self.consoles.take_news()
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
        signals.into_iter().chain(hypervisor).chain(service).chain(self.consoles.streams())
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
        } else if !self.service.as_mut().is_some_and(|service| service.ready(stream)) {
            self.consoles.ready(stream);
        }
    }

    fn tend(&mut self, store: &mut Client, now: Instant) -> Result<TendOutcome, Error> {
        self.tend_hypervisor(now);
        // Before the consoles, which write the sizes of windows that clients have said.
        let served = self.service.as_mut().map(|service| service.serve(&mut self.consoles));
        let served = served.unwrap_or_default();
        let mut outcome = self.consoles.tend(store, now)?;
        outcome.streams_changed |= served.streams_changed;
        outcome.more |= served.more;
        Ok(outcome)
    }
}
