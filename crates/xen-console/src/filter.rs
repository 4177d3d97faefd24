//! The system calls and capabilities that the daemon keeps once it serves.
//!
//! Domains come and go during service, so files below the folder of logs and pseudoterminals are
//! opened behind the filter, and so are the sockets of channels. The filter takes away: programs,
//! threads, executable memory, tracing, mounting, sockets other than those of the Unix domain, and
//! requests to devices other than the listed ones.

use confine::{Calls, capabilities};
use rustix::thread::CapabilitySet;

/// Calls that may be made with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // The loop, the store, the terminals, syslog, the broker of a hosted host.
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_io_uring_enter,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    // The sockets of channels.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_fchmod,
    libc::SYS_close,
    libc::SYS_dup,
    // In the background, the standard streams become /dev/null.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    // The FIFOs of guests; their sizes are asked by fcntl(2).
    libc::SYS_tee,
    // Logs and records.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    // The end of the hypervisor's reader.
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Memory, time, signals, the end.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getpid,
    // A panic's backtrace.
    libc::SYS_getcwd,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Requests to a pseudoterminal (ioctl_tty(2)): its number, its lock, its other end, its modes, its
/// window, and reads that do not wait.
const TERMINAL_REQUESTS: &[u32] = &[
    0x8004_5430, // TIOCGPTN
    0x4004_5431, // TIOCSPTLCK
    0x5441,      // TIOCGPTPEER
    0x5401,      // TCGETS
    0x5402,      // TCSETS
    0x802c_542a, // TCGETS2
    0x402c_542b, // TCSETS2
    0x5414,      // TIOCSWINSZ
    0x5421,      // FIONBIO
];

/// Removes the rights that are no longer needed, permanently. `ioctls` are the permitted requests
/// besides those of terminals.
///
/// # Errors
/// The reason why the kernel refuses; then the process has more rights than it needs and should not
/// serve.
pub fn install(ioctls: &[u32]) -> Result<(), String> {
    capabilities::keep(CapabilitySet::empty()).map_err(|errno| format!("capabilities: {errno}"))?;
    let allowed = Calls::any(ALLOWED)
        .memory_without_code()
        .unix_sockets()
        .requests(ioctls.iter().chain(TERMINAL_REQUESTS))
        .else_kill();
    confine::filter::prepare();
    let install = || allowed?.install();
    install().map_err(|error: confine::Error| error.to_string())
}
