//! The reader of the hypervisor's console: a process that can do nothing else.
//!
//! It holds the device for hypercalls, with which domain 0 rules the host; so it reads nothing that
//! a guest writes, and the daemon, which does, has no such device.

use super::wire::{AnswerBuffer, Received, receive_index};
use confine::{Calls, capabilities, filter};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use xen::conring::HypervisorConsole;
use xen::evtchn::{EventChannels, Virq};
use xen_linux::evtchn::Evtchn;
use xen_linux::privcmd::Privcmd;
use xen_linux::sysctl::ConsoleRing;

/// The argument with which the daemon's program is the reader.
pub const READER_ROLE: &str = "--read-hypervisor-console";
/// The name of the process. Scripts that stop the daemon look for it.
const PROCESS_NAME: &std::ffi::CStr = c"xenconsoled";

/// The calls that the reader makes behind its filter.
const ALLOWED: &[libc::c_long] = &[
    // The socket, the event channel.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_sendto,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Memory, a panic, the end.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_close,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Returns the command that runs this program again, as the reader.
#[must_use]
pub fn reader_command() -> Command {
    // The file of this process even if the path leads to a newer one.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xenconsoled").arg(READER_ROLE).env_clear();
    command
}

/// Runs the reader on the socket that is its standard input, until the daemon closes the other end.
/// Returns the exit status.
#[must_use]
pub fn run_reader() -> u8 {
    let open = || -> Result<_, String> {
        let privcmd = Privcmd::open().map_err(|error| error.to_string())?;
        let console = ConsoleRing::open(&privcmd).map_err(|error| error.to_string())?;
        let channels = Evtchn::open(None).map_err(|error| error.to_string())?;
        Ok((console, channels))
    };
    run_reader_on(open, xen_linux::IOCTLS_OF_A_CONSOLE_READER)
}

/// Runs the reader with the console and the event channels that `open` returns, as [`run_reader`]
/// does. `ioctls` are the requests to devices that they make.
#[must_use]
pub fn run_reader_on<C: HypervisorConsole, E: EventChannels>(
    open: impl FnOnce() -> Result<(C, E), String>,
    ioctls: &[u32],
) -> u8 {
    let socket = io::stdin();
    let mut buffer = AnswerBuffer::new();
    let outcome = prepare(open, ioctls).and_then(|(mut console, mut channels)| {
        buffer
            .send_ready(&socket)
            .and_then(|()| serve(socket.as_fd(), &mut console, &mut channels, &mut buffer))
            .map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => 0,
        Err(reason) => {
            let _ = buffer.send_failure(&socket, &reason);
            1
        }
    }
}

/// Opens what the reader needs and gives up all else.
fn prepare<C: HypervisorConsole, E: EventChannels>(
    open: impl FnOnce() -> Result<(C, E), String>,
    ioctls: &[u32],
) -> Result<(C, E), String> {
    // Run by /proc/self/exe, it has that name.
    let _ = rustix::thread::set_name(PROCESS_NAME);
    let (console, mut channels) = open()?;
    channels.bind_virq(Virq::ConRing).map_err(|error| format!("VIRQ_CON_RING: {error}"))?;
    confine(ioctls).map_err(|error| format!("the reader cannot be confined: {error}"))?;
    Ok((console, channels))
}

/// Gives up every right that the reader does not need, and has it end with the daemon.
fn confine(ioctls: &[u32]) -> Result<(), String> {
    let failed = |errno: Errno| errno.to_string();
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    capabilities::keep(CapabilitySet::empty()).map_err(failed)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    filter::prepare();
    let calls = Calls::any(ALLOWED).memory_without_code().requests(ioctls);
    let install = || calls.else_kill()?.install();
    install().map_err(|error: confine::Error| error.to_string())
}

/// Answers each index with the next output, until the daemon closes the socket.
fn serve(
    socket: BorrowedFd<'_>,
    console: &mut dyn HypervisorConsole,
    channels: &mut dyn EventChannels,
    buffer: &mut AnswerBuffer,
) -> io::Result<()> {
    loop {
        let index = match receive_index(socket)? {
            Received::Message(index) => index,
            Received::Nothing => continue,
            Received::Closed => return Ok(()),
        };
        loop {
            // Before the ring is read: what comes afterwards raises the event again.
            while let Some(port) = channels.pending().map_err(io::Error::other)? {
                channels.unmask(port).map_err(io::Error::other)?;
            }
            let reading = console.read(index, buffer.output()).map_err(io::Error::other)?;
            let lost = reading.lost(index);
            if reading.len > 0 || lost > 0 {
                buffer.send_output(socket, reading.len, reading.next, lost)?;
                break;
            }
            // The daemon sends nothing before the answer, unless it ends.
            if wait(socket, channels.fd())? == Wakeup::Daemon {
                break;
            }
        }
    }
}

/// The cause of the end of a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wakeup {
    /// The socket is readable or closed.
    Daemon,
    /// Anything else.
    Hypervisor,
}

fn wait(socket: BorrowedFd<'_>, events: BorrowedFd<'_>) -> io::Result<Wakeup> {
    let mut fds = [
        PollFd::from_borrowed_fd(socket, PollFlags::IN),
        PollFd::from_borrowed_fd(events, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(if fds[0].revents().is_empty() { Wakeup::Hypervisor } else { Wakeup::Daemon })
}
