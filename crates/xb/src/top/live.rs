//! The live screen. A thread of its own reads the host, so that keys and signals are answered while
//! the host does not.

use super::devices;
use super::read::TopReader;
use super::sample::{DomainKey, DomainSample, HostSample};
use super::screen;
use super::view::{KeyOutcome, ShownDevices, TopView};
use crate::Error;
use crate::doctor::{DoctorRounds, host_reason};
use crate::host::Host;
use crate::terminal::keys::keys;
use crate::terminal::screen::ScreenBytes;
use crate::terminal::signals::TerminalSignals;
use crate::terminal::{PatientOutput, RawTerminal};
use ratatui_core::terminal::Terminal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time that the doctor has in each turn.
const DOCTOR_BUDGET: Duration = Duration::from_millis(5);
/// The longest time for giving the terminal its earlier screen back: it may be stopped.
const LEFT_WITHIN: Duration = Duration::from_secs(1);

/// The way in which a host is opened, at first and after it did not answer.
pub(crate) type OpenHost = Box<dyn Fn() -> Result<Host, Error> + Send>;

/// The reason why the screen is no longer shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TopEnd {
    /// The user has seen enough.
    Quit,
    /// Ctrl-C.
    Interrupted,
    /// This signal has come.
    Signal(u8),
}

/// A find of the reader.
enum Found {
    /// A turn: a sample, and what the doctor says.
    Turn(HostSample, BTreeMap<DomainKey, String>),
    /// The devices of the domain that is asked for.
    Devices(ShownDevices),
    /// The host does not answer, for this reason.
    Problem(String),
}

/// Shows what a host does until the user ends it.
///
/// # Errors
/// The host cannot be opened; the terminal cannot be used.
pub(crate) fn show(open: OpenHost, delay: Duration) -> Result<TopEnd, Error> {
    let reading = ReaderThread::start(open, delay)?;
    // Before the terminal is changed, and after all that may take long.
    let signals = TerminalSignals::catch()?;
    let terminal = RawTerminal::of_input().map_err(Error::io("the terminal"))?;
    let Some(terminal) = terminal else { return Err(no_terminal("input")) };
    let output = PatientOutput::of_standard_output().map_err(Error::io("the output"))?;
    let bytes = ScreenBytes::enter().and_then(Terminal::new).map_err(Error::io("the screen"))?;
    let view = TopView::default();
    let mut shown = ShownTop { view, reading, signals, terminal, output, screen: bytes };
    let ended = shown.show().map_err(Error::io("the terminal"));
    shown.leave();
    ended
}

/// Returns the error that a screen is shown on a terminal alone.
pub(crate) fn no_terminal(what: &str) -> Error {
    Error::Refused(format!(
        "standard {what} is no terminal; to print turn after turn: xb top --batch, or --json"
    ))
}

/// The thread that reads, as its user has it.
struct ReaderThread {
    found: Receiver<Found>,
    /// Readable when something was found; a byte written here wakes the reader.
    wake: UnixStream,
    /// The domain whose devices are asked for.
    wanted: Arc<Mutex<Option<DomainKey>>>,
}

