//! The table of C xenstored's options, and the parser of words that `getopt_long` would accept.
//!
//! Source: `tools/xenstored/core.c` (`options`), `xenstored --help`, getopt_long(3).

use crate::Error;

/// The choice between options that take a value and options that do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OptionValue {
    None,
    Required(&'static str),
    Optional(&'static str),
}

/// The meaning of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
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
pub(crate) type OptionRow = (Option<u8>, &'static str, OptionValue, Meaning, &'static str);

const OPTIONS: [OptionRow; 24] = [
    (
        Some(b'D'),
        "no-domain-init",
        OptionValue::None,
        Meaning::NoDomainInit,
        "do not serve dom0's own ring",
    ),
    (
        Some(b'F'),
        "pid-file",
        OptionValue::Required("<file>"),
        Meaning::PidFile,
        "write the daemon's pid there once it accepts connections",
    ),
    (Some(b'H'), "help", OptionValue::None, Meaning::Help, "print this text"),
    (
        Some(b'N'),
        "no-fork",
        OptionValue::None,
        Meaning::NoFork,
        "stay in the foreground; log to stderr",
    ),
    (Some(b'P'), "output-pid", OptionValue::None, Meaning::OutputPid, "print the daemon's pid"),
    (
        Some(b'T'),
        "trace-file",
        OptionValue::Required("<file>"),
        Meaning::TraceFile,
        "trace every message into this file",
    ),
    (
        None,
        "trace-control",
        OptionValue::Required("+|-<switch>"),
        Meaning::TraceControl,
        "trace more or less: obj io; wrl acc tdb are accepted and trace nothing",
    ),
    (
        Some(b'E'),
        "entry-nb",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("nodes"),
        "quota of nodes per domain",
    ),
    (
        Some(b'S'),
        "entry-size",
        OptionValue::Required("<size>"),
        Meaning::QuotaOf("node-size"),
        "quota of bytes per node",
    ),
    (
        Some(b'W'),
        "watch-nb",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("watches"),
        "quota of watches per domain",
    ),
    (
        Some(b't'),
        "transaction",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("transactions"),
        "quota of open transactions per domain",
    ),
    (
        Some(b'A'),
        "perm-nb",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("node-permissions"),
        "quota of permissions per node",
    ),
    (
        Some(b'M'),
        "path-max",
        OptionValue::Required("<chars>"),
        Meaning::QuotaOf("path-max"),
        "longest path of a node, at most 2048",
    ),
    (
        Some(b'Q'),
        "quota",
        OptionValue::Required("<what>=<nb>"),
        Meaning::QuotaHard,
        "set a quota: nodes, watches, transactions, outstanding, memory, transaction-nodes, node-permissions, path-max, node-size",
    ),
    (
        Some(b'q'),
        "quota-soft",
        OptionValue::Required("<what>=<nb>"),
        Meaning::QuotaSoft,
        "set a quota that is only reported: memory",
    ),
    (
        Some(b'w'),
        "timeout",
        OptionValue::Required("<what>=<seconds>"),
        Meaning::Timeout,
        "set a timeout: watch-event, how long an event may stay unread",
    ),
    (
        Some(b'R'),
        "no-recovery",
        OptionValue::None,
        Meaning::NoRecovery,
        "accepted; the store is in memory and has nothing to recover",
    ),
    (
        Some(b'I'),
        "internal-db",
        OptionValue::Optional("on|off"),
        Meaning::InternalDb,
        "accepted; the store is always in memory, off is refused",
    ),
    (
        Some(b'K'),
        "keep-orphans",
        OptionValue::None,
        Meaning::KeepOrphans,
        "keep the nodes of dead domains (a security risk)",
    ),
    (Some(b'V'), "verbose", OptionValue::None, Meaning::Verbose, "log more"),
    (
        Some(b'e'),
        "event",
        OptionValue::Required("<port>"),
        Meaning::Event,
        "refused; belongs to a store in a stub domain",
    ),
    (
        Some(b'm'),
        "master-domid",
        OptionValue::Required("<domid>"),
        Meaning::StoreDomid,
        "the domain that the daemon runs in; default 0",
    ),
    (
        Some(b'p'),
        "priv-domid",
        OptionValue::Required("<domid>"),
        Meaning::PrivDomid,
        "the privileged domain; default as --master-domid",
    ),
    (
        Some(b'U'),
        "live-update",
        OptionValue::None,
        Meaning::LiveUpdate,
        "refused; not supported yet",
    ),
];

/// Returns the help text.
#[must_use]
pub(crate) fn help() -> String {
    let mut text = String::from("Usage: xenstored <options>\n\n");
    for (short, long, value, _, what) in OPTIONS {
        let short = short.map_or("    ".into(), |short| format!("-{}, ", char::from(short)));
        let value = match value {
            OptionValue::None => String::new(),
            OptionValue::Required(name) => format!(" {name}"),
            OptionValue::Optional(name) => format!("[={name}]"),
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

/// Parses the options in one word of the command line, which may take the next word as its value.
pub(crate) fn split_word(
    word: &[u8],
    words: &mut std::iter::Peekable<impl Iterator<Item = Vec<u8>>>,
) -> Result<Vec<(&'static OptionRow, Vec<u8>)>, Error> {
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
            return Err(Error::usage(format!("there is no option -{}", char::from(*letter))));
        };
        let rest = &letters[at + 1..];
        if row.2 == OptionValue::None {
            found.push((row, Vec::new()));
            continue;
        }
        let attached = (!rest.is_empty()).then(|| rest.to_vec());
        found.push((row, value_of(row, attached, words)?));
        break;
    }
    Ok(found)
}

/// Returns the option with this long name or with its only possible completion.
fn find_long(name: &[u8]) -> Result<&'static OptionRow, Error> {
    let shown = String::from_utf8_lossy(name);
    if let Some(row) = OPTIONS.iter().find(|row| row.1.as_bytes() == name) {
        return Ok(row);
    }
    let mut matching = OPTIONS.iter().filter(|row| row.1.as_bytes().starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => Err(Error::usage(format!("there is no option --{shown}"))),
        (Some(one), Some(other)) => {
            Err(Error::usage(format!("--{shown} could be --{} or --{}", one.1, other.1)))
        }
    }
}

fn value_of(
    row: &OptionRow,
    attached: Option<Vec<u8>>,
    words: &mut std::iter::Peekable<impl Iterator<Item = Vec<u8>>>,
) -> Result<Vec<u8>, Error> {
    match (row.2, attached) {
        (OptionValue::None, None) => Ok(Vec::new()),
        (OptionValue::None, Some(_)) => Err(Error::usage(format!("--{} takes no value", row.1))),
        (_, Some(value)) => Ok(value),
        (OptionValue::Required(what), None) => {
            words.next().ok_or_else(|| Error::usage(format!("--{} needs a value: {what}", row.1)))
        }
        // The help of C xenstored shows the value as a word of its own, so that form is accepted,
        // too.
        (OptionValue::Optional(_), None) => {
            Ok(words.next_if(|next| next == b"on" || next == b"off").unwrap_or_default())
        }
    }
}

fn no_arguments(word: &[u8]) -> Error {
    let word = String::from_utf8_lossy(word);
    Error::usage(format!("\"{word}\" is no option, and xenstored takes nothing else"))
}
