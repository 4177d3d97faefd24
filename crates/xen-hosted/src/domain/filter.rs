//! The system calls of a domain; any other is answered `ENOSYS`, as by a kernel that lacks it.
//!
//! The list is what programs do with their own memory, files, threads and processes. It lacks what
//! an intruder wants of a kernel: namespaces, mounts, other processes' memory, modules, keys, BPF,
//! io_uring, perf, raw networking.
//!
//! One rule is for others' sake: nobody may clear `O_NONBLOCK`. The two ends of an event channel share
//! one open file, and a peer that made it blocking could stop who notifies it. And nobody may take
//! back that it dies with the broker.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Calls that may be made with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Descriptors and files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    // It has no other ids than its own to give; cp -a and tar ask for these.
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_fadvise64,
    libc::SYS_memfd_create,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets between its own processes, and the one to the broker.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    libc::SYS_brk,
    // Threads, processes, signals, the end.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_setpriority,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    // Time, numbers.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_times,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// The older forms that x86 keeps beside those above.
#[cfg(target_arch = "x86_64")]
const ALSO_ALLOWED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_eventfd,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_accept,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
    libc::SYS_time,
    libc::SYS_alarm,
    libc::SYS_pause,
];
#[cfg(not(target_arch = "x86_64"))]
const ALSO_ALLOWED: &[libc::c_long] = &[];

/// Forms of clone(2) that x86 keeps.
#[cfg(target_arch = "x86_64")]
const FORKS: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[libc::c_long] = &[];

/// `F_SETOWN`, `F_SETOWN_EX`.
const SET_OWNER: [u64; 2] = [8, 15];

/// What a domain may do to processes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processes {
    /// Whatever it likes: it has a namespace of its own for them, and sees no others.
    OfItsOwn,
    /// Start threads, and signal them, in the process with this number: there is no namespace, so another
    /// process would outlive the domain, and whatever names a process or a socket could name anybody's
    /// of this user.
    ThreadsOf(u32),
}

/// The filter.
///
/// # Errors
/// Why there is none for this machine.
pub(crate) fn program(processes: Processes) -> Result<BpfProgram, seccompiler::BackendError> {
    let all = ALLOWED.iter().chain(ALSO_ALLOWED);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = all.map(|call| (*call, Vec::new())).collect();
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let namespaces = namespaces.iter().fold(0, |all, flag| all | *flag as u64);
    let none = SeccompCmpOp::MaskedEq(namespaces);
    let mut clone = vec![(0, none, 0)];
    let local = libc::AF_UNIX as u64;
    rules.insert(libc::SYS_socket, vec![when(&[(0, SeccompCmpOp::Eq, local)])?]);
    let mut commands = vec![(1, SeccompCmpOp::Ne, libc::F_SETFL as u64)];
    match processes {
        Processes::OfItsOwn => {
            let signals =
                [libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo];
            rules.extend(signals.iter().chain(FORKS).map(|call| (*call, Vec::new())));
        }
        Processes::ThreadsOf(pid) => {
            let thread = libc::CLONE_THREAD as u64;
            clone.push((0, SeccompCmpOp::MaskedEq(thread), thread));
            let own = |index| when(&[(index, SeccompCmpOp::Eq, pid.into())]);
            let caller = |index| when(&[(index, SeccompCmpOp::Eq, 0)]);
            for call in [libc::SYS_kill, libc::SYS_tgkill] {
                rules.insert(call, vec![own(0)?]);
            }
            for call in [libc::SYS_prlimit64, libc::SYS_sched_setaffinity] {
                rules.insert(call, vec![own(0)?, caller(0)?]);
            }
            rules.insert(libc::SYS_setpriority, vec![caller(1)?]);
            // Whose signal says that a descriptor is ready.
            commands.extend(SET_OWNER.map(|command| (1, SeccompCmpOp::Ne, command)));
            // A socket with a name is somebody else's: the store's, the broker's own. Pairs remain, but for
            // datagrams, which take an address with each.
            for call in [libc::SYS_socket, libc::SYS_connect] {
                rules.remove(&call);
            }
            let kinds = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET];
            let kinds = kinds.map(|kind| when(&[(1, SeccompCmpOp::MaskedEq(0xf), kind as u64)]));
            rules.insert(libc::SYS_socketpair, kinds.into_iter().collect::<Result<_, _>>()?);
        }
    }
    rules.insert(libc::SYS_clone, vec![when(&clone)?]);
    let with_the_broker = libc::PR_SET_PDEATHSIG as u64;
    rules.insert(libc::SYS_prctl, vec![when(&[(0, SeccompCmpOp::Ne, with_the_broker)])?]);
    let nonblocking = libc::O_NONBLOCK as u64;
    let set = libc::F_SETFL as u64;
    let keeps = SeccompCmpOp::MaskedEq(nonblocking);
    rules.insert(
        libc::SYS_fcntl,
        vec![when(&commands)?, when(&[(1, SeccompCmpOp::Eq, set), (2, keeps, nonblocking)])?],
    );
    let controls = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX];
    let controls = controls.map(|request| when(&[(1, SeccompCmpOp::Eq, request)]));
    rules.insert(libc::SYS_ioctl, controls.into_iter().collect::<Result<_, _>>()?);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    // Not EPERM: C libraries try new calls first and fall back at ENOSYS alone.
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()
}

/// A call is allowed where its arguments compare so.
fn when(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(index, how, value)| {
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, how.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}
