//! The folders for files that an image names.
//!
//! An image is data: its author may write any name into it. A file that it names must lie in the
//! image's own folder or below; a backing file may also lie in an image folder, which an
//! administrator has named.

use std::path::{Path, PathBuf};

/// The file whose lines are the image folders. It is read at each opening.
pub const IMAGE_DIRS: &str = "/etc/xenbus/image-dirs";
/// The lines that apply if the file is missing.
const SHIPPED: &str = include_str!("../../image-dirs");

/// The image folders.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageDirs {
    given: Vec<PathBuf>,
    file: PathBuf,
}

impl Default for ImageDirs {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl ImageDirs {
    /// Creates the list of these folders and those of [`IMAGE_DIRS`].
    #[must_use]
    pub fn new(given: Vec<PathBuf>) -> Self {
        Self { given, file: IMAGE_DIRS.into() }
    }

    /// Replaces [`IMAGE_DIRS`] by another file; for tests, which do not depend on the host's file.
    #[must_use]
    pub fn with_file(self, file: PathBuf) -> Self {
        Self { file, ..self }
    }

    /// True if a resolved name lies in an image folder.
    pub(super) fn has(&self, path: &Path) -> bool {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => SHIPPED.to_owned(),
            // A file that cannot be read permits nothing.
            Err(_) => String::new(),
        };
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        let folders = lines.map(Path::new).chain(self.given.iter().map(PathBuf::as_path));
        folders
            .filter_map(|folder| folder.canonicalize().ok())
            .any(|folder| path.starts_with(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_given_or_lines_of_the_file() {
        let temporary = tempfile::tempdir().unwrap();
        let top = temporary.path().canonicalize().unwrap();
        for folder in ["given", "listed/below", "other", "listed-not"] {
            std::fs::create_dir_all(top.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(top.join("listed"), top.join("link")).unwrap();
        let file = top.join("dirs");
        let text = format!("# {0}/other\n\n  {0}/link  \nother\n{0}/absent\n", top.display());
        std::fs::write(&file, text).unwrap();
        let image_dirs = ImageDirs::new(vec![top.join("given")]).with_file(file.clone());
        for (name, has) in [
            ("given/a", true),
            ("listed/a", true),
            ("listed/below/a", true),
            ("listed-not/a", false),
            ("other/a", false),
            ("a", false),
        ] {
            assert_eq!(image_dirs.has(&top.join(name)), has, "{name}");
        }
        // The file is read again each time.
        std::fs::write(&file, top.join("other").display().to_string()).unwrap();
        assert!(image_dirs.has(&top.join("other/a")) && !image_dirs.has(&top.join("listed/a")));
    }
}
