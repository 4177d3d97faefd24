//! A process that moves a console's output is killed at work, again and again: no byte is lost, and
//! none is in the log twice.

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use xen_console::backlog::Backlog;
use xen_console::feed::{ConsoleFeed, ConsoleFiles};
use xen_console::log::{ConsoleLog, LogLimits};
use xen_console::record::ConsoleRecord;
use xen_io::console::{ConsoleBackRing, ConsoleFrontRing};

/// The folder of the process that moves output: this program again.
const FOLDER: &str = "XEN_CONSOLE_TEST_FOLDER";
const LOG: &str = "guest-a.log";
const KILLS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

/// Moves output of the page in `folder` until it is killed.
fn move_output_for_ever(folder: &Path) -> ! {
    let page = File::options().read(true).write(true).open(folder.join("page")).unwrap();
    let ring = ConsoleBackRing::new(testbed::page::map(&page).unwrap());
    let limits = LogLimits { bytes_max: u64::MAX, reserve: 0, mode: 0o600 };
    let dir = Rc::new(File::open(folder).unwrap().into());
    let log = ConsoleLog::open(dir, OsStr::new(LOG), limits).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let record = ConsoleRecord::new(options.open(folder.join("record")).unwrap());
    let files = ConsoleFiles { log: Some(log), record: Some(record), format: None };
    let mut feed = ConsoleFeed::new(ring, files, Backlog::new(1 << 10), 7).unwrap();
    loop {
        if feed.move_output(300, 0).unwrap().moved == 0 {
            std::thread::yield_now();
        }
    }
}

fn start(folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "no_byte_is_lost_or_doubled_by_kills"]).env(FOLDER, folder);
    command.stdout(std::process::Stdio::null()).spawn().unwrap()
}

#[test]
fn no_byte_is_lost_or_doubled_by_kills() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        move_output_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page");
    let page = File::options().read(true).write(true).create_new(true).open(page).unwrap();
    page.set_len(4096).unwrap();
    let guest = ConsoleFrontRing::new(testbed::page::map(&page).unwrap());

    // Lines that differ, so that a byte that is missing or doubled shows.
    let (mut written, mut line) = (Vec::new(), 0_u64);
    let mut print = |written: &mut Vec<u8>| {
        let text = format!("line {line} of the guest\r\n");
        let mut left = text.as_bytes();
        let begin = Instant::now();
        while !left.is_empty() {
            let count = guest.write(left).unwrap();
            left = &left[count..];
            assert!(begin.elapsed() < PATIENCE, "nobody takes the output");
        }
        written.extend_from_slice(text.as_bytes());
        line += 1;
    };
    let mut moments = 0x9e37_79b9_u32;
    for _ in 0..KILLS {
        let mut child = start(folder.path());
        moments = moments.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let enough = written.len() + 2048 + (moments >> 16) as usize;
        while written.len() < enough {
            print(&mut written);
        }
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::KILL).unwrap();
        child.wait().unwrap();
    }
    let mut child = start(folder.path());
    let log = folder.path().join(LOG);
    let begin = Instant::now();
    while std::fs::metadata(&log).unwrap().len() < written.len() as u64 {
        assert!(begin.elapsed() < PATIENCE, "the rest of the output is not moved");
        sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert!(std::fs::read(&log).unwrap() == written, "the log is not what the guest has printed");
}
