//! The command line of the tool: runs the command in argv and returns its exit code.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use table::{Command, CommandKind};

mod args;
mod chmod;
mod completions;
mod control;
mod debian;
mod diff;
mod export;
mod export_file;
mod failure;
mod import;
mod json;
mod ls;
mod program;
mod table;
mod value;
mod watch;

use failure::CommandFailure;
use program::{ProgramNames, print, print_to};

/// Runs the command that argv names.
pub(crate) fn main() -> ExitCode {
    let args: Vec<Vec<u8>> =
        std::env::args_os().map(|arg| OsStr::as_bytes(&arg).to_vec()).collect();
    let (program, code) = run(&args);
    match code {
        Ok(code) => ExitCode::from(code),
        Err(fail) => {
            if let Some(message) = &fail.message {
                program.print_error(message);
            }
            if let Some(advice) = fail.advice.filter(|_| rustix::termios::isatty(io::stderr())) {
                // This advice is for people only. The text that scripts compare stays as Debian's.
                program.print_error(advice.as_bytes());
            }
            ExitCode::from(fail.code)
        }
    }
}

fn run(args: &[Vec<u8>]) -> (ProgramNames, Result<u8, CommandFailure>) {
    let path = args.first().cloned().unwrap_or_else(|| b"xenstore".to_vec());
    let short = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
    let mut program =
        ProgramNames { usage: path.clone(), getopt: path.clone(), path, short: short.clone() };
    let (name, rest) = match short.strip_prefix(b"xenstore-") {
        Some(name) => (name, args.get(1..).unwrap_or_default()),
        None => match args.get(1) {
            Some(name) => {
                program.usage = [&program.path[..], b" ", name].concat();
                program.getopt.clone_from(name);
                (&name[..], args.get(2..).unwrap_or_default())
            }
            None => {
                let line = [b"Usage: ", &program.path[..], b" <mode> [-h] [...]"].concat();
                return (program, Err(CommandFailure::with_message(line)));
            }
        },
    };
    let result = match name {
        b"--help" | b"help" => print(&table::overview()).map(|()| 0),
        b"--version" => print(concat!("xenstore ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| 0),
        _ => match table::command(name) {
            Some(command) => dispatch(&program, command, rest),
            None => Err(CommandFailure::with_message([b"unknown mode ", name, b"\n"].concat())
                .advised("`xenstore --help` lists the commands")),
        },
    };
    (program, result)
}

fn dispatch(
    program: &ProgramNames,
    command: &'static Command,
    args: &[Vec<u8>],
) -> Result<u8, CommandFailure> {
    match command.kind {
        CommandKind::Control => control::run(program, args),
        CommandKind::Debian => debian::run(program, command, args),
        CommandKind::Own => {
            let parsed = args::parse(program, command, args);
            if parsed.flags.help {
                return print(&table::usage(command)).map(|()| 0);
            }
            if parsed.unknown || !command.operands_fit(parsed.operands.len()) {
                print_to(io::stderr(), &table::usage(command))?;
                return Ok(2);
            }
            match command.name {
                "export" => export::run(&parsed),
                "import" => import::run(program, &parsed),
                "diff" => diff::run(&parsed),
                _ => completions::run(&parsed),
            }
        }
    }
}
