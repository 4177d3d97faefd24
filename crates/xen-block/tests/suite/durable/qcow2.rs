//! The tests of crashes on a qcow2 image: the writing process runs under strace, which logs each
//! write and each sync of the image's file.

use super::{
    StoreEvent, StoreFormat, TRANSACTIONS, Workload, crash_everywhere, folder, play_on, put_at,
    recover,
};
use crate::support::once_free;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::target::DiskTarget;
use xen_block::disk::{Disk, DiskAccess};

const FOLDER: &str = "XEN_BLOCK_DURABLE_FOLDER";
/// The line that the process writes into a file of its own when a transaction is safe; its number
/// follows.
const MARK: &[u8] = b"a transaction was answered: ";

/// The traced process; started by the tests below.
#[test]
#[ignore = "runs under strace, started by the other tests"]
fn writes_transactions() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("started by another test"));
    let workload = Workload::load(&folder);
    let image = folder.join("image.qcow2");
    let mark = std::fs::File::create(folder.join("mark")).unwrap();
    let open = move |_: &mut xenbus::Device<'_>| {
        let target = DiskTarget::Qcow2(image.clone());
        Ok(target.open(DiskAccess::ReadWrite, &ImageDirs::default())? as Box<dyn Disk>)
    };
    let played = play_on(&workload, Box::new(open), |number| {
        mark.write_all_at(&[MARK, &[number as u8]].concat(), 0).unwrap();
    });
    assert!(played, "there is no daemon");
}

/// Opens an image that was left by a crash, and converts it to a raw one; returns the reason if
/// that is not possible. Clusters may be lost, but none that is in use may be free for the next
/// writer.
pub(super) fn unpack(image: &[u8], raw: &Path) -> Result<(), String> {
    let packed = raw.with_extension("qcow2");
    std::fs::write(&packed, image).unwrap();
    let target = DiskTarget::Qcow2(packed.clone());
    let opened = once_free(|| target.open(DiskAccess::ReadWrite, &ImageDirs::default()));
    drop(opened.map_err(|error| error.to_string())?);
    // `-U`, as a child that another test forks has the image open and locked for a moment.
    let check = ["check", "-U", "-f", "qcow2"];
    let check = Command::new("qemu-img").args(check).arg(&packed).output().unwrap();
    // 3: only leaked clusters.
    if !matches!(check.status.code(), Some(0 | 3)) {
        return Err(format!("qemu-img check: {}", String::from_utf8_lossy(&check.stderr)));
    }
    convert("qcow2", &packed, "raw", raw)
}

fn convert(from: &str, source: &Path, to: &str, into: &Path) -> Result<(), String> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-f", from, "-O", to]).args([source, into]);
    let output = command.output().unwrap();
    let said = || format!("qemu-img convert: {}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(said()) }
}

/// Returns the bytes of a string that strace writes as `"\x00\x01"`.
fn bytes(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits.map(|digits| u8::from_str_radix(digits, 16).expect("two digits")).collect()
}

/// Parses a line of strace's log, without the thread's number.
fn parse_event(call: &str) -> Option<StoreEvent> {
    assert!(!call.contains("unfinished") && !call.contains("resumed"), "two calls at once: {call}");
    if call.starts_with('+') {
        // The line is the end of a thread.
        return None;
    }
    let (name, rest) = call.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ").expect("what the call came to");
    let arguments = arguments.trim_end().trim_end_matches(')');
    if name == "fdatasync" || name == "fsync" {
        assert_eq!(result, "0", "{call}");
        return Some(StoreEvent::Flush);
    }
    if name == "ftruncate" {
        // The file grows; an image reads as zeroes past its end anyway.
        return None;
    }
    assert!(name.starts_with("pwrite"), "{call}");
    let at = arguments.rsplit(", ").next()?.parse().expect("an offset");
    // The strings of all parts of a vector, one after the other.
    let written: Vec<u8> = arguments.split('"').skip(1).step_by(2).flat_map(bytes).collect();
    assert_eq!(result.parse(), Ok(written.len()), "{name}: {result}");
    Some(match written.strip_prefix(MARK) {
        Some([number]) => StoreEvent::Answered(usize::from(*number)),
        _ => StoreEvent::Write(at, written),
    })
}

/// Runs the process under strace. Returns the image before the run, and the events on it; `None` if
/// a tool is missing.
fn traced(workload: &Workload, folder: &Path) -> Option<(Vec<u8>, Vec<StoreEvent>)> {
    for (tool, package) in [("strace", "strace"), ("qemu-img", "qemu-utils")] {
        if Command::new(tool).arg("--version").output().is_err() {
            let why = format!("there is no {tool} (Debian: {package})");
            conformance::skip("durable qcow2", &why);
            return None;
        }
    }
    let [raw, image, log] = ["start", "image.qcow2", "log"].map(|name| folder.join(name));
    std::fs::write(&raw, workload.start()).unwrap();
    convert("raw", &raw, "qcow2", &image).unwrap();
    let before = std::fs::read(&image).unwrap();
    workload.save(folder);
    let calls = "trace=pwrite64,pwritev,pwritev2,fdatasync,fsync,fallocate,ftruncate";
    let output = Command::new("strace")
        .args(["-f", "-xx", "-s", "4194304", "-e", calls, "-e", "signal=none"])
        .args(["-P".as_ref(), image.as_os_str(), "-P".as_ref()])
        .arg(folder.join("mark"))
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "durable::qcow2::writes_transactions", "--ignored"])
        .env(FOLDER, folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read_to_string(&log).unwrap();
    let call = |line: &str| line.split_once(' ').map(|(_, call)| call.trim_start().to_owned());
    let events = text.lines().filter_map(call).filter_map(|call| parse_event(&call)).collect();
    Some((before, events))
}

#[test]
fn every_crash_of_an_image_recovers_to_what_was_answered() {
    let Some(folder) = folder("durable-qcow2") else { return };
    let workload = Workload::make(folder.path());
    let Some((before, log)) = traced(&workload, folder.path()) else { return };
    let answers = log.iter().filter(|what| matches!(what, StoreEvent::Answered(_)));
    assert_eq!(answers.count(), TRANSACTIONS);
    let file = folder.path().join("crash");
    let start = (before.clone(), StoreFormat::Qcow2);
    let (images, lost) = crash_everywhere(&workload, start, &log, &file);
    assert_eq!(lost, None, "image {images}");
    assert!(images > 100, "{images}");
    // A process that is killed leaves everything that it has written, as its machine continues.
    let (mut left, mut answered) = (before.clone(), 0);
    for (at, what) in log.iter().enumerate() {
        match what {
            StoreEvent::Write(at, bytes) => put_at(&mut left, *at, bytes),
            StoreEvent::Answered(number) => answered = *number,
            StoreEvent::Flush => continue,
        }
        let state = recover(&workload, &file, &left, StoreFormat::Qcow2);
        assert!(
            state.as_ref().is_ok_and(|state| *state >= answered),
            "killed at {at}, {answered} answered: {state:?}"
        );
    }
    // Without the syncs, as in a build that forgets them, the test finds a loss.
    let without: Vec<_> =
        log.into_iter().filter(|what| !matches!(what, StoreEvent::Flush)).collect();
    let (_, lost) = crash_everywhere(&workload, (before, StoreFormat::Qcow2), &without, &file);
    assert!(lost.is_some(), "nothing was lost without any sync");
}
