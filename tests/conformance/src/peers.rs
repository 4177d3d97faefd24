//! Debian's daemons and tools: downloaded with the machine's own `apt-get`, unpacked into
//! `target/peers`, never installed; and the stand-in library that lets them run without Xen.
//!
//! `XENBUS_PEERS` names another folder that holds an unpacked `root/`.

use crate::skip::{Reason, leave_out};
use crate::version::{self, UnknownVersion, Version};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The packages, of the version that this machine's lists of packages name.
const PACKAGES: [&str; 14] = [
    "xen-utils-4.17",
    "xen-utils-common",
    "libxenmisc4.17",
    "libxen-dev",
    "libxenstore4",
    "xenstore-utils",
    "libxencall1",
    "libxenevtchn1",
    "libxengnttab1",
    "libxenforeignmemory1",
    "libxentoollog1",
    "libxentoolcore1",
    "libxendevicemodel1",
    "libxenhypfs1",
];

/// A purpose of Debian's programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PeersPurpose {
    /// Their answers are compared with the stated ones, so their version must be a known one.
    #[default]
    Comparison,
    /// They serve as tools, or are measured: any version is good enough.
    Use,
}

/// Debian's packages, unpacked and ready to run.
#[derive(Debug)]
pub struct Peers {
    root: PathBuf,
    shim: PathBuf,
    version: Result<Version, UnknownVersion>,
}

impl Peers {
    /// Returns the unpacked packages. Missing ones are downloaded and compiled once, even if
    /// several test processes ask at the same time.
    ///
    /// # Errors
    /// One line that names the missing package and the reason.
    pub fn get() -> Result<&'static Self, &'static str> {
        static PEERS: OnceLock<Result<Peers, String>> = OnceLock::new();
        PEERS.get_or_init(Self::prepare).as_ref().map_err(String::as_str)
    }

    /// Returns the packages, if they are here and good for this purpose. Otherwise it returns
    /// `None`, and prints one line with the reason why `what` is left out.
    ///
    /// # Panics
    /// If they are not available although `CI` is `true`. An unknown version is not a failure.
    #[must_use]
    pub fn find(what: &str, purpose: PeersPurpose) -> Option<&'static Self> {
        let reason = match (Self::get(), purpose) {
            (Err(why), _) => Reason::Missing(why),
            (Ok(Self { version: Err(unknown), .. }), PeersPurpose::Comparison) => {
                Reason::Unknown(unknown)
            }
            (Ok(peers), _) => return Some(peers),
        };
        leave_out(what, reason);
        None
    }

    fn prepare() -> Result<Self, String> {
        let own = target_dir().join("peers");
        let given = std::env::var_os("XENBUS_PEERS").map(PathBuf::from);
        fs::create_dir_all(&own).map_err(|error| format!("{}: {error}", own.display()))?;
        let lock = File::create(own.join("lock")).map_err(|error| format!("the lock: {error}"))?;
        lock.lock().map_err(|error| format!("the lock: {error}"))?;
        let root = given.as_ref().unwrap_or(&own).join("root");
        let daemon = root.join("usr/lib/xen-4.17/bin/xenstored");
        if given.is_some() && !daemon.exists() {
            return Err(format!("XENBUS_PEERS is set but {} is not there", daemon.display()));
        }
        if given.is_none() && !own.join("complete").exists() {
            download(&own)?;
            File::create(own.join("complete")).map_err(|error| error.to_string())?;
        }
        let version = Version::of_debian(&version::installed(&root)?);
        let shim = compile(&own, &root)?;
        Ok(Self { root, shim, version })
    }

    /// Returns their version, if it is a known one.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version.as_ref().ok().copied()
    }

    /// Returns the folder that stands for `/`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the stand-in library, for `LD_PRELOAD` of the daemons.
    #[must_use]
    pub fn shim(&self) -> &Path {
        &self.shim
    }

    /// Returns the path of a program: `xenstored`, `oxenstored`, `test-xenstore`, `xenstore-read`,
    /// ….
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let private = self.root.join("usr/lib/xen-4.17/bin").join(name);
        if private.exists() { private } else { self.root.join("usr/bin").join(name) }
    }

    /// Returns a command that runs a program of the packages with the packages' libraries.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        command.env("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu"));
        command
    }
}

/// Returns the workspace's build folder.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
}

fn download(into: &Path) -> Result<(), String> {
    let fetch = || {
        let mut command = Command::new("apt-get");
        finish(command.arg("download").args(PACKAGES).current_dir(into), "apt-get download")
    };
    fetch().or_else(|first| {
        let mut update = Command::new("apt-get");
        finish(update.arg("update"), "apt-get update").map_err(|why| format!("{first}; {why}"))?;
        fetch()
    })?;
    let listed = fs::read_dir(into).map_err(|error| error.to_string())?;
    for entry in listed.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "deb") {
            finish(Command::new("dpkg").arg("-x").arg(&path).arg(into.join("root")), "dpkg -x")?;
        }
    }
    Ok(())
}

fn compile(own: &Path, root: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/xenshim.c");
    let library = own.join("xenshim.so");
    let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if age(&library).is_some_and(|built| age(&source).is_some_and(|written| built > written)) {
        return Ok(library);
    }
    let fresh = own.join("xenshim.so.new");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-fPIC", "-shared", "-I"]).arg(root.join("usr/include"));
    finish(cc.arg("-o").arg(&fresh).arg(&source), "cc (the stand-in library)")?;
    fs::rename(&fresh, &library).map_err(|error| error.to_string())?;
    Ok(library)
}

/// Runs a command to its end; an error is one line with the end of its output.
fn finish(command: &mut Command, what: &str) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{what} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what} failed: {}", words.lines().last().unwrap_or("(it said nothing)")))
}
