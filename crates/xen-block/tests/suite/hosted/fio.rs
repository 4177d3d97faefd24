//! `fio`: the machine's, or Debian's package, downloaded with the machine's own `apt-get` and unpacked into
//! `target/fio`, never installed.

use super::host::has;
use conformance::peers::target_dir;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program with its libraries.
pub(crate) struct Fio {
    pub(crate) program: PathBuf,
    /// For `LD_LIBRARY_PATH`.
    pub(crate) libraries: Option<String>,
}

impl Fio {
    /// The program.
    ///
    /// # Errors
    /// One line that says why there is none.
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
        // Ceph's are in a folder of their own, which its library names as it is when installed.
        let folders = ["usr/lib", "lib"].map(|lib| format!("{root}/{lib}/{arch}-linux-gnu"));
        let libraries = format!("{0}:{0}/ceph:{1}", folders[0], folders[1]);
        Ok(Self { program, libraries: Some(libraries) })
    }
}

fn download(into: &Path) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command.args(["install", "--download-only", "-y", "-qq", "--no-install-recommends"]);
    // Into a folder of its own: nothing of the machine's is locked or changed.
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
