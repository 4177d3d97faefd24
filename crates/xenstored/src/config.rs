//! The command line and the environment, as one value.
//!
//! One table describes every option of C xenstored, 4.17 to 4.23; the parser and the help are made
//! from it. Parsing follows `getopt_long`: abbreviated long options, `--name=value` and
//! `--name value`, combined short options, values attached to short ones.
//! Source: `tools/xenstored/core.c` (`main`), `xenstored --help`.

use crate::Error;
use crate::paths::{self, Environment};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use xenstore_core::limits;

/// Whether going over a quota is refused or only reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuotaKind {
    /// Refused.
    Hard,
    /// A line in the log.
    Soft,
}

/// One quota as the command line sets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuotaSetting {
    /// One of [`HARD_QUOTAS`], or for a soft one of [`SOFT_QUOTAS`].
    pub name: &'static str,
    /// Refused or reported.
    pub kind: QuotaKind,
    /// In the unit of the quota: a count, or bytes.
    pub value: u32,
}

/// The quotas that `-Q` can set.
pub const HARD_QUOTAS: [&str; 9] = [
    "nodes",
    "watches",
    "transactions",
    "outstanding",
    "memory",
    "transaction-nodes",
    "node-permissions",
    "path-max",
    "node-size",
];

/// The quotas that `-q` can set.
pub const SOFT_QUOTAS: [&str; 1] = ["memory"];

/// Where the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the process that was started (`-N`); the log goes to stderr.
    Foreground,
    /// In a process of its own; the log goes to syslog.
    Background,
}

/// A thing that is done or left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    /// It is done.
    On,
    /// It is left out.
    Off,
}

/// How a daemon is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Foreground or background.
    pub mode: Mode,
    /// Where clients connect.
    pub socket: PathBuf,
    /// Where relative names of trace files lead.
    pub root_dir: PathBuf,
    /// Where the daemon's number is written once it accepts.
    pub pid_file: Option<PathBuf>,
    /// Whether that number is printed, too.
    pub print_pid: Switch,
    /// The trace of messages.
    pub trace_file: Option<PathBuf>,
    /// What is traced: each switch of [`crate::trace::SWITCHES`] that the command line changed.
    pub trace_switches: Vec<(usize, Switch)>,
    /// Whether the own domain's ring is served.
    pub own_ring: Switch,
    /// Whether debug lines go to the log.
    pub verbose: Switch,
    /// Quotas in the order of the command line; a later one replaces an earlier one.
    pub quotas: Vec<QuotaSetting>,
    /// How the core is set up.
    pub core: xenstore_core::server::Config,
}

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A daemon.
    Run(Box<Config>),
    /// The help text.
    Help,
}

