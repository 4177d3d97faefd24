//! `xb host log`.

use crate::cli::log::lines::LineCollector;
use crate::cli::log::output::{ForeignOutput, is_read};
use crate::cli::options::GlobalOptions;
use crate::cli::out;
use crate::host::daemons::{self, DAEMONS, HostDaemon};
use crate::host::folder::{Folder, FolderContent};
use crate::host::{self, HostChoice};
use crate::wait::{self, Limit};
use crate::{Error, text};
use clap::Args;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use xen_console::log::{LogPiece, LogReader};

/// The bytes of a log that are read at a time.
const BLOCK: usize = 64 << 10;
/// The units of the daemons of a Xen host, by the daemons' names.
const UNITS: &[(&str, &str)] = &[
    ("xenstored", "xenbus-xenstored"),
    ("xenconsoled", "xenbus-xenconsoled"),
    ("xen-blockd", "xen-blockd"),
];

#[derive(Args, Debug)]
pub(crate) struct HostLogArguments {
    /// The daemon; all of them, one after the other, if none is named.
    daemon: Option<String>,
    /// Show what comes, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Show the last N lines of each daemon only.
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
}

/// The words before each line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LineHead {
    Nothing,
    /// The daemon's name.
    Daemon,
    /// None; the lines are an object each.
    Json,
}

/// The log of a daemon, as far as it was shown.
struct DaemonLog {
    daemon: &'static HostDaemon,
    path: PathBuf,
    reader: LogReader,
    line: LineCollector,
}

impl DaemonLog {
    /// Opens a log at its last lines; none if there is no log.
    fn open(
        daemon: &'static HostDaemon,
        folder: &Folder,
        tail: Option<u64>,
    ) -> Result<Option<Self>, Error> {
        let path = daemon.log(folder);
        // The keeper names it so when it bounds the log.
        let older = path.with_extension("1");
        let (name, older) = (path.file_name(), older.file_name());
        let names = (name.unwrap_or_default(), older.unwrap_or_default());
        let opened = match LogReader::open_names(&folder.logs(), names.0, names.1) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.and_then(|mut reader| {
                if let Some(lines) = tail {
                    let end = reader.end()?;
                    reader.seek(reader.last_lines(reader.start(), end, lines)?)?;
                }
                Ok(reader)
            }),
        };
        let reader = opened.map_err(Error::io(path.display()))?;
        Ok(Some(Self { daemon, path, reader, line: LineCollector::default() }))
    }

    /// Prints the lines that are there. Returns false if nobody reads them.
    fn print(
        &mut self,
        out: &mut ForeignOutput,
        head: LineHead,
        buffer: &mut [u8],
    ) -> Result<bool, Error> {
        let Self { daemon, path, reader, line } = self;
        while let Some(piece) = reader.next(buffer, u64::MAX).map_err(Error::io(path.display()))? {
            wait::check()?;
            let LogPiece::Output { bytes, .. } = piece else { continue };
            let mut tell = |line: &[u8], _| print_line(out, head, daemon, line);
            if !is_read(line.push(bytes, None, &mut tell))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints the line that has no end.
    fn finish(&mut self, out: &mut ForeignOutput, head: LineHead) -> io::Result<()> {
        self.line.finish(&mut |line, _| print_line(out, head, self.daemon, line))
    }
}

fn print_line(
    out: &mut ForeignOutput,
    head: LineHead,
    daemon: &HostDaemon,
    line: &[u8],
) -> io::Result<()> {
    match head {
        LineHead::Json => {
            let text = text::lossy(line.to_vec());
            return out.json(&json!({ "daemon": daemon.name(), "text": text }));
        }
        LineHead::Daemon => out.own(&format!("{} | ", daemon.name()))?,
        LineHead::Nothing => {}
    }
    out.foreign(line)?;
    out.own("\n")
}

/// Runs `xb host log`.
pub(super) fn run(options: &GlobalOptions, log: &HostLogArguments) -> Result<u8, Error> {
    let folder = match options.choice() {
        HostChoice::Hosted(folder) => folder,
        HostChoice::Xen => return Err(on_xen(log.daemon.as_deref())),
    };
    if folder.look()? != FolderContent::Host {
        return Err(host::is_down(&folder));
    }
    let named = match &log.daemon {
        Some(name) => vec![find(name)?],
        None => DAEMONS.iter().collect(),
    };
    let mut logs = Vec::new();
    for daemon in &named {
        match DaemonLog::open(daemon, &folder, log.tail)? {
            Some(log) => logs.push(log),
            None => out::tell(options, &format!("{} has written nothing yet", daemon.name())),
        }
    }
    let head = match (options.json, named.len()) {
        (true, _) => LineHead::Json,
        (false, 2..) if log.follow => LineHead::Daemon,
        (false, _) => LineHead::Nothing,
    };
    let mut out = ForeignOutput::of_standard_output();
    if log.follow {
        follow(&folder, &mut logs, &mut out, head)
    } else {
        // Their lines have no common order: most have no time.
        let has_headings = head == LineHead::Nothing && named.len() > 1;
        show(&mut logs, &mut out, head, has_headings.then_some("==> "))
    }
}

/// Shows one log after the other, each behind a heading where that has a `mark`.
fn show(
    logs: &mut [DaemonLog],
    out: &mut ForeignOutput,
    head: LineHead,
    mark: Option<&str>,
) -> Result<u8, Error> {
    let mut buffer = vec![0; BLOCK];
    let mut gap = "";
    for log in logs {
        if let Some(mark) = mark {
            let heading = format!("{gap}{mark}{} ({})\n", log.daemon.name(), log.path.display());
            if !is_read(out.own(&heading))? {
                return Ok(0);
            }
            gap = "\n";
        }
        if !log.print(out, head, &mut buffer)? || !is_read(log.finish(out, head))? {
            return Ok(0);
        }
    }
    is_read(out.flush())?;
    Ok(0)
}

/// Shows all logs, and what comes.
fn follow(
    folder: &Folder,
    logs: &mut [DaemonLog],
    out: &mut ForeignOutput,
    head: LineHead,
) -> Result<u8, Error> {
    let mut buffer = vec![0; BLOCK];
    let watch = folder.watch_logs().map_err(Error::io(folder.logs().display()))?;
    loop {
        for log in &mut *logs {
            if !log.print(out, head, &mut buffer)? {
                return Ok(0);
            }
            log.reader.look_again().map_err(Error::io(log.path.display()))?;
        }
        if !is_read(out.flush())? {
            return Ok(0);
        }
        watch.wait(Limit::never(), &|| "a daemon writes".into())?;
    }
}

/// Finds a daemon by its name.
fn find(name: &str) -> Result<&'static HostDaemon, Error> {
    let found = DAEMONS.iter().find(|daemon| daemon.name() == name);
    found.ok_or_else(|| {
        let all = daemons::words(HostDaemon::name);
        Error::NotFound(format!("there is no daemon {}; there are: {all}", text::short(name)))
    })
}

