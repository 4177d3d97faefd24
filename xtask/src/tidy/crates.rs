//! The dependencies between crates, the lint tables, and the purity of the core.

use super::findings::Findings;
use super::source::{File, is_test, shipped};
use crate::workspace::{Package, Workspace};

/// The layers as a table: each crate that ships, with the crates of this workspace that it may be
/// built on. Down only, never up or sideways; the picture is in ARCHITECTURE.md.
const MAY_USE: &[(&str, &[&str])] = &[
    ("xen-platform", &[]),
    ("confine", &[]),
    ("daemon", &[]),
    ("getopt-table", &[]),
    ("xenstore-core", &[]),
    ("xen-io", &["xen-platform"]),
    ("xen-linux", &["xen-platform"]),
    ("xen-hosted", &["xen-platform", "confine"]),
    ("xenstore-client", &["xenstore-core", "xen-io", "xen-platform", "getopt-table"]),
    (
        "xenstored",
        &[
            "xenstore-core",
            "xen-io",
            "xen-platform",
            "xen-linux",
            "xen-hosted",
            "confine",
            "daemon",
            "getopt-table",
        ],
    ),
    ("xenbus", &["xenstore-client", "xenstore-core", "xen-io", "xen-platform"]),
    (
        "xen-driver",
        &[
            "xenbus",
            "xenstore-client",
            "xen-io",
            "xen-platform",
            "xen-linux",
            "xen-hosted",
            "daemon",
        ],
    ),
    ("xen-block", DRIVER),
    ("xen-net", DRIVER),
    (
        "xen-console",
        &[
            "xen-driver",
            "xenbus",
            "xenstore-client",
            "xen-io",
            "xen-platform",
            "xen-linux",
            "xen-hosted",
            "confine",
            "daemon",
            "getopt-table",
        ],
    ),
    ("xen-pci", DRIVER),
    (
        "xb",
        &[
            "xen-block",
            "xen-net",
            "xen-console",
            "xen-pci",
            "xen-driver",
            "xenbus",
            "xenstore-client",
            "xen-io",
            "xen-platform",
            "xen-linux",
            "xen-hosted",
            "daemon",
        ],
    ),
];

/// The crates that a device type is built on.
const DRIVER: &[&str] = &[
    "xen-driver",
    "xenbus",
    "xenstore-client",
    "xen-io",
    "xen-platform",
    "xen-linux",
    "xen-hosted",
    "confine",
];

/// Crates that know no device type.
const WITHOUT_DEVICE_TYPES: &[&str] = &["xenbus", "xen-driver"];
/// Words of device types, which the code of those crates does not have.
const DEVICE_TYPES: &[&str] =
    &["blkif", "vbd", "qdisk", "netif", "vif", "pciif", "pciback", "xencons", "vfb", "vkbd"];

/// Libraries with one user each, which shows the others no more than they need of it.
const ONE_USER: &[(&str, &str)] = &[("seccompiler", "confine")];
/// Crates that promise to have no dependency at all.
const WITHOUT_DEPENDENCIES: &[&str] = &["xenstore-core", "getopt-table"];
/// Crates that promise `no_std`.
const WITHOUT_STD: &[&str] = &["xenstore-core"];
/// Crates of checked copies and pure rules: no `unsafe` at all, and nothing that panics.
const PURE: &[&str] = &["xenstore-core", "xen-io", "getopt-table"];
/// Modules of other crates that read what guests write, and deny the same lints of panics.
const GUARDED: &[&str] = &[
    "crates/xen-block/src/back.rs",
    "crates/xen-console/src/backlog.rs",
    "crates/xen-console/src/bus_front.rs",
    "crates/xen-console/src/feed.rs",
    "crates/xen-console/src/log/cursor.rs",
    "crates/xen-console/src/log/file.rs",
    "crates/xen-console/src/log/reader.rs",
    "crates/xen-console/src/record.rs",
    "crates/xen-console/src/serve/channel.rs",
    "crates/xen-console/src/serve/console.rs",
    "crates/xen-console/src/serve/further/device.rs",
    "crates/xen-console/src/serve/rate.rs",
    "crates/xen-console/src/serve/terminal.rs",
    "crates/xen-driver/src/backend/pages.rs",
    "crates/xen-driver/src/backend/ring.rs",
    "crates/xen-driver/src/backend/rings.rs",
];
/// The lints of panics.
const PANICS: [&str; 3] = ["unwrap_used", "indexing_slicing", "arithmetic_side_effects"];
/// Names that say nothing.
const NAMELESS: &[&str] = &["common", "utils", "util", "types", "misc", "helpers"];

