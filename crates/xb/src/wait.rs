//! Waiting: always for something that has a name, never for ever, and Ctrl-C ends it.
//!
//! SIGTERM and SIGHUP end `xb` at once, whoever does not answer: a domain that was being created is undone by the broker and
//! the keeper, and a disk that was being attached or detached comes or goes by itself. Only a host that `xb` is bringing
//! up is taken down first ([`Signals::All`]).

use crate::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use xenstore::Client;

/// How soon a wait notices Ctrl-C; nothing else depends on it.
const NOTICE: Duration = Duration::from_millis(50);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// This is for ever.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What a process ends with that was interrupted: 128 and SIGINT's number.
const INTERRUPTED_CODE: i32 = 130;

/// The signals that end waits instead of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signals {
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGINT, SIGTERM and SIGHUP: for what nobody else would undo.
    All,
}

/// From now on these signals end waits instead of the process, so that what was begun is undone. A second one ends the
/// process.
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

/// How many are undoing something.
static UNDOING: AtomicUsize = AtomicUsize::new(0);

/// Undoes something: a Ctrl-C before it is forgotten, one that comes meanwhile does not stop it, and only the second
/// of those ends the process.
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

/// What takes longer than this is told of.
const LONG: Duration = Duration::from_secs(1);

/// What was told last, where that is done.
static TOLD: Mutex<Option<String>> = Mutex::new(None);

/// From now on waits that take long are told of on standard error, once each.
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

/// How long something may take.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    after: Duration,
    begin: Instant,
    end: Instant,
}

impl Limit {
    /// From now.
    #[must_use]
    pub fn new(after: Duration) -> Self {
        let after = after.min(CENTURY);
        let begin = Instant::now();
        Self { after, begin, end: begin + after }
    }

    /// At most so long from now, and no longer than this.
    #[must_use]
    pub fn within(&self, after: Duration) -> Self {
        let other = Self::new(after);
        if other.end < self.end { other } else { *self }
    }

    /// Without an end, for what is meant to take its time: not told of.
    #[must_use]
    pub fn never() -> Self {
        Self::new(Duration::MAX)
    }

    /// How long the next sleep may be.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `what`, [`Error::Interrupted`].
    pub fn slice(&self, what: &dyn Fn() -> String) -> Result<Duration, Error> {
        check()?;
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: what(), after: self.after });
        }
        if self.begin.elapsed() >= LONG && self.after < CENTURY {
            tell_of(&what());
        }
        Ok(left.min(NOTICE))
    }

    /// Waits until `done` answers; asks it at once, and again after each event of the store.
    ///
    /// # Errors
    /// As [`Limit::slice`], and what `done` says.
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
            // All that has come is looked at together.
            while store.poll_event()?.is_some() {}
        }
    }
}
