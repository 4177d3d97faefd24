//! `xenstore`: reads, writes, lists and watches the store from a shell.
//!
//! Called as `xenstore-read`, `xenstore-ls` and so on, or as `xenstore read`, it behaves as
//! Debian's xenstore-utils 4.17 do, character by character. `xenstore --help` lists its further
//! commands.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
