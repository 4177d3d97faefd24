//! No files of a crate use each other in a circle: one of them can be read, and changed, before the others.
//!
//! A parent that uses its child, and is used by it, is a circle as any other. One that only re-exports what its
//! children define is their face, and uses nothing.

use super::findings::Findings;
use super::modules::{Modules, Sources, Uses};
use super::source::File;
use crate::workspace::Workspace;
use std::collections::{BTreeMap, BTreeSet};

/// Checks every package.
pub(super) fn check(workspace: &Workspace, files: &[File], findings: &mut Findings) {
    let sources = files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
    for package in &workspace.packages {
        let folder = package.folder.to_string_lossy();
        let roots = package.roots.iter().map(|root| {
            let root = root.strip_prefix(&workspace.root).unwrap_or(root);
            root.to_string_lossy().into_owned()
        });
        for circle in circles(&Graph::read(&roots.collect::<Vec<_>>(), &sources)) {
            findings.fault(&folder, format!("files use each other in a circle\n{circle}"));
        }
    }
}

/// The files of a package, with the names that each uses of others.
struct Graph {
    arrows: BTreeMap<String, Uses>,
}

impl Graph {
    /// Reads the crates of a package, by their roots.
    fn read(roots: &[String], sources: &Sources<'_>) -> Self {
        let mut arrows: BTreeMap<String, Uses> = BTreeMap::new();
        for root in roots {
            for (file, uses) in Modules::read(root, sources).uses() {
                // A library and a program may have a file both.
                let of_file = arrows.entry(file).or_default();
                for (other, names) in uses {
                    of_file.entry(other).or_default().extend(names);
                }
            }
        }
        Self { arrows }
    }

    /// All files that a file uses, and those that they use, and so on.
    fn reach<'a>(&'a self, file: &str) -> BTreeSet<&'a str> {
        let mut reached = BTreeSet::new();
        let mut due = vec![file];
        while let Some(file) = due.pop() {
            let uses = self.arrows.get(file).into_iter().flatten();
            for (other, _) in uses {
                if reached.insert(other.as_str()) {
                    due.push(other);
                }
            }
        }
        reached
    }
}

