//! `xen-hosted DIR`: the broker of the host in that directory. It ends, and its domains with it, at
//! SIGTERM or SIGINT.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use xen_hosted::HostDir;
use xen_hosted::hypervisor::{Broker, stop_signals};

const HELP: &str = "\
usage: xen-hosted DIR
       xen-hosted --help | --version

The broker of the host in DIR, which it makes if it is not there: it plays the hypervisor for domains that
are processes. It ends, and its domains with it, at SIGTERM or SIGINT. A DIR that begins with - is named
as ./-DIR.";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let dir = match args.as_slice() {
        [arg] if arg == "--help" || arg == "-h" => return tell(HELP),
        [arg] if arg == "--version" => {
            return tell(concat!("xen-hosted ", env!("CARGO_PKG_VERSION")));
        }
        [arg] if !arg.is_empty() && !arg.as_encoded_bytes().starts_with(b"-") => Path::new(arg),
        _ => {
            eprintln!("usage: xen-hosted DIR (xen-hosted --help says more)");
            return ExitCode::from(2);
        }
    };
    match serve(dir) {
        Ok(status) => status,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            eprintln!("xen-hosted: another broker serves {}", dir.display());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("xen-hosted: {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn tell(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves until it is told to end. Returns a failure where something does not end with it.
fn serve(dir: &Path) -> std::io::Result<ExitCode> {
    let mut broker = Broker::start(&HostDir::new(dir), stop_signals()?)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "xen-hosted: serving {}", dir.display())?;
    stdout.flush()?;
    broker.run()?;
    let left = broker.end();
    for remainder in &left {
        eprintln!("xen-hosted: {remainder} does not end");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
