//! Relative links in the documentation lead somewhere.

use super::findings::Findings;
use super::source::File;
use std::path::Path;

/// Checks every Markdown file.
pub(super) fn check(root: &Path, files: &[File], findings: &mut Findings) {
    for file in files.iter().filter(|file| file.name.ends_with(".md")) {
        let folder = root.join(&file.name).parent().map(Path::to_owned).unwrap_or_default();
        for (line, target) in links(&file.text) {
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = path.contains("://") || path.starts_with("mailto:");
            if !path.is_empty() && !elsewhere && !folder.join(path).exists() {
                let place = format!("{}:{line}", file.name);
                findings.fault(&place, format!("the link to {target} leads nowhere"));
            }
        }
    }
}

/// The targets of `[text](target)` with their lines; code is left out.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second part between backticks is code.
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            let outside = rest[..at].matches('`').count() % 2 == 0;
            rest = &rest[at + 2..];
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            if outside {
                found.push((number + 1, target));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md) and [c](d.md#e \"title\")\n```\n[x](y)\n```\n`[m](n)`\n";
        assert_eq!(links(text), [(1, "b.md"), (1, "d.md#e")]);
    }

    #[test]
    fn dead_links_are_faults() {
        let file = |text: &str| File { name: "README.md".into(), text: text.into() };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut findings = Findings::default();
        check(root, &[file("[a](Cargo.toml) [b](https://example.org/x)")], &mut findings);
        assert_eq!(findings.faults, Vec::<String>::new());
        check(root, &[file("[a](no-such-file.md)")], &mut findings);
        assert_eq!(findings.faults.len(), 1);
    }
}
