//! `xb completions` and `xb man`, from the same table as the parser.

use super::out;
use crate::Error;
use clap::{Args, Command};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// The folder; it must be there.
    folder: PathBuf,
}

/// Prints the completions of a command line.
pub(crate) fn completions(line: &Command, completions: &Completions) -> Result<u8, Error> {
    let mut text = Vec::new();
    // The generators also write commands that are hidden, which other programs run.
    let shown = line.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut line = Command::new("xb").args(line.get_arguments().cloned()).subcommands(shown);
    clap_complete::generate(completions.shell, &mut line, "xb", &mut text);
    out::print(&String::from_utf8_lossy(&text))
}

/// Writes the manual pages of a command line.
pub(crate) fn man(line: Command, man: &Man) -> Result<u8, Error> {
    let written = clap_mangen::generate_to(line, &man.folder);
    written.map(|()| 0).map_err(Error::io(man.folder.display()))
}
