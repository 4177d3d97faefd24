//! `cargo xtask xen`: real Xen, a Linux dom0 and stock Linux guests, under QEMU's software emulation.
//!
//! | module | what it is |
//! |---|---|
//! | `fetch` | Debian's packages, as the machine's own apt finds them, unpacked and never installed |
//! | `database` | dpkg's database of these packages |
//! | `debian_root` | the project's Debian packages in a root made of these |
//! | `packages` | the packages, and the root that they are unpacked into |
//! | `image` | the initramfs of dom0 and of the guests, by the recipes in `tests/xen` |
//! | `modules` | the kernel's modules that an image needs |
//! | `cpio` | the format of an initramfs |
//! | `disk` | the disks of the boots `block`, `driver` and `speed`, made and checked |
//! | `programs` | the programs of this workspace in the images |
//! | `options` | the command line |
//! | `lab` | the places of the lab, the daemon under test, the progress messages |
//! | `boot` | one boot: QEMU, its console, its time limit |
//! | `tries` | boots, two at a time, and second tries |
//! | `outcome` | the remains of a boot |
//! | `verdict` | the end of a try, and the decision on another |
//! | `repeat` | one step many times: the number of lost guests |
//! | `reference` | the results of Debian's daemon, kept in the repository |
//! | `judge` | the results of boots; daemons side by side |
//! | `speed` | our block backend beside the kernel's |
//! | `trees` | the differences of the store under two daemons |

mod boot;
mod cpio;
mod database;
mod debian_root;
mod disk;
mod fetch;
mod image;
mod judge;
mod lab;
mod modules;
mod options;
mod outcome;
mod packages;
mod programs;
mod reference;
mod repeat;
mod speed;
mod trees;
mod tries;
mod verdict;

use crate::Result;
use crate::deb::{self, Profile};
use boot::{Boot, BootPurpose, Selection};
use debian_root::DebianPackages;
use lab::{Lab, StoreDaemon};
use options::LabOptions;
use outcome::Outcome;
use std::process::ExitCode;
use std::time::Instant;
use tries::BootJob;

pub(crate) use judge::{flaky, print_flaky};

const HELP: &str = "\
cargo xtask xen [OPTION...]: our xenstored as the store of a real Xen host

  --store ours|c|both  whose xenstored runs the host; both is the default, and compares them: what Debian's showed
                       is kept in tests/xen/reference, and it is booted where packages or scripts have changed since
  --boot NAME          only this boot; --list names them
  --only NAME          only the steps with NAME in their name, and those that they need
  --repeat N STEP      that step N times in one boot, to see how often a guest is lost; with --store and --boot
  --long               the long forms of the steps that have one, as those of the boot driver
  --at-once N          so many boots at once: 2 where there are 10 GiB of memory and two processors, else 1
  --record             keep what Debian's daemon shows in tests/xen/reference; with --store c
  --update             fetch the archive's current packages again, where they are here already
  --json               the result as JSON, on standard output
  --list               the boots and their steps

It fetches Debian's packages into target/xen-lab, where they stay, and installs nothing. What each boot showed is
in target/xen-lab/results; README.md in tests/xen tells what runs.
";

/// Runs `cargo xtask xen`.
pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    let lab = Lab::new()?;
    if words.iter().any(|word| ["--help", "-h"].contains(word)) {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    if words.contains(&"--list") {
        for boot in boot::ALL {
            println!("{}: {}", boot.name, boot.steps(&lab)?.join(" "));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let options = LabOptions::parse(words).map_err(|why| format!("{why}\n{HELP}"))?;
    check(&lab, &options, BootPurpose::Check)
}

/// Runs `cargo xtask deb --check`: builds the project's Debian packages, and tests them in a Debian
/// root.
pub(crate) fn check_debs() -> Result<ExitCode> {
    let lab = Lab::new()?;
    fetch::packages(&lab, fetch::VersionPolicy::AnyVersion)?;
    let debian = DebianPackages { root: lab.root(), database: database::make(&lab)? };
    let place = deb::place()?.with_extension("check");
    let built = deb::build(Profile::Release, &place)?;
    let script = lab.project.join(deb::RECIPES).join("check");
    debian_root::check(&debian, &built, &script, &place.join("root"))?;
    std::fs::remove_dir_all(place)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `cargo xtask bench xen`: the boots that measure, one after the other.
pub(crate) fn bench(words: &[&str]) -> Result<ExitCode> {
    let mut options = LabOptions::parse(words).map_err(|why| format!("bench xen: {why}"))?;
    options.at_once = Some(1);
    check(&Lab::new()?, &options, BootPurpose::Measure)
}

/// Fetches, builds, boots and judges.
fn check(lab: &Lab, options: &LabOptions, purpose: BootPurpose) -> Result<ExitCode> {
    let begin = Instant::now();
    let packages = fetch::packages(lab, options.update)?;
    programs::build(lab)?;
    database::make(lab)?;
    deb::build(Profile::Release, &lab.dir.join("debs"))?;
    image::build(lab, boot::ALL.iter().filter_map(|boot| boot.overlay))?;
    if let Some(repeat) = &options.repeat {
        return repeat::run(lab, repeat, options);
    }
    let mut outcomes = Vec::new();
    let mut jobs = Vec::new();
    let selection = Selection { only: options.only.as_deref(), times: 1, form: options.form };
    for boot in boot::ALL.iter().filter(|boot| boot.purpose == purpose && options.selects(boot)) {
        for store in options.stores.iter().filter(|store| boot.supports(**store)) {
            if boot.selected(lab, selection)?.is_empty() {
                continue;
            }
            match kept(lab, boot, *store, options, &packages)? {
                Some(outcome) => outcomes.push(outcome),
                None => jobs.push(BootJob { boot, store: *store, selection }),
            }
        }
    }
    if jobs.is_empty() && outcomes.is_empty() {
        return Err("no boot or step has such a name; --list tells them".into());
    }
    let at_once = options.at_once.unwrap_or_else(tries::at_once);
    outcomes.extend(tries::run(lab, jobs, at_once)?);
    outcomes.sort_by_key(Outcome::name);
    if options.record {
        record(lab, &outcomes, &packages)?;
    }
    judge::judge(lab, &outcomes, &packages, begin.elapsed(), options.report)
}

/// Returns the kept outcome of Debian's daemon, if that is only compared with and its key has not
/// changed.
fn kept(
    lab: &Lab,
    boot: &Boot,
    store: StoreDaemon,
    options: &LabOptions,
    packages: &[String],
) -> Result<Option<Outcome>> {
    let compared = options.stores.contains(&StoreDaemon::Ours) && options.only.is_none();
    if store != StoreDaemon::C || !compared {
        return Ok(None);
    }
    reference::find(lab, boot, &reference::key(lab, boot, packages)?)
}

/// Keeps the outcomes of Debian's daemon.
fn record(lab: &Lab, outcomes: &[Outcome], packages: &[String]) -> Result<()> {
    for outcome in outcomes.iter().filter(|one| one.store == StoreDaemon::C && one.took.is_some()) {
        let boot = boot::ALL.iter().find(|boot| boot.name == outcome.boot);
        let boot = boot.ok_or("every outcome is of a boot")?;
        reference::record(lab, boot, outcome, &reference::key(lab, boot, packages)?)?;
    }
    Ok(())
}
