//! `xb console`.

use super::options::GlobalOptions;
use crate::host::HostPlatform;
use crate::terminal::{EscapeKey, RawTerminal};
use crate::{Error, domain};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use xen_console::client::{ClientError, ConsoleClient};
use xen_console::service::wire::{ClientAccess, DaemonFrame, OutputStart};

/// The time after which a console that is not there yet is spoken of.
const SAID_AFTER: Duration = Duration::from_secs(2);
/// The time within which a daemon that has ended is expected to be started again.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// The interval between two tries to reach it.
const TRY_AGAIN: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(crate) struct ConsoleArguments {
    /// The domain's name or number.
    domain: String,
    /// Show output, and type nothing.
    #[arg(long, short)]
    read_only: bool,
    /// The key that ends the console: one character, or ^ and one for Ctrl.
    #[arg(long, short, value_name = "KEY", default_value_t = EscapeKey::DEFAULT, value_parser = EscapeKey::parse)]
    escape: EscapeKey,
}

pub(crate) fn run(options: &GlobalOptions, console: &ConsoleArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    let found = domain::find(&mut host, &console.domain)?;
    let socket = match &host.platform {
        HostPlatform::Hosted { folder, .. } => folder.broker().path().join("xenconsoled/socket"),
        HostPlatform::Xen(_) => PathBuf::from("/run/xenconsoled/socket"),
    };
    let remedy = match &host.platform {
        HostPlatform::Hosted { folder, .. } => {
            let (host, name) = (folder.path().display(), &found.name);
            format!("show its output with: xb --host {host} log {name}")
        }
        HostPlatform::Xen(_) => "start the daemon with: systemctl start xenbus-xenconsoled".into(),
    };
    drop(host);
    let terminal = if console.read_only {
        None
    } else {
        let terminal = RawTerminal::of_input().map_err(Error::io("the terminal"))?;
        let missing = || {
            let name = &found.name;
            Error::Refused(format!(
                "standard input is no terminal; to watch: xb console --read-only {name}"
            ))
        };
        Some(terminal.ok_or_else(missing)?)
    };
    let mut shown = ShownConsole {
        socket,
        domain: found.info.domid.to_string(),
        name: found.name,
        remedy,
        escape: console.escape,
        terminal,
        signals: ConsoleSignals::catch()?,
        place: OutputStart::Screenful,
    };
    let ended = shown.show();
    // Before anything is printed: the terminal is as it was.
    drop(shown.terminal.take());
    match ended? {
        ConsoleEnd::Escape => Ok(0),
        ConsoleEnd::Domain => {
            eprintln!("\nxb: {} has ended", shown.name);
            Ok(0)
        }
        ConsoleEnd::Signal(number) => Ok(128_u8.saturating_add(number)),
    }
}

/// The reason why a console is no longer shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ConsoleEnd {
    /// The user has typed the key.
    Escape,
    /// The domain has ended.
    Domain,
    /// This signal has come.
    Signal(u8),
}

/// A console on the terminal.
struct ShownConsole {
    socket: PathBuf,
    domain: String,
    name: String,
    /// The remedy where no daemon serves.
    remedy: String,
    escape: EscapeKey,
    terminal: Option<RawTerminal>,
    signals: ConsoleSignals,
    place: OutputStart,
}

impl ShownConsole {
    /// Shows the console until its end, also over a new start of the daemon.
    fn show(&mut self) -> Result<ConsoleEnd, Error> {
        let mut client = self.open().map_err(|error| {
            let (name, remedy) = (&self.name, &self.remedy);
            Error::Refused(format!("nobody serves the console of {name}: {error}; {remedy}"))
        })?;
        loop {
            match self.serve(&mut client) {
                Ok(end) => return Ok(end),
                Err(ShowFailure::Daemon(error)) => client = self.reopen(&error)?,
                Err(ShowFailure::Output(error)) => return Err(Error::io("the output")(error)),
            }
        }
    }

    fn open(&self) -> Result<ConsoleClient, ClientError> {
        let access = if self.terminal.is_some() { ClientAccess::Type } else { ClientAccess::Watch };
        ConsoleClient::open(&self.socket, self.domain.as_bytes(), access, self.place)
    }

    /// Waits for a daemon that is started again.
    fn reopen(&mut self, error: &ClientError) -> Result<ConsoleClient, Error> {
        // What came before is on the terminal.
        self.place = OutputStart::Now;
        let end = Instant::now() + BACK_WITHIN;
        while Instant::now() < end && self.signals.number().is_none() {
            if let Ok(client) = self.open() {
                return Ok(client);
            }
            std::thread::sleep(TRY_AGAIN);
        }
        Err(Error::Refused(format!(
            "the console of {} is gone: {error}; {}",
            self.name, self.remedy
        )))
    }

