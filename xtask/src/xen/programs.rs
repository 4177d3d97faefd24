//! The programs of this workspace that run in dom0 and in guests, built for release.

use super::lab::Lab;
use crate::workspace::cargo;
use crate::{Result, command};
use std::process::{Command, Stdio};

/// The programs of this workspace that go into dom0's image: package, binary.
const PROGRAMS: &[(&str, &str)] = &[
    ("xenstored", "xenstored"),
    ("xenstore-client", "xenstore"),
    ("xen-block", "xen-blockd"),
    ("xen-block", "xen-blkfront"),
    ("xen-console", "xenconsoled"),
    ("xen-hosted", "xen-hosted"),
    ("xb", "xb"),
    ("conformance", "platform-dom0"),
    ("conformance", "conformance-dom0"),
];

/// The tests of this workspace that run in dom0, each a program.
const TESTS: &[(&str, &[&str])] = &[("xen-hosted", &["suite", "shares"])];

/// Builds the programs that go into dom0.
pub(super) fn build(lab: &Lab) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release"]);
    for (package, binary) in PROGRAMS {
        command.args(["--package", package, "--bin", binary]);
    }
    if !command.current_dir(&lab.project).status()?.success() {
        return Err("the programs for dom0 do not build; cargo has said why".into());
    }
    for (package, names) in TESTS {
        build_tests(lab, package, names)?;
    }
    build_guest(lab)
}

/// Builds tests of a package, and copies the programs, whose names cargo chooses, to `tests` under
/// their own names.
fn build_tests(lab: &Lab, package: &str, names: &[&str]) -> Result<()> {
    let place = lab.dir.join("tests");
    let mut command = cargo();
    command.args(["test", "--no-run", "--release", "--message-format=json-render-diagnostics"]);
    command.args(["--package", package]);
    for name in names {
        command.args(["--test", name]);
    }
    let output = command.stderr(Stdio::inherit()).current_dir(&lab.project).output()?;
    if !output.status.success() {
        return Err(format!("the tests of {package} do not build; cargo has said why").into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let built: Vec<serde_json::Value> = messages.collect();
    for name in names {
        let one = built.iter().find(|one| one["target"]["name"] == **name);
        let program = one.and_then(|one| one["executable"].as_str());
        let program = program.ok_or(format!("cargo built no {name}"))?;
        command::strip(program.as_ref(), &place.join(name))?;
    }
    Ok(())
}

/// Builds the guest of the conformance suite, a workspace of its own, and the library that `xl`
/// needs for it.
fn build_guest(lab: &Lab) -> Result<()> {
    let sources = lab.recipes().join("guest");
    let (built, place) = (lab.dir.join("guest-build"), lab.dir.join("conformance"));
    let mut command = cargo();
    command.args(["build", "--release", "--target-dir"]).arg(&built).current_dir(&sources);
    if !command.status()?.success() {
        return Err("tests/xen/guest does not build; cargo has said why".into());
    }
    std::fs::create_dir_all(&place)?;
    std::fs::copy(built.join("release/ring-agent"), place.join("ring-agent"))?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(place.join("xl-shim.so"));
    if !cc.arg(sources.join("xl-shim.c")).status()?.success() {
        return Err("xl-shim.c does not compile; cc has said why".into());
    }
    Ok(())
}
