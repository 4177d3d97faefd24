//! Debian's packages: found by the machine's own apt, kept below `target/xen-lab`, unpacked there.
//!
//! apt gets an empty list of installed packages, so that it names every dependency, and folders of
//! its own, so that nothing of the machine changes and no rights are needed. The sources are those
//! that the machine is configured with.

use super::lab::{Lab, say};
use super::packages::{ALONE, KERNEL, SOURCE, SUITE, UNITS, WITH_DEPENDENCIES};
use crate::Result;
use crate::command::{output, succeed};
use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The versions of packages that are good enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum VersionPolicy {
    /// The fetched version, if there is one.
    AnyVersion,
    /// The version that the archive has now.
    CurrentVersion,
}

/// The record of a complete fetch: one package a line, with its version. It is written last.
pub(super) const RECORD: &str = "packages";
/// The longest time of one command of apt, in seconds; the whole lab is some 500 MB.
const DOWNLOAD_SECONDS: &str = "1800";
/// The beginning of the record. Another one causes a new fetch.
const LAYOUT: &str = "# layout 1:";

/// Fetches and unpacks missing packages; returns all packages with their versions.
pub(crate) fn packages(lab: &Lab, policy: VersionPolicy) -> Result<Vec<String>> {
    let record = lab.dir.join(RECORD);
    let heading =
        format!("{LAYOUT} {} {} {}", WITH_DEPENDENCIES.join(" "), ALONE.join(" "), UNITS.join(" "));
    let old = fs::read_to_string(&record).unwrap_or_default();
    if policy == VersionPolicy::CurrentVersion || old.lines().next() != Some(heading.as_str()) {
        let apt = Apt::set_up(&lab.dir)?;
        let files = apt.download()?;
        // From here on, the unpacked root is incomplete.
        let _ = fs::remove_file(&record);
        unpack(lab, &files)?;
        apt.units(lab)?;
        let mut text = heading;
        for file in &files {
            text.push('\n');
            text.push_str(&package_of(file));
        }
        fs::write(&record, text + "\n")?;
    }
    let text = fs::read_to_string(&record)?;
    Ok(text.lines().skip(1).map(str::to_owned).collect())
}

