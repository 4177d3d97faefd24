//! The rules of the code that no other tool checks.
//!
//! | module | what it checks |
//! |---|---|
//! | `files` | lengths, words, first lines, where `unsafe` may be |
//! | `crates` | who depends on whom, lint tables, the pure core |
//! | `circles` | files of a crate that use each other |
//! | `modules` | the modules of a crate, and which file defines a name |
//! | `tokens` | a Rust source as its words and signs |
//! | `links` | relative links in the documentation |

mod circles;
mod crates;
mod files;
mod links;
mod modules;
mod tokens;

use crate::Result;
use crate::workspace::Workspace;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A file of the project.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) name: String,
    /// What is in it; files that are not UTF-8 are not looked at.
    pub(crate) text: String,
}

/// What was found: faults fail, remarks do not.
#[derive(Default)]
pub(crate) struct Findings {
    faults: Vec<String>,
    remarks: Vec<String>,
}

impl Findings {
    /// Something that must not be.
    pub(crate) fn fault(&mut self, place: &str, what: impl AsRef<str>) {
        self.faults.push(format!("{place}: {}", what.as_ref()));
    }

    /// Something to think about.
    pub(crate) fn remark(&mut self, place: &str, what: impl AsRef<str>) {
        self.remarks.push(format!("{place}: {}", what.as_ref()));
    }
}

/// `cargo xtask tidy`.
pub(crate) fn run() -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut files = Vec::new();
    collect(&workspace.root, &workspace.root, &mut files)?;
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let mut findings = Findings::default();
    files::check(&workspace.root, &files, &mut findings);
    crates::check(&workspace, &files, &mut findings);
    circles::check(&workspace, &files, &mut findings);
    links::check(&workspace.root, &files, &mut findings);
    for remark in &findings.remarks {
        println!("remark: {remark}");
    }
    for fault in &findings.faults {
        println!("fault: {fault}");
    }
    println!("tidy: {} files, {} faults", files.len(), findings.faults.len());
    Ok(ExitCode::from(u8::from(!findings.faults.is_empty())))
}

/// Folders that hold what was built, fetched or found, wherever they are.
const SKIPPED: [&str; 5] = ["target", ".git", "artifacts", "corpus", "coverage"];

/// Every text file below `folder`.
fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        let skipped = SKIPPED.iter().any(|skip| name == *skip);
        if skipped || kind.is_symlink() {
            continue;
        }
        let path = entry.path();
        if kind.is_dir() {
            collect(root, &path, files)?;
        } else if let Ok(text) = fs::read_to_string(&path) {
            let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
            files.push(File { name, text });
        }
    }
    Ok(())
}

/// The part of a source file that ships: all before its test module at the end.
pub(crate) fn shipped(text: &str) -> &str {
    let tests = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\npub(crate) mod "];
    let end = tests.iter().filter_map(|mark| text.find(mark)).min();
    end.map_or(text, |end| &text[..end])
}

/// Whether a source file is test code as a whole.
pub(crate) fn is_test(name: &str) -> bool {
    let path = PathBuf::from(name);
    let stem = path.file_stem().unwrap_or_default();
    stem == "tests" || path.iter().any(|part| part == "tests")
}
