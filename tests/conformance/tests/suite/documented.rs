//! Every difference that a table names has its row in docs/compatibility.md, and every row is of a
//! difference that a test still names. A row of a difference between versions names these.

use conformance::{Mark, Version, table};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn files(folder: &str, end: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut texts = Vec::new();
    for entry in fs::read_dir(&folder).expect("the folder of this package") {
        let path = entry.expect("its entry").path();
        if path.extension().is_some_and(|extension| extension == end) {
            texts.push(fs::read_to_string(&path).expect("a file of this package"));
        }
    }
    assert!(!texts.is_empty(), "no .{end} files in {}", folder.display());
    texts
}

#[test]
fn every_difference_has_its_row_and_every_row_its_test() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    let document = fs::read_to_string(path).expect("docs/compatibility.md");
    let mut rows = BTreeMap::new();
    for line in document.lines() {
        if let Some((id, _)) = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')) {
            assert!(rows.insert(id, line).is_none(), "`{id}` has two rows");
        }
    }
    for version in Version::KNOWN.map(Version::debian) {
        assert!(document.contains(version), "the document does not name {version}");
    }
    let mut marked = Vec::new();
    for text in files("tables", "txt") {
        for case in table::parse(&text).expect("a table") {
            marked.extend(case.not);
            let differs = case.steps.into_iter().flat_map(|step| step.differs);
            marked.extend(differs.map(|(mark, id, _)| (mark, id)));
        }
    }
    let mut named = BTreeSet::new();
    for (mark, id) in marked {
        let row = rows.get(id.as_str());
        let row = row.unwrap_or_else(|| panic!("`{id}` has no row in docs/compatibility.md"));
        if let Mark::Version(_, version) = mark {
            assert!(row.contains(version.name()), "`{id}`: its row does not name {}", mark.name());
        }
        named.insert(id);
    }
    let tests = [files("tests", "rs"), files("tests/suite", "rs")].concat().concat();
    for id in rows.into_keys() {
        let quoted = format!("`{id}`");
        let known = named.contains(id) || tests.contains(&quoted);
        assert!(known, "no test names `{id}` of docs/compatibility.md");
    }
}
