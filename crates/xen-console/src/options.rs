//! The command line of `xenconsoled`: C's options, and four of our own.
//!
//! Source: `tools/console/daemon/main.c` (`main`, `usage`), getopt_long(3).

use getopt::{Argument, Entry, GivenOption, Operands, Parser, Word};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The exit status of a refused command line: EINVAL, as C's.
pub const USAGE_STATUS: u8 = 22;
/// The answer to `--version`, which is C's.
pub const VERSION: &str = "Xen Console Daemon 3.0\n";

/// The default folder of the logs (`XEN_LOG_DIR "/console"`).
pub const LOG_DIR: &str = "/var/log/xen/console";
/// The default pid file (`XEN_RUN_DIR "/xenconsoled.pid"`).
const PID_FILE: &str = "/var/run/xen/xenconsoled.pid";
/// The default size at which a log is set aside, in bytes.
const LOG_MAX: u64 = 16 << 20;
/// The smallest size at which a log may be set aside, in bytes: several chunks of a ring.
const LOG_MAX_LEAST: u64 = 16 << 10;
/// The default number of logs.
const LOG_COUNT: u64 = 1024;

/// The meaning of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ConsoledSetting {
    Help,
    Version,
    Verbose,
    Interactive,
    Log,
    LogDir,
    PidFile,
    Timestamp,
    OverflowData,
    ReplaceEscape,
    LogMax,
    LogCount,
    LogChannels,
    Guests,
}

/// One option.
#[derive(Debug)]
struct ConsoledRow {
    short: Option<u8>,
    long: &'static str,
    argument: Argument,
    setting: ConsoledSetting,
}

impl Entry for ConsoledRow {
    fn short(&self) -> Option<u8> {
        self.short
    }

    fn long(&self) -> Option<&str> {
        Some(self.long)
    }

    fn argument(&self) -> Argument {
        self.argument
    }

    /// C's options keep all their abbreviations: `--log-` is `--log-dir`.
    fn may_be_abbreviated(&self) -> bool {
        !matches!(
            self.setting,
            ConsoledSetting::LogMax
                | ConsoledSetting::LogCount
                | ConsoledSetting::LogChannels
                | ConsoledSetting::Guests
        )
    }
}

const fn row(
    short: Option<u8>,
    long: &'static str,
    argument: Argument,
    setting: ConsoledSetting,
) -> ConsoledRow {
    ConsoledRow { short, long, argument, setting }
}

/// C's options in C's order, which messages show, and then ours.
static OPTIONS: [ConsoledRow; 14] = [
    row(Some(b'h'), "help", Argument::None, ConsoledSetting::Help),
    row(Some(b'V'), "version", Argument::None, ConsoledSetting::Version),
    row(Some(b'v'), "verbose", Argument::None, ConsoledSetting::Verbose),
    row(Some(b'i'), "interactive", Argument::None, ConsoledSetting::Interactive),
    row(None, "log", Argument::Required, ConsoledSetting::Log),
    row(None, "log-dir", Argument::Required, ConsoledSetting::LogDir),
    row(None, "pid-file", Argument::Required, ConsoledSetting::PidFile),
    row(Some(b't'), "timestamp", Argument::Required, ConsoledSetting::Timestamp),
    row(Some(b'o'), "overflow-data", Argument::Required, ConsoledSetting::OverflowData),
    row(None, "replace-escape", Argument::None, ConsoledSetting::ReplaceEscape),
    row(None, "log-max", Argument::Required, ConsoledSetting::LogMax),
    row(None, "log-count", Argument::Required, ConsoledSetting::LogCount),
    row(None, "log-channels", Argument::None, ConsoledSetting::LogChannels),
    row(None, "guests", Argument::Required, ConsoledSetting::Guests),
];

/// The request that a command line makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConsoledCommand {
    /// Print [`usage`] and end.
    Help,
    /// Print [`VERSION`] and end.
    Version,
    /// Serve.
    Serve(ConsoledOptions),
}

