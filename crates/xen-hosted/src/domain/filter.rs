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

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use table::{Arg, rows};

/// A sandbox that calls are made in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sandbox {
    pub(crate) processes: Processes,
    /// Its user is nobody else's: what the kernel counts by user is its own.
    pub(crate) own_user: bool,
}

/// What a domain may do to processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Processes {
    /// Whatever it likes: it has a namespace of its own for them, and sees no others.
    OfItsOwn,
    /// Start threads, and signal them, in the process with this number: there is no namespace, so another
    /// process would outlive the domain, and whatever names a process, a file or a socket could name
    /// anybody's of this user.
    ThreadsOf(u32),
}

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
pub(crate) fn program(sandbox: Sandbox) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in rows().filter(|row| row.place.holds(sandbox)) {
        for (number, _) in row.calls {
            let alternatives = row.when.iter().map(|all| rule(all, sandbox.processes));
            rules.insert(*number, alternatives.collect::<Result<_, _>>()?);
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(REFUSED);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?;
    Ok(with_errors(filter.try_into()?))
}

/// The error that stands for all in what the library makes of the rules.
const REFUSED: u32 = 0xfff;

const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// Has a program answer each refused call with its own error, where it has one for all: the library knows no more
/// than one.
fn with_errors(mut program: BpfProgram) -> BpfProgram {
    let refuses = |errno: libc::c_int| libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let for_all = libc::SECCOMP_RET_ERRNO | REFUSED;
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if instruction.code == RETURN && instruction.k == for_all {
            let k = u32::try_from(end - at - 1).unwrap_or(0);
            *instruction = sock_filter { code: JUMP, jt: 0, jf: 0, k };
        }
    }
    let step = |code, k, jf| sock_filter { code, jt: 0, jf, k };
    // The number of the call is the first word of `struct seccomp_data`.
    program.push(step(LOAD, 0, 0));
    for (calls, errno) in [(ATTRIBUTES, libc::EOPNOTSUPP), (OPTIONAL, libc::ENOSYS)] {
        for number in calls {
            program.push(step(EQUAL, u32::try_from(*number).unwrap_or(0), 1));
            program.push(step(RETURN, refuses(errno), 0));
        }
    }
    program.push(step(AT_LEAST, LATER, 1));
    program.push(step(RETURN, refuses(libc::ENOSYS), 0));
    program.push(step(RETURN, refuses(libc::EPERM), 0));
    program
}

/// Arguments that all compare so.
fn rule(all: &[Arg], processes: Processes) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = all.iter().map(|arg| {
        let (index, how, value) = match *arg {
            Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
            Arg::IsNot(index, value) => (index, SeccompCmpOp::Ne, value),
            Arg::Without(index, bits) => (index, SeccompCmpOp::MaskedEq(bits), 0),
            Arg::With(index, bits) => (index, SeccompCmpOp::MaskedEq(bits), bits),
            Arg::Masked(index, bits, value) => (index, SeccompCmpOp::MaskedEq(bits), value),
            Arg::Own(index) => match processes {
                Processes::ThreadsOf(pid) => (index, SeccompCmpOp::Eq, pid.into()),
                // Nobody's.
                Processes::OfItsOwn => (index, SeccompCmpOp::Eq, u32::MAX.into()),
            },
        };
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, how, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
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
                let program = program(Sandbox { processes, own_user }).unwrap();
                let all = libc::SECCOMP_RET_ERRNO | REFUSED;
                assert!(!program.iter().any(|step| step.code == RETURN && step.k == all));
                assert!(program.len() < 4096, "{} steps", program.len());
            }
        }
    }
}
