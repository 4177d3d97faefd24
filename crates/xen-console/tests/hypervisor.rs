//! The log of the hypervisor's console, with the real reader as a process and a console in a file:
//! whichever side is killed, no byte is lost or doubled, and output that was overwritten is counted.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen::conring::{ConsoleReading, HypervisorConsole};
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::shared::SharedPage;
use xen::{DomId, Error, Port};
use xen_console::hypervisor::{HypervisorLog, HypervisorOutcome, ReaderError, run_reader_on};
use xen_console::log::{ConsoleLog, IndexEvent, LogLimits, LogOutcome, read_index};
use xen_console::record::ConsoleRecord;

const FOLDER: &str = "XEN_CONSOLE_TEST_HYPERVISOR";
const ROLE: &str = "XEN_CONSOLE_TEST_ROLE";
const LOG: &str = "hypervisor.log";
const PATIENCE: Duration = Duration::from_secs(60);
/// The place of the ring in its page, after the index of all that was printed; and its size.
const RING_START: usize = 2048;
const RING_SIZE: u32 = 2048;

/// A hypervisor that prints into a file.
struct FileHypervisor {
    page: SharedPage,
    event: OwnedFd,
    printed: Vec<u8>,
}

impl FileHypervisor {
    fn new(folder: &Path) -> Self {
        mknodat(CWD, folder.join("event"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        File::create_new(folder.join("page")).unwrap().set_len(4096).unwrap();
        Self { page: page(folder), event: event(folder), printed: Vec::new() }
    }

    fn print(&mut self, text: &str) {
        let mut index = self.page.load_u32(0).unwrap();
        for byte in text.bytes() {
            let at = RING_START + (index % RING_SIZE) as usize;
            self.page.copy_in(at, &[byte]).unwrap();
            index += 1;
        }
        self.page.store_u32(0, index).unwrap();
        self.printed.extend_from_slice(text.as_bytes());
        let _ = rustix::io::write(&self.event, b"!");
    }

    /// Prints lines that differ, so many bytes at least.
    fn print_lines(&mut self, bytes: usize) {
        let end = self.printed.len() + bytes;
        while self.printed.len() < end {
            self.print(&format!("(XEN) line at {}\n", self.printed.len()));
        }
    }
}

fn page(folder: &Path) -> SharedPage {
    let file = File::options().read(true).write(true).open(folder.join("page")).unwrap();
    testbed::page::map(&file).unwrap()
}

fn event(folder: &Path) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(folder.join("event"), flags, Mode::empty()).unwrap()
}

/// The console of [`FileHypervisor`], read as Xen's.
struct FileConsole(SharedPage);

impl HypervisorConsole for FileConsole {
    fn read(&mut self, index: u32, buffer: &mut [u8]) -> Result<ConsoleReading, Error> {
        let end = self.0.load_u32(0).unwrap();
        let oldest = end.saturating_sub(RING_SIZE);
        let mut next = if oldest < index && index <= end { index } else { oldest };
        let mut len = 0;
        while next < end && len < buffer.len() {
            let at = RING_START + (next % RING_SIZE) as usize;
            self.0.copy_out(at, &mut buffer[len..=len]).unwrap();
            (next, len) = (next + 1, len + 1);
        }
        Ok(ConsoleReading { len, next })
    }
}

/// A console whose reader an intruder has taken over, who opens a file.
struct IntrudedConsole;

impl HypervisorConsole for IntrudedConsole {
    fn read(&mut self, index: u32, _: &mut [u8]) -> Result<ConsoleReading, Error> {
        drop(File::open("/dev/null"));
        Ok(ConsoleReading { len: 1, next: index + 1 })
    }
}

/// The interrupt of [`FileHypervisor`].
struct FileEvents(OwnedFd);

impl EventChannels for FileEvents {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn alloc_unbound(&mut self, _: DomId) -> Result<Port, Error> {
        Err(Error::NoSys)
    }
    fn bind_interdomain(&mut self, _: DomId, _: Port) -> Result<Port, Error> {
        Err(Error::NoSys)
    }
    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        if virq == Virq::ConRing { Ok(Port(1)) } else { Err(Error::Inval) }
    }
    fn notify(&self, _: Port) -> Result<(), Error> {
        Err(Error::NoSys)
    }
    fn pending(&mut self) -> Result<Option<Port>, Error> {
        Ok(rustix::io::read(&self.0, &mut [0; 64]).is_ok().then_some(Port(1)))
    }
    fn unmask(&self, port: Port) -> Result<(), Error> {
        if port == Port(1) { Ok(()) } else { Err(Error::Inval) }
    }
    fn close(&mut self, _: Port) -> Result<(), Error> {
        Err(Error::NoSys)
    }
    fn status(&mut self, _: Port) -> Result<PortStatus, Error> {
        Err(Error::NoSys)
    }
}

