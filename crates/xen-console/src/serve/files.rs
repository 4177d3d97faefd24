//! The files of a console: its log, its record, and the format of the log.

use super::console::time_us;
use super::settings::ConsoleSettings;
use crate::feed::ConsoleFiles;
use crate::log::ConsoleLog;
use crate::record::ConsoleRecord;
use std::io;
use xenbus::Id;

/// Opens the files of a console, in this life of its domain. `log` is the name that its log is to have;
/// another console may have it already. The error is that of the log, without which a console is served
/// all the same.
pub(super) fn open_files(
    settings: &ConsoleSettings,
    console: Id,
    log: Option<String>,
    life: u64,
) -> (ConsoleFiles, Option<io::Error>) {
    let record = settings.open_record(console);
    let log = log.map(|wanted| settings.open_log(&settings.log_names.claim(console, wanted)));
    let (log, failure) = match log.transpose() {
        Ok(log) => (log.flatten(), None),
        Err(error) => (None, Some(error)),
    };
    let mut format = settings.guest_format();
    let log = log.map(|mut log| {
        // An index that cannot be written costs times, and no output.
        let _ = note_life(&mut log, record.as_ref(), life, console);
        if let Some(format) = &mut format {
            log.append(format.opened(time_us()), time_us());
        }
        log
    });
    (ConsoleFiles { log, record, format }, failure)
}

/// Notes in the index of a log that a life of the domain begins, or that an earlier process's goes on.
fn note_life(
    log: &mut ConsoleLog,
    record: Option<&ConsoleRecord>,
    life: u64,
    console: Id,
) -> io::Result<()> {
    let recorded = record.and_then(ConsoleRecord::read).map(|state| state.life);
    if recorded == Some(life) {
        log.resume(time_us())
    } else {
        log.begin_life(console.frontend.0, time_us())
    }
}
