//! The configuration of a daemon, from the command line and the environment.
//!
//! One table (`options`) describes every option of C xenstored, 4.17 to 4.23. The parser and the
//! help use it. Source: `tools/xenstored/core.c` (`main`), `xenstored --help`.

use crate::Error;
use crate::options::{self, Meaning, OptionRow};
use crate::paths::{self, Environment};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use xenstore_core::limits;

pub use crate::switch::Switch;

/// The effect of a request that would exceed a quota: it is refused or only reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuotaKind {
    /// The request is refused.
    Hard,
    /// The daemon writes a line to the log.
    Soft,
}

/// One quota as the command line sets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuotaSetting {
    /// The name: one of [`HARD_QUOTAS`], or for a soft quota one of [`SOFT_QUOTAS`].
    pub name: &'static str,
    /// The kind of the quota.
    pub kind: QuotaKind,
    /// The value in the unit of the quota: a count, or bytes.
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

/// The process in which the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The process that was started (`-N`). The log goes to stderr.
    Foreground,
    /// A process of the daemon's own. The log goes to syslog.
    Background,
}

/// The configuration of a daemon.
#[derive(Clone, Debug)]
pub struct Config {
    /// Foreground or background.
    pub mode: Mode,
    /// The path of the socket for clients.
    pub socket: PathBuf,
    /// The directory of trace files with relative names.
    pub root_dir: PathBuf,
    /// The file for the daemon's pid, written once the daemon accepts connections.
    pub pid_file: Option<PathBuf>,
    /// On if the pid is also printed.
    pub print_pid: Switch,
    /// The file for the trace of messages.
    pub trace_file: Option<PathBuf>,
    /// The traced parts: each switch of [`crate::trace::SWITCHES`] that the command line changed.
    pub trace_switches: Vec<(usize, Switch)>,
    /// On if the ring of the daemon's own domain is served.
    pub own_ring: Switch,
    /// On if debug lines go to the log.
    pub verbose: Switch,
    /// On if privileges that are not needed are dropped.
    pub filter: Switch,
    /// The quotas in the order of the command line. A later one replaces an earlier one.
    pub quotas: Vec<QuotaSetting>,
    /// The configuration of the core.
    pub core: xenstore_core::server::Config,
}

/// The request that a command line makes.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Run a daemon with this configuration.
    Run(Box<Config>),
    /// Print the help text.
    Help,
}

/// Returns the help text.
#[must_use]
pub fn help() -> String {
    options::help()
}

/// Parses a command line, without the program's name.
///
/// # Errors
/// [`Error::Usage`]: one sentence that names the option and the reason.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Invocation, Error> {
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
        filter: if environment.unfiltered.is_some() { Switch::Off } else { Switch::On },
        quotas: Vec::new(),
        core: xenstore_core::server::Config::default(),
    };
    let mut priv_domain = None;
    for word in options::parse(args.into_iter().map(OsString::into_vec)) {
        for (row, value) in word? {
            if row.meaning == Meaning::Help {
                return Ok(Invocation::Help);
            }
            if row.meaning == Meaning::PrivDomid {
                priv_domain = Some(domid(row.long, &value)?);
            }
            apply(&mut config, row, &value, environment)?;
        }
    }
    config.core.priv_domain = priv_domain.unwrap_or(config.core.store_domain);
    config.socket = paths::socket(environment)?;
    Ok(Invocation::Run(Box::new(config)))
}

fn apply(
    config: &mut Config,
    row: &OptionRow,
    value: &[u8],
    environment: &Environment,
) -> Result<(), Error> {
    let path = || environment.directory.join(OsStr::from_bytes(value));
    match row.meaning {
        Meaning::NoDomainInit => config.own_ring = Switch::Off,
        Meaning::PidFile => config.pid_file = Some(path()),
        Meaning::NoFork => config.mode = Mode::Foreground,
        Meaning::OutputPid => config.print_pid = Switch::On,
        Meaning::TraceFile => {
            config.trace_file = Some(config.root_dir.join(OsStr::from_bytes(value)));
        }
        Meaning::TraceControl => {
            let switch = crate::trace::parse_switch(value).ok_or_else(|| {
                Error::usage(format!(
                    "--trace-control={} is none of +obj -obj +io -io +wrl -wrl +acc -acc +tdb -tdb",
                    String::from_utf8_lossy(value)
                ))
            })?;
            config.trace_switches.push(switch);
        }
        Meaning::QuotaOf(name) => {
            let mut number = number(row.long, value)?;
            if name == "path-max" {
                number = number.min(limits::REL_PATH_MAX as u32);
            }
            config.quotas.push(QuotaSetting { name, kind: QuotaKind::Hard, value: number });
        }
        Meaning::QuotaHard => config.quotas.push(quota(row.long, value, QuotaKind::Hard)?),
        Meaning::QuotaSoft => config.quotas.push(quota(row.long, value, QuotaKind::Soft)?),
        Meaning::Timeout => {
            let (what, seconds) = pair(row.long, value)?;
            if what != b"watch-event" {
                let what = String::from_utf8_lossy(what);
                return Err(Error::usage(format!(
                    "--timeout: only watch-event has one, not {what}"
                )));
            }
            config.core.watch_event_timeout_us = u64::from(seconds) * 1_000_000;
        }
        Meaning::InternalDb if value == b"off" => {
            return Err(Error::usage(
                "--internal-db off is not possible: the store is always in memory",
            ));
        }
        Meaning::InternalDb if !value.is_empty() && value != b"on" => {
            return Err(Error::usage("--internal-db takes on or off"));
        }
        Meaning::KeepOrphans => {
            config.core.orphans = xenstore_core::server::Orphans::Keep;
        }
        Meaning::Verbose => config.verbose = Switch::On,
        Meaning::StoreDomid => config.core.store_domain = domid(row.long, value)?,
        Meaning::Event => {
            return Err(Error::usage(
                "--event is for a store that runs in a stub domain; this one runs in a process",
            ));
        }
        Meaning::LiveUpdate => {
            return Err(Error::usage("--live-update is not supported yet; start without it"));
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
    // The help of C xenstored calls it path-length, its table path-max. Both names are accepted.
    let what = if what == b"path-length" { b"path-max" } else { what };
    let name = known.iter().find(|name| name.as_bytes() == what).ok_or_else(|| {
        let what = String::from_utf8_lossy(what);
        Error::usage(format!("--{option}: no quota {what}; there are {}", known.join(", ")))
    })?;
    Ok(QuotaSetting { name, kind, value })
}

/// Parses `<what>=<number>`.
fn pair<'a>(option: &str, value: &'a [u8]) -> Result<(&'a [u8], u32), Error> {
    let at = value
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or_else(|| Error::usage(format!("--{option} takes <what>=<number>")))?;
    Ok((&value[..at], number(option, &value[at + 1..])?))
}

/// Parses a number from 0 to 2^31 - 1, as the C daemon does.
fn number(option: &str, value: &[u8]) -> Result<u32, Error> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
        .filter(|number| i32::try_from(*number).is_ok())
        .ok_or_else(|| {
            let value = String::from_utf8_lossy(value);
            Error::usage(format!("--{option}: \"{value}\" is no number from 0 to 2147483647"))
        })
}

fn domid(option: &str, value: &[u8]) -> Result<xenstore_core::server::DomId, Error> {
    let number = number(option, value)?;
    u16::try_from(number)
        .ok()
        .filter(|domid| *domid < limits::DOMID_FIRST_RESERVED)
        .map(xenstore_core::server::DomId)
        .ok_or_else(|| Error::usage(format!("--{option}: {number} is no domain's number")))
}
