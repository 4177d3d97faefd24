//! A supervised backend: its process is found or started, ended where it is silent, and started
//! again.

use super::log::say;
use super::place::{BackendPlace, BackendStart};
use super::restarts::{ENDS_MAX, LASTED, Restarts};
use crate::host::daemons::HostDaemon;
use crate::host::process::DaemonProcess;
use crate::host::signs::{self, SignSocket};
use crate::{Error, text};
use rustix::process::{Signal, WaitOptions, WaitStatus, waitpid};
use std::time::{Duration, Instant};

/// The time that a backend has until its first sign of life: until it has the locks of one before
/// it, and has read what that left.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// The time between two attempts while another process starts daemons.
const BUSY_AGAIN: Duration = Duration::from_millis(50);
/// The time between two looks at a backend that systemd starts.
const SYSTEMD_AGAIN: Duration = Duration::from_secs(30);

/// A backend that is supervised.
#[derive(Debug)]
pub(super) struct SupervisedBackend {
    daemon: &'static HostDaemon,
    signs: SignSocket,
    state: BackendState,
    restarts: Restarts,
    /// The fault that is reported until it has lived long enough.
    fault: Option<String>,
    /// The fault of the last attempt to start it, which is said once.
    start_fault: Option<String>,
}

/// The state of a backend.
#[derive(Debug)]
enum BackendState {
    /// No process is known. It is started at this time.
    Away { start_at: Instant },
    /// Systemd has it, or is about to start it. It is looked at again at this time.
    Left { look_at: Instant },
    /// It runs.
    Runs(BackendRun),
}

/// A run of a backend.
#[derive(Debug)]
struct BackendRun {
    process: DaemonProcess,
    since: Instant,
    /// The time of its last sign of life; `None` where none is to be expected.
    heard: Option<Instant>,
    serves: bool,
    is_killed: bool,
}

impl BackendRun {
    fn of(process: DaemonProcess, now: Instant) -> Self {
        Self { process, since: now, heard: Some(now), serves: false, is_killed: false }
    }
}

impl SupervisedBackend {
    /// Begins to supervise a backend, whether it runs or not.
    ///
    /// # Errors
    /// Its signs of life cannot be heard.
    pub(super) fn new(daemon: &'static HostDaemon, place: &BackendPlace) -> Result<Self, Error> {
        let signs = SignSocket::bind(&place.signs(daemon)?)?;
        let state = BackendState::Away { start_at: Instant::now() };
        let (fault, start_fault) = (None, None);
        Ok(Self { daemon, signs, state, restarts: Restarts::default(), fault, start_fault })
    }

