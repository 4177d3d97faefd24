//! Packages of an unknown version, where nothing may be left out: one line says so of the peers,
//! and our daemon is tested. Missing packages fail as always.
//!
//! The outer tests run this program again, on a folder of packages made for it.

use conformance::{Daemon, DaemonKind, Peers, PeersPurpose, Version};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The version of the packages that are made here.
const UNKNOWN: &str = "4.17.99-1";

/// A folder for `XENBUS_PEERS`, removed with the test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("root/usr/share/doc/xen-utils-4.17"))
            .expect("a folder");
        Self(folder)
    }

    /// Writes a changelog whose newest entry is of this version.
    fn claim(&self, version: &str) {
        let folder = self.0.path().join("root/usr/share/doc/xen-utils-4.17");
        let text = folder.join("changelog.Debian");
        fs::write(&text, format!("xen ({version}) bookworm; urgency=medium\n")).expect("a file");
        let status = Command::new("gzip").arg("-f").arg(&text).status();
        assert!(status.expect("gzip").success());
    }

    /// Copies the programs of the packages that are here.
    fn fill(&self, root: &Path) {
        for name in ["etc", "usr/bin", "usr/lib", "usr/include"] {
            symlink(root.join(name), self.0.path().join("root").join(name)).expect("a link");
        }
    }

    /// Runs a test of this program, in which nothing may be left out.
    fn run(&self, test: &str) -> Output {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([test, "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
        command.env("XENBUS_PEERS", self.0.path()).env("CI", "true");
        command.output().expect("this program")
    }
}

/// Starts each daemon twice, and prints on stdout which of them answer: the outer tests read that.
#[test]
fn daemons_that_start() {
    for kind in DaemonKind::ALL {
        for _ in 0..2 {
            let Some(daemon) = Daemon::start(kind) else { continue };
            daemon.connect().expect_ok("WRITE", "/a|v");
            assert_eq!(daemon.version().is_some(), kind != DaemonKind::Ours);
            println!("answers: {}", kind.name());
        }
    }
    let tools = Peers::find("a tool", PeersPurpose::Use);
    println!("tools: {}", tools.is_some_and(|peers| peers.program("xenstore-read").exists()));
}

#[test]
fn an_unknown_version_leaves_out_the_peers_and_nothing_else() {
    let Some(peers) = Peers::find("packages of an unknown version", PeersPurpose::Use) else {
        return;
    };
    let folder = Folder::new();
    folder.fill(peers.root());
    folder.claim(UNKNOWN);
    let output = folder.run("daemons_that_start");
    let (said, told) = (words(&output.stdout), words(&output.stderr));
    assert!(output.status.success(), "{said}{told}");
    let answers = ["answers: ", "answers: ours"].map(|text| said.matches(text).count());
    assert_eq!(answers, [2, 2], "{said}{told}");
    assert!(said.contains("tools: true"), "{said}");
    let skips: Vec<&str> = told.lines().filter(|line| line.starts_with("skipped")).collect();
    let named = Version::KNOWN.map(Version::debian).into_iter().chain([UNKNOWN]);
    assert_eq!(skips.len(), 1, "{told}");
    assert!(named.into_iter().all(|version| skips.concat().contains(version)), "{told}");
}

#[test]
fn a_known_version_leaves_out_nothing() {
    let Some(peers) = Peers::find("packages of a known version", PeersPurpose::Comparison) else {
        return;
    };
    let folder = Folder::new();
    folder.fill(peers.root());
    folder.claim(peers.version().expect("a known version").debian());
    let output = folder.run("daemons_that_start");
    let (said, told) = (words(&output.stdout), words(&output.stderr));
    assert!(output.status.success() && !told.contains("skipped"), "{said}{told}");
    assert_eq!(said.matches("answers: ").count(), 2 * DaemonKind::ALL.len(), "{said}");
}

/// Only an unknown version is accepted: no missing packages, and no packages without a version.
#[test]
fn what_is_missing_fails_in_ci() {
    let empty = Folder::new();
    empty.claim(UNKNOWN);
    assert!(!empty.run("daemons_that_start").status.success());
    let Some(peers) = Peers::find("packages without a version", PeersPurpose::Use) else { return };
    let silent = Folder::new();
    silent.fill(peers.root());
    assert!(!silent.run("daemons_that_start").status.success());
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