/// This program again, in a role.
fn role_command(folder: &Path, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_killed_daemon_loses_and_doubles_no_byte"]);
    command.env(FOLDER, folder).env(ROLE, role).stdout(Stdio::null());
    command
}

fn open(folder: &Path, boot: u64, role: &'static str) -> HypervisorLog {
    let limits = LogLimits { bytes_max: u64::MAX, reserve: 0, mode: 0o600 };
    let dir = Rc::new(File::open(folder).unwrap().into());
    let log = ConsoleLog::open(dir, OsStr::new(LOG), limits).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let record = ConsoleRecord::new(options.open(folder.join("record")).unwrap());
    let folder = folder.to_owned();
    HypervisorLog::new(log, record, boot, Box::new(move || role_command(&folder, role)))
}

/// Plays a role in a process of its own.
fn play(role: &str, folder: &Path) -> ! {
    match role {
        "reader" => {
            let open = || Ok((FileConsole(page(folder)), FileEvents(event(folder))));
            std::process::exit(run_reader_on(open, &[]).into());
        }
        "refused" => {
            let open = || Err::<(FileConsole, FileEvents), _>("no such device".to_owned());
            std::process::exit(run_reader_on(open, &[]).into());
        }
        "intruded" => {
            let open = || Ok((IntrudedConsole, FileEvents(event(folder))));
            std::process::exit(run_reader_on(open, &[]).into());
        }
        _ => {
            let mut log = open(folder, 7, "reader");
            loop {
                take(&mut log, Instant::now()).unwrap();
            }
        }
    }
}

/// Starts the reader if it is due, waits until there is something to take, and takes it.
fn take(log: &mut HypervisorLog, now: Instant) -> Result<HypervisorOutcome, ReaderError> {
    loop {
        let outcome = log.take(now, 5);
        if !matches!(&outcome, Ok(outcome) if *outcome == HypervisorOutcome::default()) {
            return outcome;
        }
        let mut fds = [PollFd::from_borrowed_fd(log.fd().unwrap(), PollFlags::IN)];
        let within = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, Some(&within)).unwrap(), 1, "the reader sends nothing");
    }
}

/// Takes output until the log has all that was printed.
fn take_all(log: &mut HypervisorLog, now: Instant, printed: usize, folder: &Path) {
    while std::fs::metadata(folder.join(LOG)).unwrap().len() < printed as u64 {
        assert_eq!(take(log, now).unwrap().lost, 0);
    }
}

fn wait_for_log(folder: &Path, len: usize) {
    let begin = Instant::now();
    while std::fs::metadata(folder.join(LOG)).map_or(0, |file| file.len()) < len as u64 {
        assert!(begin.elapsed() < PATIENCE, "the output is not logged");
        std::thread::yield_now();
    }
}

fn logged(folder: &Path) -> String {
    String::from_utf8(std::fs::read(folder.join(LOG)).unwrap()).unwrap()
}

#[test]
fn a_killed_daemon_loses_and_doubles_no_byte() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        play(&std::env::var(ROLE).unwrap(), Path::new(&folder));
    }
    let folder = TempDir::new().unwrap();
    let mut xen = FileHypervisor::new(folder.path());
    let mut moments = 0x9e37_79b9_u32;
    for _ in 0..40 {
        let mut daemon = role_command(folder.path(), "daemon").spawn().unwrap();
        moments = moments.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let enough = xen.printed.len() + 1 + (moments >> 19) as usize;
        while xen.printed.len() < enough {
            // No more than the ring has room for.
            wait_for_log(folder.path(), xen.printed.len().saturating_sub(RING_SIZE as usize / 2));
            xen.print_lines(1);
        }
        kill_process(Pid::from_child(&daemon), Signal::KILL).unwrap();
        daemon.wait().unwrap();
    }
    let mut daemon = role_command(folder.path(), "daemon").spawn().unwrap();
    wait_for_log(folder.path(), xen.printed.len());
    kill_process(Pid::from_child(&daemon), Signal::KILL).unwrap();
    daemon.wait().unwrap();
    assert_eq!(logged(folder.path()).as_bytes(), xen.printed);
}

