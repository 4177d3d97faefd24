//! System calls that a domain may not make, as a program without a library makes them.
#![allow(unsafe_code)]

use super::raw;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

/// The error's number of a call that takes numbers, or memory of its caller's; 0 where it succeeds.
macro_rules! errno {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, or memory of the caller's that is as long as the call is told.
        let result = unsafe { libc::syscall($number $(, $argument)*) };
        if result == -1 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
    }};
}

/// Makes a call without meaningful arguments.
pub(crate) fn call(number: &str) -> String {
    let number: libc::c_long = number.parse().unwrap();
    errno!(number, 0, 0, 0, 0, 0, 0).to_string()
}

/// Makes a call with arguments that no domain may use.
pub(crate) fn refused(what: &str) -> String {
    let none = std::ptr::null::<u8>();
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = one.as_raw_fd();
    let program = [0_u64; 2];
    let filter = |option: libc::c_int| {
        errno!(libc::SYS_setsockopt, socket, libc::SOL_SOCKET, option, program.as_ptr(), 16)
    };
    let prctl = |option: libc::c_int| errno!(libc::SYS_prctl, option, 0, 0, 0, 0);
    let clone = |flags: libc::c_int| errno!(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0);
    let pair = |family: libc::c_int| {
        let mut pair = [0_i32; 2];
        errno!(libc::SYS_socketpair, family, libc::SOCK_SEQPACKET, 0, pair.as_mut_ptr())
    };
    let fcntl = |command: libc::c_int| errno!(libc::SYS_fcntl, 0, command, 0);
    let errno = match what {
        "memfd-huge" => errno!(libc::SYS_memfd_create, c"huge".as_ptr(), libc::MFD_HUGETLB),
        "mmap-huge" => {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
            errno!(libc::SYS_mmap, none, 1 << 21, libc::PROT_READ, flags, -1, 0)
        }
        "fadvise-dontneed" => errno!(libc::SYS_fadvise64, 0, 0, 0, libc::POSIX_FADV_DONTNEED),
        "attach-filter" => filter(libc::SO_ATTACH_FILTER),
        "attach-reuseport-filter" => filter(libc::SO_ATTACH_REUSEPORT_CBPF),
        "prctl-death" => prctl(libc::PR_SET_PDEATHSIG),
        "prctl-seccomp" => prctl(libc::PR_SET_SECCOMP),
        "prctl-core-scheduling" => prctl(libc::PR_SCHED_CORE),
        // PR_SET_MEMORY_MERGE
        "prctl-merge" => prctl(67),
        "setpriority-user" => errno!(libc::SYS_setpriority, libc::PRIO_USER, 0, 19),
        "socket-inet" => errno!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
        "socket-netlink" => errno!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0),
        "pair-inet" => pair(libc::AF_INET),
        "pair-tipc" => pair(libc::AF_TIPC),
        "madvise-merge" => errno!(libc::SYS_madvise, none, 0, libc::MADV_MERGEABLE),
        "madvise-pageout" => errno!(libc::SYS_madvise, none, 0, libc::MADV_PAGEOUT),
        "clone-user" => clone(libc::CLONE_NEWUSER),
        "clone-net" => clone(libc::CLONE_NEWNET),
        "setfl" => errno!(libc::SYS_fcntl, socket, libc::F_SETFL, 0),
        "fionbio" => errno!(libc::SYS_ioctl, socket, libc::FIONBIO, [0_i32].as_ptr()),
        "tiocsti" => errno!(libc::SYS_ioctl, 0, libc::TIOCSTI, c"x".as_ptr()),
        "process" => clone(0),
        "kill-others" => errno!(libc::SYS_kill, -1, 0),
        "datagrams" => {
            let mut pair = [0_i32; 2];
            errno!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr())
        }
        "lease" => fcntl(libc::F_SETLEASE),
        "notice" => fcntl(libc::F_NOTIFY),
        "owner" => fcntl(libc::F_SETOWN),
        // An abstract name, chosen by the kernel.
        "bind" => errno!(libc::SYS_bind, socket, [libc::AF_UNIX as u16].as_ptr(), 2),
        _ => panic!("no such call: {what}"),
    };
    errno.to_string()
}

/// Makes a request of a descriptor, with memory for it to read or write. Returns the error's number.
pub(crate) fn request(fd: impl AsFd, number: u64) -> i32 {
    let mut memory = [0_u64; 16];
    errno!(libc::SYS_ioctl, fd.as_fd().as_raw_fd(), number, memory.as_mut_ptr())
}

/// Makes requests of a pipe. Returns those that are not refused with `EPERM`, as pipes refuse none.
pub(crate) fn requests(numbers: &[&str]) -> String {
    let (reader, _writer) = std::io::pipe().unwrap();
    let passes = |number: &&&str| request(&reader, number.parse().unwrap()) != libc::EPERM;
    numbers.iter().filter(passes).copied().collect::<Vec<_>>().join(" ")
}

/// Changes a file of its user, or the file's folder.
pub(crate) fn spoil(what: &str, path: &str) -> String {
    let other = CString::new(format!("{path}.other")).unwrap();
    let path = CString::new(path).unwrap();
    let open = |path: &CString, flags: libc::c_int| {
        errno!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600)
    };
    let errno = match what {
        "write" => open(&path, libc::O_WRONLY),
        "truncate" => open(&path, libc::O_TRUNC),
        "create" => open(&other, libc::O_CREAT),
        "chmod" => errno!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), 0),
        "chown" => errno!(libc::SYS_fchownat, libc::AT_FDCWD, path.as_ptr(), -1, -1, 0),
        "utime" => {
            errno!(libc::SYS_utimensat, libc::AT_FDCWD, path.as_ptr(), [0_u64; 4].as_ptr(), 0)
        }
        "unlink" => errno!(libc::SYS_unlinkat, libc::AT_FDCWD, path.as_ptr(), 0),
        "rename" => {
            let at = libc::AT_FDCWD;
            errno!(libc::SYS_renameat2, at, path.as_ptr(), at, other.as_ptr(), 0)
        }
        _ => panic!("no such change: {what}"),
    };
    errno.to_string()
}

/// Sends descriptors through sockets that nobody reads, until that is refused. Returns the error.
pub(crate) fn park() -> String {
    let mut sockets = Vec::new();
    loop {
        let (one, other) = match std::os::unix::net::UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => return format!("{error}"),
        };
        rustix::fs::fcntl_setfl(&one, rustix::fs::OFlags::NONBLOCK).unwrap();
        loop {
            match raw::pass(&one, &one).map_err(rustix::io::Errno::raw_os_error) {
                Ok(()) => {}
                Err(libc::EAGAIN) => break,
                Err(errno) => {
                    // Parked for good.
                    std::mem::forget((sockets, one, other));
                    return errno.to_string();
                }
            }
        }
        sockets.push((one, other));
    }
}
