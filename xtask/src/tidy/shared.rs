//! One name of a type means one thing: a name with more than one definition is on a list with its meaning.

use super::findings::Findings;
use super::source::File;
use super::tokens::{Token, all_tokens, is_word};
use std::collections::{BTreeMap, BTreeSet};

/// The list, relative to the root of the project.
const LIST: &str = "xtask/src/tidy/shared_names.txt";
/// Names that more than one file defines, each with its meaning everywhere, one a line.
const SHARED: &str = include_str!("shared_names.txt");
/// Keywords before the name of a type.
const KEYWORDS: [&str; 5] = ["struct", "enum", "union", "trait", "type"];

/// Checks the types of every Rust source.
pub(super) fn check(files: &[File], findings: &mut Findings) {
    check_with(SHARED, files, findings);
}

/// Compares the types of all sources with a list.
fn check_with(list: &str, files: &[File], findings: &mut Findings) {
    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.name.ends_with(".rs")) {
        for name in types(&all_tokens(&file.text)) {
            places.entry(name).or_default().insert(&file.name);
        }
    }
    let shared = read(list, findings);
    for (name, files) in places.iter().filter(|(_, files)| files.len() > 1) {
        if !shared.contains(name) {
            let files = Vec::from_iter(files.iter().copied()).join(", ");
            let advice =
                format!("give each role its own name, or write its one meaning into {LIST}");
            findings.fault(&files, format!("each defines a type `{name}`: {advice}"));
        }
    }
    for name in shared {
        if places.get(name).is_none_or(|files| files.len() < 2) {
            findings.fault(LIST, format!("`{name}` is not defined more than once"));
        }
    }
}

/// The names of a list, whose lines are sorted and have a name and a meaning.
fn read<'a>(list: &'a str, findings: &mut Findings) -> Vec<&'a str> {
    let mut names = Vec::new();
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.split_once(" = ") {
            Some((name, meaning)) if !meaning.trim().is_empty() => names.push(name),
            _ => findings.fault(LIST, format!("{line:?} is not of the form `Name = meaning`")),
        }
    }
    if let Some(pair) = names.windows(2).find(|pair| pair[0] >= pair[1]) {
        findings.fault(LIST, format!("`{}` stands before `{}`: sort them", pair[0], pair[1]));
    }
    names
}

/// The types that a source defines, those in functions too. An associated type is none: it belongs to its trait.
fn types<'a>(tokens: &[Token<'a>]) -> BTreeSet<Token<'a>> {
    let (mut names, mut groups, mut start) = (BTreeSet::new(), Vec::new(), 0);
    for (at, token) in tokens.iter().enumerate() {
        let associated = *token == "type" && groups.last() == Some(&true);
        let name = tokens.get(at + 1).filter(|name| is_word(name));
        if let Some(name) = name.filter(|_| KEYWORDS.contains(token) && !associated) {
            names.insert(*name);
        }
        match *token {
            "{" => groups.push(has_associated_types(&tokens[start..at])),
            "}" => drop(groups.pop()),
            ";" => {}
            _ => continue,
        }
        start = at + 1;
    }
    names
}

/// True if an item that begins with these words is a trait, or an implementation of one.
fn has_associated_types(head: &[Token<'_>]) -> bool {
    head.contains(&"trait") || matches!(head, ["impl", ..] | ["unsafe", "impl", ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(list: &str, sources: &[(&str, &str)]) -> Vec<String> {
        let mut findings = Findings::default();
        let file =
            |(name, text): &(&str, &str)| File { name: (*name).into(), text: (*text).into() };
        check_with(list, &sources.iter().map(file).collect::<Vec<_>>(), &mut findings);
        findings.faults
    }

    #[test]
    fn a_name_of_two_types_is_on_the_list() {
        let twice = [("a.rs", "pub struct A<T>(T);\n"), ("b.rs", "fn f() { enum A {} }\n")];
        let found = faults("", &twice);
        assert!(found.len() == 1 && found[0].starts_with("a.rs, b.rs: "), "{found:?}");
        assert!(faults("# Names.\nA = a thing\n", &twice).is_empty());
        let tests = [("a.rs", "trait A {}"), ("b.rs", "#[cfg(test)]\nmod tests { type A = u8; }")];
        assert_eq!(faults("", &tests).len(), 1);
    }

    #[test]
    fn definitions_of_one_file_count_once() {
        let text = "#[cfg(unix)]\nstruct A;\n#[cfg(not(unix))]\nstruct A;\n";
        assert!(faults("", &[("a.rs", text)]).is_empty());
        assert_eq!(faults("A = a thing\n", &[("a.rs", text)]).len(), 1);
    }

    #[test]
    fn a_name_on_the_list_is_defined_twice() {
        let once = [
            ("a.rs", "union A { a: u8 }"),
            ("b.rs", "// struct A;\nuse a::A;"),
            ("c.md", "struct A"),
        ];
        assert_eq!(faults("A = a thing\n", &once).len(), 1);
        assert_eq!(faults("B = a thing\n", &once).len(), 1);
    }

    #[test]
    fn an_associated_type_has_no_name_of_its_own() {
        let text = "pub trait T { type A; fn f(a: impl G) { type B = u8; } }";
        let other = "unsafe impl<X> T for Y { type A = u8; } mod m { type B = u8; }";
        let found = faults("", &[("a.rs", text), ("b.rs", other)]);
        assert!(found.len() == 1 && found[0].contains("`B`"), "{found:?}");
    }

    #[test]
    fn a_line_of_the_list_has_a_meaning_and_its_place() {
        let twice = [("a.rs", "struct A; struct B;"), ("b.rs", "struct A; struct B;")];
        assert!(faults("A = a thing\nB = another\n", &twice).is_empty());
        assert_eq!(faults("B = another\nA = a thing\n", &twice).len(), 1);
        assert_eq!(faults("A = a thing\nB\n", &twice).len(), 2);
    }
}
