//! The files of the project, and which part of them is test code.

use crate::Result;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of the project.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) name: String,
    /// Its text; files that are not UTF-8 are not looked at.
    pub(crate) text: String,
}

/// Folders that hold what was built, fetched or found, wherever they are.
const SKIPPED: [&str; 5] = ["target", ".git", "artifacts", "corpus", "coverage"];

/// Every text file below `folder`.
pub(super) fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) -> Result<()> {
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

/// True if a source file is test code as a whole.
pub(crate) fn is_test(name: &str) -> bool {
    let path = PathBuf::from(name);
    let stem = path.file_stem().unwrap_or_default();
    stem == "tests" || path.iter().any(|part| part == "tests")
}
