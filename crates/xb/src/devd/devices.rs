//! The devices of a driver domain: their hotplug scripts are run, and their nodes are removed once
//! they are closed.
//!
//! A script is run with `add` when the backend of its device is in InitWait, and with `remove` when
//! it is closed: for devices that this domain's kernel serves, and for those of a process that name
//! another script than the common one, as the process opens files itself. The nodes of every closed device are removed, with
//! the folders above that are empty then; those that belong to domain 0 are left to the toolstack.

use super::log::say;
use super::script::{ScriptAction, ScriptRun};
use crate::host::process::DaemonProcess;
use crate::{Error, text};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xen::DomId;
use xen_io::xenbus::State;
use xenbus::path::above;
use xenbus::{Id, Side};
use xenstore::{Client, Event, Store};

/// The folder of scripts that are named without a path.
const SCRIPTS: &str = "/etc/xen/scripts";
/// The script of devices that name none, which is for the kernel's backend.
const COMMON_SCRIPT: &str = "/etc/xen/scripts/block";
/// The longest time that a script may take, as with libxl.
const SCRIPT_WITHIN: Duration = Duration::from_secs(40);
/// The time after which the nodes of a closed device are removed: the toolstack waits for the state
/// Closed, and would miss it if they were gone at once.
const REMOVED_AFTER: Duration = Duration::from_secs(1);
/// The value of `hotplug-status` after a script that has done its work.
const CONNECTED: &str = "connected";
/// The most scripts that run at a time; others wait.
const SCRIPTS_MAX: usize = 8;
/// The longest text that is written as the reason of a failure.
const REASON_MAX: usize = 512;
/// The longest name of a kind of devices.
const KIND_MAX: usize = 32;

/// The settings of the work on devices.
#[derive(Debug)]
pub struct DeviceRules {
    /// Returns true for a kind that this kernel serves.
    pub is_of_kernel: fn(&str) -> bool,
    /// Returns true for another kind, if a process may serve it.
    pub is_of_process: fn(&str) -> bool,
    /// The longest time that a script may take.
    pub script_within: Duration,
    /// The time after which the nodes of a closed device are removed.
    pub removed_after: Duration,
}

impl DeviceRules {
    /// Returns the rules of a driver domain.
    #[must_use]
    pub fn new(is_of_kernel: fn(&str) -> bool, is_of_process: fn(&str) -> bool) -> Self {
        Self {
            is_of_kernel,
            is_of_process,
            script_within: SCRIPT_WITHIN,
            removed_after: REMOVED_AFTER,
        }
    }
}

/// A device by its kind and number.
type DeviceKey = (String, Id);

/// The use of a device's script.
enum ScriptUse {
    /// It has none, or none that is known here.
    Nothing,
    /// There is nothing to be done by it.
    Settled,
    /// It is run.
    Run(PathBuf),
}

/// The progress with a device.
#[derive(Debug)]
enum DeviceProgress {
    /// Its nodes tell whether its script has run.
    Known,
    /// Its script runs.
    Runs(ScriptRun),
    /// It is closed, and its script has run. Its nodes are removed at this time.
    Closed { remove_at: Instant },
}

/// The devices of a driver domain.
#[derive(Debug)]
pub struct DriverDomainDevices {
    domid: DomId,
    root: String,
    rules: DeviceRules,
    known: BTreeMap<DeviceKey, DeviceProgress>,
    /// Devices that are to be looked at.
    noted: BTreeSet<DeviceKey>,
}

impl DriverDomainDevices {
    /// Begins to look after the devices of the domain, also those that are there.
    ///
    /// # Errors
    /// The store refuses.
    pub fn start(store: &mut Client, domid: DomId, rules: DeviceRules) -> Result<Self, Error> {
        let root = format!("{}/backend", xenbus::path::home(domid));
        // The first event comes with the reply.
        store.watch(&root, &root)?;
        Ok(Self { domid, root, rules, known: BTreeMap::new(), noted: BTreeSet::new() })
    }