impl ReaderThread {
    /// Starts it, and waits until the host is open.
    fn start(open: OpenHost, delay: Duration) -> Result<Self, Error> {
        let failed = || Error::io("a socket for the reader");
        let (wake, theirs) = UnixStream::pair().map_err(failed())?;
        for end in [&wake, &theirs] {
            end.set_nonblocking(true).map_err(failed())?;
        }
        let (sender, found) = channel();
        let (opened_by, opened) = channel();
        let wanted = Arc::<Mutex<Option<DomainKey>>>::default();
        let asked = Arc::clone(&wanted);
        std::thread::spawn(move || {
            let reader = open().and_then(TopReader::new);
            let (reader, result) = match reader {
                Ok(reader) => (Some(reader), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Nobody waits for it any more: the program is about to end.
            let _ = opened_by.send(result);
            let Some(reader) = reader else { return };
            let mut work = ReaderWork { sender, wake: theirs, wanted: asked, delay };
            work.run(&open, reader);
        });
        let gone = |_| Error::Refused("the reader of the host has ended".into());
        opened.recv().map_err(gone)??;
        Ok(Self { found, wake, wanted })
    }

    /// Asks for the devices of a domain from now on.
    fn want(&self, domain: Option<DomainKey>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if *wanted != domain {
            *wanted = domain;
            // Where it is full the reader is awake.
            let _ = (&self.wake).write(&[0]);
        }
    }

    /// Takes the bytes that say that something was found.
    fn clear(&self) {
        let _ = (&self.wake).read(&mut [0; 64]);
    }
}

/// The work of the thread.
struct ReaderWork {
    sender: Sender<Found>,
    wake: UnixStream,
    wanted: Arc<Mutex<Option<DomainKey>>>,
    delay: Duration,
}

/// The screen is gone, and nobody takes what was found.
struct ScreenGone;

impl ReaderWork {
    /// Reads until nobody takes what was found; opens the host anew after it did not answer.
    fn run(&mut self, open: &OpenHost, mut reader: TopReader) {
        let folder = reader.host().folder().cloned();
        let mut reader = Some(reader);
        loop {
            let turns = match reader.take() {
                Some(mut reader) => self.turns(&mut reader),
                None => open().and_then(TopReader::new).map(|again| {
                    reader = Some(again);
                    Ok(())
                }),
            };
            match turns {
                Ok(Ok(())) => {}
                Ok(Err(ScreenGone)) => return,
                Err(error) => {
                    let reason = folder.as_ref().and_then(host_reason);
                    let problem = reason.unwrap_or_else(|| error.to_string());
                    if self.tell(Found::Problem(problem)).is_err() {
                        return;
                    }
                    std::thread::sleep(self.delay);
                }
            }
        }
    }

    /// Takes sample after sample.
    fn turns(&mut self, reader: &mut TopReader) -> Result<Result<(), ScreenGone>, Error> {
        let mut rounds = DoctorRounds::default();
        loop {
            let begin = Instant::now();
            let sample = reader.take()?;
            let domains: Vec<DomainKey> = sample.domains.iter().map(DomainSample::key).collect();
            let wanted = self.wanted();
            let (host, counted) = reader.counted();
            rounds.visit(host, &domains, wanted, counted, DOCTOR_BUDGET)?;
            if self.tell(Found::Turn(sample, rounds.words())).is_err() {
                return Ok(Err(ScreenGone));
            }
            let mut told = None;
            loop {
                let wanted = self.wanted();
                if wanted != told {
                    if let Some(domain) = wanted
                        && self.tell_devices(reader, domain).is_err()
                    {
                        return Ok(Err(ScreenGone));
                    }
                    told = wanted;
                }
                let left = self.delay.saturating_sub(begin.elapsed());
                if left.is_zero() {
                    break;
                }
                reader.wait(left, Some(self.wake.as_fd()))?;
                let _ = (&self.wake).read(&mut [0; 64]);
            }
        }
    }

    fn wanted(&self) -> Option<DomainKey> {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_devices(&self, reader: &mut TopReader, of: DomainKey) -> Result<(), ScreenGone> {
        let (domid, _) = of;
        let devices = devices::read(&mut reader.host().store, domid);
        let devices = devices.map_err(|error| error.to_string());
        self.tell(Found::Devices(ShownDevices { of, devices }))
    }

    fn tell(&self, found: Found) -> Result<(), ScreenGone> {
        self.sender.send(found).map_err(|_| ScreenGone)?;
        // Where it is full there are bytes enough.
        let _ = (&self.wake).write(&[0]);
        Ok(())
    }
}

/// The screen on the terminal.
struct ShownTop {
    view: TopView,
    reading: ReaderThread,
    signals: TerminalSignals,
    terminal: RawTerminal,
    output: PatientOutput,
    screen: Terminal<ScreenBytes>,
}

impl ShownTop {
    fn show(&mut self) -> io::Result<TopEnd> {
        let mut changed = true;
        loop {
            // A terminal that takes nothing gets the newest screen later, and none in between.
            if changed && self.output.len() == 0 {
                self.draw()?;
                changed = false;
            }
            let mut fds = self.signals.fds().map(|fd| (fd, PollFlags::IN)).to_vec();
            fds.push((self.reading.wake.as_fd(), PollFlags::IN));
            let input = io::stdin();
            fds.push((input.as_fd(), PollFlags::IN));
            if self.output.len() > 0 {
                fds.push((self.output.as_fd(), PollFlags::OUT));
            }
            let ready = wait(&fds, None)?;
            let is_ready = |at: usize| ready.get(at).copied().unwrap_or(false);
            let (found, typed, writes) = (is_ready(2), is_ready(3), is_ready(4));
            if let Some(number) = self.signals.number() {
                return Ok(TopEnd::Signal(number));
            }
            changed |= self.signals.resized();
            if writes {
                self.output.write_some()?;
            }
            if found {
                self.reading.clear();
                self.take_found();
                changed = true;
            }
            if typed {
                changed = true;
                if let Some(end) = self.read_keys()? {
                    return Ok(end);
                }
            }
        }
    }

    fn take_found(&mut self) {
        while let Ok(found) = self.reading.found.try_recv() {
            match found {
                Found::Turn(sample, words) => self.view.take(sample, words),
                Found::Devices(devices) => self.view.devices = Some(devices),
                Found::Problem(problem) => self.view.problem = Some(problem),
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        self.screen.backend_mut().set_size(self.terminal.size());
        let view = &self.view;
        self.screen.draw(|frame| screen::draw(view, frame.buffer_mut()))?;
        self.output.push(&self.screen.backend_mut().take());
        Ok(())
    }

    /// Reads what was typed, which may end the screen.
    fn read_keys(&mut self) -> io::Result<Option<TopEnd>> {
        let mut bytes = [0; 1024];
        let count = rustix::io::read(io::stdin(), &mut bytes)?;
        if count == 0 {
            // The terminal is gone.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let height = self.terminal.size().map_or(u16::MAX, |(_, height)| height);
        let page = screen::page(&self.view, height);
        for key in keys(bytes.get(..count).unwrap_or_default()) {
            match self.view.press(key, page) {
                KeyOutcome::Quit => return Ok(Some(TopEnd::Quit)),
                KeyOutcome::Interrupted => return Ok(Some(TopEnd::Interrupted)),
                KeyOutcome::Redrawn => self.screen.clear()?,
                KeyOutcome::Shown => {}
            }
        }
        self.reading.want(self.view.asks_for());
        Ok(None)
    }

    /// Gives the terminal its earlier screen back; its mode comes back when this is dropped.
    fn leave(mut self) {
        self.output.push(&ScreenBytes::leave());
        let end = Instant::now() + LEFT_WITHIN;
        while self.output.len() > 0 {
            let left = end.saturating_duration_since(Instant::now());
            let ready = wait(&[(self.output.as_fd(), PollFlags::OUT)], Some(left));
            let written = match ready {
                Ok(ready) if ready == [true] => self.output.write_some(),
                Ok(_) if left.is_zero() => return,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if written.is_err() {
                return;
            }
        }
    }
}

/// Waits until one of these can be read or written, and returns which can.
fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], within: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let within = within.and_then(|within| Timespec::try_from(within).ok());
    match poll(&mut polled, within.as_ref()) {
        Ok(_) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(Errno::INTR) => Ok(vec![false; polled.len()]),
        Err(errno) => Err(errno.into()),
    }
}
