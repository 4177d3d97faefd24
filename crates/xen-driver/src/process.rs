//! The process of a driver: what a `main()` does beside reading its command line.
//!
//! [`BackendProgram::serve`] takes the platform of the machine, real Xen's or a hosted host's, locks what one process alone may
//! serve, gives up its privileges, and serves until the process is ended. Ended in whatever way and started again, it
//! goes on where it was. Whoever has started it hears when it serves, and signs of life from its loop (sd_notify(3)).
//!
//! | module | what it is |
//! |---|---|
//! | [`guest`] | the connections of a guest's program |
//! | [`platform`] | event channels and grants of the machine |
//! | [`mod@lock`] | locks of what one process alone may do |
//! | `log` | lines about devices, so many of each |
//! | `report`, `clock` | words for whoever has started it; the time |
//! | `statistics` | a file with the counters of all devices |

mod clock;
pub mod guest;
pub mod lock;
mod log;
pub mod platform;
mod report;
mod statistics;

use crate::backend::rings::{RecordMemory, RingOptions};
use crate::backend::{Backend, BackendServer, Buses, Platform};
use clock::{COARSE, coarse_time};
use daemon::service::READY;
use daemon::{LifeSigns, sd_notify};
use lock::lock;
use log::Log;
use platform::MachinePlatform;
use report::write_line;
use statistics::{CounterChange, LOOK_AROUND, Statistics};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xen::DomId;
use xenbus::{Driver, Error};
use xenstore::Client;

pub use report::ProgramFailure;
pub use statistics::FRESH_EVERY;

/// A backend's program.
#[derive(Clone, Copy, Debug)]
pub struct BackendProgram {
    /// Its name, which begins each line of its log; its folder below `/run` has it too.
    pub name: &'static str,
    /// The variable of the environment with which, set to 1, it keeps all privileges.
    pub unfiltered: &'static str,
    /// The kernel's own backend for one of its kinds.
    pub kernel: Option<KernelBackend>,
    /// Gives up all privileges but what its devices need. Besides the calls of the skeleton they may make requests of these
    /// numbers to devices.
    pub confine: fn(&[u32]) -> Result<(), String>,
}

/// A backend of Linux that serves the same devices.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend {
    /// The kind that both serve.
    pub kind: &'static str,
    /// The path that is there while it is loaded: `/sys/bus/xen-backend/drivers/vbd`.
    pub path: &'static str,
    /// Its module: `xen-blkback`.
    pub module: &'static str,
    /// A remedy besides unloading it, for the log.
    pub instead: &'static str,
}

/// The means with which a program begins to serve.
#[derive(Debug)]
pub struct ProgramStart<'k> {
    /// The connection to the store.
    pub store: Client,
    /// The domain where it runs.
    pub domid: DomId,
    /// The kinds that it serves.
    pub kinds: &'k [&'k str],
    /// Event channels and grants.
    pub platform: Platform,
    /// The folder of the records.
    pub record_dir: PathBuf,
    /// Memory for the records that outlives the domain.
    pub record_memory: Option<Arc<RecordMemory>>,
}

impl ProgramStart<'_> {
    /// Returns the options of rings whose requests in flight are recorded.
    #[must_use]
    pub fn rings(&self) -> RingOptions {
        let record_memory = self.record_memory.clone();
        RingOptions { record_memory, ..RingOptions::recorded_in(&self.record_dir) }
    }
}

