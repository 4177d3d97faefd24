//! The XenStore daemon: the only place where the store's core meets sockets, rings and the clock.
//!
//! The promise: the bytes that a peer sends, withholds or leaves unread harm that peer alone, and
//! the cost of a wake-up is proportional to the work, not to the number of connections. The daemon
//! has one process, one thread and one poll loop. The caller chooses the platform: this crate names
//! none.
//!
//! | module | contents |
//! |---|---|
//! | [`config`], `options`, `switch`, [`paths`] | command line and environment of C xenstored |
//! | `event_loop` | the loop, a connection's turn, the core's questions to the machine |
//! | [`step`] | the same daemon as a value without a process of its own, stepped by its owner |
//! | `connection`, `fairness` | the state of a connection; the order of turns |
//! | `socket` | the listening socket, its lock, taking over a stale one |
//! | `platform`, `domain` | the parts of Xen that the daemon needs, and its bound event channels |
//! | `sends` | many sends in one system call |
//! | `control`, `stats` | CONTROL commands that concern the daemon; its counters |
//! | [`trace`] | every message, on request |
//! | `error` | [`Error`] |
//! | `privileges`, `seccomp` | capabilities dropped after start-up; the system calls that remain |

pub mod config;
mod connection;
mod control;
mod domain;
mod error;
mod event_loop;
mod fairness;
mod options;
pub mod paths;
mod platform;
mod privileges;
mod seccomp;
mod sends;
mod socket;
mod stats;
pub mod step;
mod switch;
pub mod trace;

use crate::config::{Config, Invocation, Mode, QuotaKind, QuotaSetting, Switch};
use crate::domain::DomainChannels;
use crate::event_loop::{DaemonIo, EventLoop, ProcessHandles};
use crate::socket::Listener;
use daemon::{BackgroundStart, PidFile, SignalSockets};
pub use daemon::{Level, Log};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;
use xenstore_core::quota::LimitKind;
use xenstore_core::server::Server;

pub use error::Error;
pub use event_loop::Clock;
pub use platform::{Platform, PlatformChoice};

/// The program's name in its messages.
const NAME: &str = "xenstored";
/// The start in the background.
const BACKGROUND: BackgroundStart =
    BackgroundStart { name: NAME, child_of: "XENSTORED_CHILD_OF", foreground: "--no-fork" };

