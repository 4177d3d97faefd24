//! `xb console`.

use super::options::GlobalOptions;
use crate::host::service::{self, CONSOLE_UNIT};
use crate::host::{Host, HostPlatform};
use crate::terminal::signals::TerminalSignals;
use crate::terminal::{EscapeKey, PatientOutput, RawTerminal};
use crate::text::clean;
use crate::{Error, domain};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use xen::DomId;
use xen_console::client::{ClientError, ConsoleClient};
use xen_console::service::wire::{ClientAccess, DaemonFrame, OutputStart};

/// The time after which a console that is not there, or not there yet, is spoken of.
const SAID_AFTER: Duration = Duration::from_secs(2);
/// The time within which a daemon that has ended is expected to be started again.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// The interval between two tries to reach it.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The most bytes of output that are taken from the daemon before they are shown.
const SHOWN_MAX: usize = 16 << 10;
/// The most bytes that wait for a guest that does not read. More are dropped, with a sound.
const TYPED_MAX: usize = 4096;
/// Ctrl-C, which ends a console that is only watched.
const INTERRUPT: u8 = 3;

#[derive(Args, Debug)]
pub(crate) struct ConsoleArguments {
    /// The domain's name or number.
    domain: String,
    #[command(flatten)]
    how: ConsoleChoices,
}

/// The ways in which a console may be shown.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ConsoleChoices {
    /// The number of the console among those of the domain; 0 is its first one.
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    number: u32,
    /// Show output, and type nothing.
    #[arg(long, short)]
    read_only: bool,
    /// The key that ends the console: one character, or ^ and one for Ctrl.
    #[arg(long, short, value_name = "KEY", default_value_t = EscapeKey::DEFAULT, value_parser = EscapeKey::parse)]
    escape: EscapeKey,
}

impl Default for ConsoleChoices {
    fn default() -> Self {
        Self { number: 0, read_only: false, escape: EscapeKey::DEFAULT }
    }
}

pub(crate) fn run(options: &GlobalOptions, console: &ConsoleArguments) -> Result<u8, Error> {
    let mut host = options.open()?;
    let found = domain::find(&mut host, &console.domain)?;
    let domid = found.info.domid;
    show(host, domid, &found.name, console.how, OutputStart::Screenful)
}