    /// Shows output and sends keys, until an end.
    fn serve(&mut self, client: &mut ConsoleClient) -> Result<ConsoleEnd, ShowFailure> {
        let (mut out, begin) = (io::stdout().lock(), Instant::now());
        let (mut typed, mut opened, mut said) = (Vec::new(), false, false);
        self.send_size(client)?;
        loop {
            while client.receive()? {
                while let Some(frame) = client.next_frame()? {
                    match frame {
                        DaemonFrame::Opened { .. } => opened = true,
                        DaemonFrame::Output(bytes) => out.write_all(bytes)?,
                        DaemonFrame::Missed(count) => {
                            write!(out, "\r\n[{count} bytes of output were not shown]\r\n")?;
                        }
                        DaemonFrame::Ended => {
                            out.flush()?;
                            return Ok(ConsoleEnd::Domain);
                        }
                        DaemonFrame::Refused(sentence) => out.write_all(sentence)?,
                    }
                }
            }
            // The end of the daemon, once all that it had sent was shown.
            client.next_frame()?;
            out.flush()?;
            if let Some(number) = self.signals.number() {
                return Ok(ConsoleEnd::Signal(number));
            }
            if self.signals.resized() {
                self.send_size(client)?;
            }
            let count = client.type_in(&typed)?;
            typed.drain(..count);
            if !opened && !said && begin.elapsed() >= SAID_AFTER {
                said = true;
                eprint!("xb: the console of {} is not there yet; waiting\r\n", self.name);
            }
            if self.wait(client, &mut typed, opened || said)? {
                return Ok(ConsoleEnd::Escape);
            }
        }
    }

    fn send_size(&self, client: &mut ConsoleClient) -> Result<(), ClientError> {
        match self.terminal.as_ref().and_then(RawTerminal::size) {
            Some((columns, rows)) => client.set_size(columns, rows),
            None => Ok(()),
        }
    }

    /// Waits for anything, and reads what was typed. Returns true if that is the key that ends the
    /// console.
    fn wait(
        &self,
        client: &ConsoleClient,
        typed: &mut Vec<u8>,
        is_calm: bool,
    ) -> Result<bool, ShowFailure> {
        let mut flags = PollFlags::IN;
        if client.has_unsent() {
            flags |= PollFlags::OUT;
        }
        let input = io::stdin();
        let mut fds = vec![
            PollFd::new(client, flags),
            PollFd::new(&self.signals.ends, PollFlags::IN),
            PollFd::new(&self.signals.sizes, PollFlags::IN),
        ];
        let reads = self.terminal.is_some() && typed.is_empty();
        if reads {
            fds.push(PollFd::new(&input, PollFlags::IN));
        }
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut fds, if is_calm { None } else { Some(&second) }) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(ShowFailure::Output(errno.into())),
        }
        let has_input = fds.get(3).is_some_and(|fd| !fd.revents().is_empty());
        if has_input {
            let mut bytes = [0; 1024];
            let count = rustix::io::read(&input, &mut bytes).map_err(io::Error::from)?;
            if count == 0 {
                // The terminal is gone.
                return Err(ShowFailure::Output(io::ErrorKind::UnexpectedEof.into()));
            }
            typed.extend_from_slice(bytes.get(..count).unwrap_or_default());
        }
        Ok(has_input && self.escape.ends(typed))
    }
}

/// The reason why a console cannot be shown further.
enum ShowFailure {
    /// The daemon.
    Daemon(ClientError),
    /// The terminal.
    Output(io::Error),
}

impl From<ClientError> for ShowFailure {
    fn from(error: ClientError) -> Self {
        Self::Daemon(error)
    }
}

impl From<io::Error> for ShowFailure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The signals that end a console or change its size, as bytes in sockets.
struct ConsoleSignals {
    ends: UnixStream,
    sizes: UnixStream,
    /// The number of the last signal that ends the console; 0 before.
    caught: Arc<AtomicUsize>,
}

impl ConsoleSignals {
    fn catch() -> Result<Self, Error> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
        let failed = || Error::io("signals");
        let pair = || -> io::Result<(UnixStream, UnixStream)> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            Ok((reader, writer))
        };
        let (ends, end) = pair().map_err(failed())?;
        let (sizes, size) = pair().map_err(failed())?;
        let caught = Arc::default();
        for signal in [SIGTERM, SIGHUP, SIGINT] {
            let number = usize::try_from(signal).unwrap_or(0);
            let flag = Arc::clone(&caught);
            signal_hook::flag::register_usize(signal, flag, number).map_err(failed())?;
            let end = end.try_clone().map_err(failed())?;
            signal_hook::low_level::pipe::register(signal, end).map_err(failed())?;
        }
        signal_hook::low_level::pipe::register(SIGWINCH, size).map_err(failed())?;
        Ok(Self { ends, sizes, caught })
    }

    /// Returns the number of the signal that ends the console, if one has come.
    fn number(&self) -> Option<u8> {
        let number = self.caught.load(Ordering::SeqCst);
        u8::try_from(number).ok().filter(|number| *number > 0)
    }

    /// True if the window has another size since the last call.
    fn resized(&mut self) -> bool {
        let mut bytes = [0; 64];
        self.sizes.read(&mut bytes).is_ok_and(|count| count > 0)
    }
}