    /// Returns the row of its daemon.
    pub(super) fn daemon(&self) -> &'static HostDaemon {
        self.daemon
    }

    /// Returns what is wrong with it: a sentence.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// True if it serves; of one that is left to systemd, if it may.
    pub(super) fn serves(&self) -> bool {
        match &self.state {
            BackendState::Runs(run) => run.serves,
            BackendState::Left { .. } => true,
            BackendState::Away { .. } => false,
        }
    }

    /// Returns the socket of its signs.
    pub(super) fn signs(&self) -> &SignSocket {
        &self.signs
    }

    /// Returns its process, whose handle polls readable when it has ended.
    pub(super) fn process(&self) -> Option<&DaemonProcess> {
        match &self.state {
            BackendState::Runs(run) => Some(&run.process),
            _ => None,
        }
    }

    /// Does what is to be done now. Returns the time of the next look, which an event may bring
    /// forward.
    pub(super) fn look(&mut self, now: Instant, place: &BackendPlace) -> Option<Instant> {
        let is_heard = self.signs.take();
        match &mut self.state {
            BackendState::Away { start_at } if now < *start_at => Some(*start_at),
            BackendState::Left { look_at } if now < *look_at => Some(*look_at),
            BackendState::Away { .. } | BackendState::Left { .. } => self.start(now, place),
            BackendState::Runs(run) => {
                if run.process.ended(Duration::ZERO) {
                    return self.ended(now, place);
                }
                if is_heard {
                    run.heard = Some(now);
                    run.serves = true;
                }
                self.judge(now)
            }
        }
    }

    /// Looks at a backend that runs.
    fn judge(&mut self, now: Instant) -> Option<Instant> {
        let BackendState::Runs(run) = &mut self.state else { return None };
        if run.is_killed {
            return None;
        }
        let lasts_at = run.since + LASTED;
        if now >= lasts_at && self.fault.take().is_some() {
            say(&format!("{} runs well again", self.daemon.name()));
        }
        let silence =
            if run.serves { signs::silence() } else { signs::silence().max(STARTS_WITHIN) };
        let silent_at = run.heard.map(|heard| heard + silence);
        if silent_at.is_some_and(|at| now >= at) {
            let pid = run.process.pid.as_raw_nonzero();
            let (name, silence) = (self.daemon.name(), text::took(silence));
            say(&format!(
                "{name} (process {pid}) gives no sign of life for {silence}: it is killed"
            ));
            run.process.signal(Signal::KILL);
            (run.is_killed, run.serves) = (true, false);
            return None;
        }
        [silent_at, Some(lasts_at).filter(|_| self.fault.is_some())].into_iter().flatten().min()
    }

    /// Starts it, or goes on with a process that is there.
    fn start(&mut self, now: Instant, place: &BackendPlace) -> Option<Instant> {
        let name = self.daemon.name();
        if place.is_left_to_systemd(self.daemon) {
            if !matches!(self.state, BackendState::Left { .. }) {
                say(&format!("{name} is left to systemd, whose unit {name}.service starts it"));
            }
            let look_at = now + SYSTEMD_AGAIN;
            self.state = BackendState::Left { look_at };
            return Some(look_at);
        }
        match place.start(self.daemon) {
            Ok(BackendStart::Busy) => {
                let start_at = now + BUSY_AGAIN;
                self.state = BackendState::Away { start_at };
                Some(start_at)
            }
            Ok(BackendStart::Found(process)) => {
                let mut run = BackendRun::of(process, now);
                run.serves = true;
                // One that others have started may not know the socket.
                let knows = place.signs(self.daemon);
                if !knows.is_ok_and(|socket| signs::is_asked(run.process.pid, &socket)) {
                    run.heard = None;
                }
                self.state = BackendState::Runs(run);
                self.judge(now)
            }
            Ok(BackendStart::Spawned(child)) => {
                self.start_fault = None;
                // A child without a handle has ended already, which is found like any other end.
                match DaemonProcess::of(&child) {
                    Some(process) => {
                        let pid = child.id();
                        say(&format!("{name} is started (process {pid})"));
                        self.state = BackendState::Runs(BackendRun::of(process, now));
                        self.judge(now)
                    }
                    None => self.note_end(now, Duration::ZERO, "it has no handle", place),
                }
            }
            Err(error) => {
                let said = error.to_string();
                if self.start_fault.as_ref() != Some(&said) {
                    say(&format!("{name} cannot be started: {said}"));
                    self.start_fault = Some(said.clone());
                }
                self.note_end(now, Duration::ZERO, &said, place)
            }
        }
    }

    /// Takes the end of its process.
    fn ended(&mut self, now: Instant, place: &BackendPlace) -> Option<Instant> {
        let BackendState::Runs(run) = &self.state else { return None };
        let lived = now.duration_since(run.since);
        // One that an earlier supervisor has started is no child of this one.
        let status = waitpid(Some(run.process.pid), WaitOptions::NOHANG).ok().flatten();
        let how = status.map_or_else(|| "it has ended".into(), |(_, status)| words(status));
        say(&format!("{}: {how}, after {}", self.daemon.name(), text::took(lived)));
        self.note_end(now, lived, &how, place)
    }

    fn note_end(
        &mut self,
        now: Instant,
        lived: Duration,
        how: &str,
        place: &BackendPlace,
    ) -> Option<Instant> {
        let verdict = self.restarts.ended(now, lived);
        if verdict.is_often {
            let (name, log) = (self.daemon.name(), place.log_words(self.daemon));
            let fault =
                format!("{name} has ended {ENDS_MAX} times within a minute, last: {how}; {log}");
            if self.fault.as_ref() != Some(&fault) {
                say(&fault);
            }
            self.fault = Some(fault);
        }
        let start_at = now + verdict.delay;
        self.state = BackendState::Away { start_at };
        Some(start_at)
    }
}

/// Returns the words for the end of a process.
fn words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "it has ended".into(),
    }
}
