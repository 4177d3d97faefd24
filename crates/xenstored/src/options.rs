//! The table of C xenstored's options, and what the daemon says of words that are none of them.
//!
//! Source: `tools/xenstored/core.c` (`options`), `xenstored --help`, getopt_long(3).

use crate::Error;
use getopt::{Argument, Entry, Fault, LongWord, Operands, Parser, Word};

/// The choice between options that take a value and options that do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OptionValue {
    None,
    Required(&'static str),
    Optional(&'static str),
}

impl OptionValue {
    /// Returns the value's name in the help.
    fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Required(name) | Self::Optional(name) => name,
        }
    }
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

/// One option.
#[derive(Debug)]
pub(crate) struct OptionRow {
    short: Option<u8>,
    pub(crate) long: &'static str,
    value: OptionValue,
    pub(crate) meaning: Meaning,
    help: &'static str,
}

impl Entry for OptionRow {
    fn short(&self) -> Option<u8> {
        self.short
    }

    fn long(&self) -> Option<&str> {
        Some(self.long)
    }

    fn argument(&self) -> Argument {
        match self.value {
            OptionValue::None => Argument::None,
            OptionValue::Required(_) => Argument::Required,
            // The help of C xenstored shows the value as a word of its own, so that form is
            // accepted, too.
            OptionValue::Optional(_) => Argument::Optional(&["on", "off"]),
        }
    }
}

const fn row(
    short: Option<u8>,
    long: &'static str,
    value: OptionValue,
    meaning: Meaning,
    help: &'static str,
) -> OptionRow {
    OptionRow { short, long, value, meaning, help }
}

