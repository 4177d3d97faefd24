//! A backend on one processor, where it sleeps whenever there is no work: the number of system
//! calls for requests of one frontend. In a PV domain each call is two switches of page tables. A
//! program of its own, as parallel tests would take the processor and the disk from it, and a
//! backend that waits longer makes more calls.

#[path = "suite/support.rs"]
mod support;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{PATIENCE, Scene, Setup};
use xen::evtchn::EventChannels;
use xen_block::back::{self, OpenMethod};
use xen_block::disk::DiskAccess;
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::front::{BufferSectors, Completion, DiskRequest};
use xen_io::blkif::Status;

/// The environment variable, set in the traced process, with the file of its disk.
const FILE: &str = "XEN_BLOCK_LONE_FILE";
/// The environment variable with the number of requests that its frontend makes at a time.
const TOGETHER: &str = "XEN_BLOCK_TOGETHER";
/// The number of times that the frontend makes these requests.
const TIMES: u64 = 200;

/// Binds this thread to one of its permitted processors.
fn pin() {
    let allowed = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).unwrap();
}

/// Runs the traced process: reads the disk again and again.
fn reads_again_and_again(path: PathBuf) {
    let together: usize = std::env::var(TOGETHER).unwrap().parse().unwrap();
    let open = move |_: &mut xenbus::Device<'_>| {
        let (access, cache) = (DiskAccess::ReadWrite, Cache::Direct);
        let disk = FileDisk::open(&path, Options { access, cache, way: IoMethod::Uring });
        let disk = disk?;
        assert!(format!("{disk:?}").contains("io_uring"), "{disk:?}");
        Ok(Box::new(disk) as Box<dyn xen_block::disk::Disk>)
    };
    // The scene's own server is not used.
    let mut scene = Scene::new(Setup::new(Box::new(open.clone()))).expect("a daemon");
    let (host, socket, stop) =
        (scene.host.clone(), scene.daemon.socket(), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let serving = std::thread::Builder::new().name("serving".into()).spawn(move || {
        pin();
        let options = back::Options::default();
        let mut server =
            support::server_at(&host, &socket, options, OpenMethod::Here(Box::new(open)));
        while !stopped.load(Ordering::Relaxed) {
            server.turn(Duration::from_millis(500)).unwrap();
        }
    });
    scene.until_front_connected();
    let buffers = scene.buffers(together);
    for tag in 0..TIMES {
        for (buffer, sector) in buffers.iter().zip((tag * 8..).step_by(8)) {
            scene
                .front()
                .submit(0, DiskRequest::Read { tag, sector }, &[BufferSectors::whole(*buffer)])
                .unwrap();
        }
        scene.front().push().unwrap();
        let mut done = 0;
        while done < together {
            let take = |ended: Completion| {
                assert_eq!(ended.status, Status::Okay);
                done += 1;
            };
            scene.front().take(take).unwrap();
            if done == together || scene.front().final_check().unwrap() {
                continue;
            }
            let mut evtchn = scene.front_evtchn.borrow_mut();
            let fd = PollFd::from_borrowed_fd(evtchn.fd(), PollFlags::IN);
            assert_eq!(poll(&mut [fd], Some(&PATIENCE.try_into().unwrap())).unwrap(), 1);
            while let Some(port) = evtchn.pending().unwrap() {
                evtchn.unmask(port).unwrap();
            }
        }
        // A program that makes one request after the other does something with each answer.
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::Relaxed);
    serving.unwrap().join().unwrap();
}

/// Runs `test` again in a process of its own. Returns how often its serving thread has waited for
/// events, and how often it has entered the io_uring.
fn calls(test: &str, file: &Path, together: usize) -> (u64, u64) {
    let log = file.with_extension("log");
    let output = Command::new("strace")
        .args([
            "-f",
            "-e",
            "trace=epoll_pwait,epoll_pwait2,io_uring_enter",
            "-e",
            "signal=none",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(FILE, file)
        .env(TOGETHER, together.to_string())
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // The serving thread is the one that enters the io_uring.
    let enters = |line: &&str| line.contains("io_uring_enter(");
    let serving = text.lines().find(enters).and_then(|line| line.split(' ').next());
    let serving = serving.expect("no io_uring was used");
    let own = text.lines().filter(|line| line.starts_with(serving));
    let begun: Vec<&str> = own.filter(|line| !line.contains("resumed>")).collect();
    let polled = begun.iter().filter(|line| line.contains("epoll_pwait")).count();
    (polled as u64, begun.iter().filter(|line| enters(line)).count() as u64)
}

/// Checks the calls for this many requests at a time: the loop sleeps once for these, and enters
/// the io_uring `enters` times.
fn sleeps_once(test: &str, together: usize, enters: u64) {
    if let Some(file) = std::env::var_os(FILE) {
        return reads_again_and_again(file.into());
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return conformance::skip(test, "there is no strace");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    // The store needs some more calls at the beginning. If a read takes longer than the wait for
    // it, there is a second sleep, and the next few reads are not waited for: so the test is
    // repeated where the disk is busy.
    let spare = TIMES / 2;
    let mut counted = Vec::new();
    let met = (0..8).any(|_| {
        let (slept, entered) = calls(test, &file, together);
        counted.push((slept, entered));
        (TIMES..TIMES + spare).contains(&slept)
            && (TIMES..TIMES * enters + spare).contains(&entered)
    });
    assert!(met, "calls of epoll_pwait and io_uring_enter for {TIMES} x {together}: {counted:?}");
}

#[test]
fn a_lone_request_is_given_to_the_kernel_and_waited_for_at_once() {
    sleeps_once("a_lone_request_is_given_to_the_kernel_and_waited_for_at_once", 1, 1);
}

/// Half of the requests are waited for while the frontend has no work, then the rest.
#[test]
fn requests_that_come_together_are_waited_for_together() {
    sleeps_once("requests_that_come_together_are_waited_for_together", 8, 2);
}
