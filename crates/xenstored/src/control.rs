//! The commands of CONTROL that concern the daemon and not the store.
//!
//! Source: `tools/xenstored/control.c`, `docs/misc/xenstore.txt`. `stats` is this project's own.

use crate::event_loop::DaemonIo;
use crate::trace;
use daemon::Level;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use xenstore_core::wire::Error;

/// One line of help for each command that [`answer`] knows, in the layout of C xenstored.
pub(crate) const HELP: [(&str, &str); 6] = [
    ("log", "[on|off|+<switch>|-<switch>]"),
    ("live-update", "(not supported yet)"),
    ("logfile", "<file>"),
    ("memreport", "[<file>]"),
    ("print", "<string>"),
    ("stats", "[json] [<domid>] | domains [<from domid>]"),
];

type ControlReply = Result<Vec<u8>, Error>;

/// Answers a command; `None` if it is none of the daemon's.
pub(crate) fn answer(io: &mut DaemonIo, command: &[u8], args: &[&[u8]]) -> Option<ControlReply> {
    Some(match command {
        b"log" => log(io, args),
        b"logfile" => logfile(io, args),
        b"memreport" => memreport(io, args),
        b"print" => print(io, args),
        b"stats" => stats(io, args),
        // xenstore-control shows every answer other than "OK" as the reason of a failure.
        b"live-update" => text("live update is not supported yet by this xenstored"),
        b"help" => help(args),
        _ => return None,
    })
}

fn ok() -> ControlReply {
    Ok(b"OK".to_vec())
}

fn text(text: impl Into<String>) -> ControlReply {
    let mut bytes = text.into().into_bytes();
    // The core adds a NUL at the end.
    bytes.truncate(xenstore_core::limits::PAYLOAD_MAX - 1);
    Ok(bytes)
}

fn help(args: &[&[u8]]) -> ControlReply {
    if !args.is_empty() {
        return Err(Error::Inval);
    }
    let mut lines = String::new();
    for (command, pars) in HELP {
        let _ = writeln!(lines, "{command:<15} {pars}");
    }
    text(lines)
}

fn log(io: &mut DaemonIo, args: &[&[u8]]) -> ControlReply {
    match args {
        [] => {
            let mut lines = String::from("Log switch settings:\n");
            for (name, on) in io.trace.switches() {
                let _ = writeln!(lines, "{name:<8}: {}", if on { "on" } else { "off" });
            }
            text(lines)
        }
        [b"on"] => {
            io.reopen_trace();
            ok()
        }
        [b"off"] => {
            io.trace.close();
            ok()
        }
        [switch] => {
            io.trace.set_switch(trace::parse_switch(switch).ok_or(Error::Inval)?);
            ok()
        }
        _ => Err(Error::Inval),
    }
}

fn logfile(io: &mut DaemonIo, args: &[&[u8]]) -> ControlReply {
    let [name] = args else { return Err(Error::Inval) };
    let path = absolute(io, name)?;
    if let Err(error) = io.trace.set_path(path) {
        io.log.line(Level::Warn, "", &format!("the new trace file cannot be opened: {error}"));
        return Err(Error::Io);
    }
    ok()
}

/// Returns a file's name as the administrator wrote it, relative to the root directory.
fn absolute(io: &DaemonIo, name: &[u8]) -> Result<PathBuf, Error> {
    if name.is_empty() {
        return Err(Error::Inval);
    }
    Ok(io.root_dir.join(OsStr::from_bytes(name)))
}

fn print(io: &mut DaemonIo, args: &[&[u8]]) -> ControlReply {
    let [what] = args else { return Err(Error::Inval) };
    let line = format!("control: {}", String::from_utf8_lossy(what));
    io.log.line(Level::Info, "", &line);
    io.trace.note(&line.escape_default().to_string());
    ok()
}

/// Appends a report of the daemon's memory to a file, or to the trace file.
fn memreport(io: &mut DaemonIo, args: &[&[u8]]) -> ControlReply {
    let path = match args {
        [] => io.trace.path().map(PathBuf::from).ok_or(Error::Inval)?,
        [name] => absolute(io, name)?,
        _ => return Err(Error::Inval),
    };
    io.trace.flush();
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(report(io).as_bytes()));
    if let Err(error) = written {
        let text = format!("memreport into {}: {error}", path.display());
        io.log.line(Level::Warn, "", &text);
        return Err(Error::Io);
    }
    ok()
}

fn report(io: &DaemonIo) -> String {
    let mut text = String::from("memory of the process:\n");
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("Vm") || line.starts_with("Rss")) {
        let _ = writeln!(text, "  {line}");
    }
    let (mut connections, mut input) = (0_usize, 0_usize);
    for (_, connection) in io.connections.iter() {
        connections += 1;
        input += connection.pending.capacity();
    }
    let _ = writeln!(text, "connections: {connections}, unread input: {input} bytes");
    text
}

fn stats(io: &mut DaemonIo, args: &[&[u8]]) -> ControlReply {
    let domid = |arg: &[u8]| -> Result<u16, Error> {
        std::str::from_utf8(arg).ok().and_then(|text| text.parse().ok()).ok_or(Error::Inval)
    };
    match args {
        [] => text(io.stats.text()),
        [b"json"] => text(io.stats.json()),
        [b"domains"] => text(io.stats.domains_json(0)),
        [b"domains", from] => text(io.stats.domains_json(domid(from)?)),
        [b"json", of] => text(io.stats.domain_json(domid(of)?).ok_or(Error::NoEnt)?),
        [of] => text(io.stats.domain_text(domid(of)?).ok_or(Error::NoEnt)?),
        _ => Err(Error::Inval),
    }
}
