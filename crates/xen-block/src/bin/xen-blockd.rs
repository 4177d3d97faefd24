//! `xen-blockd`: serves the disks of guests, in the domain where it runs, until it is ended. Ended in
//! whatever way and started again, it goes on where it was; the guests see a pause.

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::DomId;
use xen::evtchn::EventChannels;
use xen::gnttab::GrantMap;
use xen_block::back::{Open, Options, Platform};
use xen_block::disk::places::Places;
use xen_block::disk::{self, qcow2, target};
use xen_block::filter;
use xen_block::server::Server;
use xen_block::throttle;
use xen_hosted::{HOST_VARIABLE, HostDir, Role};
use xen_linux::{Machine, abi};
use xenbus::bus::{News, What};
use xenbus::{Bus, Id, State};
use xenstore::{Client, Store};

const USAGE: &str = "\
usage: xen-blockd [--kind KIND]... [--record-dir DIR] [--image-dir DIR]... [--limit-bytes N] [--limit-requests N]
       xen-blockd --check [--image-dir DIR]... IMAGE...
       xen-blockd --help | --version
  --kind KIND       serve backend/KIND: vbd, qdisk; both without this option
  --record-dir DIR  where requests in flight outlive this process, on tmpfs (/run/xen-blockd; hosted:
                    xen-blockd in the host's own directory)
  --image-dir DIR   a folder in which backing files may lie, besides the image's own folder and the lines of
                    /etc/xenbus/image-dirs
  --check           serve nothing: tell of each qcow2 image which files it needs, and whether it would be served
  --limit-bytes N, --limit-requests N
                    most bytes and requests a second of a disk whose backend's nodes limit-bytes-per-second and
                    limit-requests-per-second say nothing else (no limit)
On Xen, or on the hosted host that XEN_HOSTED_HOST names.";

const VERSION: &str = concat!("xen-blockd ", env!("CARGO_PKG_VERSION"));

/// Where the kernel's own block backend shows that it is loaded.
const KERNEL_BACKEND: &str = "/sys/bus/xen-backend/drivers/vbd";
/// Set to 1: all privileges are kept.
const UNFILTERED: &str = "XEN_BLOCKD_UNFILTERED";
/// How often the sizes of disks are looked at.
const LOOK_AT_SIZES: Duration = Duration::from_secs(5);
/// How far a coarse clock may be behind.
const COARSE: Duration = Duration::from_millis(10);

/// Most lines that the log has of one device in [`A_MINUTE`].
const LINES_MAX: u32 = 100;
const A_MINUTE: Duration = Duration::from_secs(60);
const A_SECOND: Duration = Duration::from_secs(1);

/// What goes wrong before, or with, all devices.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // A disk's port and image take some.
    xen_hosted::limits::raise_descriptors();
    let started = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Asked::Serve(arguments)) if !arguments.check.is_empty() => return check(&arguments),
        Ok(Asked::Serve(arguments)) => serve(&arguments),
        Ok(Asked::Tell(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("xen-blockd: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = started;
    eprintln!("xen-blockd: {error}");
    ExitCode::FAILURE
}

/// The wish of a command line.
enum Asked {
    Serve(Arguments),
    /// A text, and nothing else.
    Tell(&'static str),
}

/// The command line.
struct Arguments {
    kinds: Vec<String>,
    record_dir: Option<PathBuf>,
    image_dirs: Vec<PathBuf>,
    throttle: throttle::Limits,
    /// Images that are to be looked at, and nothing else done.
    check: Vec<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
        let mut kinds = Vec::new();
        let (mut record_dir, mut throttle) = (None, throttle::Limits::default());
        let (mut image_dirs, mut looks, mut check) = (Vec::new(), false, Vec::new());
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--help" | "-h" => return Ok(Asked::Tell(USAGE)),
                "--version" => return Ok(Asked::Tell(VERSION)),
                "--kind" => match value()? {
                    kind if kind == "vbd" || kind == "qdisk" => kinds.push(kind),
                    kind => return Err(format!("{kind:?} is not served: vbd and qdisk are")),
                },
                "--limit-bytes" => throttle.bytes_per_second = Some(rate(&value()?)?),
                "--limit-requests" => throttle.requests_per_second = Some(rate(&value()?)?),
                "--record-dir" => record_dir = Some(value()?.into()),
                "--image-dir" => match PathBuf::from(value()?) {
                    dir if dir.is_absolute() => image_dirs.push(dir),
                    dir => return Err(format!("--image-dir {}: not absolute", dir.display())),
                },
                "--check" => looks = true,
                image if looks && !image.starts_with('-') => check.push(image.into()),
                _ => return Err(format!("{word:?} is no option")),
            }
        }
        if looks && check.is_empty() {
            return Err("--check needs an image".into());
        }
        if kinds.is_empty() {
            kinds = vec!["vbd".into(), "qdisk".into()];
        }
        Ok(Asked::Serve(Self { kinds, record_dir, image_dirs, throttle, check }))
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| format!("{text:?} is no number from 1"))
}

