//! The rules of the code that no other tool checks.
//!
//! | module | what it checks |
//! |---|---|
//! | `files` | lengths, forbidden words, crate roots, where `unsafe` may be |
//! | `shared` | names of types that have more than one definition |
//! | `words` | beginnings of doc comments, names, width of prose |
//! | `crates` | who depends on whom, lint tables, the pure core |
//! | `circles` | files of a crate that use each other |
//! | `interfaces` | types of other projects in the interfaces of packages that can be published |
//! | `modules` | the modules of a crate, and which file defines a name |
//! | `tokens` | a Rust source as its words and signs |
//! | `source` | the files, and which part of them is test code |
//! | `findings` | what the checks have found |
//! | `links` | relative links in the documentation |

mod circles;
mod crates;
mod files;
mod findings;
mod interfaces;
mod links;
mod modules;
mod shared;
mod source;
mod tokens;
mod words;

use crate::Result;
use crate::figures::{self, README, TABLES};
use crate::workspace::Workspace;
use findings::Findings;
use source::{File, collect};
use std::process::ExitCode;

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
    interfaces::check(&workspace, &files, &mut findings);
    links::check(&workspace.root, &files, &mut findings);
    words::check(&files, &mut findings);
    shared::check(&files, &mut findings);
    figures_agree(&files, &mut findings)?;
    for remark in &findings.remarks {
        println!("remark: {remark}");
    }
    for fault in &findings.faults {
        println!("fault: {fault}");
    }
    println!("tidy: {} files, {} faults", files.len(), findings.faults.len());
    Ok(ExitCode::from(u8::from(!findings.faults.is_empty())))
}

/// README's figures are those of the benches' tables.
fn figures_agree(files: &[File], findings: &mut Findings) -> Result<()> {
    let text = |name: &str| files.iter().find(|file| file.name == name).map(|file| &file.text);
    let (Some(readme), Some(tables)) = (text(README), text(TABLES)) else {
        return Err(format!("{README} or {TABLES} is not there").into());
    };
    if !figures::agree(readme, tables)? {
        let advice = format!("its figures are not those of {TABLES}");
        findings.fault(README, format!("{advice}: run `cargo xtask bench --readme`"));
    }
    Ok(())
}
