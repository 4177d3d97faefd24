//! The system calls and capabilities that are left to a backend's process once it serves.
//!
//! Disks come and go while it serves, so files are opened, threads started and rings of io_uring made behind the
//! filter. What it takes away: starting programs, executable memory, tracing, mounting, sockets but those of
//! the Unix domain, requests to devices but the named ones. What an intruder keeps: the files that the
//! process may open, and the operations of io_uring, which no such filter sees.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

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
    // Answered ENOSYS by the other filter, as its flags cannot be looked at; libraries fall back on clone.
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

/// The ioctl request with which the standard library asks whether a descriptor is a terminal.
const TCGETS: u32 = 0x5401;
/// The sector size of a block device (`BLKSSZGET`, `linux/fs.h`).
const BLKSSZGET: u32 = 0x1268;
/// The size of its physical sectors (`BLKPBSZGET`).
const BLKPBSZGET: u32 = 0x127b;
/// The size of a block device (`BLKGETSIZE64`).
const BLKGETSIZE64: u32 = 0x8008_1272;

/// Takes away what is not needed any more, for this thread and those that it starts, for good. `ioctls` are
/// the requests to devices that are left besides those to disks.
///
/// # Errors
/// Why the kernel refuses; then the process has more than it needs and should not serve.
pub fn install(ioctls: &[u32]) -> Result<(), String> {
    keep_access_to_files().map_err(|errno| format!("capabilities: {errno}"))?;
    let said = |error: seccompiler::BackendError| error.to_string();
    // The first use of the clock looks for the vDSO with calls that are not on the list.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    for program in [without_clone3().map_err(said)?, allowed(ioctls).map_err(said)?] {
        // This also sets no-new-privileges, without which an ordinary user may not filter.
        seccompiler::apply_filter(&program)
            .map_err(|error| format!("system calls cannot be filtered: {error}"))?;
    }
    Ok(())
}

/// Of the capabilities, those to open any disk that a toolstack names are kept.
fn keep_access_to_files() -> rustix::io::Result<()> {
    let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let kept = capabilities(None)?.permitted & files;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}

/// What comes first: the kernel's answer to clone3 as if it lacked it.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let lacks = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, lacks, arch()?)?.try_into()
}

fn allowed(ioctls: &[u32]) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let local = libc::AF_UNIX as u64;
    rules.insert(libc::SYS_socket, vec![only(0, SeccompCmpOp::Eq, local)?]);
    let name = libc::PR_SET_NAME as u64;
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, name)?]);
    let request = |number: &u32| only(1, SeccompCmpOp::Eq, u64::from(*number));
    let own = [TCGETS, BLKSSZGET, BLKPBSZGET, BLKGETSIZE64];
    let requests = ioctls.iter().chain(&own).map(request).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_ioctl, requests);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch()?)?.try_into()
}

fn arch() -> Result<TargetArch, seccompiler::BackendError> {
    TargetArch::try_from(std::env::consts::ARCH)
}

/// A call is allowed where its argument `index` compares so to `value`.
fn only(
    index: u8,
    how: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, how, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const ROLE: &str = "XEN_BLOCK_TEST_FILTER";

    /// Runs this test again in a process of its own, where it does `role` behind the filter.
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
