//! The results of Debian's daemon, kept in `tests/xen/reference`, so that it is booted again only
//! if something other than the daemon under test has changed.
//!
//! A boot's folder has its `steps`, `facts` and `tree-NAME` as dom0 left them, and its `key`: the
//! versions of the packages that decide the behaviour of a host under that daemon, and a digest of
//! the scripts. If the key differs, the daemon is booted. `cargo xtask xen --store c --record`
//! boots it and keeps the outcome.

use super::boot::{Boot, LINUX_ARGUMENTS, MACHINE, XEN_ARGUMENTS};
use super::lab::{Lab, StoreDaemon, say};
use super::outcome::{BootExtent, Outcome};
use super::verdict::{self, TryVerdict};
use crate::{Result, command};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Prefixes of the names of packages whose versions are in a key: Xen with its tools, and the
/// kernel.
const PACKAGES: &[&str] = &["xen", "libxen", "linux-image", "qemu-system-x86"];
/// The scripts and recipes that every boot runs, below `tests/xen`.
const SCRIPTS: &[&str] = &[
    "dom0.files",
    "domu.files",
    "domu",
    "dom0/init",
    "dom0/prepare",
    "dom0/run",
    "dom0/lib.sh",
    "dom0/etc",
];
/// The further files that the boot `conformance` runs, from the project's root.
const SUITE: &[&str] = &["tests/conformance/src", "tests/conformance/tables", "tests/xen/guest"];
/// The further files that the boot `console` runs, below `tests/xen`.
const CONSOLE: &[&str] = &[
    "console.files",
    "dom0/console.sh",
    "dom0/block.sh",
    "block.files",
    "block/init",
    "block/talk",
];
/// The files that are kept, besides `tree-NAME`.
const KEPT: &[&str] = &["steps", "facts"];

/// Returns the key that a boot has now.
pub(super) fn key(lab: &Lab, boot: &Boot, packages: &[String]) -> Result<String> {
    let recipes = lab.recipes();
    let mut places: Vec<PathBuf> = SCRIPTS.iter().map(|place| recipes.join(place)).collect();
    places.push(recipes.join("dom0").join(boot.name));
    if boot.name == "conformance" {
        places.extend(SUITE.iter().map(|place| lab.project.join(place)));
    }
    if boot.name == "console" {
        places.extend(CONSOLE.iter().map(|place| recipes.join(place)));
    }
    let mut whole = Vec::new();
    for words in MACHINE.iter().chain([&XEN_ARGUMENTS, &LINUX_ARGUMENTS]) {
        whole.extend_from_slice(format!("{words}\n").as_bytes());
    }
    for place in &places {
        add(&lab.project, place, &mut whole)?;
    }
    let digest = command::filter(&mut Command::new("sha256sum"), whole)?;
    let digest = String::from_utf8_lossy(&digest);
    let mut key = format!("scripts {}\n", digest.split(' ').next().unwrap_or_default());
    for package in packages.iter().filter(|one| PACKAGES.iter().any(|name| one.starts_with(name))) {
        key.push_str(&format!("package {package}\n"));
    }
    Ok(key)
}

/// Appends a file, or all files of a folder by name, each with its path and length.
fn add(project: &Path, place: &Path, whole: &mut Vec<u8>) -> Result<()> {
    if place.is_dir() {
        let mut places: Vec<PathBuf> =
            fs::read_dir(place)?.flatten().map(|entry| entry.path()).collect();
        places.sort();
        return places.iter().try_for_each(|place| add(project, place, whole));
    }
    let bytes = fs::read(place).map_err(|error| format!("{}: {error}", place.display()))?;
    let name = place.strip_prefix(project).unwrap_or(place).display();
    whole.extend_from_slice(format!("{name} {}\n", bytes.len()).as_bytes());
    whole.extend_from_slice(&bytes);
    Ok(())
}

fn folder(lab: &Lab, boot: &Boot) -> PathBuf {
    lab.recipes().join("reference").join(boot.name)
}

