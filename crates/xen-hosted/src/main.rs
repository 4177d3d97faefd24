//! `xen-hosted DIR`: the broker of the host in that directory. It ends, and its domains with it, at
//! SIGTERM or SIGINT.

use std::io::Write;
use std::process::ExitCode;
use xen_hosted::HostDir;
use xen_hosted::hypervisor::{Broker, stop_signals};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), None) = (args.next(), args.next()) else {
        eprintln!("usage: xen-hosted DIR   (the broker of the host in DIR; ends at SIGTERM)");
        return ExitCode::FAILURE;
    };
    let ended = stop_signals().and_then(|stop| {
        let mut broker = Broker::start(HostDir::new(&dir), stop)?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "xen-hosted: serving {}", dir.display())?;
        stdout.flush()?;
        broker.run()
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
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