/// Each circle: a line for each arrow in it, with its names.
fn circles(graph: &Graph) -> Vec<String> {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        graph.arrows.keys().map(|file| (file.as_str(), graph.reach(file))).collect();
    let meet = |one: &str, other: &str| {
        let has = |from: &str, to: &str| reached.get(from).is_some_and(|all| all.contains(to));
        has(one, other) && has(other, one)
    };
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for file in reached.keys() {
        let members: Vec<&str> =
            reached.keys().copied().filter(|other| meet(file, other)).collect();
        if members.is_empty() || !told.insert(members.clone()) {
            continue;
        }
        let mut lines = Vec::new();
        for (from, uses) in graph.arrows.iter().filter(|(from, _)| meet(file, from)) {
            for (to, names) in uses.iter().filter(|(to, _)| meet(file, to)) {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                lines.push(format!("  {from} -> {to}: {}", names.join(", ")));
            }
        }
        circles.push(lines.join("\n"));
    }
    circles
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate whose root is `src/lib.rs`.
    fn circles_of(sources: &[(&str, &str)]) -> Vec<String> {
        let sources = sources.iter().copied().collect();
        circles(&Graph::read(&["src/lib.rs".into()], &sources))
    }

    #[test]
    fn a_circle_is_found_and_its_names() {
        let found = circles_of(&[
            ("src/lib.rs", "mod a; mod b; mod c;"),
            ("src/a.rs", "use crate::b::B; pub struct A;"),
            ("src/b.rs", "use crate::Arc; pub struct B; fn f() { crate::c::g(); }"),
            ("src/c.rs", "use super::a; pub fn g(_: a::A) { unknown::a(); }"),
        ]);
        let arrows =
            ["  src/a.rs -> src/b.rs: B", "  src/b.rs -> src/c.rs: g", "  src/c.rs -> src/a.rs: A"];
        assert_eq!(found, [arrows.join("\n")]);
    }

    #[test]
    fn a_way_down_is_no_circle() {
        let found = circles_of(&[
            (
                "src/lib.rs",
                "mod a; mod b; pub use a::A; pub use std::sync::Arc; fn f() -> A { b::B; }",
            ),
            ("src/a.rs", "use crate::b::B; pub struct A;"),
            (
                "src/b.rs",
                "use crate::Arc; pub struct B; fn f() { self::B; std::a::A; ::a::A; x.a::<B>(); }",
            ),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_face_is_none_and_a_name_counts_where_it_is_defined() {
        let child = "use super::X; use crate::z::Z; pub struct Y;";
        let face = "mod x; mod y; mod z; pub use x::X; pub(crate) use y::{Y as V};";
        let files = |face| {
            [
                ("src/lib.rs", face),
                ("src/x.rs", "pub struct X;"),
                ("src/y.rs", child),
                ("src/z.rs", ""),
            ]
        };
        assert_eq!(circles_of(&files(face)).len(), 0);
        let user = format!("{face} pub struct Own; fn f(v: V) {{}}");
        assert_eq!(
            circles_of(&files(&user)).len(),
            0,
            "the child uses what is not its parent's own"
        );
        let through = [
            ("src/lib.rs", face),
            ("src/x.rs", "use crate::V; pub struct X;"),
            ("src/y.rs", child),
        ];
        assert_eq!(circles_of(&through), ["  src/x.rs -> src/y.rs: Y\n  src/y.rs -> src/x.rs: X"]);
    }

    #[test]
    fn a_parent_that_uses_its_child_and_is_used_by_it_is_one() {
        let child = ("src/a.rs", "use super::*; pub fn f(_: Own) {}");
        for parent in ["use a::f;", "fn g() { a::f(); }", "pub use a::f; fn g() { f(); }"] {
            let parent = format!("mod a; struct Own; {parent}");
            assert_eq!(circles_of(&[("src/lib.rs", &parent), child]).len(), 1, "{parent}");
        }
        for parent in ["pub use a::f;", "pub use a::f; fn g() { h.f(); }"] {
            let parent = format!("mod a; struct Own; {parent}");
            assert_eq!(circles_of(&[("src/lib.rs", &parent), child]).len(), 0, "{parent}");
        }
    }

    #[test]
    fn tests_do_not_count() {
        let user = "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }";
        let files = |user| {
            [
                ("src/lib.rs", "mod a; mod b;"),
                ("src/a.rs", user),
                ("src/b.rs", "use crate::a::A; pub struct B;"),
            ]
        };
        assert_eq!(circles_of(&files(user)).len(), 0);
        assert_eq!(circles_of(&files(&user.replace("#[cfg(test)]", ""))).len(), 1);
    }

    #[test]
    fn a_file_of_two_crates_keeps_what_it_uses_in_both() {
        let sources = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/main.rs", "mod a; mod c { pub struct B; } fn main() {}"),
            ("src/a.rs", "use crate::b::B; pub struct A;"),
            ("src/b.rs", "use crate::a::A; pub struct B;"),
        ];
        let roots = ["src/lib.rs".into(), "src/main.rs".into()];
        assert_eq!(circles(&Graph::read(&roots, &sources.into())).len(), 1);
    }

    #[test]
    fn paths_are_followed_through_groups_and_parents() {
        let found = circles_of(&[
            ("src/lib.rs", "mod a; mod d;"),
            ("src/a/mod.rs", "pub mod b; pub mod e;"),
            (
                "src/a/b.rs",
                "mod inner { use super::super::super::d::D; } pub struct B; pub struct C;",
            ),
            ("src/a/e.rs", "pub struct E;"),
            (
                "src/d.rs",
                "use crate::{a::{b::{self, B as X, C}, e}, d}; pub struct D; fn f(_: e::E) {}",
            ),
        ]);
        assert_eq!(found, ["  src/a/b.rs -> src/d.rs: D\n  src/d.rs -> src/a/b.rs: B, C"]);
    }
}
