//! Plain words: the beginnings of doc comments, the names of types and functions, the length of prose lines.

use super::findings::Findings;
use super::source::File;
use super::tokens::shipped_tokens;

/// First words of a doc comment that do not name the thing, one a line.
const BEGINNINGS: &str = include_str!("beginnings.txt");
/// Names of types and functions that do not say their role, one a line.
const NAMES: &str = include_str!("names.txt");
/// Keywords before the name of an item.
const KEYWORDS: [&str; 6] = ["struct", "enum", "union", "trait", "type", "fn"];
/// Characters of a Markdown line, tables and code left out.
const COLUMNS: usize = 100;

/// Checks every Rust source and every Markdown file.
pub(super) fn check(files: &[File], findings: &mut Findings) {
    for file in files {
        if file.name.ends_with(".rs") {
            beginnings(file, findings);
            names(file, findings);
        } else if file.name.ends_with(".md") {
            columns(file, findings);
        }
    }
}

/// The entries of a list; lines with `#` are its comments.
fn entries(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The first line of each doc comment names the thing.
fn beginnings(file: &File, findings: &mut Findings) {
    let mut before = None;
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        let mark = ["///", "//!"].into_iter().find(|mark| line.starts_with(mark));
        if let Some(mark) = mark.filter(|_| mark != before) {
            let text = line[mark.len()..].trim_start();
            if let Some(word) = entries(BEGINNINGS).find(|word| begins(text, word)) {
                let place = format!("{}:{}", file.name, number + 1);
                let advice = "say first what the thing is or does";
                findings.fault(&place, format!("a doc comment begins with {word:?}: {advice}"));
            }
        }
        before = mark;
    }
}

/// True if `text` begins with all of `word`.
fn begins(text: &str, word: &str) -> bool {
    let rest = text.strip_prefix(word);
    rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '\''))
}

/// A name says the role of its type, or what its function does.
fn names(file: &File, findings: &mut Findings) {
    let tokens = shipped_tokens(&file.text);
    for pair in tokens.windows(2) {
        let &[keyword, name] = pair else { continue };
        if KEYWORDS.contains(&keyword) && entries(NAMES).any(|banned| banned == name) {
            let advice = "take a noun for a type's role, a verb for a function";
            findings.fault(&file.name, format!("`{keyword} {name}`: {advice}"));
        }
    }
}

/// A line of prose fits a terminal.
fn columns(file: &File, findings: &mut Findings) {
    let mut in_code = false;
    for (number, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let table = line.trim_start().starts_with('|');
        let code = in_code || line.starts_with("    ");
        let length = line.chars().count();
        if !table && !code && length > COLUMNS {
            let place = format!("{}:{}", file.name, number + 1);
            findings.fault(&place, format!("{length} characters; at most {COLUMNS}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str, text: &str) -> usize {
        let mut findings = Findings::default();
        check(&[File { name: name.into(), text: text.into() }], &mut findings);
        findings.faults.len()
    }

    #[test]
    fn a_doc_comment_begins_with_the_thing() {
        assert_eq!(faults("a.rs", "/// What it is.\nstruct A;\n"), 1);
        assert_eq!(faults("a.rs", "    //! How it goes.\n"), 1);
        assert_eq!(faults("a.rs", "/// The same.\n"), 1);
        assert_eq!(faults("a.rs", "/// The sameness.\n"), 0);
        assert_eq!(faults("a.rs", "/// A thing.\n/// What follows is no beginning.\n"), 0);
        assert_eq!(faults("a.rs", "/// However.\n// What: no doc comment.\n"), 0);
    }

    #[test]
    fn a_name_says_its_role() {
        let word = entries(NAMES).next().unwrap();
        assert_eq!(faults("a.rs", &format!("pub struct {word}<T>(T);\n")), 1);
        assert_eq!(faults("a.rs", &format!("struct {word}er;\n// struct {word}\n")), 0);
        assert_eq!(faults("a.rs", &format!("enum A {{ {word} }}\n")), 0);
    }

    #[test]
    fn prose_is_at_most_so_wide() {
        let wide = "x ".repeat(COLUMNS);
        assert_eq!(faults("a.md", &wide), 1);
        assert_eq!(faults("a.md", &format!("| {wide} |\n```\n{wide}\n```\n    {wide}\n")), 0);
    }
}
