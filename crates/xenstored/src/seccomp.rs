//! The system calls that remain once the daemon serves. Any other kills the process.
//!
//! The list contains the calls of the loop, the allocator, the platforms (maps, their ioctls,
//! datagrams), the log, the trace file and an orderly end. It excludes the calls that an intruder
//! wants: starting programs, the network, executable memory, other processes.

use confine::Calls;

/// The calls that may be made with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // The loop, sockets, rings.
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    // The daemon's one io_uring accepts sends only, and no other can be made.
    libc::SYS_io_uring_enter,
    libc::SYS_close,
    libc::SYS_getsockopt,
    libc::SYS_connect,
    // Leaving the starter's streams.
    libc::SYS_dup3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    // Files: trace, memreport, device nodes, the end.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    // Memory, time, signals, the end.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // An abort, so that it is reported as one.
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Drops the system calls that are not needed any more, for this thread and for good. `ioctls` are
/// the requests to devices that remain.
///
/// # Errors
/// The reason why the kernel does not accept the filter.
pub(crate) fn install(ioctls: &[u32]) -> Result<(), confine::Error> {
    let calls = Calls::any(ALLOWED).memory_without_code().unix_sockets().requests(ioctls);
    let filter = calls.else_kill()?;
    confine::filter::prepare();
    filter.install()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const ROLE: &str = "XENSTORED_TEST_SECCOMP";

    /// Runs this test again in a process of its own, which does `role` behind the filter.
    fn status_of(role: &str) -> std::process::ExitStatus {
        // Made here: the filter does not let the other process remove a folder.
        let folder = tempfile::tempdir().unwrap();
        let name = "seccomp::tests::what_is_not_on_the_list_kills";
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(ROLE, role)
            .env("TMPDIR", folder.path())
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn what_is_not_on_the_list_kills() {
        let Ok(role) = std::env::var(ROLE) else {
            for role in ["nothing", "log"] {
                assert!(status_of(role).success(), "{role}");
            }
            for role in ["program", "network", "ioctl"] {
                assert_eq!(status_of(role).signal(), Some(libc::SIGSYS), "{role}");
            }
            return;
        };
        let logger = std::env::temp_dir().join("log");
        let _listening = (role == "log").then(|| UnixDatagram::bind(&logger).unwrap());
        install(&[]).unwrap();
        match role.as_str() {
            "log" => {
                let to = daemon::connect_syslog(logger.to_str().unwrap()).unwrap();
                to.send(b"a line").unwrap();
            }
            "program" => drop(Command::new("/bin/true").status()),
            "network" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "ioctl" => drop(rustix::io::ioctl_fionread(std::fs::File::open("/dev/null").unwrap())),
            _ => drop(std::fs::read("/proc/self/status")),
        }
    }
}
