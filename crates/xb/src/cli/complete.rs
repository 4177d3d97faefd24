//! `xb completions` and `xb man`, from the same table as the parser.

use super::{Line, out};
use crate::Error;
use clap::{Args, CommandFactory};
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

pub(crate) fn completions(completions: &Completions) -> Result<u8, Error> {
    let mut text = Vec::new();
    clap_complete::generate(completions.shell, &mut Line::command(), "xb", &mut text);
    out::print(&String::from_utf8_lossy(&text))
}

pub(crate) fn man(man: &Man) -> Result<u8, Error> {
    let written = clap_mangen::generate_to(Line::command(), &man.folder);
    written.map(|()| 0).map_err(Error::io(man.folder.display()))
}
