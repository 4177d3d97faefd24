//! The hotplug script of disks on Xen, called as libxl does it: with Debian's `xenstore-read` and
//! `xenstore-write`, and this project's store behind them. A program of its own: a process that
//! another test starts has, for a moment, the open files of these tests and so their locks, which
//! the script would find taken.

use conformance::{Daemon, DaemonKind, Peers};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;
use xen_block::disk::DiskAccess;
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::disk::open::OpenError;
use xenstore::{Client, Store};

const WRITING: Options =
    Options { access: DiskAccess::ReadWrite, cache: Cache::PageCache, way: IoMethod::Best };

/// The backend's node of the device.
const NODE: &str = "/local/domain/0/backend/vbd/5/51712";

/// The lock under which one test runs at a time: a process that one test starts has, for a moment,
/// the open files of the other and so their locks.
static ALONE: Mutex<()> = Mutex::new(());

/// A folder with an image, and a store.
struct HotplugSetup {
    dir: TempDir,
    daemon: Daemon,
    tool: Client,
    peers: &'static Peers,
}

impl HotplugSetup {
    /// Creates the host; `None`, with a printed line that gives the reason, if Debian's tools are
    /// not available.
    fn new(name: &str) -> Option<Self> {
        let peers = match Peers::get() {
            Ok(peers) => peers,
            Err(why) => {
                conformance::skip(name, why);
                return None;
            }
        };
        let daemon = Daemon::start(DaemonKind::Ours)?;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), [0; 4096]).unwrap();
        let tool = Client::connect(daemon.socket()).unwrap();
        let mut host = Self { dir, daemon, tool, peers };
        host.set("mode", "w");
        Some(host)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn set(&mut self, name: &str, value: &str) {
        self.tool.write(format!("{NODE}/{name}"), value).unwrap();
    }

    /// Takes the value that the script has written into a node; empty if there is none.
    fn take_node(&mut self, name: &str) -> String {
        let path = format!("{NODE}/{name}");
        if !self.tool.exists(&path).unwrap() {
            return String::new();
        }
        let value = self.tool.read(&path).unwrap();
        self.tool.rm(&path).unwrap();
        String::from_utf8(value).unwrap()
    }

    /// Returns the command that adds a device with these `params`, the given number of times.
    fn add_command(&mut self, params: &str, times: u32) -> Command {
        self.set("params", params);
        let tools = self.peers.root().join("usr/bin");
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hotplug/block-xenbus");
        let mut add = Command::new("sh");
        add.arg("-c").arg(format!(
            "result=0; for time in $(seq {times}); do sh {} add || result=1; done; exit $result",
            script.display()
        ));
        add.env("LD_LIBRARY_PATH", self.peers.root().join("usr/lib/x86_64-linux-gnu"));
        add.env("PATH", path).env("XENSTORED_PATH", self.daemon.socket());
        add.env("XENBUS_PATH", NODE);
        add
    }

    /// Adds a device with these `params`; returns the script's status and error.
    fn add(&mut self, params: &str) -> (String, String) {
        let output = self.add_command(params, 1).output().unwrap();
        let (status, error) = (self.take_node("hotplug-status"), self.take_node("hotplug-error"));
        assert_eq!(output.status.success(), status == "connected", "{output:?}");
        (status, error)
    }
}

/// True if the kernel's own backend is loaded: then the script refuses everything.
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
    let Some(mut host) = HotplugSetup::new("script") else { return };
    let image = host.image().display().to_string();
    let connected = ("connected".to_owned(), String::new());
    for name in [image.clone(), format!("qcow2:{image}"), "nbd:unix:/none".into()] {
        assert_eq!(host.add(&name), connected, "{name}");
    }
    let (status, error) = host.add("/none/image");
    assert_eq!((&*status, error.contains("there is no /none/image")), ("error", true), "{error}");

    let writer = FileDisk::open(&host.image(), WRITING).unwrap();
    for name in [image.clone(), format!("qcow2:{image}")] {
        let (status, error) = host.add(&name);
        assert_eq!((&*status, error.contains("held for writing")), ("error", true), "{error}");
    }
    // Readers are not refused, and after the writer has gone nobody is.
    host.set("mode", "r");
    assert_eq!(host.add(&image), connected);
    host.set("mode", "w");
    drop(writer);
    assert_eq!(host.add(&image), connected);
}

/// A backend that opens a disk while the script checks it does not find it locked.
#[test]
fn the_script_is_in_nobodys_way() {
    if kernel_serves("the_script_is_in_nobodys_way") {
        return;
    }
    let _alone = ALONE.lock();
    let Some(mut host) = HotplugSetup::new("script-way") else { return };
    let image = host.image();
    // The command is started before any file is open here.
    let mut adding = host.add_command(&image.display().to_string(), 20).spawn().unwrap();
    let mut opened = 0;
    let ended = loop {
        match FileDisk::open(&image, WRITING) {
            Err(busy @ OpenError::Busy(_)) => {
                let _ = adding.kill();
                let _ = adding.wait();
                panic!("{busy}")
            }
            disk => drop(disk.unwrap()),
        }
        opened += 1;
        // The lock is free most of the time.
        std::thread::sleep(Duration::from_micros(300));
        if let Some(status) = adding.try_wait().unwrap() {
            break status;
        }
    };
    // The script may have been refused while the loop above had the lock.
    assert!(ended.code().is_some_and(|code| code < 2), "{ended}");
    assert!(opened > 50, "{opened}");
}
