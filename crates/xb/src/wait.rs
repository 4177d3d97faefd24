//! Waiting: every wait names its event, has an end, and is ended by Ctrl-C.
//!
//! SIGTERM and SIGHUP end `xb` at once, also while a daemon does not answer: the broker and the
//! keeper undo a domain that was being created, and a disk that was being attached or detached
//! comes or goes by itself. Only a host that `xb` is bringing up is taken down first
//! ([`Signals::All`]).

use crate::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use xenstore::Client;

/// The longest time until a wait notices Ctrl-C; nothing else depends on it.
const NOTICE: Duration = Duration::from_millis(50);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The time that stands for no limit.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The exit status of a process that was interrupted: 128 and SIGINT's number.
const INTERRUPTED_CODE: i32 = 130;

/// The signals that end waits instead of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signals {
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGINT, SIGTERM and SIGHUP: for operations that nobody else would undo.
    All,
}

/// Makes these signals end waits instead of the process, so that unfinished operations are undone.
/// A second signal ends the process.
pub fn catch_signals(signals: Signals) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let flag = INTERRUPTED.get_or_init(Arc::default);
    let signals = match signals {
        Signals::Interrupt => &[SIGINT][..],
        Signals::All => &[SIGINT, SIGTERM, SIGHUP],
    };
    for signal in signals.iter().copied() {
        // Both fail for signals that nobody may catch; these may be. In this order the first signal only sets the
        // flag, which the second finds set.
        let _ = signal_hook::flag::register_conditional_shutdown(
            signal,
            INTERRUPTED_CODE,
            Arc::clone(flag),
        );
        let _ = signal_hook::flag::register(signal, Arc::clone(flag));
    }
}

/// The number of operations that are being undone.
static UNDOING: AtomicUsize = AtomicUsize::new(0);

/// Undoes something. A Ctrl-C before it is forgotten, and one that comes meanwhile does not stop
/// it; a second one then ends the process.
pub fn undo<T>(body: impl FnOnce() -> T) -> T {
    UNDOING.fetch_add(1, Ordering::SeqCst);
    if let Some(flag) = INTERRUPTED.get() {
        flag.store(false, Ordering::SeqCst);
    }
    let done = body();
    UNDOING.fetch_sub(1, Ordering::SeqCst);
    done
}

/// # Errors
/// [`Error::Interrupted`] after a Ctrl-C, but while something is undone.
pub fn check() -> Result<(), Error> {
    match INTERRUPTED.get() {
        Some(flag) if flag.load(Ordering::SeqCst) && UNDOING.load(Ordering::SeqCst) == 0 => {
            Err(Error::Interrupted)
        }
        _ => Ok(()),
    }
}

/// The time after which a wait is reported.
const LONG: Duration = Duration::from_secs(1);

/// The last wait that was reported; `None` where waits are not reported.
static TOLD: Mutex<Option<String>> = Mutex::new(None);

/// Reports waits that take long on standard error from now on, once each.
pub fn tell_of_long_ones() {
    *TOLD.lock().unwrap_or_else(PoisonError::into_inner) = Some(String::new());
}

fn tell_of(what: &str) {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(told) = told.as_mut().filter(|told| *told != what) {
        eprintln!("xb: waiting until {}", crate::text::clean(what));
        what.clone_into(told);
    }
}

/// The longest time that undoing may take.
const UNDONE_WITHIN_MAX: Duration = Duration::from_secs(10);
/// The time that undoing has even if the operation had none: a domain takes a moment to end.
const UNDONE_WITHIN_MIN: Duration = Duration::from_secs(1);

/// The longest time that an operation may take.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    after: Duration,
    begin: Instant,
    end: Instant,
}

impl Limit {
    /// Makes a limit that begins now.
    #[must_use]
    pub fn new(after: Duration) -> Self {
        let after = after.min(CENTURY);
        let begin = Instant::now();
        Self { after, begin, end: begin + after }
    }

    /// Makes a limit of `after` from now that ends no later than this one.
    #[must_use]
    pub fn within(&self, after: Duration) -> Self {
        let other = Self::new(after);
        if other.end < self.end { other } else { *self }
    }

    /// Makes a limit for undoing what this one was for: as long again from now, within bounds.
    #[must_use]
    pub fn for_undoing(&self) -> Self {
        Self::new(self.after.clamp(UNDONE_WITHIN_MIN, UNDONE_WITHIN_MAX))
    }

    /// Makes a limit without an end, for operations that may take any time; waits under it are not
    /// reported.
    #[must_use]
    pub fn never() -> Self {
        Self::new(Duration::MAX)
    }

    /// Returns the longest time that the next sleep may take.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `what`, [`Error::Interrupted`].
    pub fn slice(&self, what: &dyn Fn() -> String) -> Result<Duration, Error> {
        check()?;
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: what(), after: self.after, reason: None });
        }
        if self.begin.elapsed() >= LONG && self.after < CENTURY {
            tell_of(&what());
        }
        Ok(left.min(NOTICE))
    }

    /// Waits until `done` returns a value; it is called at once, and again after each event of the
    /// store.
    ///
    /// # Errors
    /// The errors of [`Limit::slice`], and those of `done`.
    pub fn until<T>(
        &self,
        store: &mut Client,
        what: &dyn Fn() -> String,
        mut done: impl FnMut(&mut Client) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            if let Some(answer) = done(store)? {
                return Ok(answer);
            }
            loop {
                let slice = self.slice(what)?;
                if store.next_event(Some(slice))?.is_some() {
                    break;
                }
            }
            // All events that have come are handled together.
            while store.poll_event()?.is_some() {}
        }
    }
}
