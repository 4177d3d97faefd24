//! The steps of a domain's first process before it becomes the domain's program.
//!
//! It runs in a copy of the broker (which has one thread) and gives up everything that it does not
//! need: first it enters its control groups, then it changes user, namespaces, files and
//! capabilities, and last it gives up all system calls that are not on the list. Any failure ends
//! it: a sandbox is never incomplete. The parts that the machine does not have were found before
//! ([`MissingFeature`]).

use super::config::{ConsoleTerminal, Devices, DomainConfig, Files};
use super::devices::{self, DeviceMount, Names};
use super::filter::{self, Processes, Sandbox, SandboxFilters};
use super::missing_feature::MissingFeature;
use super::root::{self, SYSTEM};
use super::script::Script;
use super::terminal;
use super::user::{INNER_ID, User, become_user};
use crate::descriptors;
use crate::limits::SIGNALS_MAX;
use crate::proto::{self, BrokerMessage, BrokerRequest};
use crate::sys;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The arguments of the process.
pub(crate) struct Plan<'a> {
    pub(crate) config: &'a DomainConfig,
    pub(crate) user: User,
    pub(crate) lacks: u64,
    /// The name of its host's mounts and groups.
    pub(crate) host: &'a str,
    /// Version 1 groups: the files to write `0` to.
    pub(crate) join: Vec<OwnedFd>,
    /// Its socket to the broker.
    pub(crate) link: OwnedFd,
    /// The mount for its `/dev`, where the host's kernel is to use it too.
    pub(crate) devices: Option<DeviceMount>,
    /// The socket over which it reports to the broker until its program runs.
    pub(crate) setup: OwnedFd,
    /// The program, standard input, output, error.
    pub(crate) files: [OwnedFd; 4],
    /// The filters of sandboxes with namespaces.
    pub(crate) filters: &'a SandboxFilters,
    pub(crate) descriptors_max: u64,
    pub(crate) hostname: String,
}

/// The steps, as an error names them.
pub(crate) const STEPS: [&str; 11] = [
    "waiting for the broker",
    "joining the control groups",
    "becoming its user",
    "leaving the host's namespaces",
    "putting its root together",
    "entering its root",
    "bounding its resources",
    "passing its descriptors",
    "giving up its privileges",
    "filtering its system calls",
    "running its program",
];

/// A failed step: its number in [`STEPS`], and the error.
type StepFailure = (usize, Errno);

/// Becomes the domain. Returns only after a failure, which the broker has been told.
pub(crate) fn become_domain(plan: Plan<'_>) {
    let Ok(setup) = plan.setup.try_clone() else { return };
    let Err((step, errno)) = enter(plan, &setup);
    let step = u32::try_from(step).unwrap_or(0);
    let request = BrokerRequest::SandboxFailed { step, errno: errno.raw_os_error() };
    let _ = proto::send(setup.as_fd(), &request.encode(), &[], SendFlags::empty());
}

/// Does the steps that a kernel or its security policy may refuse, and ends: with status 0, or the
/// number of the error. The steps are those of a domain, since a policy may allow a namespace and
/// later refuse operations in it.
pub(crate) fn try_namespaces(setup: &OwnedFd, user: User) -> ! {
    let tried = try_root(setup, user, Devices::None).and_then(|_| root::enter());
    sys::exit_now(tried.err().map_or(0, Errno::raw_os_error))
}

/// Tries the same steps for a `/dev` which is unmounted by force.
pub(crate) fn try_devices(setup: &OwnedFd, user: User) -> ! {
    let tried = try_root(setup, user, Devices::Files)
        .and_then(|fuse| devices::try_to_unmount(&fuse.ok_or(Errno::NODEV)?));
    sys::exit_now(tried.err().map_or(0, Errno::raw_os_error))
}

/// Assembles a root as a domain's first process does, which has opened its connection to FUSE
/// before.
fn try_root(setup: &OwnedFd, user: User, devices: Devices) -> Result<Option<OwnedFd>, Errno> {
    leave_broker(&[setup])?;
    wait_for(setup, &BrokerMessage::Mapped)?;
    let fuse = match devices {
        Devices::None => None,
        Devices::Files | Devices::KernelFiles => Some(devices::open_fuse()?),
    };
    if user == User::Mapped {
        become_user(INNER_ID)?;
    }
    leave_namespaces("probe")?;
    root::build(&DomainConfig { devices, ..DomainConfig::default() }, None)?;
    Ok(fuse)
}

/// Makes this process end with the broker, and closes all descriptors but these. The broker's own
/// descriptors include its end of this process's sockets, which otherwise would not close when the
/// broker ends.
fn leave_broker(kept: &[&OwnedFd]) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut kept: Vec<_> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    sys::keep_only(&mut kept)
}

