//! The public interface of a package that can be published names no type of another project: its users
//! are not bound to a version of it.
//!
//! It reads text and knows no types: a foreign name counts that stands in a public item, or in the
//! head of an `impl`. An alias of such a name under a private name is not found. The modules of the package's
//! programs have no users and do not count.

use super::findings::Findings;
use super::modules::{Modules, Sources, imports};
use super::source::{File, is_test};
use super::tokens::{Token, behind_group, shipped_tokens};
use crate::workspace::{Package, Workspace};
use std::collections::BTreeSet;

/// Checks every package that can be published.
pub(super) fn check(workspace: &Workspace, files: &[File], findings: &mut Findings) {
    let texts = files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
    for package in workspace.packages.iter().filter(|package| package.can_be_published) {
        let foreign = foreign_crates(workspace, package);
        let sources = format!("{}/src/", package.folder.to_string_lossy());
        let roots = package.roots.iter().map(|root| {
            let root = root.strip_prefix(&workspace.root).unwrap_or(root);
            root.to_string_lossy().into_owned()
        });
        let programs = program_files(&roots.collect::<Vec<_>>(), &texts);
        let is_source = |name: &str| {
            name.starts_with(&sources) && name.ends_with(".rs") && !programs.contains(name)
        };
        for file in files.iter().filter(|file| is_source(&file.name) && !is_test(&file.name)) {
            for name in foreign_names(&file.text, &foreign) {
                let advice = "a published interface names types of std and of our own packages";
                findings.fault(&file.name, format!("`{name}` in a public item: {advice}"));
            }
        }
    }
}

/// The files of a package's programs that are not its library's as well, by the roots of all.
fn program_files(roots: &[String], texts: &Sources<'_>) -> BTreeSet<String> {
    let (libraries, programs): (Vec<_>, Vec<_>) =
        roots.iter().partition(|root| root.ends_with("/lib.rs"));
    let files = |roots: &[&String]| -> BTreeSet<String> {
        let crates = roots.iter().map(|root| Modules::read(root, texts));
        crates.flat_map(|one| one.files().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    files(&programs).difference(&files(&libraries)).cloned().collect()
}

/// The names of the crates that a package is built on and that are not of this workspace.
fn foreign_crates(workspace: &Workspace, package: &Package) -> Vec<String> {
    let ours = |name: &String| workspace.packages.iter().any(|other| other.name == *name);
    let foreign = package.dependencies.iter().filter(|name| !ours(name));
    foreign.map(|name| name.replace('-', "_")).collect()
}

/// The names of foreign crates, and of what a source imports from them, in its public items.
fn foreign_names<'a>(text: &'a str, foreign: &[String]) -> Vec<&'a str> {
    let tokens = shipped_tokens(text);
    let is_foreign = |name: &str| foreign.iter().any(|one| one == name);
    let imported: Vec<&str> = imports(&tokens)
        .into_iter()
        .filter(|(_, path)| path.first().is_some_and(|first| is_foreign(first)))
        .map(|(name, _)| name)
        .collect();
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let item = public_part(&tokens, at);
        for (place, name) in item.iter().enumerate() {
            let begins_path = item.get(place + 1) == Some(&"::");
            let is_type = name.starts_with(char::is_uppercase);
            let in_path = place > 0 && item[place - 1] == "::";
            let known = imported.contains(name) && (begins_path || is_type);
            if !in_path && (known || begins_path && is_foreign(name)) {
                found.push(*name);
            }
        }
    }
    found
}

