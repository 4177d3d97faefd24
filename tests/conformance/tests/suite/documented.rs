//! Every difference that a table names has its row in docs/compatibility.md, and every row is of a
//! difference that a test still names.

use conformance::table;
use std::collections::BTreeSet;
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
    let mut rows = BTreeSet::new();
    for line in document.lines() {
        if let Some((id, _)) = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')) {
            assert!(rows.insert(id), "`{id}` has two rows");
        }
    }
    let mut named = BTreeSet::new();
    for text in files("tables", "txt") {
        for case in table::parse(&text).expect("a table") {
            named.extend(case.not.into_iter().map(|(_, id)| id));
            let differs = case.steps.into_iter().flat_map(|step| step.differs);
            named.extend(differs.map(|(_, id, _)| id));
        }
    }
    for id in &named {
        assert!(rows.contains(id.as_str()), "`{id}` has no row in docs/compatibility.md");
    }
    let tests = [files("tests", "rs"), files("tests/suite", "rs")].concat().concat();
    for id in rows {
        let quoted = format!("`{id}`");
        let known = named.contains(id) || tests.contains(&quoted);
        assert!(known, "no test names `{id}` of docs/compatibility.md");
    }
}
