//! The file store under strace: the system call that makes data stable has returned before the
//! guest has the answer to its flush.
//!
//! strace shows the calls of the threads (`preadv`, `pwritev`, `fdatasync`). A request through
//! io_uring is no system call of the process; there the kernel's own completion of
//! `IORING_OP_FSYNC` is the evidence.

use crate::support::{Scene, Setup};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::target::DiskTarget;
use xen_block::disk::{Disk, DiskAccess};
use xen_block::front::DiskRequest;
use xen_io::blkif::Status;

const FILE: &str = "XEN_BLOCK_TRACED_FILE";
const MARK: &str = "the flush was answered";

/// The traced process; started by the test below.
#[test]
#[ignore = "runs under strace, started by the other test"]
fn writes_flushes_and_says_so() {
    let path = PathBuf::from(std::env::var_os(FILE).expect("started by the other test"));
    let mark = path.with_extension("mark");
    let qcow2 = path.extension().is_some_and(|extension| extension == "qcow2");
    let open = move |_: &mut xenbus::Device<'_>| {
        if qcow2 {
            let target = DiskTarget::Qcow2(path.clone());
            return Ok(target.open(DiskAccess::ReadWrite, &ImageDirs::default())? as Box<dyn Disk>);
        }
        let (access, cache) = (DiskAccess::ReadWrite, Cache::PageCache);
        let disk = FileDisk::open(&path, Options { access, cache, way: IoMethod::Threads });
        let disk = disk?;
        Ok(Box::new(disk) as Box<dyn Disk>)
    };
    let mut scene = Scene::connected(Setup::new(Box::new(open))).expect("a daemon");
    for round in 0..3 {
        assert_eq!(scene.write(round * 512, &[1; 8192]), Status::Okay);
        assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
        std::fs::write(&mark, MARK).unwrap();
    }
}

/// Returns the operations of one run of the test above on its disk, in order.
fn steps(name: &str, make: impl FnOnce(&Path)) -> Option<Vec<&'static str>> {
    if Command::new("strace").arg("-V").output().is_err() {
        conformance::skip(name, "there is no strace");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join(name), folder.path().join("log"));
    make(&file);
    let output = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=pwritev,pwrite64,fdatasync,fsync,write",
            "-e",
            "signal=none",
        ])
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced::writes_flushes_and_says_so", "--ignored"])
        .env(FILE, &file)
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    // `-y` shows the path of each descriptor, as the daemon and its build write files of their own.
    let disk = format!("<{}>", file.display());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // A call that is interrupted in the log by another thread has two lines; the second one counts.
    let mut begun = BTreeSet::new();
    let step = |line: &str| {
        let thread = line.split(' ').next().unwrap_or_default().to_owned();
        let resumed = line.contains("resumed>");
        if line.contains(MARK) && !resumed {
            return Some("answered");
        }
        let of_disk = if resumed { begun.remove(&thread) } else { line.contains(&disk) };
        if of_disk && line.contains("<unfinished") {
            begun.insert(thread);
            None
        } else if of_disk && (line.contains("fdatasync") || line.contains("fsync")) {
            assert!(line.trim_end().ends_with("= 0"), "{line}");
            Some("stable")
        } else {
            (of_disk && line.contains("pwrite")).then_some("written")
        }
    };
    Some(text.lines().filter_map(step).collect())
}

#[test]
fn data_is_stable_before_a_flush_is_answered() {
    let make = |file: &Path| std::fs::write(file, vec![0; 1 << 20]).unwrap();
    let Some(steps) = steps("raw", make) else { return };
    assert_eq!(steps, ["written", "stable", "answered"].repeat(3));
}

#[test]
fn qcow2_tables_are_stable_too_before_a_flush_is_answered() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return conformance::skip("traced qcow2", "there is no qemu-img (Debian: qemu-utils)");
    }
    let make = |file: &Path| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(file).arg("8M");
        assert!(create.status().unwrap().success());
    };
    let Some(steps) = steps("image.qcow2", make) else { return };
    let rounds: Vec<&[&str]> = steps.split(|step| *step == "answered").collect();
    assert_eq!(rounds.len(), 4, "{steps:?}");
    for round in &rounds[..3] {
        // The data and at least one table are written, and nothing after the last sync.
        assert!(round.iter().filter(|step| **step == "written").count() > 1, "{steps:?}");
        assert_eq!(round.last(), Some(&"stable"), "{steps:?}");
    }
}
