//! The test of the packages in a Debian root made for it.
//!
//! The root has the unpacked packages of the lab. dpkg's database names them, so that dpkg checks
//! dependencies and conflicts as on an installed Debian. Namespaces give an ordinary user the rights
//! that dpkg asks for.

use crate::Result;
use crate::command::succeed;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The packages that the root has.
pub(super) struct DebianPackages {
    /// The root that they are unpacked into.
    pub(super) root: PathBuf,
    /// dpkg's database, which calls them installed.
    pub(super) database: PathBuf,
}

/// Makes the root inside new namespaces, and runs the steps of `check` in it.
const MAKE_ROOT: &str = r#"
set -eu
cd "$PLACE"
mkdir -p dev proc run tmp root var/lib/dpkg var/log etc/default debs
for device in null zero random urandom; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mount -t proc proc proc
mount -t tmpfs run run
mount -t tmpfs tmp tmp
cp -a "$DATABASE/." var/lib/dpkg/
# As the maintainers' scripts of base-files and xen-utils-common do.
rmdir var/run 2>/dev/null || :
ln -sfn /run var/run
cp usr/share/xen-utils-common/default.xen etc/default/xen
cp "$@" debs/
cp "$CHECK" check
: >made
exec chroot . /usr/bin/busybox env -i PATH=/usr/sbin:/usr/bin HOME=/root DEBIAN_FRONTEND=noninteractive \
    /usr/bin/bash /check
"#;

/// Runs the steps of `script` on the packages in a Debian root at `place`, and removes the root.
pub(super) fn check(
    debian: &DebianPackages,
    packages: &[PathBuf],
    script: &Path,
    place: &Path,
) -> Result<()> {
    copy_root(&debian.root, place)?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net"]);
    unshare.args(["sh", "-c", MAKE_ROOT, "root"]).args(packages);
    unshare.env("PLACE", place).env("DATABASE", &debian.database);
    unshare.env("CHECK", script);
    let status = unshare.status().map_err(|error| format!("unshare of util-linux: {error}"))?;
    if !place.join("made").exists() {
        return Err(
            "no Debian root can be made here; an ordinary user needs user namespaces".into()
        );
    }
    if !status.success() {
        return Err(format!("the packages fail in a Debian root: {status}").into());
    }
    Ok(fs::remove_dir_all(place)?)
}

/// Makes a root with the files of another. dpkg replaces files by name and writes into none of
/// `/usr`, so those are hard links.
fn copy_root(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let links = if entry.file_name() == "usr" { "-al" } else { "-a" };
        succeed(Command::new("cp").arg(links).arg("--").arg(entry.path()).arg(to))?;
    }
    Ok(())
}