/// Whether an option takes a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    None,
    Required(&'static str),
    Optional(&'static str),
}

/// What an option means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    NoDomainInit,
    PidFile,
    Help,
    NoFork,
    OutputPid,
    TraceFile,
    TraceControl,
    QuotaOf(&'static str),
    QuotaHard,
    QuotaSoft,
    Timeout,
    NoRecovery,
    InternalDb,
    KeepOrphans,
    Verbose,
    Event,
    StoreDomid,
    PrivDomid,
    LiveUpdate,
}

/// One option: short name, long name, value, meaning, help.
type Row = (Option<u8>, &'static str, Value, Meaning, &'static str);

const OPTIONS: [Row; 24] = [
    (
        Some(b'D'),
        "no-domain-init",
        Value::None,
        Meaning::NoDomainInit,
        "do not serve dom0's own ring",
    ),
    (
        Some(b'F'),
        "pid-file",
        Value::Required("<file>"),
        Meaning::PidFile,
        "write the daemon's pid there once it accepts connections",
    ),
    (Some(b'H'), "help", Value::None, Meaning::Help, "print this text"),
    (Some(b'N'), "no-fork", Value::None, Meaning::NoFork, "stay in the foreground; log to stderr"),
    (Some(b'P'), "output-pid", Value::None, Meaning::OutputPid, "print the daemon's pid"),
    (
        Some(b'T'),
        "trace-file",
        Value::Required("<file>"),
        Meaning::TraceFile,
        "trace every message into this file",
    ),
    (
        None,
        "trace-control",
        Value::Required("+|-<switch>"),
        Meaning::TraceControl,
        "trace more or less: obj io wrl acc tdb",
    ),
    (
        Some(b'E'),
        "entry-nb",
        Value::Required("<nb>"),
        Meaning::QuotaOf("nodes"),
        "quota of nodes per domain",
    ),
    (
        Some(b'S'),
        "entry-size",
        Value::Required("<size>"),
        Meaning::QuotaOf("node-size"),
        "quota of bytes per node",
    ),
    (
        Some(b'W'),
        "watch-nb",
        Value::Required("<nb>"),
        Meaning::QuotaOf("watches"),
        "quota of watches per domain",
    ),
    (
        Some(b't'),
        "transaction",
        Value::Required("<nb>"),
        Meaning::QuotaOf("transactions"),
        "quota of open transactions per domain",
    ),
    (
        Some(b'A'),
        "perm-nb",
        Value::Required("<nb>"),
        Meaning::QuotaOf("node-permissions"),
        "quota of permissions per node",
    ),
    (
        Some(b'M'),
        "path-max",
        Value::Required("<chars>"),
        Meaning::QuotaOf("path-max"),
        "longest path of a node, at most 2048",
    ),
    (
        Some(b'Q'),
        "quota",
        Value::Required("<what>=<nb>"),
        Meaning::QuotaHard,
        "set a quota: nodes, watches, transactions, outstanding, memory, transaction-nodes, node-permissions, path-max, node-size",
    ),
    (
        Some(b'q'),
        "quota-soft",
        Value::Required("<what>=<nb>"),
        Meaning::QuotaSoft,
        "set a quota that is only reported: memory",
    ),
    (
        Some(b'w'),
        "timeout",
        Value::Required("<what>=<seconds>"),
        Meaning::Timeout,
        "set a timeout: watch-event, how long an event may stay unread",
    ),
    (
        Some(b'R'),
        "no-recovery",
        Value::None,
        Meaning::NoRecovery,
        "accepted; the store is in memory and has nothing to recover",
    ),
    (
        Some(b'I'),
        "internal-db",
        Value::Optional("on|off"),
        Meaning::InternalDb,
        "accepted; the store is always in memory, off is refused",
    ),
    (
        Some(b'K'),
        "keep-orphans",
        Value::None,
        Meaning::KeepOrphans,
        "keep the nodes of dead domains (a security risk)",
    ),
    (Some(b'V'), "verbose", Value::None, Meaning::Verbose, "log more"),
    (
        Some(b'e'),
        "event",
        Value::Required("<port>"),
        Meaning::Event,
        "refused; belongs to a store in a stub domain",
    ),
    (
        Some(b'm'),
        "master-domid",
        Value::Required("<domid>"),
        Meaning::StoreDomid,
        "the domain that the daemon runs in; default 0",
    ),
    (
        Some(b'p'),
        "priv-domid",
        Value::Required("<domid>"),
        Meaning::PrivDomid,
        "the privileged domain; default as --master-domid",
    ),
    (Some(b'U'), "live-update", Value::None, Meaning::LiveUpdate, "refused; not supported yet"),
];

/// The help text.
#[must_use]
pub fn help() -> String {
    let mut text = String::from("Usage: xenstored <options>\n\n");
    for (short, long, value, _, what) in OPTIONS {
        let short = short.map_or("    ".into(), |short| format!("-{}, ", char::from(short)));
        let value = match value {
            Value::None => String::new(),
            Value::Required(name) => format!(" {name}"),
            Value::Optional(name) => format!("[={name}]"),
        };
        text.push_str(&format!("  {short}--{:<30} {what}\n", format!("{long}{value}")));
    }
    text.push_str(
        "\nEnvironment: XENSTORED_PATH (socket), XENSTORED_RUNDIR (directory of the socket; default\n\
         /run/xenstored), XENSTORED_ROOTDIR (directory of relative trace files; default\n\
         /var/lib/xenstored).\n",
    );
    text
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// [`Error::Usage`]: one sentence that says which option and why.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Asked, Error> {
    let mut config = Config {
        mode: Mode::Background,
        socket: PathBuf::new(),
        root_dir: paths::root_dir(environment),
        pid_file: None,
        print_pid: Switch::Off,
        trace_file: None,
        trace_switches: Vec::new(),
        own_ring: Switch::On,
        verbose: Switch::Off,
        quotas: Vec::new(),
        core: xenstore_core::server::Config::default(),
    };
    let mut priv_domain = None;
    let mut words = args.into_iter().map(OsString::into_vec).peekable();
    while let Some(word) = words.next() {
        for (row, value) in split_word(&word, &mut words)? {
            if row.3 == Meaning::Help {
                return Ok(Asked::Help);
            }
            if row.3 == Meaning::PrivDomid {
                priv_domain = Some(domid(row.1, &value)?);
            }
            apply(&mut config, row, &value, environment)?;
        }
    }
    config.core.priv_domain = priv_domain.unwrap_or(config.core.store_domain);
    config.socket = paths::socket(environment)?;
    Ok(Asked::Run(Box::new(config)))
}

/// The options in one word of the command line, which may take the next word as its value.
fn split_word(
    word: &[u8],
    words: &mut std::iter::Peekable<impl Iterator<Item = Vec<u8>>>,
) -> Result<Vec<(&'static Row, Vec<u8>)>, Error> {
    if word == b"--" {
        return match words.peek() {
            None => Ok(Vec::new()),
            Some(next) => Err(no_arguments(next)),
        };
    }
    if let Some(long) = word.strip_prefix(b"--") {
        let (name, attached) = match long.iter().position(|byte| *byte == b'=') {
            Some(at) => (&long[..at], Some(long[at + 1..].to_vec())),
            None => (long, None),
        };
        let row = find_long(name)?;
        return Ok(vec![(row, value_of(row, attached, words)?)]);
    }
    let letters = match word.strip_prefix(b"-") {
        Some(letters) if !letters.is_empty() => letters,
        _ => return Err(no_arguments(word)),
    };
    let mut found = Vec::new();
    for (at, letter) in letters.iter().enumerate() {
        let Some(row) = OPTIONS.iter().find(|row| row.0 == Some(*letter)) else {
            return Err(usage(format!("there is no option -{}", char::from(*letter))));
        };
        let rest = &letters[at + 1..];
        if row.2 == Value::None {
            found.push((row, Vec::new()));
            continue;
        }
        let attached = (!rest.is_empty()).then(|| rest.to_vec());
        found.push((row, value_of(row, attached, words)?));
        break;
    }
    Ok(found)
}

/// The option of this long name or of its only possible completion.
fn find_long(name: &[u8]) -> Result<&'static Row, Error> {
    let shown = String::from_utf8_lossy(name);
    if let Some(row) = OPTIONS.iter().find(|row| row.1.as_bytes() == name) {
        return Ok(row);
    }
    let mut matching = OPTIONS.iter().filter(|row| row.1.as_bytes().starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => Err(usage(format!("there is no option --{shown}"))),
        (Some(one), Some(other)) => {
            Err(usage(format!("--{shown} could be --{} or --{}", one.1, other.1)))
        }
    }
}