/// Runs the whole program: reads the command line, goes into the background, asks `provider` for
/// the platform, and serves. `provider` runs in the process that serves.
pub fn main_with(provider: impl FnOnce(&Config) -> Result<PlatformChoice, Error>) -> ExitCode {
    match try_main(provider) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xenstored: {error}");
            match error {
                Error::Running(_) => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn try_main(
    provider: impl FnOnce(&Config) -> Result<PlatformChoice, Error>,
) -> Result<ExitCode, Error> {
    let environment = paths::Environment::of_process();
    let mut config = match config::parse(std::env::args_os().skip(1), &environment)? {
        Invocation::Run(config) => config,
        Invocation::Help => {
            print!("{}", config::help());
            return Ok(ExitCode::SUCCESS);
        }
    };
    if config.mode == Mode::Background {
        if !BACKGROUND.is_child() {
            return Ok(BACKGROUND.start_child()?);
        }
        daemon::leave_session()?;
    }
    config.core.secret = secret()?;
    let provided = provider(&config)?;
    run(&config, provided)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a secret that no guest can guess.
fn secret() -> Result<[u64; 2], Error> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::start(format!("no random numbers: getrandom: {error}")))?;
    let (numbers, _) = bytes.as_chunks();
    Ok([0, 1].map(|at| numbers.get(at).map_or(0, |number| u64::from_ne_bytes(*number))))
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`Error::Start`] if the daemon cannot be set up, [`Error::Running`] if another holds the pid
/// file, [`Error::Run`] if it had to stop.
pub fn run(config: &Config, provided: PlatformChoice) -> Result<(), Error> {
    let verbose = if config.verbose == Switch::On { Level::Debug } else { Level::Info };
    let mut log = Log::stderr(NAME, verbose);
    if let Some(path) = &config.pid_file {
        PidFile::check(path, NAME)?;
    }
    raise_open_files();
    // This comes first: another daemon that serves this path must not be disturbed.
    let listener = Listener::bind(&config.socket)?;
    let signals = SignalSockets::install()?;
    let platform = match provided {
        PlatformChoice::Platform(platform) => Some(platform),
        PlatformChoice::SocketOnly(why) => {
            log.line(Level::Info, "", &format!("{why}: serving the socket only, no domains"));
            None
        }
    };
    let ioctls = platform.as_ref().map_or(&[][..], |platform| platform.ioctls);
    let started = Instant::now();
    let clock = move || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let process = Some(ProcessHandles { listener, signals });
    let mut event_loop = set_up(config, platform, log, process, Box::new(clock))?;
    if config.own_ring == Switch::On {
        event_loop.introduce_own_domain()?;
    }
    let _pid_file = match &config.pid_file {
        Some(path) => Some(PidFile::write(path, NAME)?),
        None => None,
    };
    // The starter is still listening, so it sees a refusal.
    privileges::drop_all(ioctls, config.filter)?;
    announce(config, event_loop.io())?;
    let ended = event_loop.run();
    let _ = daemon::sd_notify("STOPPING=1");
    let log = &mut event_loop.io().log;
    match &ended {
        Ok(()) => log.line(Level::Info, "", "ended as asked by a signal"),
        Err(error) => log.line(Level::Error, "", &error.to_string()),
    }
    ended
}

fn set_up(
    config: &Config,
    platform: Option<Platform>,
    log: Log,
    process: Option<ProcessHandles>,
    clock: Clock,
) -> Result<EventLoop, Error> {
    let mut server = Server::new(config.core.clone());
    for quota in &config.quotas {
        set_quota(&mut server, quota)?;
    }
    let domains = platform
        .map(DomainChannels::new)
        .transpose()
        .map_err(|error| Error::start(format!("VIRQ_DOM_EXC cannot be bound: {error}")))?;
    let epoll =
        event_loop::new_epoll().map_err(|error| Error::start(format!("epoll_create: {error}")))?;
    let mut stats = stats::Stats::new();
    stats.admit(config.core.store_domain.0);
    let mut io = DaemonIo {
        connections: connection::Connections::default(),
        epoll,
        ready: fairness::ReadyQueues::default(),
        domains,
        stats,
        trace: trace::TraceFile::new(config.trace_file.clone(), &config.trace_switches),
        log,
        root_dir: config.root_dir.clone(),
        store_domain: config.core.store_domain,
        priv_domain: config.core.priv_domain,
        now: 0,
        exhaustion_logged: false,
    };
    io.reopen_trace();
    EventLoop::new(server, io, process, clock)
}

/// Sets one quota of the command line in the core.
fn set_quota(server: &mut Server, quota: &QuotaSetting) -> Result<(), Error> {
    let kind = match quota.kind {
        QuotaKind::Hard => LimitKind::Hard,
        QuotaKind::Soft => LimitKind::Soft,
    };
    let set = server.set_quota(quota.name, kind, quota.value);
    set.map_err(|error| Error::start(format!("quota {}: {error}", quota.name)))
}

/// Raises the limit on open files as far as the system allows: each client takes one descriptor.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // A sandbox may forbid this. Then there are fewer descriptors.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Tells all waiting processes that the daemon accepts connections.
fn announce(config: &Config, io: &mut DaemonIo) -> Result<(), Error> {
    let pid = rustix::process::getpid().as_raw_nonzero();
    if config.print_pid == Switch::On {
        let mut stdout = std::io::stdout();
        let _ = writeln!(stdout, "{pid}").and_then(|()| stdout.flush());
    }
    if config.mode == Mode::Background {
        io.log.to_syslog();
    }
    let socket = config.socket.display().to_string();
    io.log.line(Level::Info, &format!("pid={pid} socket={socket:?}"), "serving");
    if config.filter == Switch::Off {
        io.log.line(Level::Warn, "", "XENSTORED_UNFILTERED is set: all privileges are kept");
    }
    if let Err(error) = daemon::sd_notify(&format!("READY=1\nMAINPID={pid}\nSTATUS=serving")) {
        io.log.line(Level::Warn, "", &format!("the service manager was not told: {error}"));
    }
    match config.mode {
        Mode::Background => Ok(BACKGROUND.detach()?),
        Mode::Foreground => Ok(()),
    }
}