/// Does all steps, in the order of [`STEPS`]. A failure is reported on `tells`.
fn enter(mut plan: Plan<'_>, tells: &OwnedFd) -> Result<std::convert::Infallible, StepFailure> {
    let of_devices = plan.devices.iter().flat_map(|devices| [&devices.fuse, &devices.mount]);
    let needed = [tells, &plan.link, &plan.setup].into_iter().chain(&plan.files).chain(&plan.join);
    leave_broker(&needed.chain(of_devices).collect::<Vec<_>>()).map_err(|errno| (0, errno))?;
    wait_for(&plan.setup, &BrokerMessage::Mapped).map_err(|errno| (0, errno))?;
    for tasks in &plan.join {
        rustix::io::write(tasks, b"0").map_err(|errno| (1, errno))?;
    }
    let has_namespaces = plan.lacks & MissingFeature::Namespaces.bit() == 0;
    let script = Script::of(&plan.files[0], has_namespaces).map_err(|errno| (10, errno))?;
    let mut fuse = open_devices(&mut plan);
    let mut names = None;
    if plan.user == User::Mapped {
        become_user(INNER_ID).map_err(|errno| (2, errno))?;
    }
    if has_namespaces {
        leave_namespaces(&plan.hostname).map_err(|errno| (3, errno))?;
        root::build(plan.config, script.as_ref().map(|_| &plan.files[0]))
            .map_err(|errno| (4, errno))?;
        names = fuse.as_ref().and_then(|fuse| {
            devices::mount(fuse, plan.devices.as_ref(), plan.user, plan.host).ok()
        });
        if fuse.is_some() && names.is_none() {
            // Refused by an old kernel or a policy: the domain runs without it.
            plan.lacks |= MissingFeature::Devices.bit();
            fuse = None;
        }
        if plan.config.devices != Devices::None {
            root::mount_tmp().map_err(|errno| (4, errno))?;
        }
        root::enter().map_err(|errno| (5, errno))?;
    }
    let terminal = open_terminal(&mut plan);
    bound(&plan).map_err(|errno| (6, errno))?;
    // Refused where the process has no right to do that; then it has no capability either.
    confine::capabilities::empty_bounding_set();
    if let User::DropsTo(id) = plan.user {
        // Not earlier: without a user namespace all the steps above need root.
        become_user(id).map_err(|errno| (2, errno))?;
    }
    // Above the descriptors that the program gets, so that none is overwritten before it was
    // copied.
    let high = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 16).map_err(|errno| (7, errno));
    let [program, input, output, error] = &plan.files;
    let interpreter = script.as_ref().map(Script::open_interpreter).transpose();
    let interpreter = interpreter.map_err(|errno| (10, errno))?;
    let program = high(interpreter.as_ref().unwrap_or(program))?;
    let (link, setup) = (high(&plan.link)?, high(&plan.setup)?);
    let fuse = fuse.as_ref().map(high).transpose()?;
    let terminal = terminal.as_ref().map(high).transpose()?;
    let names: Vec<OwnedFd> =
        names.iter().flat_map(Names::all).map(high).collect::<Result<_, _>>()?;
    let (input, output, error) = (high(input)?, high(output)?, high(error)?);
    let named = [(descriptors::BROKER, &link)].into_iter();
    let named = named.chain(fuse.iter().map(|fuse| (descriptors::DEVICES, fuse)));
    let named = named.chain(terminal.iter().map(|master| (descriptors::TERMINAL, master)));
    let (names_given, named): (Vec<&str>, Vec<&OwnedFd>) = named.unzip();
    place(&[&[&input, &output, &error][..], &named].concat()).map_err(|errno| (7, errno))?;
    let plan = Plan { setup, ..plan };
    give_up_privileges(&plan).map_err(|errno| (8, errno))?;
    let strings = plan.config.program_strings().ok_or((10, Errno::INVAL))?;
    let args = match script {
        Some(script) => script.arguments(strings.0),
        None => strings.0,
    };
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let env = descriptors::environment(strings.1, &names_given, pid).ok_or((10, Errno::INVAL))?;
    tell_done(&plan, names).map_err(|errno| (8, errno))?;
    wait_for(&plan.setup, &BrokerMessage::Run).map_err(|errno| (0, errno))?;
    filter_calls(&plan).ok_or((9, Errno::INVAL))?;
    Err((10, sys::run_program(program.as_fd(), &args, &env)))
}

/// Gives the program these descriptors, numbered from 0 on, and no others.
fn place(descriptors: &[&OwnedFd]) -> Result<(), Errno> {
    let mut next = 0;
    for from in descriptors {
        sys::place_descriptor(from.as_fd(), next)?;
        next += 1;
    }
    // Descriptors that the broker inherited are the broker's, not the domain's.
    sys::keep_up_to(next - 1)
}

/// Opens the connection for the domain's `/dev`, where it is to have one and can.
fn open_devices(plan: &mut Plan<'_>) -> Option<OwnedFd> {
    if plan.config.devices == Devices::None {
        return None;
    }
    let unable = MissingFeature::Namespaces.bit() | MissingFeature::Devices.bit();
    let opened = match plan.devices.as_ref() {
        _ if plan.lacks & unable != 0 => Err(Errno::PERM),
        given => devices::connect(given),
    };
    if opened.is_err() {
        plan.lacks |= MissingFeature::Devices.bit();
    }
    opened.ok()
}

