//! The command line: one table for the parser, the help, the manual pages and the completions.

mod complete;
mod config;
mod console;
mod create;
mod demo;
mod disk;
mod doctor;
mod domain;
mod host;
mod info;
mod list;
mod log;
mod options;
mod out;
mod outcomes;
mod stats;
mod store;
mod top;
mod tree;

use crate::Error;
use crate::guest::GuestRole;
use crate::host::HostChoice;
use crate::wait::{self, Signals};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use options::GlobalOptions;
use std::process::ExitCode;

/// Domains and their disks, on a Xen host or, without Xen, as processes of this machine.
#[derive(Parser, Debug)]
#[command(name = "xb", version, subcommand_required = true, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Line {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not in time, 4 no such domain, disk or \
host, or the domain was destroyed meanwhile, 130 interrupted; xb create --wait ends with the guest's, and xb store with that of xenstore.\n\nExample: xb demo";

/// The exit status after a wrong command line, as clap has it.
const WRONG_USAGE: u8 = 2;

/// Refuses options that have no effect on a command.
fn refuse_without_effect(options: &GlobalOptions, command: &Command) -> Result<(), String> {
    let (json, timeout) = command.argument_uses();
    if options.json && json == ArgumentUse::No {
        return Err("--json has no effect on this command; leave it out".into());
    }
    if options.timeout.is_some() && timeout == ArgumentUse::No {
        return Err("--timeout has no effect on this command; leave it out".into());
    }
    Ok(())
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Bring a hosted host up or down, see how it is, or read what its daemons have written.
    #[command(subcommand, after_help = "Example: xb host up")]
    Host(host::HostCommand),
    /// Create a guest from a configuration (xl.cfg or .toml) and start it.
    #[command(after_help = "Example: xb create web.cfg --wait")]
    Create(create::Create),
    /// List domains.
    #[command(visible_alias = "ls", after_help = "Example: xb list --all")]
    List(list::ListArguments),
    /// Draw domains and their devices, with their states.
    #[command(after_help = "Example: xb tree")]
    Tree,
    /// Tell all that is known of a domain, or of a hosted guest that has ended.
    #[command(after_help = "Example: xb info web")]
    Info(domain::DomainArguments),
    /// Say why devices do not work, and which command helps; exit status 1 where anything is wrong.
    #[command(after_help = "Example: xb doctor web xvda")]
    Doctor(doctor::DoctorArguments),
    /// Show what domains do, turn after turn: processors, memory, disks, events, grants, the store.
    #[command(after_help = "Example: xb top --batch -n 2")]
    Top(top::TopArguments),
    /// Stop domains where they are.
    #[command(after_help = "Example: xb pause web")]
    Pause(domain::SeveralDomains),
    /// Let paused domains go on.
    #[command(after_help = "Example: xb unpause web")]
    Unpause(domain::SeveralDomains),
    /// Ask domains to end.
    #[command(after_help = "Example: xb shutdown web --wait")]
    Shutdown(domain::ShutdownArguments),
    /// Ask domains to end and be started again.
    #[command(after_help = "Example: xb reboot web --wait")]
    Reboot(domain::ShutdownArguments),
    /// Take domains down at once, with their devices.
    #[command(after_help = "Example: xb destroy web mail")]
    Destroy(domain::SeveralDomains),
    /// Show a domain's console, and type on it; ^] ends it.
    #[command(after_help = "Example: xb console web")]
    Console(console::ConsoleArguments),
    /// Show what a guest has printed.
    #[command(after_help = "Example: xb log web --since 10m --timestamps")]
    Log(log::LogArguments),
    /// Attach, detach, list and resize disks.
    #[command(
        subcommand,
        after_help = "Example: xb disk attach web /images/data.qcow2,qcow2,xvdb,w"
    )]
    Disk(disk::DiskCommand),
    /// Read and write the host's store: all commands of the tool xenstore.
    #[command(after_help = "Example: xb store ls /local/domain")]
    Store(store::StoreArguments),
    /// Check configurations, and convert between xl.cfg and TOML.
    #[command(subcommand, after_help = "Example: xb config convert web.cfg")]
    Config(config::ConfigCommand),
    /// Supervise the backends of a driver domain, in place of xl devd, or of a hosted host.
    #[command(after_help = "Example: xb devd")]
    Devd,
    /// Show everything once: a host, guests, disks, a backend that is stopped, killed and comes back.
    #[command(after_help = "Example: xb demo --keep")]
    Demo(demo::Demo),
    /// Print completions for a shell.
    #[command(after_help = "Example: xb completions bash > /etc/bash_completion.d/xb")]
    Completions(complete::Completions),
    /// Write manual pages into a folder.
    #[command(after_help = "Example: xb man /usr/local/share/man/man1")]
    Man(complete::Man),
    #[command(hide = true)]
    Keeper,
    #[command(hide = true)]
    GuestInit {
        /// The command line to run.
        #[arg(help = "What to run", default_value = "")]
        line: String,
        #[arg(long, help = "Serve devices of others, too")]
        driver_domain: bool,
    },
}

