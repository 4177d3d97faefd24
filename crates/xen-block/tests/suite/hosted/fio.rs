//! `fio`: the machine's own, or Debian's package, which is downloaded with the machine's `apt-get`
//! and unpacked into `target/fio`, never installed.

use super::host::has;
use conformance::peers::target_dir;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program with its libraries.
pub(crate) struct Fio {
    pub(crate) program: PathBuf,
    /// The value of `LD_LIBRARY_PATH`.
    pub(crate) libraries: Option<String>,
}

impl Fio {
    /// Finds the program, or downloads it.
    ///
    /// # Errors
    /// One line with the reason why it is not available.
    pub(crate) fn get() -> Result<Self, String> {
        if has("fio") {
            return Ok(Self { program: "fio".into(), libraries: None });
        }
        let own = target_dir().join("fio");
        let text = |error: std::io::Error| format!("{}: {error}", own.display());
        fs::create_dir_all(own.join("partial")).map_err(text)?;
        let own = own.canonicalize().map_err(text)?;
        let lock = File::create(own.join("fetching")).map_err(text)?;
        lock.lock().map_err(text)?;
        if !own.join("complete").exists() {
            download(&own)?;
            File::create(own.join("complete")).map_err(text)?;
        }
        let program = own.join("root/usr/bin/fio");
        let (root, arch) = (own.join("root").display().to_string(), std::env::consts::ARCH);
        // Ceph's libraries are in a folder of their own, at a path that its library knows only when
        // installed.
        let folders = ["usr/lib", "lib"].map(|lib| format!("{root}/{lib}/{arch}-linux-gnu"));
        let libraries = format!("{0}:{0}/ceph:{1}", folders[0], folders[1]);
        Ok(Self { program, libraries: Some(libraries) })
    }
}

fn download(into: &Path) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command.args(["install", "--download-only", "-y", "-qq", "--no-install-recommends"]);
    // apt-get works in a folder of its own: no file of the machine is locked or changed.
    command.args(["-o", "Debug::NoLocking=1", "-o"]);
    command.arg(format!("Dir::Cache::archives={}", into.display())).arg("fio");
    finish(&mut command)?;
    for entry in fs::read_dir(into).map_err(|error| error.to_string())?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "deb") {
            finish(Command::new("dpkg").arg("-x").arg(&path).arg(into.join("root")))?;
        }
    }
    Ok(())
}

fn finish(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed: {}", words.lines().last().unwrap_or("(it said nothing)")))
}