#[test]
fn a_killed_reader_is_started_again_and_loses_and_doubles_no_byte() {
    let folder = TempDir::new().unwrap();
    let mut xen = FileHypervisor::new(folder.path());
    let mut log = open(folder.path(), 7, "reader");
    let mut now = Instant::now();
    for round in 0..20 {
        assert_eq!(log.start_time(now), Some(now));
        log.take(now, 5).unwrap();
        assert_eq!(log.start_time(now), None);
        // Less than the ring holds, also with what the last reader has left in it.
        xen.print_lines(round * 25);
        for _ in 0..round % 3 {
            take(&mut log, now).unwrap();
            xen.print_lines(100);
        }
        let reader = Pid::from_raw(log.reader_id().unwrap().try_into().unwrap()).unwrap();
        kill_process(reader, Signal::KILL).unwrap();
        let ended = loop {
            match take(&mut log, now) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(ended, ReaderError::Ended(_)), "{ended}");
        // Not again at once.
        assert_eq!(log.take(now, 5).unwrap(), HypervisorOutcome::default());
        assert_eq!(log.reader_id(), None);
        now += Duration::from_secs(1);
    }
    take_all(&mut log, now, xen.printed.len(), folder.path());
    assert_eq!(logged(folder.path()).as_bytes(), xen.printed);
}

#[test]
fn output_that_was_overwritten_is_counted() {
    let folder = TempDir::new().unwrap();
    let mut xen = FileHypervisor::new(folder.path());
    xen.print_lines(5000);
    let mut log = open(folder.path(), 7, "reader");
    let now = Instant::now();
    let outcome = take(&mut log, now).unwrap();
    let lost = xen.printed.len() - RING_SIZE as usize;
    let lost = u32::try_from(lost).unwrap();
    let kept = Some(LogOutcome::Kept);
    assert_eq!(outcome, HypervisorOutcome { moved: RING_SIZE as usize, lost, logged: kept });
    assert_eq!(logged(folder.path()).as_bytes(), &xen.printed[lost as usize..]);
    let inode = std::fs::metadata(folder.path().join(LOG)).unwrap().ino();
    let index = File::open(folder.path().join("hypervisor.log.index")).unwrap();
    let records = read_index(index, inode).unwrap().unwrap();
    assert!(records.iter().any(|record| record.event == IndexEvent::Lost(lost.into())));
}

#[test]
fn a_daemon_that_is_started_again_repeats_the_ring_only_after_another_boot() {
    let folder = TempDir::new().unwrap();
    let mut xen = FileHypervisor::new(folder.path());
    let now = Instant::now();
    let expected = ["one\n", "one\ntwo\n", "one\ntwo\none\ntwo\nthree\n"];
    let texts = ["one\n", "two\n", "three\n"];
    for ((text, boot), expected) in texts.into_iter().zip([7, 7, 8]).zip(expected) {
        xen.print(text);
        let mut log = open(folder.path(), boot, "reader");
        take_all(&mut log, now, expected.len(), folder.path());
        assert_eq!(logged(folder.path()), expected);
    }
}

#[test]
fn output_is_rewritten_before_it_is_logged() {
    let folder = TempDir::new().unwrap();
    let mut xen = FileHypervisor::new(folder.path());
    xen.print("text\n");
    let mut log = open(folder.path(), 7, "reader");
    log.set_rewrite(Box::new(|bytes, time_us, into| {
        into.extend_from_slice(format!("[{time_us}] ").as_bytes());
        into.extend_from_slice(bytes);
    }));
    take_all(&mut log, Instant::now(), 9, folder.path());
    assert_eq!(logged(folder.path()), "[5] text\n");
}

#[test]
fn a_reader_that_cannot_read_says_why() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path(), 7, "refused");
    let now = Instant::now();
    let error = take(&mut log, now).unwrap_err();
    let text = "the reader of the hypervisor's console cannot read it: no such device";
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_reader_that_makes_another_call_is_killed() {
    let folder = TempDir::new().unwrap();
    let _xen = FileHypervisor::new(folder.path());
    let mut log = open(folder.path(), 7, "intruded");
    let now = Instant::now();
    match take(&mut log, now).unwrap_err() {
        ReaderError::Ended(status) => assert_eq!(status.signal(), Some(Signal::SYS.as_raw())),
        error => panic!("{error}"),
    }
}
