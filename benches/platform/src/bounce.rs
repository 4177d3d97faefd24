//! The round trip of an event to another domain and back, beside that of eventfds, all on one
//! processor.
//!
//! Two system calls of an eventfd cost more in a sandbox than in a plain process, because the
//! scheduler has a stack of run queues there. So the measurement runs twice: in plain processes, and in two
//! domains. The time in domains is the lower bound for any platform that delivers by an eventfd.

use crate::guest::pin;
use crate::host::MeasuredHost;
use crate::result::Result;
use crate::table::{Extent, Goal, Row, fastest_tenth};
use crate::talker::Talker;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use xen::DomId;
use xen::domctl::DomainControl;
use xen_hosted::domain::{DomainConfig, Files};
use xen_hosted::domctl::{Control, Descriptors};
use xen_hosted::limits::TASKS_DEFAULT;

/// Round trips of a round: well under a time slice of the scheduler.
const TRIPS: usize = 300;

/// The upper bound of both ratios.
const GOAL: Goal = Goal::AtMost(1.1);

/// The system call by which the reader of an eventfd waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitMethod {
    /// A blocking read(2).
    Read,
    /// An edge-triggered epoll_wait(2), which a process with more than one channel needs.
    Epoll,
}

impl WaitMethod {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Epoll => "epoll",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let all = [Self::Read, Self::Epoll];
        let found = all.into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| format!("no way to wait is called {name:?}").into())
    }
}

/// The reading end of an eventfd.
struct EventfdReader {
    input: OwnedFd,
    epoll: Option<OwnedFd>,
    events: Vec<Event>,
}

impl EventfdReader {
    fn new(input: OwnedFd, method: WaitMethod) -> Result<Self> {
        let epoll = match method {
            WaitMethod::Read => None,
            WaitMethod::Epoll => {
                let epoll = epoll::create(CreateFlags::CLOEXEC)?;
                let edge = EventFlags::IN | EventFlags::ET;
                epoll::add(&epoll, &input, EventData::new_u64(0), edge)?;
                Some(epoll)
            }
        };
        Ok(Self { input, epoll, events: Vec::with_capacity(8) })
    }