/// Returns the sentence that says where the daemons of a Xen host write.
fn on_xen(named: Option<&str>) -> Error {
    let is_wanted = |daemon: &str| named.is_none_or(|named| named == daemon);
    let mut units: Vec<&str> =
        UNITS.iter().filter(|(name, _)| is_wanted(name)).map(|(_, unit)| *unit).collect();
    if units.is_empty() {
        units = UNITS.iter().map(|(_, unit)| *unit).collect();
    }
    Error::Refused(format!(
        "on a Xen host the daemons write into the system's journal: journalctl -u {}; what xl and QEMU write \
         is in /var/log/xen",
        units.join(" -u ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_that_are_installed() {
        let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (name, unit) in UNITS {
            let of = |folder: &str| crates.join(folder).join(format!("systemd/{unit}.service"));
            let is_there = |folder: &&str| of(folder).exists();
            assert!(["xenstored", "xen-console", "xen-block"].iter().any(is_there), "{name}");
        }
    }

    #[test]
    fn a_xen_host_says_where_its_daemons_write() {
        let all = on_xen(None).to_string();
        let units = "journalctl -u xenbus-xenstored -u xenbus-xenconsoled -u xen-blockd; ";
        assert!(all.contains(units) && all.contains("/var/log/xen"), "{all}");
        assert_eq!(on_xen(Some("keeper")).to_string(), all);
        let one = on_xen(Some("xenconsoled")).to_string();
        assert!(one.contains("journalctl -u xenbus-xenconsoled; "), "{one}");
        assert_eq!(on_xen(None).exit_code(), 1);
    }
}