/// Tells of each image which files it needs, and whether it would be served.
fn check(arguments: &Arguments) -> ExitCode {
    let places = Places::new(arguments.image_dirs.clone());
    let mut code = ExitCode::SUCCESS;
    for image in &arguments.check {
        let (lines, verdict) = qcow2::look(image, &places);
        for (depth, line) in lines.iter().enumerate() {
            println!("{:1$}{line}", "", 2 * depth);
        }
        match verdict {
            Ok(()) => println!("served"),
            Err(error) => {
                println!("not served: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// What a platform provides.
struct Provided {
    evtchn: Rc<RefCell<dyn EventChannels>>,
    grants: Rc<RefCell<dyn GrantMap>>,
    /// Which domain this is, if the platform says so.
    domid: Option<DomId>,
    /// Where the record is, unless it is said.
    record_dir: PathBuf,
    /// The folder of the locks of what is served.
    lock_dir: PathBuf,
}

/// The folder of a Xen domain's record and locks.
const RUN: &str = "/run/xen-blockd";

fn provided() -> Result<Provided, Failure> {
    if let Some(dir) = std::env::var_os(HOST_VARIABLE) {
        let host = HostDir::new(dir);
        let hosted = xen_hosted::Platform::connect(&host, Role::Backend).map_err(|error| {
            let dir = host.path().display();
            format!("no broker serves the host in {dir}: {error}; xen-hosted {dir} starts one")
        })?;
        let (evtchn, grants) = (hosted.channels()?, hosted.grants());
        return Ok(Provided {
            evtchn: Rc::new(RefCell::new(evtchn)),
            grants: Rc::new(RefCell::new(grants)),
            domid: Some(hosted.domid()),
            record_dir: host.path().join("xen-blockd"),
            lock_dir: host.path().to_owned(),
        });
    }
    if xen_linux::machine() == Machine::Bare {
        return Err(format!("no Xen here, and {HOST_VARIABLE} names no hosted host").into());
    }
    let evtchn = xen_linux::evtchn::Evtchn::open(None)?;
    let grants = xen_linux::gntdev::Gntdev::open()?;
    Ok(Provided {
        evtchn: Rc::new(RefCell::new(evtchn)),
        grants: Rc::new(RefCell::new(grants)),
        domid: None,
        record_dir: RUN.into(),
        lock_dir: RUN.into(),
    })
}

/// The requests to Xen's devices that are left: event channels, and grants mapped and copied.
const IOCTLS: &[u32] = &[
    abi::IOCTL_EVTCHN_BIND_INTERDOMAIN,
    abi::IOCTL_EVTCHN_UNBIND,
    abi::IOCTL_EVTCHN_NOTIFY,
    abi::IOCTL_EVTCHN_RESET,
    abi::IOCTL_GNTDEV_MAP_GRANT_REF,
    abi::IOCTL_GNTDEV_UNMAP_GRANT_REF,
    abi::IOCTL_GNTDEV_GRANT_COPY,
];

/// What guests give is looked at with no more rights than that takes.
fn give_up_privileges() -> Result<(), Failure> {
    if std::env::var_os(UNFILTERED).is_some_and(|value| value == "1") {
        eprintln!("xen-blockd: {UNFILTERED} is set: all privileges are kept");
        return Ok(());
    }
    let failed =
        |error| format!("{error}; {UNFILTERED}=1 in the environment serves without").into();
    filter::install(IOCTLS).map_err(failed)
}

/// The time for which another process's locks are waited for: one that was killed holds them until the kernel is
/// done with what it had begun.
const LET_GO_WITHIN: Duration = Duration::from_secs(3);
/// The least number of a lock's descriptor. A process that ends lets go of its descriptors in their order: of its locks
/// last.
const LOCK_DESCRIPTOR: i32 = 1 << 14;

/// Locks what one process may do only: `name`, in a folder that is made if it is not there.
fn lock(dir: &Path, name: &str, what: &str) -> Result<OwnedFd, Failure> {
    let path = dir.join(name);
    let failed = |errno: Errno| format!("{}: {errno}", path.display());
    std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let end = Instant::now() + LET_GO_WITHIN;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(
                    format!("another xen-blockd {what} ({} is locked)", path.display()).into()
                );
            }
            Err(errno) => return Err(failed(errno).into()),
        }
    }
    // Where the limit of descriptors is less, it stays where it is.
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, LOCK_DESCRIPTOR).unwrap_or(file))
}

