//! Runs the platform's part of the suite in domain 0 of real Xen.
//!
//! `platform-dom0 [XL-CONFIG]`: event channels and grants of domain 0 with itself; with a config
//! file of xl, which must describe a domain that runs and does nothing, also the life of domains.
//! It prints one line for each case and a summary; the exit code is 1 if a case failed.

use conformance::platform::{self, Party, life};
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::foreignmem::ForeignMemory as _;
use xen::gnttab::{GrantMap, PageAccess};
use xen::{DomId, Gfn, GrantRef};
use xen_linux::domctl::Domctl;
use xen_linux::evtchn::Evtchn;
use xen_linux::gntalloc::Gntalloc;
use xen_linux::gntdev::Gntdev;
use xen_linux::manage::Manage;
use xen_linux::privcmd::{Foreign, Privcmd};

/// The longest time until a change of a domain must be reported.
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

/// Runs the cases; returns the number of those that failed.
fn run(config: Option<&str>) -> Result<usize, String> {
    let privcmd = Privcmd::open().map_err(|error| error.to_string())?;
    let (mut a, mut b) = (party(&privcmd)?, party(&privcmd)?);
    let mut verdicts = Vec::new();
    let mut left_out = 0;
    for (name, case) in platform::cases() {
        // Both parties are domain 0, so there is no other domain to keep out.
        if name.ends_with("for the peer alone") {
            println!("not  {name}: it needs two domains");
            left_out += 1;
            continue;
        }
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
            // Each case has a watch of its own, which has seen nothing yet.
            let mut watch = Manage::open(&privcmd).map_err(|error| error.to_string())?;
            let began = Instant::now();
            let mut wait = || {
                std::thread::sleep(Duration::from_millis(20));
                began.elapsed() < PATIENCE
            };
            let mut host = life::LifeHost {
                control: &mut control,
                watch: &mut watch,
                create: &mut create,
                wait: &mut wait,
            };
            verdicts.push(said(name, &case(&mut host)));
        }
    }
    if let Some(config) = config {
        let verdict = a_page_by_its_frame(&privcmd, &mut *a.maps, config);
        verdicts.push(said("foreignmem/a page by its frame", &verdict));
    }
    let failed = verdicts.iter().filter(|ok| !**ok).count();
    println!("platform-dom0: {} cases, {failed} failed, {left_out} not run here", verdicts.len());
    Ok(failed)
}

fn said(name: &str, verdict: &platform::CaseResult) -> bool {
    match verdict {
        Ok(()) => println!("ok   {name}"),
        Err(why) => println!("FAIL {name}: {why}"),
    }
    verdict.is_ok()
}

/// Checks that the ring of a new domain, by the frame that xl has told the store, is the page that
/// the domain builder has granted.
fn a_page_by_its_frame(
    privcmd: &Rc<Privcmd>,
    grants: &mut dyn GrantMap,
    config: &str,
) -> platform::CaseResult {
    let domid = create(config, "foreign")?;
    let frame = output("xenstore-read", &[&format!("/local/domain/{domid}/store/ring-ref")])?;
    let frame = Gfn(frame.parse().map_err(|error| format!("ring-ref {frame}: {error}"))?);
    let mut foreign = Foreign(Rc::clone(privcmd));
    let compared = same_page(&mut foreign, grants, domid, frame);
    let nowhere = foreign.map(domid, Gfn(1 << 40), PageAccess::Read).map(drop);
    output("xl", &["destroy", &domid.to_string()])?;
    let nobody = foreign.map(DomId(0x7fef), frame, PageAccess::Read).map(drop);
    match (nowhere, nobody) {
        (Err(_), Err(_)) => compared,
        other => Err(format!("no such frame, no such domain: {other:?}")),
    }
}

/// Compares the page by its frame with the page by its grant: a write of domain 0 to one is seen in
/// the other.
fn same_page(
    foreign: &mut Foreign,
    grants: &mut dyn GrantMap,
    domid: DomId,
    frame: Gfn,
) -> platform::CaseResult {
    // The last bytes of the ring's page are unused.
    const UNUSED: usize = 4092;
    let text = |error: xen::Error| error.to_string();
    let granted = grants.map(domid, GrantRef::XENSTORE, PageAccess::ReadWrite).map_err(text)?;
    let granted = granted.into_page();
    let page = foreign.map(domid, frame, PageAccess::Read).map_err(text)?;
    let mut seen = Vec::new();
    for word in [0x5eed, 0] {
        granted.store_u32(UNUSED, word).map_err(|error| error.to_string())?;
        seen.push(page.load_u32(UNUSED).map_err(|error| error.to_string())?);
    }
    if seen != [0x5eed, 0] {
        return Err(format!("what was written by the grant is read as {seen:x?}"));
    }
    page.store_u32(UNUSED, 1)
        .map_or(Ok(()), |()| Err("a page mapped to be read was written".into()))
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

/// Returns the output of a program that succeeds.
fn output(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{program} {}: {said}", args.join(" ")))
    }
}

/// Makes a domain by xl, not by this suite; its own output does not matter.
fn create(config: &str, name: &str) -> Result<DomId, String> {
    // -e: no xl stays behind to clean up after the domain, so that the suite sees every step.
    output("xl", &["create", "-q", "-e", config, &format!("name=\"{name}\"")])?;
    let domid = output("xl", &["domid", name])?;
    domid.parse().map(DomId).map_err(|error| format!("xl domid {name}: {error}"))
}
