//! A process that moves a console's output is killed at work, again and again: no byte is lost, and
//! none of the ring is in the log twice. Of the FIFO the last chunk may be.

#[path = "daemon/repeats.rs"]
mod repeats;

use repeats::repeats;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen_console::backlog::Backlog;
use xen_console::feed::{ConsoleFeed, ConsoleFiles, ConsoleSources};
use xen_console::fifo::{CHUNK_MAX, OutputFolder};
use xen_console::log::{ConsoleLog, LogLimits};
use xen_console::record::ConsoleRecord;
use xen_io::console::{ConsoleBackRing, ConsoleFrontRing};

/// The folder of the process that moves output: this program again.
const FOLDER: &str = "XEN_CONSOLE_TEST_FOLDER";
const LOG: &str = "guest-a.log";
/// The FIFO of the guest, in the folder.
const OUTPUT: &str = "guest/output";
const KILLS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

/// Moves output of the page and of the FIFO in `folder`, if they are there, until it is killed.
fn move_output_for_ever(folder: &Path) -> ! {
    let page = File::options().read(true).write(true).open(folder.join("page"));
    let ring = page.ok().map(|page| ConsoleBackRing::new(testbed::page::map(&page).unwrap()));
    let fifo = OutputFolder::open(folder).unwrap().open_fifo(b"guest").ok();
    let limits = LogLimits { bytes_max: u64::MAX, reserve: 0, mode: 0o600 };
    let dir = Rc::new(File::open(folder).unwrap().into());
    let log = ConsoleLog::open(dir, OsStr::new(LOG), limits).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let record = ConsoleRecord::new(options.open(folder.join("record")).unwrap());
    let files = ConsoleFiles { log: Some(log), record: Some(record), format: None };
    let sources = ConsoleSources { ring, fifo };
    let mut feed = ConsoleFeed::new(sources, files, Backlog::new(1 << 10), 7);
    loop {
        let printed = feed.move_printed(700, 0).unwrap();
        if feed.move_output(300, 0).unwrap().moved + printed.moved == 0 {
            std::thread::yield_now();
        }
    }
}

/// The process that plays the part of the daemon, which is killed when this is dropped.
struct Mover(Child);

impl Mover {
    fn start(folder: &Path, test: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test]).env(FOLDER, folder);
        Self(command.stdout(std::process::Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }
}

/// Kills the process at work, [`KILLS`] times, while `print` prints something and returns the number of
/// its bytes; then has another move the rest.
fn kill_at_work(folder: &Path, test: &str, mut print: impl FnMut() -> usize) {
    let (mut moments, mut printed) = (0x9e37_79b9_u32, 0);
    for _ in 0..KILLS {
        let mover = Mover::start(folder, test);
        moments = moments.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let enough = printed + 2048 + (moments >> 16) as usize;
        while printed < enough {
            printed += print();
        }
        drop(mover);
    }
    let _mover = Mover::start(folder, test);
    let begin = Instant::now();
    while !is_empty(folder) {
        assert!(begin.elapsed() < PATIENCE, "the rest of the output is not moved");
        sleep(Duration::from_millis(5));
    }
}

/// True if both sources are empty, where they are there.
fn is_empty(folder: &Path) -> bool {
    let fifo = File::options().read(true).custom_flags(nonblock()).open(folder.join(OUTPUT));
    let page = File::options().read(true).write(true).open(folder.join("page"));
    let ring = page.map(|page| ConsoleBackRing::new(testbed::page::map(&page).unwrap()));
    fifo.map_or(0, |fifo| rustix::io::ioctl_fionread(&fifo).unwrap()) == 0
        && ring.map_or(0, |ring| ring.peek_output(&mut [0]).unwrap().len) == 0
}

fn nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

/// Makes a page in the folder, for the guest's end.
fn make_ring(folder: &TempDir) -> ConsoleFrontRing {
    let page = folder.path().join("page");
    let page = File::options().read(true).write(true).create_new(true).open(page).unwrap();
    page.set_len(4096).unwrap();
    ConsoleFrontRing::new(testbed::page::map(&page).unwrap())
}