/// Two would answer the same requests: each kind is served once, and a record has one writer.
fn lock_all(lock_dir: &Path, kinds: &[&str], record_dir: &Path) -> Result<Vec<OwnedFd>, Failure> {
    let mut locks = vec![lock(record_dir, "lock", "has its record there")?];
    for kind in kinds {
        locks.push(lock(lock_dir, &format!("{kind}.lock"), &format!("serves {kind} here"))?);
    }
    Ok(locks)
}

/// The kinds to be served; not one that the kernel serves already.
fn kinds(wanted: &[String]) -> Result<Vec<&str>, Failure> {
    let (mut kinds, kernel) = (Vec::new(), Path::new(KERNEL_BACKEND).exists());
    for kind in wanted {
        if kind == "vbd" && kernel {
            eprintln!(
                "xen-blockd: the kernel's xen-blkback serves backend/vbd ({KERNEL_BACKEND} is there): \
                 not served here; unload it (rmmod xen-blkback), or attach disks as qdisk"
            );
        } else {
            kinds.push(kind.as_str());
        }
    }
    if kinds.is_empty() { Err("nothing is left to serve".into()) } else { Ok(kinds) }
}

fn serve(arguments: &Arguments) -> Result<std::convert::Infallible, Failure> {
    let Provided { evtchn, grants, domid, record_dir, lock_dir } = provided()?;
    let record_dir = arguments.record_dir.clone().unwrap_or(record_dir);
    let on_xen = domid.is_none();
    let kinds = if !on_xen {
        arguments.kinds.iter().map(String::as_str).collect()
    } else {
        kinds(&arguments.kinds)?
    };
    let _locks = lock_all(&lock_dir, &kinds, &record_dir)?;
    disk::wait_for_locks(LET_GO_WITHIN);
    let mut store = Client::open()?;
    let domid = match domid {
        Some(domid) => domid,
        None => own_domid(&mut store)?,
    };
    let mut stats = StatsFile::create(&record_dir);
    let mut log = Log::default();
    give_up_privileges()?;
    let throttle = arguments.throttle;
    let options = Options { record_dir: Some(record_dir), throttle, ..Options::default() };
    let places = Places::new(arguments.image_dirs.clone());
    let open = Open::Aside(Box::new(move |device| target::job(device, &places)));
    let platform = Platform { evtchn, grants, open, options };
    let mut server = Server::start(store, domid, &kinds, Rc::new(platform))?;
    say(format_args!("serving {} of domain {domid}", kinds.join(" and ")));
    let (mut looked, mut kernel) = (coarse_time(), false);
    loop {
        for news in server.turn(LOOK_AT_SIZES)? {
            log.tell(&mut server, &kinds, &news);
        }
        log.tell_failures(&mut server, &kinds);
        if coarse_time().saturating_sub(looked) + COARSE >= LOOK_AT_SIZES {
            server.check_sizes()?;
            server.check_servers()?;
            stats.write(&mut server, &kinds);
            if on_xen && kinds.contains(&"vbd") && Path::new(KERNEL_BACKEND).exists() != kernel {
                kernel = !kernel;
                if kernel {
                    say(format_args!(
                        "the kernel's xen-blkback has been loaded and takes every new vbd as well; \
                         unload it: rmmod xen-blkback"
                    ));
                }
            }
            looked = coarse_time();
        }
    }
}

/// The time, for who asks often: this clock takes no system call, whatever the domain's source of time is.
fn coarse_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    time.try_into().unwrap_or_default()
}

/// What the devices have done, for `xb disk stats`: a file beside the records, a line a device, the last line
/// `end`.
struct StatsFile {
    path: PathBuf,
    file: std::io::Result<File>,
    written: String,
    /// What is wrong with it has been said.
    said: bool,
}

impl StatsFile {
    fn create(record_dir: &Path) -> Self {
        let path = record_dir.join("stats");
        Self { file: File::create(&path), path, written: String::new(), said: false }
    }

    /// Writes it anew where anything has changed. Disks are served without it as well.
    fn write(&mut self, server: &mut Server, kinds: &[&str]) {
        let text = Self::text(server, kinds);
        if text == self.written {
            return;
        }
        let written = match &self.file {
            Ok(file) => file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        };
        match written {
            Ok(()) => self.written = text,
            Err(error) if !self.said => {
                self.said = true;
                let path = self.path.display();
                say(format_args!("no statistics: {path}: {error}; disks are served without"));
            }
            Err(_) => {}
        }
    }