static OPTIONS: [OptionRow; 24] = [
    row(
        Some(b'D'),
        "no-domain-init",
        OptionValue::None,
        Meaning::NoDomainInit,
        "do not serve dom0's own ring",
    ),
    row(
        Some(b'F'),
        "pid-file",
        OptionValue::Required("<file>"),
        Meaning::PidFile,
        "write the daemon's pid there once it accepts connections",
    ),
    row(Some(b'H'), "help", OptionValue::None, Meaning::Help, "print this text"),
    row(
        Some(b'N'),
        "no-fork",
        OptionValue::None,
        Meaning::NoFork,
        "stay in the foreground; log to stderr",
    ),
    row(Some(b'P'), "output-pid", OptionValue::None, Meaning::OutputPid, "print the daemon's pid"),
    row(
        Some(b'T'),
        "trace-file",
        OptionValue::Required("<file>"),
        Meaning::TraceFile,
        "trace every message into this file",
    ),
    row(
        None,
        "trace-control",
        OptionValue::Required("+|-<switch>"),
        Meaning::TraceControl,
        "trace more or less: obj io; wrl acc tdb are accepted and trace nothing",
    ),
    row(
        Some(b'E'),
        "entry-nb",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("nodes"),
        "quota of nodes per domain",
    ),
    row(
        Some(b'S'),
        "entry-size",
        OptionValue::Required("<size>"),
        Meaning::QuotaOf("node-size"),
        "quota of bytes per node",
    ),
    row(
        Some(b'W'),
        "watch-nb",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("watches"),
        "quota of watches per domain",
    ),
    row(
        Some(b't'),
        "transaction",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("transactions"),
        "quota of open transactions per domain",
    ),
    row(
        Some(b'A'),
        "perm-nb",
        OptionValue::Required("<nb>"),
        Meaning::QuotaOf("node-permissions"),
        "quota of permissions per node",
    ),
    row(
        Some(b'M'),
        "path-max",
        OptionValue::Required("<chars>"),
        Meaning::QuotaOf("path-max"),
        "longest path of a node, at most 2048",
    ),
    row(
        Some(b'Q'),
        "quota",
        OptionValue::Required("<what>=<nb>"),
        Meaning::QuotaHard,
        "set a quota: nodes, watches, transactions, outstanding, memory, transaction-nodes, node-permissions, path-max, node-size",
    ),
    row(
        Some(b'q'),
        "quota-soft",
        OptionValue::Required("<what>=<nb>"),
        Meaning::QuotaSoft,
        "set a quota that is only reported: memory",
    ),
    row(
        Some(b'w'),
        "timeout",
        OptionValue::Required("<what>=<seconds>"),
        Meaning::Timeout,
        "set a timeout: watch-event, how long an event may stay unread",
    ),
    row(
        Some(b'R'),
        "no-recovery",
        OptionValue::None,
        Meaning::NoRecovery,
        "accepted; the store is in memory and has nothing to recover",
    ),
    row(
        Some(b'I'),
        "internal-db",
        OptionValue::Optional("on|off"),
        Meaning::InternalDb,
        "accepted; the store is always in memory, off is refused",
    ),
    row(
        Some(b'K'),
        "keep-orphans",
        OptionValue::None,
        Meaning::KeepOrphans,
        "keep the nodes of dead domains (a security risk)",
    ),
    row(Some(b'V'), "verbose", OptionValue::None, Meaning::Verbose, "log more"),
    row(
        Some(b'e'),
        "event",
        OptionValue::Required("<port>"),
        Meaning::Event,
        "refused; belongs to a store in a stub domain",
    ),
    row(
        Some(b'm'),
        "master-domid",
        OptionValue::Required("<domid>"),
        Meaning::StoreDomid,
        "the domain that the daemon runs in; default 0",
    ),
    row(
        Some(b'p'),
        "priv-domid",
        OptionValue::Required("<domid>"),
        Meaning::PrivDomid,
        "the privileged domain; default as --master-domid",
    ),
    row(
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
    for OptionRow { short, long, value, help, .. } in &OPTIONS {
        let short = short.map_or("    ".into(), |short| format!("-{}, ", char::from(short)));
        let value = match value {
            OptionValue::None => String::new(),
            OptionValue::Required(name) => format!(" {name}"),
            OptionValue::Optional(name) => format!("[={name}]"),
        };
        text.push_str(&format!("  {short}--{:<30} {help}\n", format!("{long}{value}")));
    }
    text.push_str(
        "\nEnvironment: XENSTORED_PATH (socket), XENSTORED_RUNDIR (directory of the socket; default\n\
         /run/xenstored), XENSTORED_ROOTDIR (directory of relative trace files; default\n\
         /var/lib/xenstored).\n",
    );
    text
}

/// Parses a command line into the options of each word, with an empty value for an option without
/// one.
pub(crate) fn parse(
    words: impl Iterator<Item = Vec<u8>>,
) -> impl Iterator<Item = Result<Vec<(&'static OptionRow, Vec<u8>)>, Error>> {
    Parser::new(&OPTIONS, words, Operands::Last).map(|word| match word {
        Word::Options(options) => options
            .into_iter()
            .map(|option| match option {
                Ok(option) => Ok((option.entry, option.argument.unwrap_or_default())),
                Err(fault) => Err(Error::usage(describe(&fault))),
            })
            .collect(),
        Word::Operand(word) => {
            let word = String::from_utf8_lossy(&word);
            Err(Error::usage(format!("\"{word}\" is no option, and xenstored takes nothing else")))
        }
    })
}

fn describe(fault: &Fault<'_, OptionRow>) -> String {
    let shown = |word: &LongWord| String::from_utf8_lossy(word.name()).into_owned();
    match fault {
        Fault::UnknownLetter(letter) => format!("there is no option -{}", char::from(*letter)),
        Fault::UnknownName(word) => format!("there is no option --{}", shown(word)),
        Fault::Ambiguous { word, candidates } => {
            let names: Vec<String> =
                candidates.iter().take(2).map(|row| format!("--{}", row.long)).collect();
            format!("--{} could be {}", shown(word), names.join(" or "))
        }
        Fault::MissingArgument { entry, .. } => {
            format!("--{} needs a value: {}", entry.long, entry.value.name())
        }
        Fault::UnwantedArgument(entry) => format!("--{} takes no value", entry.long),
    }
}