    /// Takes an event of the store.
    ///
    /// # Errors
    /// The store refuses.
    pub fn take(&mut self, store: &mut Client, event: &Event) -> Result<(), Error> {
        if *event.token != *self.root.as_bytes() {
            return Ok(());
        }
        match self.device_at(&event.path) {
            Some(key) => drop(self.noted.insert(key)),
            // A folder has come or gone with all that is in it.
            None => self.note_all(store)?,
        }
        Ok(())
    }

    fn device_at(&self, path: &[u8]) -> Option<DeviceKey> {
        let below = path.strip_prefix(self.root.as_bytes())?.strip_prefix(b"/")?;
        let kind = below.split(|byte| *byte == b'/').next()?;
        let is_kind = kind.len() <= KIND_MAX && kind.iter().all(u8::is_ascii_alphanumeric);
        let kind = std::str::from_utf8(kind).ok().filter(|_| is_kind)?;
        let root = xenbus::path::root(Side::Backend, self.domid, kind);
        let id = xenbus::path::device_at(Side::Backend, self.domid, &root, path)?;
        Some((kind.to_owned(), id))
    }

    fn note_all(&mut self, store: &mut Client) -> Result<(), Error> {
        let root = self.root.clone();
        for kind in store.list(&root)? {
            for frontend in store.list(format!("{root}/{kind}"))? {
                for devid in store.list(format!("{root}/{kind}/{frontend}"))? {
                    let path = format!("{root}/{kind}/{frontend}/{devid}");
                    self.noted.extend(self.device_at(path.as_bytes()));
                }
            }
        }
        // Those that are gone are forgotten.
        self.noted.extend(self.known.keys().cloned());
        Ok(())
    }

    /// Does what is to be done now. Returns the time of the next look, which an event may bring
    /// forward.
    ///
    /// # Errors
    /// The store is gone.
    pub fn look(&mut self, store: &mut Client, now: Instant) -> Result<Option<Instant>, Error> {
        let is_due = |progress: &DeviceProgress| match progress {
            DeviceProgress::Runs(run) => {
                now >= run.ends_at() || run.process().is_none_or(|one| one.ended(Duration::ZERO))
            }
            DeviceProgress::Closed { remove_at } => now >= *remove_at,
            DeviceProgress::Known => false,
        };
        let due = self.known.iter().filter(|(_, progress)| is_due(progress));
        let mut due: BTreeSet<DeviceKey> = due.map(|(key, _)| key.clone()).collect();
        due.append(&mut self.noted);
        for key in due {
            let progress = self.known.remove(&key).unwrap_or(DeviceProgress::Known);
            let next = match self.step(store, &key, progress, now) {
                Ok(next) => next,
                // A refusal is about this device alone.
                Err(Error::Store(error)) if error.refusal().is_some() => {
                    say(&format!("{}: {error}", node_of(&key)));
                    None
                }
                Err(error) => return Err(error),
            };
            if let Some(next) = next {
                self.known.insert(key, next);
            }
        }
        Ok(self.known.values().filter_map(next_look).min())
    }

    /// Returns the scripts that run.
    pub(super) fn scripts(&self) -> impl Iterator<Item = &DaemonProcess> {
        self.known.values().filter_map(|progress| match progress {
            DeviceProgress::Runs(run) => run.process(),
            _ => None,
        })
    }

