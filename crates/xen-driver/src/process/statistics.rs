//! The counters of all devices, for tools: a file beside the records.
//!
//! Its first line is `at` and the time of its writing, then comes a line for each device, and the last
//! line is `end` and the same time: with another time there, a reader has met a writing.
//!
//! The file costs nothing while nothing happens: an idle process sleeps. What has changed is written
//! soon after the last request, or while requests come without end each [`LOOK_AROUND`]. A reader that
//! wants to see more holds a shared lock of the file (flock(2)): then it is written each
//! [`FRESH_EVERY`] in which something has changed.

use super::clock::coarse_time;
use super::report::write_line;
use crate::backend::{Backend, BackendServer, Buses};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xenbus::{Bus, Driver};

/// The time without a request after which the file is written, and the interval of its writings while
/// somebody looks: with two of them a second, each look a second finds another one.
pub const FRESH_EVERY: Duration = Duration::from_millis(500);
/// The longest interval of writings while something changes, also if nobody looks; and the time
/// between two looks for changes of devices.
pub(super) const LOOK_AROUND: Duration = Duration::from_secs(5);

/// The file `stats`. A line is the kind, the device, and its [`Backend::statistics`].
pub(super) struct Statistics {
    /// The name of the program.
    name: &'static str,
    path: PathBuf,
    file: std::io::Result<File>,
    written: String,
    /// The fault with it has been said.
    said: bool,
    schedule: WriteSchedule,
}

impl Statistics {
    pub(super) fn create(name: &'static str, record_dir: &Path) -> Self {
        let path = record_dir.join("stats");
        let schedule = WriteSchedule::default();
        Self {
            name,
            file: File::create(&path),
            path,
            written: String::new(),
            said: false,
            schedule,
        }
    }

    /// Returns the longest time that the server may sleep before [`Statistics::write_if_due`].
    pub(super) fn patience(&self) -> Duration {
        if self.schedule.changed { FRESH_EVERY } else { LOOK_AROUND }
    }

    /// Writes the file if it is time, after something may have changed.
    pub(super) fn write_if_due<B: Driver + Backend>(
        &mut self,
        server: &mut BackendServer<Buses<B>>,
        kinds: &[&str],
        change: CounterChange,
    ) {
        let Self { schedule, file, .. } = self;
        if schedule.is_due(coarse_time(), change, || file.as_ref().is_ok_and(is_looked_at)) {
            self.write(server, kinds);
        }
    }

    /// Writes it anew where anything has changed. Devices are served without it as well.
    pub(super) fn write<B: Driver + Backend>(
        &mut self,
        server: &mut BackendServer<Buses<B>>,
        kinds: &[&str],
    ) {
        self.schedule.note_written(coarse_time());
        let lines = lines(server, kinds);
        if lines == self.written {
            return;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::try_from(now).unwrap_or_default().as_micros();
        let text = format!("at {now}\n{lines}end {now}\n");
        let written = match &self.file {
            Ok(file) => file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        };
        match written {
            Ok(()) => self.written = lines,
            Err(error) if !self.said => {
                self.said = true;
                let path = self.path.display();
                write_line(
                    self.name,
                    format_args!("no statistics: {path}: {error}; devices are served without"),
                );
            }
            Err(_) => {}
        }
    }
}

/// True if somebody holds a shared lock of the file.
fn is_looked_at(file: &File) -> bool {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // At the end of the process it would be given back, too.
            let _ = flock(file, FlockOperation::Unlock);
            false
        }
        Err(errno) => errno == rustix::io::Errno::WOULDBLOCK,
    }
}

/// The change of counters since the last call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CounterChange {
    /// None.
    None,
    /// Requests were taken or answered.
    Requests,
    /// Devices have come, gone, or changed their state.
    Devices,
}

