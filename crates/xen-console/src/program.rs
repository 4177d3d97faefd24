//! The program `xenconsoled`: from its options to the loop, and to its end.

use crate::fifo::OutputFolder;
use crate::filter;
use crate::hypervisor::{HypervisorLog, boot_life, reader_command};
use crate::log::{ConsoleLog, LineFormat, LineFormatter, LocalZone, LogLimits};
use crate::options::ConsoledOptions;
use crate::record::ConsoleRecord;
use crate::serve::console::time_us;
use crate::serve::devices::ConsoleDevices;
use crate::serve::rate::GuestRates;
use crate::serve::settings::UsedLogNames;
use crate::serve::{ConsoleSettings, FirstConsoles, FurtherConsoles};
use crate::service::ConsoleService;
use daemon::{BackgroundStart, Level, Log, PidFile, SignalSockets};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::DomId;
use xen_driver::BackendServer;
use xen_driver::backend::{Backend, DeviceSet};
use xen_driver::process::lock::lock;
use xen_driver::process::platform::{MachinePlatform, own_domid};
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Id, State};
use xenstore::Client;

/// The name of the program.
pub const NAME: &str = "xenconsoled";
/// The start in the background.
const BACKGROUND: BackgroundStart =
    BackgroundStart { name: NAME, child_of: "XENCONSOLED_CHILD_OF", foreground: "--interactive" };
/// The name of the socket for clients, in the folder of the records.
const SOCKET: &str = "socket";
/// The variable of the environment with which, set to 1, the daemon keeps all privileges.
const UNFILTERED: &str = "XENCONSOLED_UNFILTERED";
/// The mask of file modes in the background, as C's: logs are for root and its group.
const UMASK: Mode = Mode::from_raw_mode(0o027);
/// The mode of new logs before the mask.
const LOG_MODE: u32 = 0o644;
/// The bytes of a file system that logs leave free.
const LOG_RESERVE: u64 = 64 << 20;
/// The longest sleep of the loop.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// The time for which an earlier daemon's reader may still have the hypervisor's console.
const READER_PATIENCE: Duration = Duration::from_secs(3);

/// The reason why the daemon cannot start or go on, for whoever has started it.
type Failure = Box<dyn std::error::Error>;

