//! The kernel's modules that an image needs, with their dependencies.

use super::cpio::FileTree;
use super::packages::kernel_version;
use crate::Result;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Puts the modules `names` and their dependencies into `tree`, with the list that `modprobe` reads.
pub(super) fn add(tree: &mut FileTree, root: &Path, names: &[String]) -> Result<()> {
    let version = kernel_version(root)?;
    let folder = root.join("usr/lib/modules").join(&version);
    let list = folder.join("modules.dep");
    if !list.exists() {
        // busybox-static runs on any kernel, and takes the folder of modules from below /lib.
        let mut depmod = Command::new(root.join("usr/bin/busybox"));
        depmod.arg("depmod").arg("-b").arg(root).arg(&version);
        crate::command::succeed(&mut depmod)?;
    }
    let text = fs::read_to_string(&list)?;
    let inside = PathBuf::from("usr/lib/modules").join(&version);
    let mut lines = BTreeSet::new();
    for name in names {
        let line = line_of(&text, name).ok_or(format!("the kernel has no module {name}"))?;
        lines.insert(line);
        for other in line.split_whitespace().skip(1) {
            let whole = text.lines().find(|line| path_of(line) == other);
            lines.insert(whole.ok_or(format!("modules.dep does not list {other}"))?);
        }
    }
    for line in &lines {
        tree.file(&inside.join(path_of(line)), &folder.join(path_of(line)))?;
    }
    for file in ["modules.builtin", "modules.order"] {
        tree.file(&inside.join(file), &folder.join(file))?;
    }
    let lines: Vec<&str> = lines.into_iter().collect();
    tree.text(&inside.join("modules.dep"), lines.join("\n") + "\n");
    Ok(())
}

/// Returns the module's own path in its line of `modules.dep`.
fn path_of(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

/// Returns the line of a module; `-` and `_` are the same in its name.
fn line_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let same = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_") == name.replace('-', "_")
    };
    text.lines().find(|line| same(path_of(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_its_name() {
        let text = "kernel/a/xen-blkback.ko:\nkernel/b/xen_x.ko: kernel/a/xen-blkback.ko\n";
        assert_eq!(line_of(text, "xen_blkback"), Some("kernel/a/xen-blkback.ko:"));
        assert_eq!(line_of(text, "xen-x").map(path_of), Some("kernel/b/xen_x.ko"));
        assert_eq!(line_of(text, "blkback"), None);
    }
}