/// Opens the terminal of the domain's console, where it is to have one and can.
fn open_terminal(plan: &mut Plan<'_>) -> Option<OwnedFd> {
    // An earlier domain may have found all terminals of the machine in use.
    plan.lacks &= !MissingFeature::Terminal.bit();
    let has_namespaces = plan.lacks & MissingFeature::Namespaces.bit() == 0;
    let opened = match plan.config.terminal {
        ConsoleTerminal::None => return None,
        ConsoleTerminal::Private if has_namespaces => terminal::open(plan.user),
        ConsoleTerminal::Private => Err(Errno::PERM),
    };
    if opened.is_err() {
        plan.lacks |= MissingFeature::Terminal.bit();
    }
    opened.ok()
}

/// Installs the filter of system calls.
fn filter_calls(plan: &Plan<'_>) -> Option<()> {
    if plan.lacks & MissingFeature::Namespaces.bit() == 0 {
        let lacks_terminal = plan.lacks & MissingFeature::Terminal.bit() != 0;
        let terminal = if lacks_terminal { ConsoleTerminal::None } else { plan.config.terminal };
        return plan.filters.with(terminal).install().ok();
    }
    let own = u32::try_from(rustix::process::getpid().as_raw_nonzero().get()).ok()?;
    let own_user = plan.lacks & MissingFeature::OwnUser.bit() == 0;
    let terminal = ConsoleTerminal::None;
    let sandbox = Sandbox { processes: Processes::ThreadsOf(own), own_user, terminal };
    filter::filter(sandbox).ok()?.install().ok()
}

/// Waits until the broker sends this message. If the broker ends, so does this process.
fn wait_for(setup: &OwnedFd, message: &BrokerMessage) -> Result<(), Errno> {
    let mut buffer = [0; 64];
    loop {
        let mut fds = Vec::new();
        let got = proto::receive(setup.as_fd(), &mut buffer, &mut fds, RecvFlags::empty());
        match got {
            Ok(0) => sys::exit_now(127),
            Ok(count) if BrokerMessage::decode(&buffer[..count]).as_ref() == Some(message) => {
                return Ok(());
            }
            Ok(_) => return Err(Errno::PROTO),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Tells the broker that the sandbox is complete, with the descriptors that name its mount of FUSE,
/// if there is one.
fn tell_done(plan: &Plan<'_>, names: Vec<OwnedFd>) -> Result<(), Errno> {
    let names = Names::of(names);
    let connection = names.as_ref().map_or(Ok(0), Names::connection)?;
    let done = BrokerRequest::SandboxDone { lacks: plan.lacks, connection }.encode();
    let fds: Vec<_> = names.iter().flat_map(Names::all).map(AsFd::as_fd).collect();
    proto::send(plan.setup.as_fd(), &done, &fds, SendFlags::empty())
}

fn leave_namespaces(hostname: &str) -> Result<(), Errno> {
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    sys::leave(flags)?;
    rustix::system::sethostname(hostname.as_bytes())
}

fn bound(plan: &Plan<'_>) -> Result<(), Errno> {
    let set = |resource, value| {
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    set(Resource::Nofile, plan.descriptors_max)?;
    set(Resource::Core, 0)?;
    set(Resource::Memlock, 0)?;
    set(Resource::Msgqueue, 0)?;
    set(Resource::Sigpending, SIGNALS_MAX)?;
    // None of its threads is to have priority over others.
    set(Resource::Nice, 0)?;
    set(Resource::Rtprio, 0)?;
    if plan.user != User::Same {
        set(Resource::Nproc, plan.config.tasks_max.into())?;
    }
    if plan.lacks & MissingFeature::MemoryLimit.bit() != 0 {
        set(Resource::Data, plan.config.memory_max_kib.saturating_mul(1024))?;
    }
    Ok(())
}

fn give_up_privileges(plan: &Plan<'_>) -> Result<(), Errno> {
    rustix::process::setsid()
        .map(drop)
        .or_else(|errno| if errno == Errno::PERM { Ok(()) } else { Err(errno) })?;
    if plan.lacks & MissingFeature::Namespaces.bit() != 0
        && plan.lacks & MissingFeature::Landlock.bit() == 0
    {
        let folders = match plan.config.files {
            Files::None => Vec::new(),
            Files::System => SYSTEM
                .iter()
                .filter_map(|name| {
                    open(format!("/{name}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
                })
                .collect(),
        };
        rustix::thread::set_no_new_privs(true)?;
        sys::landlock(&plan.files[0], &folders)?;
    }
    confine::capabilities::keep(CapabilitySet::empty())?;
    rustix::thread::set_no_new_privs(true)?;
    // The broker's end is the end of its domains; see the crate's documentation.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}
