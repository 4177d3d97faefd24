//! The file store under strace: the system call that makes data stable has returned before the guest has
//! the answer to its flush.
//!
//! strace shows the calls of the threads (`preadv`, `pwritev`, `fdatasync`). What goes through io_uring is
//! no system call of the process; there the kernel's own completion of `IORING_OP_FSYNC` is the answer.

mod support;

use std::path::PathBuf;
use std::process::Command;
use support::{Scene, Setup};
use xen_block::disk::DiskAccess;
use xen_block::disk::file::{Cache, File, Options, Way};
use xen_block::front::Want;
use xen_io::blkif::Status;
use xenbus::Error;

const FILE: &str = "XEN_BLOCK_TRACED_FILE";
const MARK: &str = "the flush was answered";

/// The traced process; started by the test below.
#[test]
#[ignore = "runs under strace, started by the other test"]
fn writes_flushes_and_says_so() {
    let path = PathBuf::from(std::env::var_os(FILE).expect("started by the other test"));
    let mark = path.with_extension("mark");
    let open = move |_: &mut xenbus::Device<'_>| {
        let (access, cache) = (DiskAccess::ReadWrite, Cache::PageCache);
        let disk = File::open(&path, Options { access, cache, way: Way::Threads });
        let disk = disk.map_err(|error| Error::Driver(error.to_string()))?;
        Ok(Box::new(disk) as Box<dyn xen_block::disk::Disk>)
    };
    let mut scene = Scene::connected(Setup::new(Box::new(open))).expect("a daemon");
    for _ in 0..3 {
        assert_eq!(scene.write(0, &[1; 8192]), Status::Okay);
        assert_eq!(scene.ask(|tag| Want::Flush { tag }, &[]), Status::Okay);
        std::fs::write(&mark, MARK).unwrap();
    }
}

#[test]
fn data_is_stable_before_a_flush_is_answered() {
    if Command::new("strace").arg("-V").output().is_err() {
        return conformance::skip("traced", "there is no strace");
    }
    let name = format!("xen-block-traced-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let (file, log) = (folder.join("disk"), folder.join("log"));
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=pwritev,fdatasync,write", "-e", "signal=none", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "writes_flushes_and_says_so", "--ignored"])
        .env(FILE, &file)
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // A call that another thread interrupts in the log is two lines; its end counts.
    let step = |line: &str| {
        let done = !line.contains("<unfinished");
        if line.contains(MARK) && !line.contains("resumed") {
            Some("answered")
        } else if line.contains("fdatasync") && done {
            assert!(line.trim_end().ends_with("= 0"), "{line}");
            Some("stable")
        } else if line.contains("pwritev") && done {
            Some("written")
        } else {
            None
        }
    };
    let steps: Vec<&str> = text.lines().filter_map(step).collect();
    assert_eq!(steps, ["written", "stable", "answered"].repeat(3), "{text}");
}
