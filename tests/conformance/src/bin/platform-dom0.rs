//! Runs the platform's part of the suite in domain 0 of real Xen.
//!
//! `platform-dom0 [XL-CONFIG]`: event channels and grants of domain 0 with itself; with a config file
//! of xl, which must describe a domain that runs and does nothing, the life of domains, too. One line a
//! case, a summary, and exit code 1 where a case failed.

use conformance::platform::{self, Party, life};
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::DomId;
use xen_linux::domctl::Domctl;
use xen_linux::evtchn::Evtchn;
use xen_linux::gntalloc::Gntalloc;
use xen_linux::gntdev::Gntdev;
use xen_linux::manage::Manage;
use xen_linux::privcmd::Privcmd;

/// How long a change of a domain may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            println!("FAIL platform-dom0: {why}");
            ExitCode::FAILURE
        }
    }
}

/// How many cases failed.
fn run(config: Option<&str>) -> Result<usize, String> {
    let privcmd = Privcmd::open().map_err(|error| error.to_string())?;
    let (mut a, mut b) = (party(&privcmd)?, party(&privcmd)?);
    let mut verdicts = Vec::new();
    for (name, case) in platform::cases() {
        verdicts.push(said(name, &case(&mut a, &mut b)));
    }
    if let Some(config) = config {
        let mut control = Domctl::open(&privcmd).map_err(|error| error.to_string())?;
        let mut made = 0;
        let mut create = || {
            made += 1;
            create(config, &format!("platform{made}"))
        };
        for (name, case) in life::CASES {
            // Each with a watch of its own, which has seen nothing yet.
            let mut watch = Manage::open(&privcmd).map_err(|error| error.to_string())?;
            let began = Instant::now();
            let mut wait = || {
                std::thread::sleep(Duration::from_millis(20));
                began.elapsed() < PATIENCE
            };
            let mut host = life::Host {
                control: &mut control,
                watch: &mut watch,
                create: &mut create,
                wait: &mut wait,
            };
            verdicts.push(said(name, &case(&mut host)));
        }
    }
    let failed = verdicts.iter().filter(|ok| !**ok).count();
    println!("platform-dom0: {} cases, {failed} failed", verdicts.len());
    Ok(failed)
}

fn said(name: &str, verdict: &platform::Verdict) -> bool {
    match verdict {
        Ok(()) => println!("ok   {name}"),
        Err(why) => println!("FAIL {name}: {why}"),
    }
    verdict.is_ok()
}

fn party(privcmd: &Rc<Privcmd>) -> Result<Party, String> {
    let text = |error: xen_linux::Error| error.to_string();
    Ok(Party {
        domid: DomId::DOM0,
        evtchn: Box::new(Evtchn::open(Some(Rc::clone(privcmd))).map_err(text)?),
        maps: Box::new(Gntdev::open().map_err(text)?),
        offers: Box::new(Gntalloc::open().map_err(text)?),
    })
}

/// A domain made by xl, not by us: what it says on its own is not of interest.
fn create(config: &str, name: &str) -> Result<DomId, String> {
    let xl = |args: &[&str]| {
        let output = Command::new("xl").args(args).output();
        let output = output.map_err(|error| format!("xl: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("xl {}: {said}", args.join(" ")))
        }
    };
    // -e: no xl stays behind to clean up after it, so that the suite sees every step.
    xl(&["create", "-q", "-e", config, &format!("name=\"{name}\"")])?;
    let domid = xl(&["domid", name])?;
    domid.parse().map(DomId).map_err(|error| format!("xl domid {name}: {error}"))
}
