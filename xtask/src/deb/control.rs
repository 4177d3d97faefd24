//! The fields, scripts and digests that dpkg reads, in the folder `DEBIAN` of a package.

use super::recipe::{StagingFolder, set_mode};
use super::sources::PackageSources;
use crate::Result;
use crate::command::output;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The scripts that dpkg runs, where a package has them.
const SCRIPTS: &[&str] = &["preinst", "postinst", "prerm", "postrm"];

/// Writes `DEBIAN` of the staged package, from its recipe's folder.
pub(super) fn write(
    sources: &PackageSources,
    recipe: &Path,
    stage: &StagingFolder<'_>,
) -> Result<()> {
    let digests = digests(stage.root())?;
    let size = size_kib(stage.root())?;
    let folder = stage.root().join("DEBIAN");
    fs::create_dir(&folder)?;
    set_mode(&folder, 0o755)?;
    let put = |name: &str, text: &str, mode: u32| -> Result<()> {
        fs::write(folder.join(name), text)?;
        set_mode(&folder.join(name), mode)
    };
    let fields = fs::read_to_string(recipe.join("control"))?;
    let libraries = libraries(stage)?;
    let fields = fields.replace("@VERSION@", &sources.version).replace("@LIBRARIES@", &libraries);
    let more = format!(
        "Version: {}\nArchitecture: {}\nInstalled-Size: {size}\n",
        sources.version, sources.architecture
    );
    // The description is the last field.
    let (before, description) =
        fields.split_once("Description:").ok_or("a package has a description")?;
    put("control", &format!("{before}{more}Description:{description}"), 0o644)?;
    put("md5sums", &digests, 0o644)?;
    if !stage.config().is_empty() {
        put("conffiles", &(stage.config().join("\n") + "\n"), 0o644)?;
    }
    if let Ok(triggers) = fs::read_to_string(recipe.join("triggers")) {
        put("triggers", &triggers, 0o644)?;
    }
    for name in SCRIPTS {
        if let Ok(script) = fs::read_to_string(recipe.join(name)) {
            put(name, &script, 0o755)?;
        }
    }
    Ok(())
}

/// Returns the dependencies on libraries: the C library of the newest symbol that a program of the
/// package names, and the unwinder.
fn libraries(stage: &StagingFolder<'_>) -> Result<String> {
    let mut newest = None;
    for name in stage.programs() {
        newest = newest.max(newest_glibc(&fs::read(stage.built(name))?));
    }
    let (major, minor) = newest.ok_or("no program names a version of the C library")?;
    Ok(format!("libc6 (>= {major}.{minor}), libgcc-s1"))
}

/// Returns the newest version of the C library's symbols that a program names, as `GLIBC_2.34`.
fn newest_glibc(program: &[u8]) -> Option<(u32, u32)> {
    let prefix = b"\0GLIBC_";
    let versions = program.windows(prefix.len()).enumerate().filter(|(_, window)| window == prefix);
    let versions = versions.filter_map(|(at, _)| {
        let name = program.get(at + prefix.len()..)?.split(|byte| *byte == 0).next()?;
        let mut numbers = std::str::from_utf8(name).ok()?.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max()
}

/// Returns the staged files, relative to the stage, sorted.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(root)?.to_owned()),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the lines of `md5sums`.
fn digests(root: &Path) -> Result<String> {
    let plain = files(root)?.into_iter().filter(|file| !root.join(file).is_symlink());
    output(Command::new("md5sum").arg("--").args(plain).current_dir(root))
}

/// Returns the size of the installed files in KiB.
fn size_kib(root: &Path) -> Result<u64> {
    let sizes = files(root)?.into_iter().map(|file| fs::symlink_metadata(root.join(file)));
    sizes.map(|about| Ok(about?.len().div_ceil(1024))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_decides() {
        let program = b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0x";
        assert_eq!(newest_glibc(program), Some((2, 34)));
        assert_eq!(newest_glibc(b"static"), None);
    }
}