/// True if a file denies a lint in its first list of denied lints.
fn denies(text: &str, lint: &str) -> bool {
    text.split_once("deny(").is_some_and(|(_, list)| {
        list.split(')').next().is_some_and(|list| list.contains(&format!("clippy::{lint}")))
    })
}

/// Checks every package.
pub(super) fn check(workspace: &Workspace, files: &[File], findings: &mut Findings) {
    for name in GUARDED {
        let text = files.iter().find(|file| file.name == *name).map_or("", |file| &file.text);
        for lint in PANICS.into_iter().filter(|lint| !denies(text, lint)) {
            findings.fault(name, format!("it reads what guests write: #![deny(clippy::{lint})]"));
        }
    }
    for package in &workspace.packages {
        let folder = package.folder.to_string_lossy();
        directions(workspace, package, findings);
        if NAMELESS.contains(&package.name.as_str()) {
            findings.fault(&folder, "a crate's name says what it promises");
        }
        for root in &package.roots {
            let root = root.strip_prefix(&workspace.root).unwrap_or(root).to_string_lossy();
            if !files.iter().any(|file| file.name == root && file.text.starts_with("//!")) {
                findings.fault(&root, "opens with //! and what it is");
            }
        }
        let manifest = format!("{folder}/Cargo.toml");
        if let Some(file) = files.iter().find(|file| file.name == manifest) {
            let root = format!("{folder}/src/lib.rs");
            let attributes = files.iter().find(|file| file.name == root);
            lints(package, file, attributes.map_or("", |file| &file.text), findings);
        }
        if WITHOUT_STD.contains(&package.name.as_str()) {
            no_std(&format!("{folder}/src/"), files, findings);
        }
        if WITHOUT_DEVICE_TYPES.contains(&package.name.as_str()) {
            no_device_type(&format!("{folder}/src/"), files, findings);
        }
    }
    if let Some(root) = files.iter().find(|file| file.name == "Cargo.toml") {
        for (table, lint, level) in [
            ("workspace.lints.rust", "missing_docs", "deny"),
            ("workspace.lints.rust", "unsafe_code", "deny"),
            ("workspace.lints.clippy", "undocumented_unsafe_blocks", "deny"),
        ] {
            demand(root, table, lint, level, findings);
        }
    }
}

/// The code of a crate has no word of a device type; comments may, as examples, and tests.
fn no_device_type(folder: &str, files: &[File], findings: &mut Findings) {
    for file in files.iter().filter(|file| file.name.starts_with(folder)) {
        let code = shipped(&file.text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let words = code.flat_map(|line| line.split(|letter: char| !letter.is_alphanumeric()));
        let known = words.filter(|word| DEVICE_TYPES.contains(&word.to_lowercase().as_str()));
        for word in known {
            findings
                .fault(&file.name, format!("knows the device type {word}; this crate knows none"));
        }
    }
}

fn directions(workspace: &Workspace, package: &Package, findings: &mut Findings) {
    if !package.folder.starts_with("crates") {
        return;
    }
    let place = format!("{}/Cargo.toml", package.folder.to_string_lossy());
    if WITHOUT_DEPENDENCIES.contains(&package.name.as_str()) && !package.dependencies.is_empty() {
        let names = package.dependencies.join(", ");
        findings.fault(&place, format!("promises to depend on nothing; depends on {names}"));
    }
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
        findings.fault(&place, "is in no layer; give it one in xtask's tidy");
        return;
    };
    for (library, user) in ONE_USER {
        if package.name != *user && package.dependencies.iter().any(|name| name == library) {
            findings
                .fault(&place, format!("may not depend on {library}: that is for {user} alone"));
        }
    }
    for name in &package.dependencies {
        let ours = workspace.packages.iter().any(|other| other.name == *name);
        if ours && !allowed.contains(&name.as_str()) {
            findings.fault(&place, format!("may not depend on {name}: dependencies point down"));
        }
    }
}

/// Either the workspace's lints, or a table that is at least as strict; the pure crates stricter: what
/// forbids panics may stand in their lib.rs, where it does not bind the tests.
fn lints(package: &Package, file: &File, root: &str, findings: &mut Findings) {
    if PURE.contains(&package.name.as_str()) {
        demand(file, "lints.rust", "missing_docs", "deny", findings);
        demand(file, "lints.rust", "unsafe_code", "forbid", findings);
        for lint in PANICS {
            if !denies(root, lint) {
                demand(file, "lints.clippy", lint, "deny", findings);
            }
        }
    } else if setting(&file.text, "lints", "workspace") != Some("true") {
        demand(file, "lints.rust", "missing_docs", "deny", findings);
        let forbidden = setting(&file.text, "lints.rust", "unsafe_code") == Some("\"forbid\"");
        if !forbidden {
            demand(file, "lints.rust", "unsafe_code", "deny", findings);
            demand(file, "lints.clippy", "undocumented_unsafe_blocks", "deny", findings);
        }
    }
}