/// Makes a FIFO in the folder, open for writing and for reading, as a guest has it.
fn make_fifo(folder: &TempDir) -> File {
    std::fs::create_dir(folder.path().join("guest")).unwrap();
    let path = folder.path().join(OUTPUT);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    File::options().read(true).write(true).custom_flags(nonblock()).open(path).unwrap()
}

/// Writes all bytes, as there is room.
fn write_all(bytes: &[u8], mut write: impl FnMut(&[u8]) -> usize) {
    let (begin, mut left) = (Instant::now(), bytes);
    while !left.is_empty() {
        let count = write(left);
        left = &left[count..];
        assert!(begin.elapsed() < PATIENCE, "nobody takes the output");
    }
}

fn write_fifo(fifo: &mut File, bytes: &[u8]) {
    write_all(bytes, |left| match fifo.write(left) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        count => count.unwrap(),
    });
}

#[test]
fn no_byte_is_lost_or_doubled_by_kills() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        move_output_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = make_ring(&folder);
    // Lines that differ, so that a byte that is missing or doubled shows.
    let (mut written, mut line) = (Vec::new(), 0_u64);
    kill_at_work(folder.path(), "no_byte_is_lost_or_doubled_by_kills", || {
        let text = format!("line {line} of the guest\r\n");
        write_all(text.as_bytes(), |left| guest.write(left).unwrap());
        written.extend_from_slice(text.as_bytes());
        line += 1;
        text.len()
    });
    let log = folder.path().join(LOG);
    assert!(std::fs::read(&log).unwrap() == written, "the log is not what the guest has printed");
}

#[test]
fn of_a_fifo_no_byte_is_lost_and_the_last_chunk_alone_doubled() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        move_output_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut guest = make_fifo(&folder);
    let (mut written, mut line) = (Vec::new(), 0_u64);
    kill_at_work(
        folder.path(),
        "of_a_fifo_no_byte_is_lost_and_the_last_chunk_alone_doubled",
        || {
            let text = format!("line {line} of the guest\n");
            write_fifo(&mut guest, text.as_bytes());
            written.extend_from_slice(text.as_bytes());
            line += 1;
            text.len()
        },
    );
    let log = std::fs::read(folder.path().join(LOG)).unwrap();
    let count = repeats(&log, &written, CHUNK_MAX);
    println!("{count} chunks of {} bytes are there twice", written.len());
    assert!(count <= KILLS as usize, "{count} chunks are there twice");
}

#[test]
fn both_sources_in_one_log_keep_their_promises() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        move_output_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let (ring, mut fifo) = (make_ring(&folder), make_fifo(&folder));
    // Bytes of the one are none of the other.
    let digits = |number: u64, zero: u8, end: u8| {
        let mut text = number.to_string().into_bytes();
        text.iter_mut().for_each(|digit| *digit = *digit - b'0' + zero);
        text.push(end);
        text
    };
    let (mut on_ring, mut on_fifo, mut line) = (Vec::new(), Vec::new(), 0_u64);
    kill_at_work(folder.path(), "both_sources_in_one_log_keep_their_promises", || {
        let (first, second) = (digits(line, b'a', b'.'), digits(line, b'A', b'!'));
        write_all(&first, |left| ring.write(left).unwrap());
        write_fifo(&mut fifo, &second);
        on_ring.extend_from_slice(&first);
        on_fifo.extend_from_slice(&second);
        line += 1;
        first.len() + second.len()
    });
    let log = std::fs::read(folder.path().join(LOG)).unwrap();
    let is_ring = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'.';
    let (ring, fifo): (Vec<u8>, Vec<u8>) = log.iter().copied().partition(is_ring);
    assert!(ring == on_ring, "the ring's part of the log is not what the guest has printed");
    let count = repeats(&fifo, &on_fifo, CHUNK_MAX);
    assert!(count <= KILLS as usize, "{count} chunks are there twice");
}
