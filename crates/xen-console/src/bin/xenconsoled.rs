//! `xenconsoled`: logs and serves the consoles of the domains of a Xen host.

use getopt::Operands;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use xen_console::hypervisor::{READER_ROLE, run_reader};
use xen_console::options::{self, ConsoledCommand, USAGE_STATUS, VERSION};
use xen_console::program;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| program::NAME.into());
    let words: Vec<OsString> = words.collect();
    if words.first().is_some_and(|word| word.as_bytes() == READER_ROLE.as_bytes()) {
        return ExitCode::from(run_reader());
    }
    let operands = match std::env::var_os("POSIXLY_CORRECT") {
        Some(_) => Operands::Last,
        None => Operands::Anywhere,
    };
    match options::parse(words, operands) {
        Ok(ConsoledCommand::Help) => print(&options::usage(&name)),
        Ok(ConsoledCommand::Version) => print(VERSION.as_bytes()),
        Ok(ConsoledCommand::Serve(options)) => program::run(&name, &options),
        Err(fault) => {
            let _ = std::io::stderr().write_all(&fault.lines(&name));
            ExitCode::from(USAGE_STATUS)
        }
    }
}

fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