/// The options of a daemon that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsoledOptions {
    /// True if the daemon stays in the foreground and has no pid file.
    pub interactive: bool,
    /// True if the daemon reports more than warnings and errors.
    pub verbose: bool,
    /// The logs that are written.
    pub log: LogSources,
    /// The logs whose lines begin with the time.
    pub stamps: LogSources,
    /// True if the byte ESC becomes a dot in logs.
    pub replace_escape: bool,
    /// The treatment of output that nobody reads.
    pub overflow: Overflow,
    /// The folder of the logs, as it was given: C enters `/` before it opens a relative one, unless
    /// it is interactive.
    pub log_dir: PathBuf,
    /// The pid file, as it was given; the same holds.
    pub pid_file: PathBuf,
    /// The size at which a log is set aside, in bytes.
    pub log_max: u64,
    /// The number of logs above which those of ended guests are removed.
    pub log_count: u64,
    /// True if channels are logged where guests are.
    pub log_channels: bool,
    /// The folder of the guests of a hosted host, each with the FIFO that it prints into, as it was
    /// given.
    pub guests: Option<PathBuf>,
    /// Lines about words that mean nothing, for standard error. C ignores such words silently.
    pub warnings: Vec<String>,
}

impl Default for ConsoledOptions {
    fn default() -> Self {
        Self {
            interactive: false,
            verbose: false,
            log: LogSources::default(),
            stamps: LogSources::default(),
            replace_escape: false,
            overflow: Overflow::Discard,
            log_dir: LOG_DIR.into(),
            pid_file: PID_FILE.into(),
            log_max: LOG_MAX,
            log_count: LOG_COUNT,
            log_channels: false,
            guests: None,
            warnings: Vec::new(),
        }
    }
}

/// The origins of output that an option concerns.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LogSources {
    /// The consoles of guests.
    pub guest: bool,
    /// The hypervisor's own console.
    pub hypervisor: bool,
}

impl LogSources {
    /// Returns the sources that a word of an option names.
    fn named(word: &[u8]) -> Option<Self> {
        let (guest, hypervisor) = match word {
            b"none" => (false, false),
            b"guest" => (true, false),
            b"hv" => (false, true),
            b"all" => (true, true),
            _ => return None,
        };
        Some(Self { guest, hypervisor })
    }

    /// Adds the sources of another option of the same name.
    fn add(&mut self, other: Self) {
        self.guest |= other.guest;
        self.hypervisor |= other.hypervisor;
    }
}

/// The treatment of output beyond the limit of a console that nobody reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// Old output is dropped.
    Discard,
    /// The guest waits.
    Keep,
}

/// The reason why a command line is refused. The program's status is then [`USAGE_STATUS`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageFault(Vec<u8>);

impl UsageFault {
    /// Returns the lines for standard error, which are those of getopt_long(3) and of C. `name` is
    /// the program's name as it was called.
    #[must_use]
    pub fn lines(&self, name: &OsStr) -> Vec<u8> {
        let name = name.as_bytes();
        let message = &self.0;
        [name, b": ", message, b"\nTry `", name, b" --help' for more information\n"].concat()
    }
}

/// Returns the answer to `--help`: C's two lines, and those of our own options. `name` is the
/// program's name as it was called.
#[must_use]
pub fn usage(name: &OsStr) -> Vec<u8> {
    let own = format!(
        "  --log-max=BYTES   - set a log aside as NAME.1 when it has this size (default {LOG_MAX})\n  \
         --log-count=N     - keep this many logs (default {LOG_COUNT})\n  \
         --log-channels    - log the channels of guests, too\n  \
         --guests=DIR      - read the FIFOs DIR/NAME/output, which hosted guests print into\n"
    );
    let common: &[u8] = b" [-h] [-V] [-v] [-i] [--log=none|guest|hv|all] [--log-dir=DIR] \
        [--pid-file=PATH] [-t, --timestamp=none|guest|hv|all] \
        [-o, --overflow-data=discard|keep] [--replace-escape]\n  \
        --replace-escape  - replace ESC character with dot when writing console log\n";
    [b"Usage: ", name.as_bytes(), common, own.as_bytes()].concat()
}

