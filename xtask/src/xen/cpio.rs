//! An initramfs: the `newc` format of cpio, as the kernel's `initramfs/buffer-format` describes it.

use crate::Result;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The entry at a path.
enum FileEntry {
    Folder,
    /// The contents and the mode of a file.
    File(Contents, u32),
    Link(String),
    /// A character device, major and minor.
    Device(u32, u32),
}

enum Contents {
    Of(PathBuf),
    Are(Vec<u8>),
}

/// A tree of files, in memory by name only.
#[derive(Default)]
pub(super) struct FileTree(BTreeMap<PathBuf, FileEntry>);

impl FileTree {
    /// True if there is an entry at `path`.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.contains_key(relative(path))
    }

    /// Adds a folder with all folders above it.
    pub(super) fn folder(&mut self, path: &Path) {
        for part in relative(path).ancestors().filter(|part| !part.as_os_str().is_empty()) {
            self.0.entry(part.to_owned()).or_insert(FileEntry::Folder);
        }
    }

    /// Adds a file with the contents and the mode of `source`.
    pub(super) fn file(&mut self, path: &Path, source: &Path) -> Result<()> {
        let about =
            fs::metadata(source).map_err(|error| format!("{}: {error}", source.display()))?;
        let mode = about.permissions().mode() & 0o777;
        self.put(path, FileEntry::File(Contents::Of(source.to_owned()), mode));
        Ok(())
    }

    /// Adds a file with this text.
    pub(super) fn text(&mut self, path: &Path, text: String) {
        self.put(path, FileEntry::File(Contents::Are(text.into_bytes()), 0o644));
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &str) {
        self.put(path, FileEntry::Link(target.to_owned()));
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &Path, major: u32, minor: u32) {
        self.put(path, FileEntry::Device(major, minor));
    }

    fn put(&mut self, path: &Path, entry: FileEntry) {
        let path = relative(path);
        if let Some(folder) = path.parent() {
            self.folder(folder);
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// Writes the tree, without devices, below the folder `to`.
    pub(super) fn unpack(&self, to: &Path) -> Result<()> {
        for (path, entry) in &self.0 {
            let to = to.join(path);
            match entry {
                FileEntry::Folder => fs::create_dir_all(to)?,
                FileEntry::File(Contents::Of(source), _) => drop(fs::copy(source, to)?),
                FileEntry::File(Contents::Are(bytes), mode) => {
                    fs::write(&to, bytes)?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(*mode))?;
                }
                FileEntry::Link(target) => std::os::unix::fs::symlink(target, to)?,
                FileEntry::Device(..) => {}
            }
        }
        Ok(())
    }

    /// Writes the archive; folders come before their contents.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        let mut out = BufWriter::new(fs::File::create(to)?);
        let mut number = 0;
        for (path, entry) in &self.0 {
            number += 1;
            let folder = path.parent().unwrap_or(Path::new(""));
            if matches!(self.0.get(folder), Some(FileEntry::Link(_))) {
                let (path, folder) = (path.display(), folder.display());
                return Err(
                    format!("{path}: name the folder that the link {folder} leads to").into()
                );
            }
            let (mode, device, contents) = match entry {
                FileEntry::Folder => (0o040_755, (0, 0), Vec::new()),
                FileEntry::File(Contents::Of(source), mode) => {
                    (0o100_000 | mode, (0, 0), fs::read(source)?)
                }
                FileEntry::File(Contents::Are(bytes), mode) => {
                    (0o100_000 | mode, (0, 0), bytes.clone())
                }
                FileEntry::Link(target) => (0o120_777, (0, 0), target.clone().into_bytes()),
                FileEntry::Device(major, minor) => (0o020_600, (*major, *minor), Vec::new()),
            };
            write_entry(&mut out, path.as_os_str().as_bytes(), number, mode, device, &contents)?;
        }
        write_entry(&mut out, b"TRAILER!!!", 0, 0, (0, 0), &[])?;
        Ok(out.flush()?)
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn write_entry(
    out: &mut impl Write,
    name: &[u8],
    number: u32,
    mode: u32,
    device: (u32, u32),
    contents: &[u8],
) -> Result<()> {
    let size = u32::try_from(contents.len())?;
    let name_size = u32::try_from(name.len() + 1)?;
    write!(out, "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}", 0, 1)?;
    write!(out, "{0:08x}{0:08x}{1:08x}{2:08x}{name_size:08x}{0:08x}", 0, device.0, device.1)?;
    out.write_all(name)?;
    // Header with name, and contents, are each padded to a multiple of 4 bytes; the header has 110.
    let padding = 1 + (4 - (110 + name.len() + 1) % 4) % 4;
    out.write_all(&[0; 4][..padding])?;
    out.write_all(contents)?;
    out.write_all(&[0; 4][..(4 - contents.len() % 4) % 4])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_aligned_and_counted() {
        for name in ["a", "ab", "abc", "abcd"] {
            let mut out = Vec::new();
            write_entry(&mut out, name.as_bytes(), 1, 0o100_644, (0, 0), b"12345").unwrap();
            assert_eq!(out.len() % 4, 0, "{name}");
            assert_eq!(&out[..6], b"070701");
            assert_eq!(&out[54..62], b"00000005", "the size of the file");
            assert_eq!(out[110 + name.len()], 0);
            let contents = (110 + name.len() + 1).next_multiple_of(4);
            assert_eq!(&out[contents..contents + 5], b"12345");
        }
    }

    #[test]
    fn folders_above_are_made() {
        let mut tree = FileTree::default();
        tree.text(Path::new("/a/b/c"), String::new());
        assert!(tree.has(Path::new("/a")) && tree.has(Path::new("a/b")));
    }
}
