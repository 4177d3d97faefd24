//! The licences of the libraries that are linked into programs.
//!
//! cargo names the libraries and the folders of their sources; their texts of licences are there.

use crate::Result;
use crate::command::output;
use crate::workspace::cargo;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Beginnings of the names of files with a licence or a notice, in capitals.
const TEXTS: &[&str] = &["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// A line of the Apache License 2.0. Debian has its text in a place of its own.
const APACHE: &str = "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION";

/// All packages that cargo knows for this machine, with what is linked into each.
pub(super) struct LicenseNotices {
    packages: BTreeMap<String, Linked>,
    /// The package of each program.
    programs: BTreeMap<String, String>,
}

/// A package as it is linked.
struct Linked {
    /// Its name, version and licence, as one line.
    heading: String,
    /// The folder of its sources.
    folder: PathBuf,
    /// True if it is not of this workspace.
    foreign: bool,
    /// The packages that are linked into it.
    dependencies: Vec<String>,
}

impl LicenseNotices {
    /// Asks cargo.
    pub(super) fn collect() -> Result<Self> {
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform"]);
        command.arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
        Self::read(&serde_json::from_str(&output(&mut command)?)?)
    }

    fn read(metadata: &Value) -> Result<Self> {
        let mut packages = BTreeMap::new();
        let mut programs = BTreeMap::new();
        for package in array(&metadata["packages"]) {
            let id = text(&package["id"])?;
            let mut runs_in_compiler = false;
            for target in array(&package["targets"]) {
                let is = |kind: &str| array(&target["kind"]).iter().any(|one| one == kind);
                if is("bin") {
                    programs.insert(text(&target["name"])?, id.clone());
                }
                runs_in_compiler |= is("proc-macro");
            }
            let (name, version) = (text(&package["name"])?, text(&package["version"])?);
            let licence = package["license"].as_str().unwrap_or("see below");
            let manifest = PathBuf::from(text(&package["manifest_path"])?);
            let linked = Linked {
                heading: format!("{name} {version} ({licence})"),
                folder: manifest.parent().ok_or("a manifest has a folder")?.to_owned(),
                foreign: !package["source"].is_null(),
                dependencies: Vec::new(),
            };
            // A procedural macro is not linked into a program, nor is anything that it is built on.
            if !runs_in_compiler {
                packages.insert(id, linked);
            }
        }
        for node in array(&metadata["resolve"]["nodes"]) {
            let Some(linked) = packages.get_mut(&text(&node["id"])?) else { continue };
            for dependency in array(&node["deps"]) {
                // The kind is null of what is linked; it is `build` or `dev` of others.
                if array(&dependency["dep_kinds"]).iter().any(|one| one["kind"].is_null()) {
                    linked.dependencies.push(text(&dependency["pkg"])?);
                }
            }
        }
        Ok(Self { packages, programs })
    }

    /// Returns the notices of all that is linked into these programs.
    pub(super) fn of(&self, programs: &[String]) -> Result<String> {
        let mut linked = BTreeSet::new();
        let mut waiting = Vec::new();
        for program in programs {
            waiting.push(self.programs.get(program).ok_or(format!("no package has {program}"))?);
        }
        while let Some(id) = waiting.pop() {
            if let Some(package) = self.packages.get(id)
                && linked.insert(id)
            {
                waiting.extend(&package.dependencies);
            }
        }
        let mut notices =
            "\nThe programs contain the Rust standard library, copyright of the Rust \
                           project's contributors,\nunder the MIT licence or the Apache License 2.0"
                .to_owned();
        let foreign = linked.iter().map(|id| &self.packages[*id]).filter(|one| one.foreign);
        // Packages of one origin have the same texts.
        let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for one in foreign {
            texts.entry(licence_texts(&one.folder)?).or_default().push(&one.heading);
        }
        notices.push_str(if texts.is_empty() { ".\n" } else { ", and these libraries.\n" });
        for (text, headings) in &texts {
            notices.push_str(&format!("\n{}\n\n{}\n{text}", "=".repeat(78), headings.join("\n")));
        }
        Ok(notices)
    }
}

/// Returns the texts of licences in a folder of sources, without Apache's.
fn licence_texts(folder: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|one| one.path()).collect();
    files.sort();
    let mut all = String::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if TEXTS.iter().any(|start| name.starts_with(start)) {
            let text = fs::read_to_string(file)?;
            if !text.contains(APACHE) {
                all.push_str(&format!("\n{}\n", text.trim_end()));
            }
        }
    }
    Ok(all)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().ok_or("cargo metadata has a text here")?.to_owned())
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_linked_library_is_named_with_its_licence() {
        let notices = LicenseNotices::collect().expect("cargo knows the workspace");
        let listed = notices.of(&["xb".to_owned()]).expect("xb is a program");
        assert!(listed.contains("\nclap_builder "), "{listed}");
        assert!(listed.contains("Permission is hereby granted"), "{listed}");
        // It is ours, a procedural macro's, or used by tests alone.
        for other in ["xen-block", "syn", "clap_derive", "tempfile"] {
            assert!(!listed.contains(&format!("\n{other} ")), "{other}");
        }
        assert!(notices.of(&["no-such-program".to_owned()]).is_err());
    }
}
