//! The verdict on one run: it holds, or the reason why it does not and the last steps.

use crate::plan::RunTrace;
use crate::subject::Subject;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// The time after which a run counts as hung. A normal run takes a hundredth of a second.
const HANGS: Duration = Duration::from_secs(60);

/// A run that did not hold.
#[derive(Debug)]
pub struct FailedRun {
    /// The kind of run.
    pub subject: Subject,
    /// Its seed.
    pub seed: u64,
    /// The check that did not hold.
    pub why: String,
    /// The last steps.
    pub trace: Vec<String>,
}

impl fmt::Display for FailedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Self { subject, seed, why, .. } = self;
        writeln!(f, "seed {seed} fails: {why}")?;
        write!(f, "to repeat it: {}", subject.command(*seed))
    }
}

impl std::error::Error for FailedRun {}

/// Returns the verdict on a run, which may panic.
pub(crate) fn verdict<R>(
    subject: Subject,
    seed: u64,
    trace: &RunTrace,
    body: impl FnOnce() -> Result<R, String>,
) -> Result<R, FailedRun> {
    let ran = run_with_watchdog(subject, seed, || catch_unwind(AssertUnwindSafe(body)));
    let why = match ran {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("a panic: {}", text.unwrap_or_default())
        }
    };
    Err(FailedRun { subject, seed, why, trace: trace.take() })
}

/// Ends the process if a run hangs, because a round of the daemon that never returns cannot be left
/// otherwise. The run itself has one thread; the second one only waits for it.
fn run_with_watchdog<R>(subject: Subject, seed: u64, body: impl FnOnce() -> R) -> R {
    let (ended, ends) = channel::<()>();
    let dog = std::thread::spawn(move || {
        if ends.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            let seconds = HANGS.as_secs();
            eprintln!("seed {seed} fails: the host is still amid one step after {seconds} s");
            eprintln!("to repeat it: {}", subject.command(seed));
            std::process::exit(1);
        }
    });
    let result = body();
    drop(ended);
    // The thread has no result that could fail.
    let _ = dog.join();
    result
}