/// The times at which the file is written; all by the same clock.
#[derive(Default)]
struct WriteSchedule {
    /// Something may have changed since the file was written.
    changed: bool,
    /// Devices have changed since: that is written whoever looks.
    devices_changed: bool,
    /// The time of the last change.
    changed_at: Duration,
    /// The time of the last writing.
    written_at: Duration,
    /// The time at which it was last asked if somebody looks.
    asked_at: Duration,
}

impl WriteSchedule {
    /// True if the file is to be written now. It is asked at most each [`FRESH_EVERY`] if somebody
    /// looks.
    fn is_due(
        &mut self,
        now: Duration,
        change: CounterChange,
        is_looked_at: impl FnOnce() -> bool,
    ) -> bool {
        if change != CounterChange::None {
            (self.changed, self.changed_at) = (true, now);
            self.devices_changed |= change == CounterChange::Devices;
        }
        let since = |then: Duration| now.saturating_sub(then);
        if !self.changed || since(self.written_at) < FRESH_EVERY {
            return false;
        }
        if self.devices_changed || since(self.changed_at) >= FRESH_EVERY {
            return true;
        }
        if since(self.asked_at) < FRESH_EVERY {
            return false;
        }
        self.asked_at = now;
        is_looked_at()
    }

    fn note_written(&mut self, now: Duration) {
        (self.changed, self.devices_changed, self.written_at) = (false, false, now);
    }
}

fn lines<B: Driver + Backend>(server: &mut BackendServer<Buses<B>>, kinds: &[&str]) -> String {
    let mut lines = String::new();
    for kind in kinds {
        for (id, back) in server.bus(kind).into_iter().flat_map(Bus::drivers) {
            lines.push_str(&format!("{kind} {id} {}\n", back.statistics()));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_idle_process_is_not_asked_for_anything() {
        let mut schedule = WriteSchedule::default();
        for second in 1..20 {
            let asked = || unreachable!("nothing has changed");
            assert!(!schedule.is_due(second * 1000 * MS, CounterChange::None, asked));
        }
    }

    #[test]
    fn what_has_changed_is_written_once_it_is_quiet() {
        let mut schedule = WriteSchedule::default();
        assert!(!schedule.is_due(10_000 * MS, CounterChange::Requests, || false));
        assert!(!schedule.is_due(10_499 * MS, CounterChange::None, || false));
        assert!(schedule.is_due(10_500 * MS, CounterChange::None, || false));
        schedule.note_written(10_500 * MS);
        assert!(
            !schedule.is_due(20_000 * MS, CounterChange::None, || true),
            "nothing has changed since"
        );
    }

    #[test]
    fn devices_that_come_are_written_whoever_looks() {
        let mut schedule = WriteSchedule::default();
        assert!(schedule.is_due(10_000 * MS, CounterChange::Devices, || false));
        schedule.note_written(10_000 * MS);
        assert!(
            !schedule.is_due(10_100 * MS, CounterChange::Devices, || false),
            "not each at once"
        );
        assert!(schedule.is_due(10_500 * MS, CounterChange::Requests, || false));
    }

    #[test]
    fn a_busy_process_writes_for_somebody_who_looks() {
        let mut schedule = WriteSchedule::default();
        let (mut asked, mut written) = (0, 0);
        for looks in [false, true] {
            for turn in 0..1000 {
                let now = (if looks { 20_000 } else { 10_000 } + turn * 5) * MS;
                let due = schedule.is_due(now, CounterChange::Requests, || {
                    asked += 1;
                    looks
                });
                if due {
                    assert!(looks);
                    written += 1;
                    schedule.note_written(now);
                }
            }
        }
        assert_eq!((asked, written), (20, 10), "two of each a second");
    }

    #[test]
    fn a_shared_lock_tells_that_somebody_looks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        let file = File::create(&path).unwrap();
        assert!(!is_looked_at(&file));
        let reader = File::open(&path).unwrap();
        flock(&reader, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(is_looked_at(&file));
        drop(reader);
        assert!(!is_looked_at(&file));
    }
}