fn value_of(
    row: &Row,
    attached: Option<Vec<u8>>,
    words: &mut std::iter::Peekable<impl Iterator<Item = Vec<u8>>>,
) -> Result<Vec<u8>, Error> {
    match (row.2, attached) {
        (Value::None, None) => Ok(Vec::new()),
        (Value::None, Some(_)) => Err(usage(format!("--{} takes no value", row.1))),
        (_, Some(value)) => Ok(value),
        (Value::Required(what), None) => {
            words.next().ok_or_else(|| usage(format!("--{} needs a value: {what}", row.1)))
        }
        // The help of C xenstored shows the value as a word of its own, so that is taken, too.
        (Value::Optional(_), None) => {
            Ok(words.next_if(|next| next == b"on" || next == b"off").unwrap_or_default())
        }
    }
}

fn apply(
    config: &mut Config,
    row: &Row,
    value: &[u8],
    environment: &Environment,
) -> Result<(), Error> {
    let path = || environment.directory.join(OsStr::from_bytes(value));
    match row.3 {
        Meaning::NoDomainInit => config.own_ring = Switch::Off,
        Meaning::PidFile => config.pid_file = Some(path()),
        Meaning::NoFork => config.mode = Mode::Foreground,
        Meaning::OutputPid => config.print_pid = Switch::On,
        Meaning::TraceFile => {
            config.trace_file = Some(config.root_dir.join(OsStr::from_bytes(value)));
        }
        Meaning::TraceControl => {
            let switch = crate::trace::parse_switch(value).ok_or_else(|| {
                usage(format!(
                    "--trace-control={} is none of +obj -obj +io -io +wrl -wrl +acc -acc +tdb -tdb",
                    String::from_utf8_lossy(value)
                ))
            })?;
            config.trace_switches.push(switch);
        }
        Meaning::QuotaOf(name) => {
            let mut number = number(row.1, value)?;
            if name == "path-max" {
                number = number.min(limits::REL_PATH_MAX as u32);
            }
            config.quotas.push(QuotaSetting { name, kind: QuotaKind::Hard, value: number });
        }
        Meaning::QuotaHard => config.quotas.push(quota(row.1, value, QuotaKind::Hard)?),
        Meaning::QuotaSoft => config.quotas.push(quota(row.1, value, QuotaKind::Soft)?),
        Meaning::Timeout => {
            let (what, seconds) = pair(row.1, value)?;
            if what != b"watch-event" {
                let what = String::from_utf8_lossy(what);
                return Err(usage(format!("--timeout: only watch-event has one, not {what}")));
            }
            config.core.watch_event_timeout_us = u64::from(seconds) * 1_000_000;
        }
        Meaning::InternalDb if value == b"off" => {
            return Err(usage("--internal-db off is not possible: the store is always in memory"));
        }
        Meaning::InternalDb if !value.is_empty() && value != b"on" => {
            return Err(usage("--internal-db takes on or off"));
        }
        Meaning::KeepOrphans => {
            config.core.orphans = xenstore_core::server::Orphans::Keep;
        }
        Meaning::Verbose => config.verbose = Switch::On,
        Meaning::StoreDomid => config.core.store_domain = domid(row.1, value)?,
        Meaning::Event => {
            return Err(usage(
                "--event is for a store that runs in a stub domain; this one runs in a process",
            ));
        }
        Meaning::LiveUpdate => {
            return Err(usage("--live-update is not supported yet; start without it"));
        }
        Meaning::Help | Meaning::PrivDomid | Meaning::NoRecovery | Meaning::InternalDb => {}
    }
    Ok(())
}