/// Returns the kept outcome of Debian's daemon, if its key is this one.
pub(super) fn find(lab: &Lab, boot: &Boot, key: &str) -> Result<Option<Outcome>> {
    let folder = folder(lab, boot);
    if fs::read_to_string(folder.join("key")).unwrap_or_default() != key {
        say(&format!(
            "c-{}: kept for other packages or scripts, so Debian's daemon is booted; --record keeps it anew",
            boot.name
        ));
        return Ok(None);
    }
    Ok(Some(Outcome {
        store: StoreDaemon::C,
        boot: boot.name,
        expected: boot.steps(lab)?,
        extent: BootExtent::Whole,
        results: folder,
        took: None,
        fault: None,
        disk_faults: Vec::new(),
        first: None,
    }))
}

/// Keeps a whole boot of Debian's daemon that has passed.
pub(super) fn record(lab: &Lab, boot: &Boot, outcome: &Outcome, key: &str) -> Result<()> {
    if outcome.extent != BootExtent::Whole || verdict::judge_try(outcome) != TryVerdict::Held {
        return Err(format!("{}: only a whole boot that has held is kept", outcome.name()).into());
    }
    let folder = folder(lab, boot);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(&outcome.results)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if KEPT.contains(&name.as_str()) || name.starts_with("tree-") {
            fs::copy(outcome.results.join(&name), folder.join(&name))?;
        }
    }
    fs::write(folder.join("key"), key)?;
    say(&format!("{} is kept in {}", outcome.name(), folder.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xen::boot;

    /// Makes a workspace in this folder, with the scripts that a key needs.
    fn lab(project: &Path) -> Lab {
        let recipes = project.join("tests/xen");
        for folder in ["dom0/etc", "dom0/sysv", "domu"] {
            fs::create_dir_all(recipes.join(folder)).unwrap();
        }
        for file in ["dom0.files", "domu.files", "dom0/init", "dom0/prepare", "dom0/run"] {
            fs::write(recipes.join(file), file).unwrap();
        }
        fs::write(recipes.join("dom0/lib.sh"), "").unwrap();
        fs::write(recipes.join("dom0/sysv/10-start"), "# bound: 60 s\n").unwrap();
        let target = project.join("target");
        Lab { dir: target.clone(), programs: target, project: project.to_owned() }
    }

    #[test]
    fn a_boot_is_kept_until_its_scripts_or_packages_change() {
        let project = tempfile::tempdir().unwrap();
        let lab = lab(project.path());
        let boot = boot::ALL.iter().find(|boot| boot.name == "sysv").unwrap();
        let packages = ["xen-utils-4.17 4.17.5".to_owned(), "libc6 2.36".to_owned()];
        let first = key(&lab, boot, &packages).unwrap();
        assert!(find(&lab, boot, &first).unwrap().is_none(), "nothing is kept yet");
        let results = lab.dir.join("results");
        fs::create_dir_all(&results).unwrap();
        fs::write(results.join("steps"), "STEP 10-start ok 1.0 s\n").unwrap();
        fs::write(results.join("tree-pv"), "/a = \"1\"\n").unwrap();
        let mut outcome = Outcome {
            store: StoreDaemon::C,
            boot: "sysv",
            expected: vec!["10-start".to_owned()],
            extent: BootExtent::Whole,
            results,
            took: None,
            fault: None,
            disk_faults: Vec::new(),
            first: None,
        };
        record(&lab, boot, &outcome, &first).unwrap();
        let kept = find(&lab, boot, &key(&lab, boot, &packages).unwrap()).unwrap().unwrap();
        assert_eq!(fs::read_to_string(kept.results.join("tree-pv")).unwrap(), "/a = \"1\"\n");
        // A library's version is not part of the key; Xen's version, and each script, is.
        let other = ["xen-utils-4.17 4.17.5".to_owned(), "libc6 2.37".to_owned()];
        assert_eq!(key(&lab, boot, &other).unwrap(), first);
        let other = ["xen-utils-4.17 4.17.7".to_owned()];
        assert_ne!(key(&lab, boot, &other).unwrap(), first);
        fs::write(lab.recipes().join("dom0/sysv/10-start"), "# bound: 61 s\n").unwrap();
        assert!(find(&lab, boot, &key(&lab, boot, &packages).unwrap()).unwrap().is_none());
        outcome.extent = BootExtent::Part;
        assert!(record(&lab, boot, &outcome, &first).is_err(), "a part is not kept");
    }
}
