//! The system calls and capabilities that a backend's process keeps once it serves.
//!
//! Disks come and go during service, so files are opened, threads started and rings of io_uring
//! made behind the filter. The filter takes away: starting programs, executable memory, tracing,
//! mounting, sockets other than Unix domain sockets, and ioctls other than the listed ones. An
//! intruder keeps: the files that the process may open, and the operations of io_uring, which no
//! such filter sees.

use confine::{Arg, Calls, capabilities};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// Calls that may be made with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // The loop, the store, NBD servers, the broker of a hosted host.
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    // Disks.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_flock,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    // The record of requests in flight.
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    // Memory, threads, time, signals, the end.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    // Answered with ENOSYS by the other filter, as its flags are in memory and cannot be checked;
    // libraries fall back on clone.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getpid,
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

/// The sector size of a block device (`BLKSSZGET`, `linux/fs.h`).
const BLKSSZGET: u32 = 0x1268;
/// The size of its physical sectors (`BLKPBSZGET`).
const BLKPBSZGET: u32 = 0x127b;
/// The size of a block device (`BLKGETSIZE64`).
const BLKGETSIZE64: u32 = 0x8008_1272;

/// Removes the rights that are no longer needed, for this thread and those that it starts,
/// permanently. `ioctls` are the permitted ioctls besides those of disks.
///
/// # Errors
/// The reason why the kernel refuses; then the process has more rights than it needs and should not
/// serve.
pub fn install(ioctls: &[u32]) -> Result<(), String> {
    // Needed to open any disk that a toolstack names.
    let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    capabilities::keep(files).map_err(|errno| format!("capabilities: {errno}"))?;
    let requests = [BLKSSZGET, BLKPBSZGET, BLKGETSIZE64];
    let thread = libc::CLONE_THREAD as u64;
    let name = libc::PR_SET_NAME as u64;
    let allowed = Calls::any(ALLOWED)
        .memory_without_code()
        .unix_sockets()
        .requests(ioctls.iter().chain(&requests))
        .when(libc::SYS_clone, [vec![Arg::With(0, thread)]])
        .when(libc::SYS_prctl, [vec![Arg::Is(0, name)]])
        .else_kill();
    // The kernel answers clone3 as if it lacked it.
    let without_clone3 = Calls::any(&[libc::SYS_clone3]).fail(Errno::NOSYS);
    confine::filter::prepare();
    let install = || {
        let (without_clone3, allowed) = (without_clone3?, allowed?);
        without_clone3.install()?;
        allowed.install()
    };
    install().map_err(|error: confine::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const ROLE: &str = "XEN_BLOCK_TEST_FILTER";

    /// Runs this test again in a process of its own, which does `role` behind the filter.
    fn status_of(role: &str) -> std::process::ExitStatus {
        let name = "filter::tests::what_is_not_on_the_list_kills";
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(ROLE, role)
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn what_is_not_on_the_list_kills() {
        let Ok(role) = std::env::var(ROLE) else {
            for role in ["nothing", "thread"] {
                assert!(status_of(role).success(), "{role}");
            }
            for role in ["program", "network", "ioctl"] {
                assert_eq!(status_of(role).signal(), Some(libc::SIGSYS), "{role}");
            }
            return;
        };
        install(&[]).unwrap();
        match role.as_str() {
            "thread" => std::thread::spawn(|| ()).join().unwrap(),
            "program" => drop(Command::new("/bin/true").status()),
            "network" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "ioctl" => drop(rustix::io::ioctl_fionread(std::fs::File::open("/dev/null").unwrap())),
            _ => drop(std::fs::read("/proc/self/status")),
        }
    }
}
