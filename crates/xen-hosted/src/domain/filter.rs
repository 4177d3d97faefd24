//! The system calls of a domain: those of a [`table`], in which sandboxes, with which arguments, and why.
//!
//! They are what programs do with their own memory, files, threads and processes. Not in the table is what
//! an intruder wants of a kernel: namespaces, mounts, other processes' memory, modules, keys, BPF, io_uring,
//! perf, raw networking. Three rules hold for others' sake, whatever the sandbox:
//!
//! - Nobody clears `O_NONBLOCK`: the two ends of an event channel share one open file, and a peer that
//!   made it blocking could stop who notifies it.
//! - Nobody takes back that it dies with the broker.
//! - Nobody takes what the kernel counts for the whole machine and by no group: huge pages, and the memory
//!   of compiled filters.
//!
//! A call that is refused is answered as the C libraries expect it: `ENOSYS` where they fall back on an
//! older call, `EOPNOTSUPP` for attributes of files, else `EPERM`.

mod table;

pub(crate) use table::{Processes, Sandbox};

use confine::{Arg, Calls, Error, Filter, Refusals};
use rustix::io::Errno;
use table::{OWN_PROCESS, rows};

/// Calls on attributes of files, which programs do without where a file system has none.
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
/// Calls that kernels are built without, and C libraries or programs do without then.
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
/// From this number on calls are of Linux 5.1 and later, on all architectures; C libraries know kernels without.
const LATER: u32 = 424;

/// The filter.
///
/// # Errors
/// There is none for this machine.
pub(crate) fn filter(sandbox: Sandbox) -> Result<Filter, Error> {
    let mut calls = Calls::default();
    for row in rows().filter(|row| row.place.holds(sandbox)) {
        for (number, _) in row.calls {
            let known = |all: &&[Arg]| all.iter().map(|arg| own(*arg, sandbox.processes)).collect();
            calls = calls.when(*number, row.when.iter().map(known));
        }
    }
    calls.else_fail(Refusals {
        listed: &[(ATTRIBUTES, Errno::OPNOTSUPP), (OPTIONAL, Errno::NOSYS)],
        from: (LATER, Errno::NOSYS),
        others: Errno::PERM,
    })
}

/// A condition of the table for these processes.
fn own(arg: Arg, processes: Processes) -> Arg {
    match (arg, processes) {
        (Arg::Is(place, OWN_PROCESS), Processes::ThreadsOf(pid)) => Arg::Is(place, pid.into()),
        // Nobody's.
        (Arg::Is(place, OWN_PROCESS), Processes::OfItsOwn) => Arg::Is(place, u32::MAX.into()),
        _ => arg,
    }
}

/// The numbers of the calls that a domain may make with some arguments at least: with namespaces or without, as a user
/// of its own or as the broker's.
#[must_use]
pub fn system_calls(namespaces: bool, own_user: bool) -> Vec<libc::c_long> {
    let processes = if namespaces { Processes::OfItsOwn } else { Processes::ThreadsOf(0) };
    let sandbox = Sandbox { processes, own_user };
    let rows = rows().filter(|row| row.place.holds(sandbox));
    rows.flat_map(|row| row.calls).map(|(number, _)| *number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_has_two_rows_in_one_sandbox() {
        for namespaces in [false, true] {
            let mut calls = system_calls(namespaces, true);
            let all = calls.len();
            calls.sort_unstable();
            calls.dedup();
            assert_eq!(calls.len(), all, "namespaces: {namespaces}");
        }
    }

    #[test]
    fn every_sandbox_has_a_filter() {
        for processes in [Processes::OfItsOwn, Processes::ThreadsOf(7)] {
            for own_user in [false, true] {
                let filter = filter(Sandbox { processes, own_user }).unwrap();
                assert!(filter.steps() < 4096, "{} steps", filter.steps());
            }
        }
    }
}
