//! The supervisor of backends, `xb devd`: in a driver domain in place of `xl devd`, and in domain 0
//! of a hosted host.
//!
//! It starts each backend of the table of [daemons], and starts it again when
//! it has ended or has given no sign of life for 10 s. Whoever uses its devices sees a pause. A
//! backend that runs already is left running, so a supervisor can itself be ended and started
//! again. One that systemd starts is left to systemd.
//!
//! | module | what it is |
//! |---|---|
//! | `place`, `refusal` | where it runs: how backends are found and started there; where it does not |
//! | `backend` | one backend: found, started, judged |
//! | `restarts` | when a backend is started again |
//! | [`devices`], `script` | the devices of a driver domain: hotplug scripts, nodes of closed ones |
//! | `log` | its log |
//! | `answer` | its nodes in the store, by which the toolstack knows that it is there |

pub(crate) mod answer;
mod backend;
pub mod devices;
mod log;
mod place;
mod refusal;
mod restarts;
mod script;

use crate::Error;
use crate::host::{Host, HostChoice, daemons, service};
use answer::{Answers, ServiceReport};
use backend::SupervisedBackend;
use daemon::SignalSockets;
use devices::{DeviceRules, DriverDomainDevices};
use log::say;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use xen::DomId;
use xen_driver::process::platform::own_domid;
use xenstore::{Client, Event};

pub(crate) use place::{BackendPlace, GUEST_STORE};
pub use refusal::SupervisorRefusal;
pub use restarts::{DELAY_MAX, ENDS_MAX};

/// The longest time between two looks at what no event tells of.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// Supervises the backends of a place, until this process is asked to end.
///
/// # Errors
/// There is another supervisor; the store is gone or refuses.
pub(crate) fn run(place: BackendPlace) -> Result<(), Error> {
    let mut signals =
        SignalSockets::install().map_err(|error| Error::Refused(error.to_string()))?;
    let (mut store, domid) = open(&place)?;
    let mut supervisor = Supervisor::start(place, &mut store, domid)?;
    let _ = daemon::sd_notify(daemon::service::READY);
    loop {
        // Nothing is done by halves: an end is noticed here alone.
        if signals.take_terminate() {
            return Ok(());
        }
        signals.take_hang_up();
        let next = supervisor.look(&mut store)?;
        let mut any = false;
        while let Some(event) = store.poll_event()? {
            supervisor.take(&mut store, &event)?;
            any = true;
        }
        if !any {
            wait(&store, &signals, &supervisor, next)?;
        }
    }
}

/// Connects to the store of a place. Returns the number of the domain, too.
fn open(place: &BackendPlace) -> Result<(Client, DomId), Error> {
    match place {
        BackendPlace::Hosted(folder) => {
            let host = Host::open(HostChoice::Hosted(folder.clone()))?;
            Ok((host.store, DomId::DOM0))
        }
        BackendPlace::DriverDomain | BackendPlace::HostedGuest(_) => {
            let mut store = Client::open()?;
            let domid = own_domid(&mut store).map_err(|error| Error::Refused(error.to_string()))?;
            Ok((store, domid))
        }
    }
}

/// The supervisor of a place.
#[derive(Debug)]
pub(crate) struct Supervisor {
    place: BackendPlace,
    /// Locked as long as this is the supervisor.
    _claim: File,
    backends: Vec<SupervisedBackend>,
    answers: Answers,
    /// The devices of a driver domain; those of domain 0 are the toolstack's.
    devices: Option<DriverDomainDevices>,
}

impl Supervisor {
    /// Begins to supervise the backends of a place.
    ///
    /// # Errors
    /// There is another supervisor; the store refuses.
    pub(crate) fn start(
        place: BackendPlace,
        store: &mut Client,
        domid: DomId,
    ) -> Result<Self, Error> {
        let claim = place.claim()?;
        let backends = daemons::backends().map(|daemon| SupervisedBackend::new(daemon, &place));
        let backends: Vec<SupervisedBackend> = backends.collect::<Result<_, _>>()?;
        let mut answers = Answers::start(store, domid)?;
        answers.tell(store, &report(&backends, &place))?;
        let devices = match &place {
            BackendPlace::Hosted(_) => None,
            BackendPlace::DriverDomain | BackendPlace::HostedGuest(_) => {
                let rules = DeviceRules::new(service::is_of_kernel, |kind| {
                    daemons::backend(kind).is_some()
                });
                Some(DriverDomainDevices::start(store, domid, rules)?)
            }
        };
        let names: Vec<&str> = backends.iter().map(|backend| backend.daemon().name()).collect();
        say(&format!("serving domain {domid}: {}", names.join(", ")));
        Ok(Self { place, _claim: claim, backends, answers, devices })
    }

    /// Does what is to be done now. Returns the time of the next look, which an event or a
    /// descriptor may bring forward. Events may have come with answers of the store.
    ///
    /// # Errors
    /// The store is gone or refuses.
    pub(crate) fn look(&mut self, store: &mut Client) -> Result<Instant, Error> {
        let mut next = Instant::now() + LOOK_AROUND;
        for backend in &mut self.backends {
            if let Some(at) = backend.look(Instant::now(), &self.place) {
                next = next.min(at);
            }
        }
        self.answers.tell(store, &report(&self.backends, &self.place))?;
        if let Some(devices) = &mut self.devices
            && let Some(at) = devices.look(store, Instant::now())?
        {
            next = next.min(at);
        }
        // A look that comes a moment too early would find nothing to do.
        Ok(next + Duration::from_millis(1))
    }

    /// Takes an event of the store.
    ///
    /// # Errors
    /// The store is gone.
    pub(crate) fn take(&mut self, store: &mut Client, event: &Event) -> Result<(), Error> {
        self.answers.take(event);
        match &mut self.devices {
            Some(devices) => devices.take(store, event),
            None => Ok(()),
        }
    }

    /// Returns the descriptors that are readable when there is something to do.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let signs = self.backends.iter().map(|backend| backend.signs().as_fd());
        let processes = self.backends.iter().filter_map(SupervisedBackend::process);
        let scripts = self.devices.iter().flat_map(DriverDomainDevices::scripts);
        signs.chain(processes.chain(scripts).map(AsFd::as_fd))
    }
}

/// Returns what is served, and what is wrong.
fn report(backends: &[SupervisedBackend], place: &BackendPlace) -> ServiceReport {
    let serving = backends.iter().filter(|backend| backend.serves());
    let own = serving.flat_map(|backend| place.kinds(backend.daemon()));
    let mut kinds: Vec<String> = own.chain(place.kernel_kinds()).collect();
    kinds.sort();
    kinds.dedup();
    let fault =
        |backend: &SupervisedBackend| Some((backend.daemon().name(), backend.fault()?.to_owned()));
    ServiceReport { kinds, faults: backends.iter().filter_map(fault).collect() }
}

/// Waits for an event of the store, of a backend or a signal, or until it is time.
fn wait(
    store: &Client,
    signals: &SignalSockets,
    supervisor: &Supervisor,
    until: Instant,
) -> Result<(), Error> {
    let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
    let descriptors: Vec<BorrowedFd<'_>> =
        [store.as_fd(), signals.terminate.as_fd(), signals.hang_up.as_fd()]
            .into_iter()
            .chain(supervisor.descriptors())
            .collect();
    let mut fds: Vec<PollFd<'_>> =
        descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    match poll(&mut fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::io("waiting")(errno.into())),
    }
}