/// The use that a command makes of an argument which every command takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ArgumentUse {
    Yes,
    No,
}

impl Command {
    /// Returns the command's use of `--json` and of `--timeout`.
    fn argument_uses(&self) -> (ArgumentUse, ArgumentUse) {
        match self {
            Self::Config(config::ConfigCommand::Check { .. })
            | Self::Host(host::HostCommand::Status | host::HostCommand::Log(_))
            | Self::Log(_) => (ArgumentUse::Yes, ArgumentUse::No),
            Self::Demo(_) => (ArgumentUse::No, ArgumentUse::Yes),
            Self::Store(_) => (ArgumentUse::Yes, ArgumentUse::No),
            Self::Console(_)
            | Self::Config(config::ConfigCommand::Convert { .. })
            | Self::Completions(_)
            | Self::Man(_)
            | Self::Devd
            | Self::Keeper
            | Self::GuestInit { .. } => (ArgumentUse::No, ArgumentUse::No),
            _ => (ArgumentUse::Yes, ArgumentUse::Yes),
        }
    }
}

/// Parses the command line and runs its command.
#[must_use]
pub fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        // The error itself would list the commands that are for other programs, too.
        Err(error) if error.kind() == ErrorKind::MissingSubcommand => {
            eprint!("{}", Line::command().render_help());
            return ExitCode::from(WRONG_USAGE);
        }
        // Exits with 2 where it is wrong, with 0 for help.
        Err(error) => error.exit(),
    };
    let options = line.options.clone();
    if let Err(wrong) = refuse_without_effect(&options, &line.command) {
        out::failed(&options, &wrong, WRONG_USAGE);
        return ExitCode::from(WRONG_USAGE);
    }
    match run(line) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.exit_code();
            out::failed(&options, &explain(&options, error), code);
            ExitCode::from(code)
        }
    }
}

/// Returns the text of an error; where something was not in time, with the reason, if it is known.
fn explain(options: &GlobalOptions, error: Error) -> String {
    let reason = || match options.choice() {
        HostChoice::Hosted(folder) => crate::doctor::host_reason(&folder),
        HostChoice::Xen => None,
    };
    match error {
        Error::Timeout { .. } => error.with_reason(reason).to_string(),
        error if error.is_late() => match reason() {
            Some(reason) => format!("{error}; {reason}"),
            None => error.to_string(),
        },
        error => error.to_string(),
    }
}

fn run(line: Line) -> Result<u8, Error> {
    let options = &line.options;
    match line.command {
        Command::GuestInit { line, driver_domain } => {
            let role = if driver_domain { GuestRole::DriverDomain } else { GuestRole::Plain };
            return crate::guest::run(&line, role);
        }
        Command::Keeper => {
            let folder = options.choice().hosted("the keeper")?;
            return crate::keeper::run(&folder).map(|()| 0);
        }
        Command::Devd => return crate::devd::run(options.place()?).map(|()| 0),
        Command::Store(store) => return store::run(options, &store),
        // It leaves nothing to undo: a signal may end it at once.
        Command::Top(top) => return top::run(options, &top),
        Command::Demo(_) | Command::Host(host::HostCommand::Up { .. }) => {
            wait::catch_signals(Signals::All);
        }
        _ => wait::catch_signals(Signals::Interrupt),
    }
    // The demo prints each of its steps itself.
    if !options.json && !matches!(line.command, Command::Demo(_)) {
        wait::tell_of_long_ones();
    }
    match line.command {
        Command::Host(command) => host::run(options, &command),
        Command::Create(create) => create::run(options, &create),
        Command::List(list) => list::run(options, &list),
        Command::Tree => tree::run(options),
        Command::Info(which) => info::run(options, &which),
        Command::Doctor(which) => doctor::run(options, &which),
        Command::Pause(which) => domain::pause(options, &which),
        Command::Unpause(which) => domain::unpause(options, &which),
        Command::Shutdown(ask) => {
            domain::ask(options, &ask, crate::domain::ControlRequest::Poweroff)
        }
        Command::Reboot(ask) => domain::ask(options, &ask, crate::domain::ControlRequest::Reboot),
        Command::Destroy(which) => domain::destroy(options, &which),
        Command::Console(console) => console::run(options, &console),
        Command::Log(log) => log::run(options, &log),
        Command::Disk(command) => disk::run(options, &command),
        Command::Config(command) => config::run(options, &command),
        Command::Demo(demo) => demo::run(options, &demo),
        Command::Completions(completions) => complete::completions(&Line::command(), &completions),
        Command::Man(man) => complete::man(Line::command(), &man),
        Command::Devd
        | Command::Keeper
        | Command::GuestInit { .. }
        | Command::Store(_)
        | Command::Top(_) => Ok(0),
    }
}