/// Parses the words behind the program's name. The first of help, version and a fault decides. A
/// word that is no option is ignored, as C does.
///
/// # Errors
/// A word that is no option of the table, or a number that is none.
pub fn parse(
    words: impl IntoIterator<Item = OsString>,
    operands: Operands,
) -> Result<ConsoledCommand, UsageFault> {
    let mut options = ConsoledOptions::default();
    let words = words.into_iter().map(OsString::into_vec);
    for word in Parser::new(&OPTIONS, words, operands) {
        let Word::Options(given) = word else { continue };
        for option in given {
            let option = option.map_err(|fault| UsageFault(fault.message()))?;
            match option.entry.setting {
                ConsoledSetting::Help => return Ok(ConsoledCommand::Help),
                ConsoledSetting::Version => return Ok(ConsoledCommand::Version),
                _ => options.set(option)?,
            }
        }
    }
    Ok(ConsoledCommand::Serve(options))
}

impl ConsoledOptions {
    /// Sets one option.
    fn set(&mut self, option: GivenOption<'_, ConsoledRow>) -> Result<(), UsageFault> {
        let row = option.entry;
        let word = option.argument.unwrap_or_default();
        match row.setting {
            ConsoledSetting::Help | ConsoledSetting::Version => {}
            ConsoledSetting::Verbose => self.verbose = true,
            ConsoledSetting::Interactive => self.interactive = true,
            ConsoledSetting::ReplaceEscape => self.replace_escape = true,
            ConsoledSetting::LogDir => self.log_dir = OsString::from_vec(word).into(),
            ConsoledSetting::PidFile => self.pid_file = OsString::from_vec(word).into(),
            // In C the words of several options add up, and `none` takes nothing away.
            ConsoledSetting::Log => match LogSources::named(&word) {
                Some(sources) => self.log.add(sources),
                None => self.warn(row, &word, "none, guest, hv or all"),
            },
            // Here C's `none` takes both away.
            ConsoledSetting::Timestamp => match LogSources::named(&word) {
                Some(sources) if sources == LogSources::default() => self.stamps = sources,
                Some(sources) => self.stamps.add(sources),
                None => self.warn(row, &word, "none, guest, hv or all"),
            },
            ConsoledSetting::OverflowData => match word.as_slice() {
                b"discard" => self.overflow = Overflow::Discard,
                b"keep" => self.overflow = Overflow::Keep,
                _ => self.warn(row, &word, "discard or keep"),
            },
            ConsoledSetting::LogMax => self.log_max = number(row, &word, LOG_MAX_LEAST)?,
            ConsoledSetting::LogCount => self.log_count = number(row, &word, 1)?,
            ConsoledSetting::LogChannels => self.log_channels = true,
            ConsoledSetting::Guests => self.guests = Some(OsString::from_vec(word).into()),
        }
        Ok(())
    }

    /// Adds a warning about a word that C ignores silently.
    fn warn(&mut self, row: &ConsoledRow, word: &[u8], known: &str) {
        let word = String::from_utf8_lossy(word);
        self.warnings.push(format!(
            "--{}={}: ignored; it is none of {known}",
            row.long,
            word.escape_debug()
        ));
    }
}

/// Returns the number of an option of our own.
fn number(row: &ConsoledRow, word: &[u8], least: u64) -> Result<u64, UsageFault> {
    let text = std::str::from_utf8(word).ok();
    let value = text.and_then(|text| text.parse().ok()).filter(|value| *value >= least);
    value.ok_or_else(|| {
        let message = format!("option '--{}' takes a number from {least} on, not '", row.long);
        UsageFault([message.as_bytes(), word, b"'"].concat())
    })
}

#[cfg(test)]
mod tests;
