//! Tests that a backend behind its system-call filter serves every kind of disk. A needed call that
//! is not permitted would end this process, which therefore has no other tests.

#[path = "suite/support.rs"]
mod support;

use rustix::event::{PollFd, PollFlags, poll};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{PATIENCE, Scene, Setup};
use xen::evtchn::EventChannels;
use xen_block::back;
use xen_block::disk::DiskAccess;
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::target::DiskTarget;
use xen_block::front::{BufferSectors, DiskRequest};
use xen_driver::backend::rings;
use xen_io::blkif::Status;

/// Makes a request to the backend of another thread and waits for the answer.
fn ask(scene: &mut Scene, want: DiskRequest, parts: &[BufferSectors]) -> Status {
    scene.front().submit(0, want, parts).unwrap();
    scene.front().push().unwrap();
    let mut status = None;
    loop {
        scene.front().take(|done| status = Some(done.status)).unwrap();
        if let Some(status) = status {
            return status;
        }
        if scene.front().final_check().unwrap() {
            continue;
        }
        let mut evtchn = scene.front_evtchn.borrow_mut();
        let fd = PollFd::from_borrowed_fd(evtchn.fd(), PollFlags::IN);
        let woken = poll(&mut [fd], Some(&PATIENCE.try_into().unwrap())).unwrap();
        assert_eq!(woken, 1, "waited {PATIENCE:?} for an answer");
        while let Some(port) = evtchn.pending().unwrap() {
            evtchn.unmask(port).unwrap();
        }
    }
}

/// Serves `target` behind the filter, and uses it.
fn serves(target: &DiskTarget, record_dir: &Path) {
    let open = |target: DiskTarget| -> Box<back::OpenDisk> {
        Box::new(move |_| Ok(target.open(DiskAccess::ReadWrite, &ImageDirs::default())?))
    };
    // The scene's own server is not used.
    let Some(mut scene) = Scene::new(Setup::new(open(target.clone()))) else { return };
    let (host, socket, stop) =
        (scene.host.clone(), scene.daemon.socket(), Arc::new(AtomicBool::new(false)));
    let (stopped, target) = (Arc::clone(&stop), target.clone());
    let rings = rings::RingOptions::recorded_in(record_dir);
    let serving = std::thread::spawn(move || {
        let options = back::Options { rings, ..back::Options::default() };
        let mut server = support::server_at(&host, &socket, options, open(target));
        xen_block::filter::install(&[]).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            server.turn(Duration::from_millis(50)).unwrap();
            server.announce_changes().unwrap();
        }
    });
    scene.until_front_connected();
    let parts = scene.buffers(16).into_iter().map(BufferSectors::whole).collect::<Vec<_>>();
    for want in [
        DiskRequest::Write { tag: 1, sector: 8 },
        DiskRequest::Read { tag: 2, sector: 0 },
        DiskRequest::Barrier { tag: 3, sector: 16 },
        DiskRequest::Flush { tag: 4 },
        DiskRequest::Discard { tag: 5, sector: 0, sectors: 8 },
    ] {
        let parts = match want {
            DiskRequest::Flush { .. } | DiskRequest::Discard { .. } => &[],
            DiskRequest::Barrier { .. } => &parts[..4],
            _ => &parts[..],
        };
        assert_eq!(ask(&mut scene, want, parts), Status::Okay, "{want:?}");
    }
    stop.store(true, Ordering::Relaxed);
    serving.join().unwrap();
}

#[test]
fn files_of_disks_and_of_memory() {
    for folder in [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")] {
        let folder = folder.unwrap();
        let file = folder.path().join("raw");
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        serves(&DiskTarget::Raw(file), folder.path());
    }
}

#[test]
fn images_with_backing_files() {
    let folder = tempfile::tempdir().unwrap();
    let (base, top) = (folder.path().join("base"), folder.path().join("top"));
    let image = |args: &[&str], file: &Path| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).args(args).arg(file).arg("8M");
        create.status().map(|status| assert!(status.success()))
    };
    if image(&[], &base).is_err() {
        return conformance::skip("filtered qcow2", "there is no qemu-img (Debian: qemu-utils)");
    }
    image(&["-F", "qcow2", "-b", base.to_str().unwrap()], &top).unwrap();
    serves(&DiskTarget::Qcow2(top), folder.path());
}

/// A process that has written its number into a file; ended with the test.
struct ForkedProcess(PathBuf);

impl Drop for ForkedProcess {
    fn drop(&mut self) {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        // The process may have ended by itself after its last client.
        let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { return };
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        if comm.is_ok_and(|comm| comm.trim() == "qemu-nbd") {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

#[test]
fn servers_of_network_block_devices() {
    let folder = tempfile::tempdir().unwrap();
    let (file, socket) = (folder.path().join("raw"), folder.path().join("socket"));
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let mut server = Command::new("qemu-nbd");
    server.args(["--fork", "--shared=8", "--discard=unmap", "-f", "raw", "-k"]).arg(&socket);
    let pid = folder.path().join("pid");
    // With --fork it returns once it listens, and ends with its last client.
    match server.arg("--pid-file").arg(&pid).arg(&file).status() {
        Ok(status) => assert!(status.success(), "qemu-nbd: {status}"),
        Err(_) => {
            let why = "there is no qemu-nbd (Debian: qemu-utils)";
            return conformance::skip("filtered NBD", why);
        }
    }
    let _ended = ForkedProcess(pid);
    serves(&DiskTarget::Nbd { socket, name: String::new() }, folder.path());
}