/// Shows the console of a domain from a place in its output on, until its end.
///
/// # Errors
/// Nobody serves it, or there is no terminal to type on.
pub(super) fn show(
    host: Host,
    domid: DomId,
    name: &str,
    how: ConsoleChoices,
    start: OutputStart,
) -> Result<u8, Error> {
    let socket = service::console_socket(&host);
    let remedy = match &host.platform {
        HostPlatform::Hosted { folder, .. } => {
            format!("start it with: xb --host {} host up", folder.path().display())
        }
        HostPlatform::Xen(_) => format!("start the daemon with: systemctl start {CONSOLE_UNIT}"),
    };
    drop(host);
    // Before the terminal is changed.
    let signals = TerminalSignals::catch()?;
    let terminal = RawTerminal::of_input().map_err(Error::io("the terminal"))?;
    let name = clean(name);
    if terminal.is_none() && !how.read_only {
        return Err(Error::Refused(format!(
            "standard input is no terminal; to watch: xb console --read-only {name}"
        )));
    }
    let access = if how.read_only { ClientAccess::Watch } else { ClientAccess::Type };
    let output = PatientOutput::of_standard_output().map_err(Error::io("the output"))?;
    let mut shown = ShownConsole {
        socket,
        domain: domid.to_string(),
        number: how.number,
        name,
        remedy,
        escape: how.escape,
        access,
        terminal,
        output,
        signals,
        typed: Vec::new(),
    };
    let ended = shown.show(start);
    // Before anything is printed: the terminal is as it was.
    drop(shown.terminal.take());
    match ended? {
        ConsoleEnd::Key => Ok(0),
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
    Key,
    /// The domain has ended.
    Domain,
    /// This signal has come.
    Signal(u8),
}

/// A console on the terminal.
struct ShownConsole {
    socket: PathBuf,
    domain: String,
    number: u32,
    name: String,
    /// The remedy where no daemon serves.
    remedy: String,
    escape: EscapeKey,
    access: ClientAccess,
    terminal: Option<RawTerminal>,
    output: PatientOutput,
    signals: TerminalSignals,
    /// Bytes that were typed and that the daemon has no room for yet.
    typed: Vec<u8>,
}

impl ShownConsole {
    /// Shows the console until its end, also over a new start of the daemon.
    fn show(&mut self, start: OutputStart) -> Result<ConsoleEnd, Error> {
        let mut client = self.open(start).map_err(|error| {
            let (console, remedy) = (self.words(), &self.remedy);
            Error::Refused(format!("nobody serves {console}: {error}; {remedy}"))
        })?;
        let mut was_open = Instant::now();
        loop {
            let error = match self.serve(&mut client, &mut was_open) {
                Ok(end) => return Ok(end),
                Err(ShowFailure::Output(error)) => return Err(Error::io("the terminal")(error)),
                Err(ShowFailure::Refused(sentence)) => return Err(Error::Refused(sentence)),
                Err(ShowFailure::Daemon(error @ ClientError::Frames)) => {
                    return Err(self.is_gone(&error));
                }
                Err(ShowFailure::Daemon(error)) => error,
            };
            match self.reopen(&error, was_open + BACK_WITHIN)? {
                Ok(opened) => client = opened,
                Err(end) => return Ok(end),
            }
        }
    }

    fn open(&self, start: OutputStart) -> Result<ConsoleClient, ClientError> {
        let console = (self.domain.as_bytes(), self.number);
        ConsoleClient::open_numbered(&self.socket, console, self.access, start)
    }

    fn is_gone(&self, error: &ClientError) -> Error {
        let (console, remedy) = (self.words(), &self.remedy);
        Error::Refused(format!("{console} is gone: {error}; {remedy}"))
    }

    /// Returns the words for the console in a sentence.
    fn words(&self) -> String {
        match self.number {
            0 => format!("the console of {}", self.name),
            number => format!("console {number} of {}", self.name),
        }
    }

    /// Waits for a daemon that is started again, at most until `end`.
    fn reopen(
        &mut self,
        error: &ClientError,
        end: Instant,
    ) -> Result<Result<ConsoleClient, ConsoleEnd>, Error> {
        let (begin, mut is_said) = (Instant::now(), false);
        while Instant::now() < end {
            if !is_said && begin.elapsed() >= SAID_AFTER {
                is_said = true;
                eprint!("\r\nxb: nobody serves {} now; waiting\r\n", self.words());
            }
            if let Some(end) =
                self.wait(None, Some(TRY_AGAIN)).map_err(Error::io("the terminal"))?
            {
                return Ok(Err(end));
            }
            // A daemon that was started again has what came since the end of the earlier one.
            if let Ok(client) = self.open(OutputStart::Oldest) {
                return Ok(Ok(client));
            }
        }
        Err(self.is_gone(error))
    }

    /// Shows output and sends keys, until an end. `was_open` becomes the last time at which the console
    /// was open.
    fn serve(
        &mut self,
        client: &mut ConsoleClient,
        was_open: &mut Instant,
    ) -> Result<ConsoleEnd, ShowFailure> {
        let begin = Instant::now();
        let (mut is_open, mut is_said) = (false, false);
        self.send_size(client)?;
        loop {
            if self.output.len() == 0 {
                client.receive()?;
            }
            while self.output.len() < SHOWN_MAX {
                // The end of the daemon comes once all that it had sent was taken.
                let Some(frame) = client.next_frame()? else { break };
                match frame {
                    DaemonFrame::Opened { .. } => is_open = true,
                    DaemonFrame::Output(bytes) => self.output.push(bytes),
                    DaemonFrame::Missed(count) => {
                        let words = format!("\r\n[{count} bytes of output were not shown]\r\n");
                        self.output.push(words.as_bytes());
                    }
                    DaemonFrame::Ended => return self.finish(),
                    DaemonFrame::Refused(sentence) => {
                        let sentence = clean(&String::from_utf8_lossy(sentence));
                        return Err(ShowFailure::Refused(sentence));
                    }
                }
            }
            if is_open {
                *was_open = Instant::now();
            }
            if self.signals.resized() {
                self.send_size(client)?;
            }
            let count = client.type_in(&self.typed)?;
            self.typed.drain(..count);
            if !is_open && !is_said && begin.elapsed() >= SAID_AFTER {
                is_said = true;
                eprint!("xb: {} is not there yet; waiting\r\n", self.words());
            }
            let within = (!is_open && !is_said).then_some(SAID_AFTER);
            if let Some(end) = self.wait(Some(client), within)? {
                return Ok(end);
            }
        }
    }

    /// Shows what is left of the output of a domain that has ended.
    fn finish(&mut self) -> Result<ConsoleEnd, ShowFailure> {
        while self.output.len() > 0 {
            if let Some(end) = self.wait(None, None)? {
                return Ok(end);
            }
        }
        Ok(ConsoleEnd::Domain)
    }

    fn send_size(&self, client: &mut ConsoleClient) -> Result<(), ClientError> {
        match self.terminal.as_ref().and_then(RawTerminal::size) {
            Some((columns, rows)) => client.set_size(columns, rows),
            None => Ok(()),
        }
    }

    /// Waits for anything, at most `within`; shows output, and reads what was typed.
    fn wait(
        &mut self,
        client: Option<&ConsoleClient>,
        within: Option<Duration>,
    ) -> io::Result<Option<ConsoleEnd>> {
        let input = io::stdin();
        let has_output = self.output.len() > 0;
        let mut fds = self.signals.fds().map(|fd| fd_with(fd, PollFlags::IN)).to_vec();
        let mut add = |fd, flags| {
            fds.push(fd_with(fd, flags));
            fds.len() - 1
        };
        let output = has_output.then(|| add(self.output.as_fd(), PollFlags::OUT));
        let keys = self.terminal.as_ref().map(|_| add(input.as_fd(), PollFlags::IN));
        if let Some(client) = client {
            // What is shown first makes room for more.
            let reads = if has_output { PollFlags::empty() } else { PollFlags::IN };
            let writes = if client.has_unsent() { PollFlags::OUT } else { PollFlags::empty() };
            if !(reads | writes).is_empty() {
                add(client.as_fd(), reads | writes);
            }
        }
        let within = within.map(|within| Timespec {
            tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: within.subsec_nanos().into(),
        });
        match poll(&mut fds, within.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |at: Option<usize>| {
            at.and_then(|at| fds.get(at)).is_some_and(|fd| !fd.revents().is_empty())
        };
        let (shows, reads) = (is_ready(output), is_ready(keys));
        drop(fds);
        if let Some(number) = self.signals.number() {
            return Ok(Some(ConsoleEnd::Signal(number)));
        }
        if shows {
            self.output.write_some()?;
        }
        if reads { self.read_keys() } else { Ok(None) }
    }

    /// Reads what was typed, which may be the key that ends the console.
    fn read_keys(&mut self) -> io::Result<Option<ConsoleEnd>> {
        let mut bytes = [0; 1024];
        let count = rustix::io::read(io::stdin(), &mut bytes)?;
        if count == 0 {
            // The terminal is gone.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let keys = bytes.get(..count).unwrap_or_default();
        let watches = self.access == ClientAccess::Watch;
        if self.escape.ends(keys) || (watches && keys == [INTERRUPT]) {
            return Ok(Some(ConsoleEnd::Key));
        }
        if !watches && self.typed.len() + keys.len() <= TYPED_MAX {
            self.typed.extend_from_slice(keys);
        } else if !watches {
            self.output.push(b"\x07");
        }
        Ok(None)
    }
}

fn fd_with(fd: BorrowedFd<'_>, flags: PollFlags) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, flags)
}

/// The reason why a console cannot be shown further.
enum ShowFailure {
    /// The daemon.
    Daemon(ClientError),
    /// The daemon's sentence.
    Refused(String),
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