/// Returns `name version`, from a file's name `name_version_architecture.deb`.
fn package_of(file: &Path) -> String {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().replace("%3a", ":");
    let mut parts = name.split('_');
    format!("{} {}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// An apt with folders of its own.
struct Apt {
    config: PathBuf,
    archives: PathBuf,
    sources: PathBuf,
}

impl Apt {
    fn set_up(dir: &Path) -> Result<Self> {
        let apt = dir.join("apt");
        let this = Self {
            config: apt.join("apt.conf"),
            archives: dir.join("archives"),
            sources: dir.join("sources"),
        };
        for folder in
            [apt.join("lists/partial"), this.archives.join("partial"), this.sources.clone()]
        {
            fs::create_dir_all(folder)?;
        }
        fs::write(apt.join("sources.list"), sources()?)?;
        fs::write(apt.join("status"), "")?;
        let config = format!(
            "Dir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{0}/lists\";\nDir::State::status \"{0}/status\";\n\
             Dir::Cache::archives \"{1}\";\nDir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n\
             APT::Sandbox::User \"root\";\nAPT::Architecture \"amd64\";\n\
             APT::Install-Recommends \"false\";\nDebug::NoLocking \"true\";\n",
            apt.display(),
            this.archives.display(),
        );
        fs::write(&this.config, config)?;
        Ok(this)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        // An archive that does not answer is a failure.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", DOWNLOAD_SECONDS, program]).args(arguments);
        command.env("APT_CONFIG", &self.config).stdin(Stdio::null());
        command
    }

    /// Downloads every package; returns their files.
    fn download(&self) -> Result<Vec<PathBuf>> {
        say("apt-get update, with folders of its own");
        succeed(&mut self.command("apt-get", &["update", "-qq"]))?;
        let depends = output(&mut self.command("apt-cache", &["depends", KERNEL]))?;
        let kernel = depends
            .split_whitespace()
            .find(|word| word.starts_with("linux-image-") && *word != KERNEL)
            .ok_or("the archive has no kernel for amd64")?;
        let mut install = vec!["install", "--yes", "-qq"];
        install.extend(WITH_DEPENDENCIES);
        let mut alone = vec!["download", "-qq", kernel];
        alone.extend(ALONE);
        let names = self.names(&install, &alone)?;
        say(&format!("{} packages; downloading those that are not here", names.len()));
        install.push("--download-only");
        succeed(self.command("apt-get", &install).stdout(Stdio::null()))?;
        succeed(self.command("apt-get", &alone).current_dir(&self.archives))?;
        // Older versions of an earlier fetch are removed.
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.archives)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if names.contains(&name) {
                files.push(path);
            } else if name.ends_with(".deb") {
                fs::remove_file(path)?;
            }
        }
        if files.len() < names.len() {
            return Err(
                format!("apt-get downloaded {} of {} packages", files.len(), names.len()).into()
            );
        }
        files.sort();
        Ok(files)
    }

    /// Returns the files that these two commands would download if nothing were here yet.
    fn names(&self, install: &[&str], alone: &[&str]) -> Result<Vec<String>> {
        let nothing = self.config.with_file_name("nothing");
        fs::create_dir_all(nothing.join("partial"))?;
        let mut names = Vec::new();
        for arguments in [install, alone] {
            let mut print = self.command("apt-get", arguments);
            print.args([
                "--print-uris",
                "-o",
                &format!("Dir::Cache::archives={}", nothing.display()),
            ]);
            let text = output(print.current_dir(&nothing))?;
            let second = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
            names.extend(text.lines().filter(|line| line.starts_with('\'')).filter_map(second));
        }
        Ok(names)
    }

    /// Extracts upstream's systemd units from Debian's source package, filled in as `configure`
    /// would.
    fn units(&self, lab: &Lab) -> Result<()> {
        for entry in fs::read_dir(&self.sources)? {
            fs::remove_file(entry?.path())?;
        }
        // The newest version may be on a site that keeps no sources; an older one of the same suite will do.
        let about = output(&mut self.command("apt-cache", &["showsrc", SOURCE]))?;
        let mut versions: Vec<&str> =
            about.lines().filter_map(|line| line.strip_prefix("Version: ")).collect();
        versions.sort_by(|one, other| by_version(one, other));
        let mut why = format!("no version of the source package {SOURCE}").into();
        while let Some(version) = versions.pop() {
            let which = format!("{SOURCE}={version}");
            let mut source = self.command("apt-get", &["source", "--download-only", "-qq", &which]);
            match succeed(source.current_dir(&self.sources)) {
                Ok(()) => return self.fill_in(lab),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn fill_in(&self, lab: &Lab) -> Result<()> {
        let archives = fs::read_dir(&self.sources)?.flatten().map(|entry| entry.path());
        let archive = archives
            .filter(|path| path.to_string_lossy().contains(".orig.tar."))
            .min_by_key(|path| path.as_os_str().len())
            .ok_or("the source package of Xen has no archive")?;
        let folder = lab.dir.join("units");
        fs::create_dir_all(&folder)?;
        for unit in UNITS {
            let mut tar = Command::new("tar");
            tar.args(["-xOf"]).arg(&archive).arg("--wildcards");
            tar.arg(format!("*/tools/hotplug/Linux/systemd/{unit}"));
            let text = output(&mut tar)?.replace("@XEN_SCRIPT_DIR@", "/etc/xen/scripts");
            if text.contains('@') {
                return Err(
                    format!("{unit} of Xen's source asks for what this does not fill in").into()
                );
            }
            fs::write(folder.join(unit.trim_end_matches(".in")), text)?;
        }
        Ok(())
    }
}

/// Compares by version, as dpkg does.
fn by_version(one: &str, other: &str) -> Ordering {
    let is = |relation: &str| {
        let status =
            Command::new("dpkg").args(["--compare-versions", one, relation, other]).status();
        status.is_ok_and(|status| status.success())
    };
    if is("lt") {
        Ordering::Less
    } else if is("gt") {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

/// Returns a `sources.list` with the machine's own sites of the suite.
fn sources() -> Result<String> {
    let format = "$(SITE)|$(RELEASE)|$(COMPONENT)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let targets = output(&mut command)
        .map_err(|error| format!("apt's sources are needed, as on Debian {SUITE}: {error}"))?;
    let key = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let by = if key.exists() { format!("[signed-by={}] ", key.display()) } else { String::new() };
    let mut text = String::new();
    let mut main = None;
    for target in targets.lines() {
        let mut parts = target.split('|');
        let (Some(site), Some(release), Some("main")) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if release == SUITE
            || release
                .strip_prefix(SUITE)
                .is_some_and(|rest| ["-security", "-updates"].contains(&rest))
        {
            let lines =
                format!("deb {by}{site} {release} main\ndeb-src {by}{site} {release} main\n");
            if !text.contains(&lines) {
                text.push_str(&lines);
            }
            if release == SUITE {
                main = Some(());
            }
        }
    }
    main.ok_or(format!(
        "this machine's apt has no source of Debian {SUITE}; the lab is made of its packages"
    ))?;
    Ok(text)
}

/// Unpacks every package into a new root with a merged `/usr`, as an installed Debian has.
fn unpack(lab: &Lab, files: &[PathBuf]) -> Result<()> {
    say(&format!("unpacking {} packages", files.len()));
    let root = lab.root();
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    for file in files {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--fsys-tarfile").arg(file).stdout(Stdio::piped());
        let mut unpack = unpack.spawn().map_err(|error| format!("dpkg-deb is needed: {error}"))?;
        let archive = unpack.stdout.take().ok_or("dpkg-deb has no output")?;
        let mut tar = Command::new("tar");
        tar.args(["-xf", "-", "--keep-directory-symlink", "--no-same-owner", "-C"]);
        succeed(tar.arg(&root).stdin(archive))?;
        if !unpack.wait()?.success() {
            return Err(
                format!("{} is no package; remove it, to fetch it again", file.display()).into()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_dpkg_does() {
        let mut versions = ["4.17.10-1", "4.17.9-1", "4.17.9-1~deb12u1"];
        versions.sort_by(|one, other| by_version(one, other));
        assert_eq!(versions, ["4.17.9-1~deb12u1", "4.17.9-1", "4.17.10-1"]);
    }

    #[test]
    fn packages_are_named_with_their_versions() {
        let file = Path::new("/a/busybox-static_1%3a1.35.0-4+b1_amd64.deb");
        assert_eq!(package_of(file), "busybox-static 1:1.35.0-4+b1");
    }
}