fn quota(option: &str, value: &[u8], kind: QuotaKind) -> Result<QuotaSetting, Error> {
    let (what, value) = pair(option, value)?;
    let known: &[&'static str] = match kind {
        QuotaKind::Hard => &HARD_QUOTAS,
        QuotaKind::Soft => &SOFT_QUOTAS,
    };
    // The help of C xenstored says path-length, its table path-max; both are meant.
    let what = if what == b"path-length" { b"path-max" } else { what };
    let name = known.iter().find(|name| name.as_bytes() == what).ok_or_else(|| {
        let what = String::from_utf8_lossy(what);
        usage(format!("--{option}: no quota {what}; there are {}", known.join(", ")))
    })?;
    Ok(QuotaSetting { name, kind, value })
}

/// `<what>=<number>`.
fn pair<'a>(option: &str, value: &'a [u8]) -> Result<(&'a [u8], u32), Error> {
    let at = value
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or_else(|| usage(format!("--{option} takes <what>=<number>")))?;
    Ok((&value[..at], number(option, &value[at + 1..])?))
}

/// A number from 0 to 2^31 - 1, as the C daemon takes it.
fn number(option: &str, value: &[u8]) -> Result<u32, Error> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
        .filter(|number| i32::try_from(*number).is_ok())
        .ok_or_else(|| {
            let value = String::from_utf8_lossy(value);
            usage(format!("--{option}: \"{value}\" is no number from 0 to 2147483647"))
        })
}

fn domid(option: &str, value: &[u8]) -> Result<xenstore_core::server::DomId, Error> {
    let number = number(option, value)?;
    u16::try_from(number)
        .ok()
        .filter(|domid| *domid < limits::DOMID_FIRST_RESERVED)
        .map(xenstore_core::server::DomId)
        .ok_or_else(|| usage(format!("--{option}: {number} is no domain's number")))
}

fn no_arguments(word: &[u8]) -> Error {
    let word = String::from_utf8_lossy(word);
    usage(format!("\"{word}\" is no option, and xenstored takes nothing else"))
}

fn usage(text: impl Into<String>) -> Error {
    Error::Usage(text.into())
}