    /// Goes on with one device. Returns its progress; `None` if it is gone.
    fn step(
        &mut self,
        store: &mut Client,
        key: &DeviceKey,
        progress: DeviceProgress,
        now: Instant,
    ) -> Result<Option<DeviceProgress>, Error> {
        let path = format!("{}/{}", self.root, below(key));
        let Some(state) = store.try_read(format!("{path}/state"))? else {
            // The toolstack has removed it.
            remove_folders(store, self.domid, &self.root, key)?;
            return Ok(None);
        };
        let is_offline = store.try_read(format!("{path}/online"))?.as_deref() == Some(b"0");
        let is_over = State::parse(&state) == State::Closed && is_offline;
        match progress {
            DeviceProgress::Runs(mut run) => {
                let Some(outcome) = run.take_outcome(now) else {
                    return Ok(Some(DeviceProgress::Runs(run)));
                };
                match (outcome, run.action()) {
                    (Err(why), action) => failed(store, key, &path, action, &why)?,
                    (Ok(()), ScriptAction::Add) => write_status(store, &path, CONNECTED)?,
                    (Ok(()), ScriptAction::Remove) => {}
                }
                match run.action() {
                    ScriptAction::Remove => Ok(Some(self.closed(now))),
                    // The device may have been closed meanwhile.
                    ScriptAction::Add => self.step(store, key, DeviceProgress::Known, now),
                }
            }
            DeviceProgress::Closed { .. } if !is_over => Ok(Some(DeviceProgress::Known)),
            DeviceProgress::Closed { remove_at } if now < remove_at => {
                Ok(Some(DeviceProgress::Closed { remove_at }))
            }
            DeviceProgress::Closed { .. } => remove(store, self.domid, &self.root, key),
            DeviceProgress::Known if is_over => {
                // What has run is in the store: another supervisor may have run it.
                let has_run = store.exists(format!("{path}/hotplug-status"))?;
                match self.script(store, key, &path)? {
                    ScriptUse::Run(script) if has_run => {
                        self.run(store, key, &script, ScriptAction::Remove, now)
                    }
                    _ => Ok(Some(self.closed(now))),
                }
            }
            DeviceProgress::Known => {
                if State::parse(&state) != State::InitWait {
                    return Ok(Some(DeviceProgress::Known));
                }
                let status = format!("{path}/hotplug-status");
                let has_run = store.exists(&status)?;
                match self.script(store, key, &path)? {
                    ScriptUse::Run(script) if !has_run => {
                        self.run(store, key, &script, ScriptAction::Add, now)
                    }
                    ScriptUse::Settled if !has_run => {
                        write_status(store, &path, CONNECTED)?;
                        Ok(Some(DeviceProgress::Known))
                    }
                    _ => Ok(Some(DeviceProgress::Known)),
                }
            }
        }
    }

    fn closed(&self, now: Instant) -> DeviceProgress {
        DeviceProgress::Closed { remove_at: now + self.rules.removed_after }
    }

    /// Returns what is to be done with the script of a device.
    fn script(
        &self,
        store: &mut Client,
        (kind, _): &DeviceKey,
        path: &str,
    ) -> Result<ScriptUse, Error> {
        let is_of_kernel = (self.rules.is_of_kernel)(kind);
        if !is_of_kernel && !(self.rules.is_of_process)(kind) {
            return Ok(ScriptUse::Nothing);
        }
        let script = store.try_read(format!("{path}/script"))?.map(text::lossy);
        let Some(script) = script.filter(|script| !script.is_empty()) else {
            return Ok(ScriptUse::Nothing);
        };
        let script = Path::new(SCRIPTS).join(script);
        if !is_of_kernel && script == Path::new(COMMON_SCRIPT) {
            return Ok(ScriptUse::Settled);
        }
        Ok(ScriptUse::Run(script))
    }

    /// Runs a script, unless too many run: then the device waits for a turn.
    fn run(
        &mut self,
        store: &mut Client,
        key: &DeviceKey,
        script: &Path,
        action: ScriptAction,
        now: Instant,
    ) -> Result<Option<DeviceProgress>, Error> {
        if self.scripts().count() >= SCRIPTS_MAX {
            self.noted.insert(key.clone());
            return Ok(Some(DeviceProgress::Known));
        }
        let device = node_of(key);
        let within = self.rules.script_within;
        match ScriptRun::start(script, action, (&key.0, &device), within) {
            Ok(run) => Ok(Some(DeviceProgress::Runs(run))),
            Err(error) => {
                let path = format!("{}/{}", self.root, below(key));
                failed(store, key, &path, action, &error.to_string())?;
                Ok(Some(match action {
                    ScriptAction::Add => DeviceProgress::Known,
                    ScriptAction::Remove => self.closed(now),
                }))
            }
        }
    }
}

