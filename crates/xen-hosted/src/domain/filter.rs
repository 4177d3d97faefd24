//! The system calls of a domain: those of a [`table`], which states for each the sandboxes, the
//! arguments and the reason.
//!
//! They are the calls with which programs use their own memory, files, threads and processes. The
//! table has none of those that an attacker needs: namespaces, mounts, other processes' memory,
//! modules, keys, BPF, io_uring, perf, raw networking. Three rules protect others, in every
//! sandbox:
//!
//! - No process clears `O_NONBLOCK`: the two ends of an event channel share one open file, and a
//!   peer that made it blocking could stop the process that notifies it.
//! - No process undoes that it dies with the broker.
//! - No process uses what the kernel counts for the whole machine and by no group: huge pages, and
//!   the memory of compiled filters.
//!
//! Requests of ioctl(2) are let through by number. The kernel takes 32 bits of the number, and the
//! filter compares these.
//!
//! A refused call fails as the C libraries expect: with `ENOSYS` where they fall back on an older
//! call, with `EOPNOTSUPP` for attributes of files, else with `EPERM`.

mod table;

pub(crate) use table::{Processes, Sandbox};

use super::config::ConsoleTerminal;
use confine::{Arg, Calls, Error, Filter, Refusals};
use rustix::io::Errno;
use table::{OWN_PROCESS, rows};

/// Calls on attributes of files. Programs do without them where a file system has none.
const ATTRIBUTES: &[libc::c_long] = &[
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];
/// Calls that a kernel can be built without. C libraries and programs do without them then.
const OPTIONAL: &[libc::c_long] = &[
    libc::SYS_io_setup,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mbind,
    libc::SYS_seccomp,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_inotify_init1,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];
/// The first number of calls of Linux 5.1 and later, on all architectures; C libraries also support
/// kernels without these calls.
const LATER: u32 = 424;

/// The filters of a sandbox without a terminal of its own, and with one.
pub(crate) struct SandboxFilters {
    without_terminal: Filter,
    with_terminal: Filter,
}

impl SandboxFilters {
    /// Compiles those of this sandbox, whatever terminal it has.
    ///
    /// # Errors
    /// There is no filter for this machine.
    pub(crate) fn of(sandbox: Sandbox) -> Result<Self, Error> {
        let of = |terminal| filter(Sandbox { terminal, ..sandbox });
        Ok(Self {
            without_terminal: of(ConsoleTerminal::None)?,
            with_terminal: of(ConsoleTerminal::Private)?,
        })
    }

    /// Returns the filter of a domain that has this terminal.
    pub(crate) fn with(&self, terminal: ConsoleTerminal) -> &Filter {
        match terminal {
            ConsoleTerminal::None => &self.without_terminal,
            ConsoleTerminal::Private => &self.with_terminal,
        }
    }
}

/// Compiles the filter of a sandbox.
///
/// # Errors
/// There is no filter for this machine.
pub(crate) fn filter(sandbox: Sandbox) -> Result<Filter, Error> {
    let mut calls = Calls::default();
    for row in rows().filter(|row| row.sandboxes.holds(sandbox)) {
        for (number, _) in row.calls {
            let known = |all: &&[Arg]| {
                all.iter().map(|arg| resolve_own_process(*arg, sandbox.processes)).collect()
            };
            calls = calls.when(*number, row.when.iter().map(known));
        }
    }
    calls.else_fail(Refusals {
        listed: &[(ATTRIBUTES, Errno::OPNOTSUPP), (OPTIONAL, Errno::NOSYS)],
        from: (LATER, Errno::NOSYS),
        others: Errno::PERM,
    })
}

/// Replaces the table's placeholder for the domain's process in a condition.
fn resolve_own_process(arg: Arg, processes: Processes) -> Arg {
    match (arg, processes) {
        (Arg::Is(place, OWN_PROCESS), Processes::ThreadsOf(pid)) => Arg::Is(place, pid.into()),
        // No process has this number.
        (Arg::Is(place, OWN_PROCESS), Processes::OfItsOwn) => Arg::Is(place, u32::MAX.into()),
        _ => arg,
    }
}

/// Returns the numbers of the calls that a domain may make with at least some arguments: with
/// namespaces or without, as a user of its own or as the broker's.
#[must_use]
pub fn system_calls(namespaces: bool, own_user: bool) -> Vec<libc::c_long> {
    let processes = if namespaces { Processes::OfItsOwn } else { Processes::ThreadsOf(0) };
    calls_in(Sandbox { processes, own_user, terminal: ConsoleTerminal::None })
}

fn calls_in(sandbox: Sandbox) -> Vec<libc::c_long> {
    let rows = rows().filter(|row| row.sandboxes.holds(sandbox));
    rows.flat_map(|row| row.calls).map(|(number, _)| *number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns every sandbox that there is.
    fn sandboxes() -> Vec<Sandbox> {
        let mut all = Vec::new();
        for processes in [Processes::OfItsOwn, Processes::ThreadsOf(7)] {
            for own_user in [false, true] {
                for terminal in [ConsoleTerminal::None, ConsoleTerminal::Private] {
                    all.push(Sandbox { processes, own_user, terminal });
                }
            }
        }
        all
    }

    #[test]
    fn no_call_has_two_rows_in_one_sandbox() {
        for sandbox in sandboxes() {
            let mut calls = calls_in(sandbox);
            let all = calls.len();
            calls.sort_unstable();
            calls.dedup();
            assert_eq!(calls.len(), all, "{sandbox:?}");
        }
    }

    /// A terminal of its own changes how a call may be made, and not which.
    #[test]
    fn a_terminal_adds_no_call() {
        let numbers = |sandbox| {
            let mut calls = calls_in(sandbox);
            calls.sort_unstable();
            calls
        };
        for sandbox in sandboxes() {
            let without = Sandbox { terminal: ConsoleTerminal::None, ..sandbox };
            assert_eq!(numbers(sandbox), numbers(without), "{sandbox:?}");
        }
    }

    #[test]
    fn every_sandbox_has_a_filter() {
        for sandbox in sandboxes() {
            let filter = filter(sandbox).unwrap();
            assert!(filter.steps() < 4096, "{} steps", filter.steps());
        }
    }
}
