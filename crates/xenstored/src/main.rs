//! `xenstored`: the daemon for the platform that this program was built for.
//!
//! No provider of a platform exists yet, so it serves sockets only.

use std::process::ExitCode;

fn main() -> ExitCode {
    xenstored::main_with(|_config| Ok(None))
}
