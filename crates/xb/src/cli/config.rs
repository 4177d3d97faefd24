//! `xb config`.

use super::{All, out};
use crate::Error;
use crate::config::{self, Description, Syntax};
use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Print a configuration the other way: xl.cfg as TOML, TOML as xl.cfg. Comments are lost.
    #[command(after_help = "Example: xb config convert web.cfg > web.toml")]
    Convert {
        /// The file: TOML where it ends in .toml, else xl.cfg.
        file: PathBuf,
        /// Print it this way, whichever it was.
        #[arg(long, value_name = "SYNTAX")]
        to: Option<To>,
    },
    /// Say what is wrong with a configuration, and which keys have no effect.
    #[command(after_help = "Example: xb config check web.cfg")]
    Check {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum, Debug)]
pub(crate) enum To {
    /// xl.cfg.
    Xl,
    /// TOML.
    Toml,
}

pub(crate) fn run(_: &All, command: &Command) -> Result<u8, Error> {
    let (file, to) = match command {
        Command::Convert { file, to } => (file, Some(to)),
        Command::Check { file } => (file, None),
    };
    let text = config::load(file).map_err(Error::Refused)?;
    let (name, syntax) = (file.display().to_string(), Syntax::of(file));
    let settings = config::parse(&name, &text, syntax)?;
    let (_, warnings) = Description::read(&name, &settings)?;
    for warning in warnings {
        eprintln!("xb: {warning}");
    }
    let Some(to) = to else { return Ok(0) };
    let to = match (to, syntax) {
        (Some(To::Xl), _) | (None, Syntax::Toml) => Syntax::Xl,
        (Some(To::Toml), _) | (None, Syntax::Xl) => Syntax::Toml,
    };
    out::print(&config::write(&settings, to))
}
