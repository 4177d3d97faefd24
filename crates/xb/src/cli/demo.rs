//! `xb demo`.

use super::All;
use crate::Error;
use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Leave the host up, and say what to try next.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(_: &All, _: &Demo) -> Result<u8, Error> {
    Ok(0)
}
