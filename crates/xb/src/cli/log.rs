//! `xb log`.

mod find;
pub(super) mod lines;
mod moment;
pub(super) mod output;
mod print;

use super::options::GlobalOptions;
use super::out;
use crate::Error;
use crate::host::files::FileWatch;
use crate::wait::{self, Limit};
use clap::Args;
use find::{FoundLog, LogRange, WhichLife};
use moment::LogMoment;
use output::is_read;
use print::{LineStyle, LogPrinter};
use std::path::PathBuf;

/// The bytes of a log that are read at a time.
const BLOCK: usize = 64 << 10;

#[derive(Args, Debug)]
pub(crate) struct LogArguments {
    /// The guest's name, also of one that has ended, or its number.
    domain: String,
    /// Show what comes, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Show the last N lines only.
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
    /// Show what was printed since then: 10m, 2h or 1d ago, 2026-12-02, "2026-12-02 17:30" (local), or
    /// 2026-12-02T17:30:00Z.
    #[arg(long, value_name = "WHEN", value_parser = LogMoment::parse)]
    since: Option<LogMoment>,
    /// Put the time before each line.
    #[arg(long, short)]
    timestamps: bool,
    /// Show the guest's life before the last one.
    #[arg(long, short, conflicts_with = "follow")]
    previous: bool,
    /// The folder of the logs of xenconsoled, if it has another one.
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
}

pub(crate) fn run(options: &GlobalOptions, log: &LogArguments) -> Result<u8, Error> {
    let mut found = FoundLog::find(options, &log.domain, log.log_dir.as_deref())?;
    let which = if log.previous { WhichLife::Previous } else { WhichLife::Last };
    let life = found.life(which)?;
    let shown = choose(&found, log, life)?;
    let read = || Error::io(found.path.display());
    let end = shown.to.map_or_else(|| found.reader.end(), Ok).map_err(read())?;
    if life.from >= end {
        out::tell(options, &format!("{} has written nothing yet", found.name));
    } else if shown.from >= end && log.since.is_some() {
        out::tell(options, &format!("{} has written nothing since then", found.name));
    }
    found.reader.seek(shown.from).map_err(read())?;
    let style = match (options.json, log.timestamps) {
        (true, _) => LineStyle::Json,
        (false, true) => LineStyle::Stamped,
        (false, false) => LineStyle::Plain,
    };
    // What comes after the look at the end is for those who follow.
    let to = if log.follow { u64::MAX } else { end };
    show(&mut found, &mut LogPrinter::new(style), to, log.follow)
}

/// Chooses the part of a life that is shown.
fn choose(found: &FoundLog, log: &LogArguments, life: LogRange) -> Result<LogRange, Error> {
    let (mut from, reader) = (life.from, &found.reader);
    let read = || Error::io(found.path.display());
    let end = life.to.map_or_else(|| reader.end(), Ok).map_err(read())?;
    if let Some(since) = log.since {
        if !reader.has_times().map_err(read())? && from < end {
            return Err(Error::Refused(format!(
                "the log of {} has no times (no index of it is there); leave --since out",
                found.name
            )));
        }
        from = match reader.place_since(since.time_us).map_err(read())? {
            Some(place) if place < end => {
                reader.line_start(from, place.max(from)).map_err(read())?
            }
            _ => end,
        };
    }
    if let Some(lines) = log.tail {
        from = reader.last_lines(from, end, lines).map_err(read())?;
    }
    Ok(LogRange { from, to: life.to })
}

/// Shows a log up to a place, and what comes if it is followed.
fn show(
    found: &mut FoundLog,
    printer: &mut LogPrinter,
    to: u64,
    follow: bool,
) -> Result<u8, Error> {
    let FoundLog { path, reader, name, .. } = found;
    let mut buffer = vec![0; BLOCK];
    let mut watch = None;
    loop {
        while let Some(piece) = reader.next(&mut buffer, to).map_err(Error::io(path.display()))? {
            wait::check()?;
            if !is_read(printer.print(piece))? {
                return Ok(0);
            }
        }
        if !follow {
            is_read(printer.finish())?;
            return Ok(0);
        }
        if !is_read(printer.flush())? {
            return Ok(0);
        }
        let newest = reader.newest_start();
        reader.look_again().map_err(Error::io(path.display()))?;
        if reader.newest_start() != newest {
            watch = None;
            continue;
        }
        if watch.is_none() {
            // None while the log is set aside; a wait has an end, too.
            watch = FileWatch::of_file(path).ok();
        }
        let what = || format!("{name} prints");
        match &watch {
            Some(watch) => watch.wait(Limit::never(), &what)?,
            None => std::thread::sleep(Limit::never().slice(&what)?),
        }
    }
}