    #[inline(always)]
    fn wait(&mut self) -> Result<()> {
        match &self.epoll {
            None => {
                rustix::io::read(&self.input, &mut [0; 8])?;
            }
            Some(epoll) => {
                self.events.clear();
                epoll::wait(epoll, spare_capacity(&mut self.events), None)?;
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn notify(output: impl AsFd) -> Result<()> {
    rustix::io::write(output, &1_u64.to_ne_bytes())?;
    Ok(())
}

/// Runs one round; returns the time of each round trip, in ns.
#[inline(always)]
fn round(output: impl AsFd, input: &mut EventfdReader, trips: usize) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..trips {
        notify(&output)?;
        input.wait()?;
    }
    Ok(begin.elapsed().as_nanos() as f64 / trips as f64)
}

/// Runs the other process of the measurement, which waits at standard input and answers at
/// standard output.
pub(crate) fn answer() -> Result<()> {
    answer_in_domain(WaitMethod::Read)
}

/// Runs the answering process, in a domain, with this way to wait.
pub(crate) fn answer_in_domain(method: WaitMethod) -> Result<()> {
    pin()?;
    let mut input = EventfdReader::new(std::io::stdin().as_fd().try_clone_to_owned()?, method)?;
    let output = std::io::stdout();
    loop {
        input.wait()?;
        notify(&output)?;
    }
}

/// Runs the bouncing process in a domain: one round for each signal of its eventfd. It writes the
/// time of each round to standard error.
pub(crate) fn bounce(method: WaitMethod, trips: &str) -> Result<()> {
    pin()?;
    let mut input = EventfdReader::new(std::io::stdin().as_fd().try_clone_to_owned()?, method)?;
    let (output, trips) = (std::io::stdout(), trips.parse()?);
    loop {
        input.wait()?;
        eprintln!("{}", round(&output, &mut input, trips)?);
    }
}

/// The measurement in plain processes; drop ends its other process.
struct ProcessPair {
    answerer: Child,
    there: OwnedFd,
    back: OwnedFd,
}

impl ProcessPair {
    fn start() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC;
        let (there, back) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let answerer = Command::new(std::env::current_exe()?)
            .arg("answer")
            .stdin(Stdio::from(there.try_clone()?))
            .stdout(Stdio::from(back.try_clone()?))
            .spawn()?;
        Ok(Self { answerer, there, back })
    }

    /// Runs one round, on the processor of the domains.
    fn round(&self) -> Result<f64> {
        let (there, back) = (self.there.try_clone()?, self.back.try_clone()?);
        let bouncing = std::thread::spawn(move || -> std::result::Result<f64, String> {
            let all = || {
                pin()?;
                round(there, &mut EventfdReader::new(back, WaitMethod::Read)?, TRIPS)
            };
            all().map_err(|error| error.to_string())
        });
        Ok(bouncing.join().map_err(|_| "the bouncing thread has panicked")??)
    }
}

impl Drop for ProcessPair {
    fn drop(&mut self) {
        // The process waits for ever, also after the measurement has failed.
        let _ = self.answerer.kill();
        let _ = self.answerer.wait();
    }
}

/// The measurement in two domains, whose standard input and output are the eventfds.
struct DomainPair {
    domids: [DomId; 2],
    go: OwnedFd,
    times: BufReader<PipeReader>,
}

impl DomainPair {
    fn create(control: &mut Control, method: WaitMethod) -> Result<Self> {
        let flags = match method {
            WaitMethod::Read => EventfdFlags::CLOEXEC,
            WaitMethod::Epoll => EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        };
        let (there, back) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let (times, error) = std::io::pipe()?;
        let program = File::open(std::env::current_exe()?)?;
        let mut create = |role: &str, input: &OwnedFd, output: &OwnedFd| -> Result<DomId> {
            let mut config = DomainConfig::default();
            config.files = Files::System;
            config.tasks_max = 1;
            let trips = TRIPS.to_string();
            config.args = ["guest", role, method.name(), &trips].map(Into::into).to_vec();
            let descriptors = Descriptors {
                program: program.as_fd(),
                input: input.as_fd(),
                output: output.as_fd(),
                error: error.as_fd(),
            };
            let domid = control.create(&config, descriptors)?.domid;
            control.unpause(domid)?;
            Ok(domid)
        };
        let domids = [create("answer", &there, &back)?, create("bounce", &back, &there)?];
        Ok(Self { domids, go: back, times: BufReader::new(times) })
    }

    fn round(&mut self) -> Result<f64> {
        notify(&self.go)?;
        let mut line = String::new();
        self.times.read_line(&mut line)?;
        line.trim().parse().map_err(|_| format!("a domain of the bench says {line:?}").into())
    }
}

/// Two domains that share an event channel.
struct ChannelPair {
    pong: Talker,
    ping: Talker,
}

impl ChannelPair {
    fn create(control: &mut Control, tasks_max: u32) -> Result<Self> {
        let first = control.list()?.last().map_or(0, |last| last.domid.0) + 1;
        let mut of = |args: &[&str]| {
            Talker::create_with(control, args, |config| config.tasks_max = tasks_max)
        };
        let mut pong = of(&["pong", &(first + 1).to_string()])?;
        let ping = ["ping", &first.to_string(), &TRIPS.to_string()];
        let mut ping = of(&ping)?;
        if (pong.created.domid, ping.created.domid) != (DomId(first), DomId(first + 1)) {
            return Err("the domains have other numbers than they were told".into());
        }
        control.unpause(pong.created.domid)?;
        let port = pong.hear()?;
        control.unpause(ping.created.domid)?;
        ping.tell(&port.to_string())?;
        Ok(Self { pong, ping })
    }

    fn domids(&self) -> [DomId; 2] {
        [self.pong.created.domid, self.ping.created.domid]
    }

    fn round(&mut self) -> Result<f64> {
        self.ping.tell("go")?;
        Ok(self.ping.hear()? as f64 / TRIPS as f64)
    }
}

/// Measures the event channels alone, on a host of their own.
pub(crate) fn measure_alone(extent: &Extent) -> Result<Vec<Row>> {
    rows(&MeasuredHost::start(extent.limit)?, extent)
}

/// Measures all contenders in each round.
pub(crate) fn rows(host: &MeasuredHost, extent: &Extent) -> Result<Vec<Row>> {
    let mut control = host.control()?;
    let plain = ProcessPair::start()?;
    let mut read = DomainPair::create(&mut control, WaitMethod::Read)?;
    let mut epoll = DomainPair::create(&mut control, WaitMethod::Epoll)?;
    let mut channel = ChannelPair::create(&mut control, 1)?;
    let mut of_more = ChannelPair::create(&mut control, TASKS_DEFAULT)?;
    let mut times = [const { Vec::new() }; 5];
    for _ in 0..extent.bounces {
        times[0].push(plain.round()?);
        times[1].push(read.round()?);
        times[2].push(epoll.round()?);
        times[3].push(channel.round()?);
        times[4].push(of_more.round()?);
    }
    for domid in [channel.domids(), of_more.domids(), read.domids, epoll.domids].concat() {
        control.destroy(domid)?;
    }
    let [plain, read, epoll, ours, of_more] = times.map(|mut rounds| fastest_tenth(&mut rounds));
    let beside = |what: &str, time: f64| format!("{ours:.0} ns; {what} {time:.0} ns");
    let (of_processes, of_domains) = ("eventfds of two processes", "eventfds of two domains");
    let floor = format!("{of_domains} {read:.0} ns; {of_processes} {plain:.0} ns");
    let epolls = format!("the same waited for by epoll {epoll:.0} ns; {of_domains} {read:.0} ns");
    Ok(vec![
        Row::new("event channel round trip", beside(of_processes, plain), ours / plain, GOAL),
        Row::new(
            "  between domains of up to 256 tasks",
            format!("{of_more:.0} ns; {of_processes} {plain:.0} ns"),
            of_more / plain,
            Goal::None,
        ),
        Row::new("  within the same sandboxes", beside(of_domains, read), ours / read, GOAL),
        Row::new("  what the sandboxes cost an eventfd", floor, read / plain, Goal::None),
        Row::new("  what epoll costs it there", epolls, epoll / read, Goal::None),
    ])
}
