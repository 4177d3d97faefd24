//! dpkg's database for the unpacked packages, as if they were installed: their fields and the paths
//! of their files. With it dpkg checks dependencies and conflicts of further packages.

use super::fetch::RECORD;
use super::lab::{Lab, say};
use crate::Result;
use crate::command::output;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The copy of the fetch's record that the database was made for. It is written last.
const MADE_FOR: &str = "made-for";

/// Makes the database, unless it is there for these packages; returns its folder.
pub(super) fn make(lab: &Lab) -> Result<PathBuf> {
    let place = lab.dir.join("dpkg");
    let record = fs::read_to_string(lab.dir.join(RECORD))?;
    if fs::read_to_string(place.join(MADE_FOR)).is_ok_and(|made| made == record) {
        return Ok(place);
    }
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(place.join(folder))?;
    }
    // By this format, packages of several architectures have the architecture in their files' names.
    fs::write(place.join("info/format"), "1\n")?;
    let mut archives: Vec<PathBuf> =
        fs::read_dir(lab.dir.join("archives"))?.flatten().map(|entry| entry.path()).collect();
    archives.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    archives.sort();
    say(&format!("a database of {} packages for dpkg", archives.len()));
    let mut status = String::new();
    for archive in &archives {
        let fields = output(Command::new("dpkg-deb").arg("--field").arg(archive))?;
        let name = file_name(&fields)?;
        let info = |kind: &str| place.join("info").join(format!("{name}.{kind}"));
        fs::write(info("list"), paths(archive)?)?;
        fs::write(info("md5sums"), digests(archive)?)?;
        let (first, rest) = fields.split_once('\n').ok_or("a package has fields")?;
        status.push_str(&format!("{first}\nStatus: install ok installed\n{rest}\n"));
    }
    fs::write(place.join("status"), status)?;
    fs::write(place.join("available"), "")?;
    fs::write(place.join(MADE_FOR), record)?;
    Ok(place)
}

/// Returns the name of a package's files in the database, without their endings.
fn file_name(fields: &str) -> Result<String> {
    let field = |name: &str| fields.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let name = field("Package:").ok_or("a package has a name")?;
    Ok(match (field("Multi-Arch:"), field("Architecture:")) {
        (Some("same"), Some(architecture)) => format!("{name}:{architecture}"),
        _ => name.to_owned(),
    })
}

/// Returns the paths of a package, one a line, as dpkg writes them.
fn paths(archive: &Path) -> Result<String> {
    Ok(tar(archive, "--fsys-tarfile", &["-t"])?.lines().map(dpkg_path).collect())
}

/// Returns the digests of a package's files, as the package has them.
fn digests(archive: &Path) -> Result<String> {
    tar(archive, "--ctrl-tarfile", &["-x", "--to-stdout", "--wildcards", "*md5sums"])
}

/// Returns the output of tar on one of the two archives in a package.
fn tar(archive: &Path, which: &str, arguments: &[&str]) -> Result<String> {
    let mut unpack = Command::new("dpkg-deb");
    let mut unpack = unpack.arg(which).arg(archive).stdout(Stdio::piped()).spawn()?;
    let inner = unpack.stdout.take().ok_or("dpkg-deb has no output")?;
    let output = Command::new("tar").args(arguments).stdin(inner).output()?;
    if !unpack.wait()?.success() || !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} is no package: {}", archive.display(), why.trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns the line of a list for a path of an archive, as `./usr/bin/`.
fn dpkg_path(line: &str) -> String {
    match line.trim_start_matches('.').trim_end_matches('/') {
        "" => "/.\n".to_owned(),
        path => format!("{path}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_and_paths_written_as_dpkg_does() {
        let fields = "Package: libc6\nArchitecture: amd64\nMulti-Arch: same\n";
        assert_eq!(file_name(fields).expect("it has a name"), "libc6:amd64");
        let fields = "Package: bash\nArchitecture: amd64\nMulti-Arch: foreign\n";
        assert_eq!(file_name(fields).expect("it has a name"), "bash");
        let lines = ["./", "./usr/", "./usr/bin/a"].map(dpkg_path);
        assert_eq!(lines, ["/.\n", "/usr\n", "/usr/bin/a\n"]);
    }
}
