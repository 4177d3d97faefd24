//! The hotplug script of disks on Xen, with programs of the test's in place of the store's.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use xen_block::disk::DiskAccess;
use xen_block::disk::file::{Cache, File, OpenError, Options, Way};

const WRITING: Options =
    Options { access: DiskAccess::ReadWrite, cache: Cache::PageCache, way: Way::Best };

/// One test at a time: a process that one starts has, for a moment, what is open in the other, and its locks.
static ALONE: Mutex<()> = Mutex::new(());

/// A folder with an image, and with `xenstore-read` and `xenstore-write` on one file for each node.
struct Host(PathBuf);

impl Host {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("xen-block-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("node")).unwrap();
        std::fs::write(dir.join("image"), [0; 4096]).unwrap();
        for (program, text) in [
            ("xenstore-read", "#!/bin/sh\ncat \"$1\"\n"),
            (
                "xenstore-write",
                "#!/bin/sh\nwhile [ $# -gt 0 ]; do printf %s \"$2\" >\"$1\"; shift 2; done\n",
            ),
        ] {
            std::fs::write(dir.join(program), text).unwrap();
            std::fs::set_permissions(dir.join(program), Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(dir.join("node/mode"), "w").unwrap();
        Self(dir)
    }

    fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    /// Adds a device with these `params`, so many times.
    fn adding(&self, params: &str, times: u32) -> Command {
        let node = self.0.join("node");
        std::fs::write(node.join("params"), params).unwrap();
        let path = format!("{}:{}", self.0.display(), std::env::var("PATH").unwrap());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hotplug/block-xenbus");
        let mut add = Command::new("sh");
        add.arg("-c").arg(format!(
            "result=0; for time in $(seq {times}); do sh {} add || result=1; done; exit $result",
            script.display()
        ));
        add.env("PATH", path).env("XENBUS_PATH", &node);
        add
    }

    /// Adds a device with these `params`; what the script has said of it.
    fn add(&self, params: &str) -> (String, String) {
        let node = self.0.join("node");
        let mut add = self.adding(params, 1);
        let output = add.output().unwrap();
        let said = |name: &str| std::fs::read_to_string(node.join(name)).unwrap_or_default();
        let (status, error) = (said("hotplug-status"), said("hotplug-error"));
        assert_eq!(output.status.success(), status == "connected", "{output:?}");
        for name in ["hotplug-status", "hotplug-error"] {
            let _ = std::fs::remove_file(node.join(name));
        }
        (status, error)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where the kernel's own backend is loaded, the script refuses everything.
fn kernel_serves(test: &str) -> bool {
    let serves = Path::new("/sys/bus/xen-backend/drivers/vbd").exists();
    if serves {
        conformance::skip(test, "the kernel's xen-blkback is loaded");
    }
    serves
}

#[test]
fn the_script_refuses_what_cannot_be_served() {
    if kernel_serves("the_script_refuses_what_cannot_be_served") {
        return;
    }
    let _alone = ALONE.lock();
    let host = Host::new("script");
    let image = host.image().display().to_string();
    let connected = ("connected".to_owned(), String::new());
    for name in [image.clone(), format!("qcow2:{image}"), "nbd:unix:/none".into()] {
        assert_eq!(host.add(&name), connected, "{name}");
    }
    let (status, error) = host.add("/none/image");
    assert_eq!((&*status, error.contains("there is no /none/image")), ("error", true), "{error}");

    let writer = File::open(&host.image(), WRITING).unwrap();
    for name in [image.clone(), format!("qcow2:{image}")] {
        let (status, error) = host.add(&name);
        assert_eq!((&*status, error.contains("held for writing")), ("error", true), "{error}");
    }
    // Readers are not refused, and nobody once the writer is gone.
    std::fs::write(host.0.join("node/mode"), "r").unwrap();
    assert_eq!(host.add(&image), connected);
    std::fs::write(host.0.join("node/mode"), "w").unwrap();
    drop(writer);
    assert_eq!(host.add(&image), connected);
}

/// A backend that opens a disk while the script looks at it is not told that another has it.
#[test]
fn the_script_is_in_nobodys_way() {
    if kernel_serves("the_script_is_in_nobodys_way") {
        return;
    }
    let _alone = ALONE.lock();
    let host = Host::new("script-way");
    let image = host.image();
    // It is started before anything is open here.
    let mut adding = host.adding(&image.display().to_string(), 20).spawn().unwrap();
    let mut opened = 0;
    let ended = loop {
        match File::open(&image, WRITING) {
            Err(busy @ OpenError::Busy(_)) => {
                let _ = adding.kill();
                let _ = adding.wait();
                panic!("{busy}")
            }
            disk => drop(disk.unwrap()),
        }
        opened += 1;
        // Most of the time nobody has the lock.
        std::thread::sleep(Duration::from_micros(300));
        if let Some(status) = adding.try_wait().unwrap() {
            break status;
        }
    };
    // It may have been refused: that one had it.
    assert!(ended.code().is_some_and(|code| code < 2), "{ended}");
    assert!(opened > 50, "{opened}");
}