/// The part of an item that its users see, if one begins at `at`; else nothing.
fn public_part<'t, 'a>(tokens: &'t [Token<'a>], at: usize) -> &'t [Token<'a>] {
    let after = &tokens[at..];
    let begins_item =
        at == 0 || matches!(tokens[at - 1], ";" | "{" | "}") || tokens[at - 1] == "unsafe";
    let len = match after {
        ["impl", ..] if begins_item => position(after, &["{"]),
        ["pub", "(", ..] => 0,
        ["pub", rest @ ..] => {
            let keyword = rest.iter().find(|token| !matches!(**token, "unsafe" | "async"));
            match keyword {
                Some(&("enum" | "trait" | "union")) => behind_group(after, position(after, &["{"])),
                Some(&"struct") => position(after, &["{", "(", ";"]),
                Some(&("fn" | "mod")) => position(after, &["{", ";"]),
                Some(&("use" | "type")) => position(after, &[";"]),
                Some(&("const" | "static")) => position(after, &["{", "=", ";"]),
                _ => field_end(after),
            }
        }
        _ => 0,
    };
    &after[..len.min(after.len())]
}

/// The index of the first of these signs that stands in no round or square brackets.
fn position(tokens: &[Token<'_>], signs: &[&str]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            sign if depth == 0 && signs.contains(&sign) => return at,
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    tokens.len()
}

/// The index of the comma or the bracket that ends a field.
fn field_end(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "(" | "[" | "<" => depth += 1,
            ")" | "]" | ">" if depth > 0 => depth -= 1,
            "," | ")" | "}" | ";" if depth == 0 => return at,
            _ => {}
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        foreign_names(text, &["rustix".into()])
    }

    #[test]
    fn foreign_types_in_public_items_are_found() {
        assert_eq!(found("pub fn f(a: u8) -> Result<(), rustix::io::Errno> {}"), ["rustix"]);
        let used = |item: &str| {
            let text = format!("use rustix::{{io::{{self, Errno as E}}, fs::Mode}};\n{item}");
            found(&text).len()
        };
        for item in [
            "pub struct A { b: u8, pub c: Vec<(u8, E)> }",
            "pub struct A(pub E);",
            "pub enum A { B(u8), C { d: Mode } }",
            "pub trait A { fn b(&self, c: io::Errno); }",
            "impl A { pub fn b(c: E) {} }",
            "impl From<E> for A {}",
            "pub type A = Mode;",
            "pub const A: Mode = B;",
            "pub const fn a(b: E) {}",
            "pub use rustix::io::Errno;",
            "pub fn a(b: [u8; 4], c: E) {}",
            "pub const fn a(b: [u8; 4]) -> E {}",
            "pub type A = ([u8; 4], E);",
        ] {
            assert_eq!(used(item), 1, "{item}");
        }
    }

    #[test]
    fn what_users_do_not_see_may_be_foreign() {
        let used = |item: &str| {
            let text = format!("use rustix::io::{{self, Errno, read}};\n{item}");
            found(&text).len()
        };
        for item in [
            "pub(crate) fn a(b: Errno) -> Result<(), Errno> {}",
            "pub struct A { b: Errno, pub c: Vec<u8>, d: Errno }",
            "pub struct A(Errno);",
            "pub fn a() { b(Errno::C); rustix::d(); }",
            "pub const A: i32 = Errno::B.c();",
            "fn a(b: impl Fn(Errno)) {}",
            "pub fn read(io: u8) {}",
            "#[cfg(test)] mod tests { pub fn a(b: Errno) {} }",
            "pub fn a(b: std::io::Error, c: std::Errno) {}",
        ] {
            assert_eq!(used(item), 0, "{item}");
        }
    }

    #[test]
    fn a_file_of_programs_alone_has_no_users() {
        let texts = [
            ("src/lib.rs", "pub mod a;"),
            ("src/a.rs", ""),
            ("src/main.rs", "mod a; mod cli;"),
            ("src/cli.rs", "mod json;"),
            ("src/cli/json.rs", ""),
            ("src/elsewhere.rs", ""),
        ];
        let files = program_files(&["src/lib.rs".into(), "src/main.rs".into()], &texts.into());
        let expected = ["src/cli.rs", "src/cli/json.rs", "src/main.rs"];
        assert_eq!(files.iter().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    }
}