    fn text(server: &mut Server, kinds: &[&str]) -> String {
        let mut text = String::new();
        for kind in kinds {
            for (id, back) in server.bus(kind).into_iter().flat_map(Bus::drivers) {
                let stats = back.stats();
                let (persistent, wrong, replayed) = (stats.persistent, stats.wrong, stats.replayed);
                text.push_str(&format!(
                    "{kind} {id} persistent {persistent} wrong {wrong} replayed {replayed}"
                ));
                for (name, of) in [
                    ("read", &stats.read),
                    ("write", &stats.write),
                    ("flush", &stats.flush),
                    ("discard", &stats.discard),
                ] {
                    let (half, most) = (of.latency.quantile_us(0.5), of.latency.quantile_us(0.99));
                    let buckets = of.latency.buckets().map(|count| count.to_string()).join(",");
                    let counts =
                        format!("{} {} {} {}", of.requests, of.sectors, of.merges, of.errors);
                    text.push_str(&format!(" {name} {counts} {half} {most} {buckets}"));
                }
                text.push('\n');
            }
        }
        text.push_str("end\n");
        text
    }
}

/// A line for the log. Where it cannot be written, disks are served all the same.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "xen-blockd: {line}");
}

/// What is said of the devices: so much of each, as a guest may connect and close all the time.
#[derive(Default)]
struct Log {
    /// When a device's minute has begun, and how many lines it has had since.
    said: BTreeMap<Id, (Option<Instant>, u32)>,
    /// Disks may have failed requests that nothing was said of.
    failures: bool,
    /// When something was said of that last.
    failures_said: Duration,
}

impl Log {
    /// Whether a further line of this device may be said; says when it is the first that may not.
    fn allows(&mut self, id: Id) -> bool {
        let (since, lines) = self.said.entry(id).or_default();
        if since.is_none_or(|since| since.elapsed() >= A_MINUTE) {
            (*since, *lines) = (Some(Instant::now()), 0);
        }
        *lines = lines.saturating_add(1);
        if *lines == LINES_MAX + 1 {
            say(format_args!(
                "{id}: more than {LINES_MAX} lines a minute; the others are left out"
            ));
        }
        *lines <= LINES_MAX
    }

    /// Says which disks have failed requests since that was said last, and why; not more often than each second.
    fn tell_failures(&mut self, server: &mut Server, kinds: &[&str]) {
        self.failures |= server.take_failures();
        if self.failures && coarse_time().saturating_sub(self.failures_said) >= A_SECOND {
            (self.failures, self.failures_said) = (false, coarse_time());
            self.tell_failures_of(server, kinds, None);
        }
    }

    /// Says it of one device, or of all.
    fn tell_failures_of(&mut self, server: &mut Server, kinds: &[&str], only: Option<Id>) {
        for kind in kinds {
            let all = server.bus(kind).into_iter().flat_map(Bus::drivers);
            for (id, back) in all.filter(|(id, _)| only.is_none_or(|only| only == *id)) {
                let Some((count, errno)) = back.take_failures() else { continue };
                if !self.allows(id) {
                    continue;
                }
                let requests = if count == 1 { "request" } else { "requests" };
                let disk = back.disk().map(|disk| format!("; {disk}")).unwrap_or_default();
                let hint = match errno {
                    Errno::NOSPC => "; the host's file system under it is full: make room there",
                    Errno::DQUOT => "; the quota of its file's owner is used up: make room there",
                    _ => "",
                };
                say(format_args!("{id}: {count} {requests} failed: {errno}{hint}{disk}"));
            }
        }
    }

    fn tell(&mut self, server: &mut Server, kinds: &[&str], news: &News) {
        let id = news.id;
        let allowed = self.allows(id);
        if matches!(news.what, What::Removed) {
            self.said.remove(&id);
        }
        if !allowed {
            return;
        }
        match &news.what {
            What::State(State::Connected) => {
                let replayed = |kind| Some(server.bus(kind)?.driver(id)?.stats().replayed);
                let replayed: u64 = kinds.iter().copied().filter_map(replayed).sum();
                let disk = |kind| server.bus(kind)?.driver(id)?.disk();
                let disk = kinds.iter().copied().find_map(disk).unwrap_or_default();
                let connected = State::Connected;
                say(format_args!("{id}: {connected}; {replayed} requests done again; {disk}"));
            }
            What::State(state) => {
                if matches!(state, State::Closing | State::Closed) {
                    self.tell_failures_of(server, kinds, Some(id));
                }
                say(format_args!("{id}: {state}"));
            }
            What::Error(error) => say(format_args!("{id}: {error}")),
            What::Removed => say(format_args!("{id}: removed")),
            other => say(format_args!("{id}: {other:?}")),
        }
    }
}

/// The number of the domain where this runs; a node of its own.
fn own_domid(store: &mut Client) -> Result<DomId, Failure> {
    let text = store.read("domid").map_err(|error| {
        format!(
            "which domain is this? its node domid cannot be read ({error}); xen-init-dom0 writes it"
        )
    })?;
    let text = String::from_utf8_lossy(&text);
    Ok(DomId(text.trim().parse().map_err(|_| format!("node domid is {text:?}, no domain"))?))
}