fn demand(file: &File, table: &str, lint: &str, level: &str, findings: &mut Findings) {
    if setting(&file.text, table, lint) != Some(format!("\"{level}\"").as_str()) {
        findings.fault(&file.name, format!("[{table}] lacks {lint} = \"{level}\""));
    }
}

/// The value of `key` in `[table]`, as written; enough of TOML for what manifests hold here.
fn setting<'a>(text: &'a str, table: &str, key: &str) -> Option<&'a str> {
    let heading = format!("[{table}]");
    let lines = text.lines().skip_while(|line| line.trim() != heading).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.split('#').next().unwrap_or_default().trim())
}

/// The shipped code of a `no_std` crate names `core` and `alloc` only.
fn no_std(sources: &str, files: &[File], findings: &mut Findings) {
    for file in files {
        if !file.name.starts_with(sources) || !file.name.ends_with(".rs") || is_test(&file.name) {
            continue;
        }
        if file.name.ends_with("/lib.rs") && !file.text.contains("#![no_std]") {
            findings.fault(&file.name, "promises no_std and lacks #![no_std]");
        }
        let mut before = "";
        for (number, line) in shipped(&file.text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let named = code.contains("std::") || code.contains("extern crate std");
            if named && before.trim() != "#[cfg(test)]" {
                findings.fault(&format!("{}:{}", file.name, number + 1), "names std");
            }
            before = line;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.into(),
            version: "0.1.0".into(),
            can_be_published: false,
            folder: format!("crates/{name}").into(),
            dependencies: dependencies.iter().map(|name| (*name).into()).collect(),
            binaries: Vec::new(),
            roots: Vec::new(),
        }
    }

    fn faults(packages: Vec<Package>) -> Vec<String> {
        let (version, rust_version) = ("0.1.0".to_owned(), "1.95".to_owned());
        let workspace =
            Workspace { root: "/".into(), target: "/".into(), packages, version, rust_version };
        let mut findings = Findings::default();
        for package in &workspace.packages {
            directions(&workspace, package, &mut findings);
        }
        findings.faults
    }

    #[test]
    fn dependencies_point_down() {
        let good = vec![package("xen-platform", &[]), package("xen-io", &["xen-platform"])];
        assert_eq!(faults(good), Vec::<String>::new());
        let up = vec![package("xen-platform", &["xen-io"]), package("xen-io", &[])];
        assert_eq!(faults(up).len(), 1);
        assert_eq!(faults(vec![package("nobody", &[])]).len(), 1);
    }

    #[test]
    fn a_library_of_one_user_is_no_one_elses() {
        assert_eq!(faults(vec![package("confine", &["seccompiler"])]), Vec::<String>::new());
        assert_eq!(faults(vec![package("xen-hosted", &["seccompiler"])]).len(), 1);
    }

    #[test]
    fn the_core_depends_on_nothing() {
        assert_eq!(faults(vec![package("xenstore-core", &["serde"])]).len(), 1);
    }

    #[test]
    fn settings_are_read_from_their_table() {
        let text = "[a]\nx = 1\n[lints.rust]\nx = \"deny\" # why\n\n[b]\ny = 2\n";
        assert_eq!(setting(text, "lints.rust", "x"), Some("\"deny\""));
        assert_eq!(setting(text, "lints.rust", "y"), None);
    }

    #[test]
    fn a_device_type_is_told_from_an_example() {
        let check = |text: &str| {
            let file = File { name: "crates/xenbus/src/a.rs".into(), text: text.into() };
            let mut findings = Findings::default();
            no_device_type("crates/xenbus/src/", &[file], &mut findings);
            findings.faults.len()
        };
        assert_eq!(check("use xen_io::blkif;\nlet path = \"backend/vbd/3\";\n"), 2);
        assert_eq!(check("/// The kind: `vbd`.\nlet kind = divbdide;\n"), 0);
        assert_eq!(
            check("fn f() {}\n\n#[cfg(test)]\nmod tests {\n    // vbd\n    g(\"vbd\");\n}\n"),
            0
        );
    }

    #[test]
    fn std_is_for_tests() {
        let check = |text: &str| {
            let file = File { name: "crates/c/src/a.rs".into(), text: text.into() };
            let mut findings = Findings::default();
            no_std("crates/c/src/", &[file], &mut findings);
            findings.faults.len()
        };
        assert_eq!(check("use std::fmt;\n"), 1);
        assert_eq!(check("use core::fmt; // not std::fmt\n"), 0);
        assert_eq!(check("#[cfg(test)]\nextern crate std;\n"), 0);
        assert_eq!(check("fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n"), 0);
    }
}
