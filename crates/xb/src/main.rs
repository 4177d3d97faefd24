//! `xb`: the toolstack's command line.

fn main() -> std::process::ExitCode {
    xb::cli::main()
}