/// Runs the program, called `name`, with these options. Returns its exit status, which is C's.
#[must_use]
pub fn run(name: &OsStr, options: &ConsoledOptions) -> ExitCode {
    for warning in &options.warnings {
        eprintln!("{NAME}: {warning}");
    }
    let hosted = std::env::var_os(xen_hosted::HOST_VARIABLE).is_some();
    if !hosted && !rustix::process::geteuid().is_root() {
        eprintln!("{} requires root to run.", name.display());
        return ExitCode::FAILURE;
    }
    match start(options) {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("{NAME}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &ConsoledOptions) -> Result<ExitCode, Failure> {
    // Scripts look for it, whatever name the file has.
    let _ = rustix::thread::set_name(c"xenconsoled");
    if !options.interactive {
        if !BACKGROUND.is_child() {
            return Ok(BACKGROUND.start_child()?);
        }
        daemon::leave_session()?;
        rustix::process::umask(UMASK);
        PidFile::check(&options.pid_file, NAME)?;
    }
    raise_open_files();
    serve(options).map(|()| ExitCode::SUCCESS)
}

/// Serves until a signal ends the daemon.
fn serve(options: &ConsoledOptions) -> Result<(), Failure> {
    let mut log = Log::stderr(NAME, if options.verbose { Level::Debug } else { Level::Warn });
    let MachinePlatform { platform, domid, run_dir, lock_dir, .. } = MachinePlatform::open(NAME)?;
    let _lock = lock(&lock_dir, "console.lock", "another xenconsoled serves the consoles here")?;
    let _run_dir = std::fs::create_dir_all(&run_dir);
    let mut store = Client::open()?;
    let domid = match domid {
        Some(domid) => domid,
        // Before xen-init-dom0 has written its number, the domain that controls Xen is 0.
        None => own_domid(&mut store).unwrap_or(DomId::DOM0),
    };
    let signals = SignalSockets::install()?;
    let settings = settings(options, &run_dir, &mut log);
    let hypervisor = options.log.hypervisor.then(|| hypervisor(options, &settings));
    let hypervisor = hypervisor.transpose().unwrap_or_else(|error| {
        let text = format!("the hypervisor's console is not logged: {error}");
        log.line(Level::Error, "", &text);
        None
    });
    let evtchn = Rc::clone(&platform.evtchn);
    let (settings, outputs) = (Rc::new(settings), guest_outputs(options, &mut log));
    let shared = (platform.clone(), Rc::clone(&settings));
    let first = FirstConsoles::start(&mut store, domid, shared.0, shared.1, outputs)?;
    let further = FurtherConsoles::start(&mut store, domid, platform, settings)?;
    let path = run_dir.join(SOCKET);
    let service = ConsoleService::bind(&path).map_err(|error| {
        let text = format!("{}: {error}; clients cannot connect there", path.display());
        log.line(Level::Error, "", &text);
    });
    let devices = ConsoleDevices::new(first, further, hypervisor, service.ok(), signals);
    let mut server = BackendServer::start(store, evtchn, devices)?;
    let _pid_file = match options.interactive {
        true => None,
        false => Some(PidFile::write(&options.pid_file, NAME)?),
    };
    give_up_privileges(&mut log)?;
    if let Err(error) = daemon::sd_notify("READY=1\nSTATUS=serving") {
        log.line(Level::Warn, "", &format!("the service manager was not told: {error}"));
    }
    if !options.interactive {
        log.to_syslog();
        BACKGROUND.detach()?;
    }
    log.line(Level::Info, "", &format!("serving the consoles of domain {domid}"));
    let ended = run_loop(&mut server, &mut log);
    if let Err(failure) = &ended {
        // In the background, nobody reads standard error.
        log.line(Level::Error, "", &failure.to_string());
    }
    ended
}

fn run_loop(server: &mut BackendServer<ConsoleDevices>, log: &mut Log) -> Result<(), Failure> {
    loop {
        let news = server.turn(SLEEP_MAX)?;
        for news in news {
            report(log, &news);
        }
        if server.take_complaints() {
            for (id, console) in server.devices().backends() {
                if let Some(complaint) = console.complaint() {
                    let text = format!("{}: {complaint}", console_words(id));
                    log.limited(Level::Warn, Some(id.frontend.0), &text, time_us());
                }
            }
        }
        let notices = server.devices().take_notices();
        if let Some(error) = notices.reader {
            let text = format!("{error}; hypervisor.log ends here until {NAME} is started again");
            log.line(Level::Error, "", &text);
        }
        if notices.reopen {
            server.devices().reopen_logs();
        }
        if notices.terminate {
            let _ = daemon::sd_notify("STOPPING=1");
            return Ok(());
        }
    }
}

/// Writes a line about what has happened to a console.
fn report(log: &mut Log, news: &DeviceNews) {
    let (DomId(domid), is_first) = (news.id.frontend, news.id.devid == 0);
    let (level, text) = match &news.event {
        DeviceEvent::State(State::Connected) => (Level::Info, "served".to_owned()),
        DeviceEvent::State(state) => (Level::Debug, state.to_string()),
        DeviceEvent::Removed if is_first => (Level::Info, "the domain is gone".to_owned()),
        DeviceEvent::Removed => (Level::Info, "its device is gone".to_owned()),
        DeviceEvent::Error(error) => (Level::Warn, error.to_string()),
        _ => return,
    };
    let text = format!("{}: {text}", console_words(news.id));
    log.limited(level, Some(domid), &text, time_us());
}

/// The words for a console of a domain in the log.
fn console_words(id: Id) -> String {
    match id.devid {
        0 => "console".to_owned(),
        number => format!("console {number}"),
    }
}

/// The limits and places of all consoles. What cannot be opened costs logs, and no console.
fn settings(options: &ConsoledOptions, run_dir: &Path, log: &mut Log) -> ConsoleSettings {
    let wanted = options.log.guest || options.log.hypervisor;
    let log_folder = wanted.then(|| open_log_folder(&options.log_dir)).transpose();
    let log_folder = log_folder.unwrap_or_else(|error| {
        let folder = options.log_dir.display();
        log.line(Level::Error, "", &format!("nothing is logged: {folder}: {error}"));
        None
    });
    let record_folder = open_folder(run_dir).map_err(|error| {
        let text =
            format!("{}: {error}; started again, output may be logged twice", run_dir.display());
        log.line(Level::Warn, "", &text);
    });
    ConsoleSettings {
        log_folder: log_folder.map(Rc::new),
        log_guests: options.log.guest,
        log_channels: options.log_channels,
        log_limits: LogLimits { bytes_max: options.log_max, reserve: LOG_RESERVE, mode: LOG_MODE },
        log_count: options.log_count,
        guest_format: LineFormat {
            stamps: options.stamps.guest,
            replace_escape: options.replace_escape,
        },
        zone: LocalZone::of_process(),
        record_folder: record_folder.ok(),
        overflow: options.overflow,
        rates: GuestRates::default(),
        log_names: UsedLogNames::default(),
    }
}

/// Opens the folder of the FIFOs that guests print into, on a hosted host.
fn guest_outputs(options: &ConsoledOptions, log: &mut Log) -> Option<OutputFolder> {
    let folder = options.guests.as_deref()?;
    let opened = OutputFolder::open(folder).map_err(|error| {
        let text = format!("no FIFO of a guest is read: {}: {error}", folder.display());
        log.line(Level::Error, "", &text);
    });
    opened.ok()
}

/// Opens the folder of the logs, which is made if the one that it is in is there.
fn open_log_folder(path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    open_folder(path)
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Starts to log the hypervisor's console.
fn hypervisor(
    options: &ConsoledOptions,
    settings: &ConsoleSettings,
) -> Result<HypervisorLog, Failure> {
    let folder = settings.log_folder.as_ref().ok_or("there is no folder for it")?;
    let name = OsStr::new("hypervisor.log");
    let log = ConsoleLog::open(Rc::clone(folder), name, settings.log_limits)?;
    let record = settings.record_folder.as_ref().ok_or("there is no folder for its record")?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let record = rustix::fs::openat(record, "hypervisor", flags, Mode::RUSR | Mode::WUSR)?;
    let record = ConsoleRecord::new(record.into());
    let mut log = HypervisorLog::new(log, record, boot_life()?, Box::new(reader_command));
    let format =
        LineFormat { stamps: options.stamps.hypervisor, replace_escape: options.replace_escape };
    if format.stamps || format.replace_escape {
        let mut formatter = LineFormatter::new(format, settings.zone.clone());
        log.log().append(formatter.opened(time_us()), time_us());
        log.set_rewrite(Box::new(move |bytes, time_us, into| {
            into.extend_from_slice(formatter.format(bytes, time_us));
        }));
    }
    // The reader of a daemon that was killed a moment ago may still have the console.
    let end = Instant::now() + READER_PATIENCE;
    let mut failure = None;
    while !log.is_ready() {
        let now = Instant::now();
        if now >= end {
            return Err(failure.unwrap_or_else(|| "its reader does not answer".into()));
        }
        if let Err(error) = log.take(now, time_us()) {
            failure = Some(error.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(log)
}

/// Keeps no more rights than to serve consoles.
fn give_up_privileges(log: &mut Log) -> Result<(), Failure> {
    if std::env::var_os(UNFILTERED).is_some_and(|value| value == "1") {
        log.line(Level::Warn, "", &format!("{UNFILTERED} is set: all privileges are kept"));
        return Ok(());
    }
    filter::install(xen_linux::IOCTLS_OF_A_BACKEND).map_err(|error| {
        format!("{error}; {UNFILTERED}=1 in the environment serves without").into()
    })
}

/// Raises the limit on open files as far as the system allows: each console takes several.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // A sandbox may forbid this. Then there are fewer descriptors.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