impl BackendProgram {
    /// Serves the devices of the kinds that are `wanted`, with the server that `begin` makes. The records are in
    /// `record_dir`, where that is said.
    ///
    /// # Errors
    /// There is no platform or no store, another process serves the same, or the store is gone.
    pub fn serve<B: Driver + Backend>(
        &self,
        wanted: &[String],
        record_dir: Option<PathBuf>,
        begin: impl FnOnce(ProgramStart<'_>) -> Result<BackendServer<Buses<B>>, Error>,
    ) -> Result<std::convert::Infallible, ProgramFailure> {
        let machine = MachinePlatform::open(self.name)?;
        let MachinePlatform { platform, domid, run_dir, lock_dir, keepsake } = machine;
        let record_dir = record_dir.unwrap_or(run_dir);
        let on_xen = domid.is_none();
        let kinds = self.kinds(wanted, on_xen)?;
        let _locks = self.lock_all(&lock_dir, &kinds, &record_dir)?;
        let record_memory = self.record_memory(keepsake);
        let mut store = Client::open()?;
        let domid = match domid {
            Some(domid) => domid,
            None => platform::own_domid(&mut store)?,
        };
        let mut statistics = Statistics::create(self.name, &record_dir);
        let mut log = Log::new(self.name);
        let mut signs = LifeSigns::from_environment();
        self.give_up_privileges()?;
        let mut server = begin(ProgramStart {
            store,
            domid,
            kinds: &kinds,
            platform,
            record_dir,
            record_memory,
        })?;
        self.write_line(format_args!("serving {} of domain {domid}", kinds.join(" and ")));
        // Who does not hear it finds the line above.
        let _ = sd_notify(READY);
        let turn_max =
            signs.as_ref().map_or(LOOK_AROUND, |signs| signs.interval().min(LOOK_AROUND));
        let watched = self.kernel.filter(|kernel| on_xen && kinds.contains(&kernel.kind));
        let (mut looked, mut loaded) = (coarse_time(), false);
        loop {
            let news = server.turn(statistics.patience().min(turn_max))?;
            let change = match (news.is_empty(), server.take_progress()) {
                (false, _) => CounterChange::Devices,
                (true, true) => CounterChange::Requests,
                (true, false) => CounterChange::None,
            };
            for news in news {
                log.write_news(&mut server, &kinds, &news);
            }
            if let Some(signs) = &mut signs {
                signs.give(coarse_time());
            }
            log.write_complaints(&mut server, &kinds);
            statistics.write_if_due(&mut server, &kinds, change);
            if coarse_time().saturating_sub(looked) + COARSE >= LOOK_AROUND {
                server.announce_changes()?;
                statistics.write(&mut server, &kinds);
                if let Some(kernel) = &watched
                    && kernel.is_loaded() != loaded
                {
                    loaded = !loaded;
                    if loaded {
                        let KernelBackend { kind, module, .. } = kernel;
                        self.write_line(format_args!(
                            "the kernel's {module} has been loaded and takes every new {kind} as well; \
                             unload it: rmmod {module}"
                        ));
                    }
                }
                looked = coarse_time();
            }
        }
    }

    /// A line for the log. Where it cannot be written, devices are served all the same.
    pub fn write_line(&self, line: fmt::Arguments<'_>) {
        write_line(self.name, line);
    }

    /// Takes the memory that outlives the domain; without it, records end with the domain.
    fn record_memory(&self, keepsake: Option<OwnedFd>) -> Option<Arc<RecordMemory>> {
        match RecordMemory::new(keepsake?) {
            Ok(memory) => Some(Arc::new(memory)),
            Err(errno) => {
                self.write_line(format_args!(
                    "the memory for a successor of this domain cannot be used: {errno}"
                ));
                None
            }
        }
    }

    /// The kinds to be served; on Xen not one that the kernel serves already.
    fn kinds<'w>(
        &self,
        wanted: &'w [String],
        on_xen: bool,
    ) -> Result<Vec<&'w str>, ProgramFailure> {
        let theirs = self.kernel.filter(|kernel| on_xen && kernel.is_loaded());
        let mut kinds = Vec::new();
        for kind in wanted {
            match &theirs {
                Some(KernelBackend { kind: same, path, module, instead }) if same == kind => {
                    eprintln!(
                        "{}: the kernel's {module} serves backend/{kind} ({path} is there): \
                         not served here; unload it (rmmod {module}){instead}",
                        self.name
                    );
                }
                _ => kinds.push(kind.as_str()),
            }
        }
        if kinds.is_empty() { Err("nothing is left to serve".into()) } else { Ok(kinds) }
    }

    /// Two would answer the same requests: each kind is served once, and a record has one writer.
    fn lock_all(
        &self,
        lock_dir: &Path,
        kinds: &[&str],
        record_dir: &Path,
    ) -> Result<Vec<OwnedFd>, ProgramFailure> {
        let lock =
            |dir, name: &str, what: &str| lock(dir, name, &format!("another {} {what}", self.name));
        let mut locks = vec![lock(record_dir, "lock", "has its record there")?];
        for kind in kinds {
            locks.push(lock(lock_dir, &format!("{kind}.lock"), &format!("serves {kind} here"))?);
        }
        Ok(locks)
    }

    /// Keeps no more rights than to look at what guests give takes.
    fn give_up_privileges(&self) -> Result<(), ProgramFailure> {
        let (name, unfiltered) = (self.name, self.unfiltered);
        if std::env::var_os(unfiltered).is_some_and(|value| value == "1") {
            eprintln!("{name}: {unfiltered} is set: all privileges are kept");
            return Ok(());
        }
        let failed =
            |error| format!("{error}; {unfiltered}=1 in the environment serves without").into();
        (self.confine)(xen_linux::IOCTLS_OF_A_BACKEND).map_err(failed)
    }
}

impl KernelBackend {
    fn is_loaded(&self) -> bool {
        Path::new(self.path).exists()
    }
}