/// Returns the time at which a device is looked at without an event.
fn next_look(progress: &DeviceProgress) -> Option<Instant> {
    match progress {
        DeviceProgress::Runs(run) => Some(run.ends_at()),
        DeviceProgress::Closed { remove_at } => Some(*remove_at),
        DeviceProgress::Known => None,
    }
}

fn below((kind, id): &DeviceKey) -> String {
    format!("{kind}/{id}")
}

/// Returns the path of a device as scripts have it: `backend/vbd/3/51712`.
fn node_of(key: &DeviceKey) -> String {
    format!("backend/{}", below(key))
}

/// Tells of a script that has failed: in the log, and of one that was to add a device in the store,
/// unless the script has told it itself.
fn failed(
    store: &mut Client,
    key: &DeviceKey,
    path: &str,
    action: ScriptAction,
    why: &str,
) -> Result<(), Error> {
    say(&format!("{}: its script has failed: {why}", node_of(key)));
    if action == ScriptAction::Remove {
        return Ok(());
    }
    write_new(store, path, "hotplug-error", &text::cut(why, REASON_MAX))?;
    write_status(store, path, "error")
}

/// Writes the outcome of a script, unless the script has written it.
fn write_status(store: &mut Client, path: &str, status: &str) -> Result<(), Error> {
    write_new(store, path, "hotplug-status", status)
}

/// Writes a node of a device that does not exist yet.
fn write_new(store: &mut Client, path: &str, name: &str, value: &str) -> Result<(), Error> {
    store.transaction(|tx| {
        // A device that was taken away meanwhile is not made again.
        if tx.exists(format!("{path}/state"))? && !tx.exists(format!("{path}/{name}"))? {
            tx.write(format!("{path}/{name}"), value)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Removes the nodes of a closed device and the folders above that are empty then, up to `backend`
/// and `error`. Returns nothing: the device is gone.
fn remove(
    store: &mut Client,
    domid: DomId,
    root: &str,
    key: &DeviceKey,
) -> Result<Option<DeviceProgress>, Error> {
    let path = format!("{root}/{}", below(key));
    let is_gone = store.transaction(|tx| {
        // Another device may have taken its place.
        let is_closed = match tx.try_read(format!("{path}/state"))? {
            Some(state) => State::parse(&state) == State::Closed,
            None => return Ok(true),
        };
        let is_over = is_closed && tx.try_read(format!("{path}/online"))?.as_deref() == Some(b"0");
        if is_over {
            tx.remove(&path)?;
        }
        Ok(is_over)
    })?;
    if !is_gone {
        return Ok(Some(DeviceProgress::Known));
    }
    remove_folders(store, domid, root, key)?;
    Ok(None)
}

/// Removes what is left of a device that has no nodes any more.
fn remove_folders(
    store: &mut Client,
    domid: DomId,
    root: &str,
    key: &DeviceKey,
) -> Result<(), Error> {
    let home = xenbus::path::home(domid);
    let errors = format!("{home}/error/backend/{}", below(key));
    permitted(store.remove(&errors))?;
    remove_empty(store, above(&errors), &format!("{home}/error"))?;
    remove_empty(store, above(&format!("{root}/{}", below(key))), root)
}

/// Removes a folder and those above it, up to `top`, as far as they are empty and this domain's.
fn remove_empty(store: &mut Client, folder: &str, top: &str) -> Result<(), Error> {
    let mut folder = folder;
    while folder.len() > top.len() {
        let removed = store.transaction(|tx| {
            let is_empty = !tx.exists(folder)? || tx.directory(folder)?.is_empty();
            if is_empty {
                tx.remove(folder)?;
            }
            Ok(is_empty)
        });
        if !permitted(removed)?.unwrap_or(false) {
            break;
        }
        folder = above(folder);
    }
    Ok(())
}

/// Returns nothing in place of the refusal of what only domain 0 may do.
fn permitted<T>(done: Result<T, xenstore::Error>) -> Result<Option<T>, Error> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.errno() == rustix::io::Errno::ACCESS.raw_os_error() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
