//! System calls that `rustix` does not have: a process in new namespaces, running a program by its
//! descriptor, attributes of mounts, Landlock.
#![allow(unsafe_code)]

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;
use std::sync::atomic::{AtomicU32, Ordering};

/// `CLONE_INTO_CGROUP`, which is wider than `libc` has it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The arguments of clone3(2), version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn result(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value >= 0 {
        return Ok(value);
    }
    let number = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    Err(Errno::from_raw_os_error(number))
}

/// Starts a process with a copy of this one's memory that runs `child`, in the namespaces of `flags`
/// (`CLONE_NEW*`) and, where given, in a group of version 2. Returns it and its pidfd.
///
/// Only for a process with one thread: in the copy all others would be missing, with what they hold.
///
/// # Errors
/// The error of clone3(2).
pub(crate) fn clone_process(
    flags: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags as u64 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let len = size_of::<CloneArgs>();
    // SAFETY: the arguments are those of the structure's second version, and `pidfd` lives. Without
    // CLONE_VM and a stack the child goes on here with its own copy of everything.
    let pid = result(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, len) })?;
    if pid == 0 {
        child();
        // SAFETY: ends the child without running what its parent has registered for its own end.
        unsafe { libc::_exit(127) }
    }
    // SAFETY: the kernel has stored a new descriptor there, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    Ok((pid, pidfd))
}

/// Makes descriptor `to` a copy of `from`, to be inherited by the program that is run next.
///
/// # Errors
/// The error of dup2(2).
pub(crate) fn place_descriptor(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller is a process that is about to run a program and uses `to` for nothing else.
    unsafe {
        if from.as_raw_fd() == to {
            return result(libc::fcntl(to, libc::F_SETFD, 0).into()).map(drop);
        }
        result(libc::dup2(from.as_raw_fd(), to).into()).map(drop)
    }
}

/// Closes every descriptor of this process but those for input, output and errors, and `kept`: for a copy of
/// a process that shares nothing with it and uses none of the others.
///
/// # Errors
/// The error of close_range(2); `ENOSYS` before Linux 5.9.
pub(crate) fn keep_only(kept: &mut [RawFd]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.iter().copied().chain([RawFd::MAX]) {
        if last > first {
            let (first, last) = (libc::c_long::from(first), libc::c_long::from(last - 1));
            // SAFETY: the caller uses none of them, and their owners in this copy of a process are never
            // dropped, as it ends or runs a program.
            result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
        first = first.max(last.saturating_add(1));
    }
    Ok(())
}

/// Closes every descriptor beyond `last` when this process runs its program.
///
/// # Errors
/// The error of close_range(2); `EINVAL` before Linux 5.11.
pub(crate) fn keep_up_to(last: RawFd) -> Result<(), Errno> {
    let first = libc::c_uint::try_from(last + 1).map_err(|_| Errno::INVAL)?;
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: nothing is closed now, and the next program has no use for any of them.
    result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) })
        .map(drop)
}

/// Leaves the namespaces of `flags` for new ones.
///
/// # Errors
/// The error of unshare(2).
pub(crate) fn leave(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: namespaces only: descriptors and memory stay what they are.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Takes over a descriptor below 32 that this program was started with, once.
///
/// # Errors
/// `EBADF` where it is not open, or was taken over before.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let bit = u32::try_from(number).ok().and_then(|number| 1_u32.checked_shl(number));
    let bit = bit.ok_or(Errno::BADF)?;
    // SAFETY: asks about a number; harmless for any.
    result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    if TAKEN.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and who started this program says that it is for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Runs the program in `file` in place of this one. Returns only after a failure.
pub(crate) fn run_program(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null and their strings live until the call has failed.
    let failed = result(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    });
    failed.err().unwrap_or(Errno::INVAL)
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MountAttr {
    pub(crate) attr_set: u64,
    pub(crate) attr_clr: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount at `path` and to those below it.
///
/// # Errors
/// The error of mount_setattr(2); `ENOSYS` before Linux 5.12.
pub(crate) fn add_mount_attributes(path: &CString, attributes: u64) -> Result<(), Errno> {
    let attr = MountAttr { attr_set: attributes, ..MountAttr::default() };
    // SAFETY: the path ends with a null, and the structure has the size that is given.
    result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Ends this process at once.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process; nothing that it holds is used again.
    unsafe { libc::_exit(status) }
}

/// `struct landlock_ruleset_attr`, as of ABI 6.
#[repr(C)]
#[derive(Default)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: i32 = 1;
const ACCESS_FS_EXECUTE: u64 = 1;
const ACCESS_FS_READ_FILE: u64 = 1 << 2;
const ACCESS_FS_READ_DIR: u64 = 1 << 3;

/// Returns the version of the ABI of this kernel's Landlock; 0 where there is none.
pub(crate) fn landlock_abi() -> i64 {
    let version = CREATE_RULESET_VERSION;
    // SAFETY: without attributes the call only tells its version.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, null::<RulesetAttr>(), 0_usize, version)
    };
    result(abi).unwrap_or(0)
}

/// Denies this process all files but `program` and the folders `readable`, which it may read and
/// run, and, where the kernel supports it, TCP, other processes' abstract sockets, and signals to
/// them.
///
/// # Errors
/// The error of Landlock.
pub(crate) fn landlock(program: &OwnedFd, readable: &[OwnedFd]) -> Result<(), Errno> {
    let abi = landlock_abi();
    let rights_fs = match abi {
        ..=0 => return Err(Errno::NOSYS),
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    let attr = RulesetAttr {
        handled_access_fs: (1 << rights_fs) - 1,
        handled_access_net: if abi >= 4 { 3 } else { 0 },
        scoped: if abi >= 6 { 3 } else { 0 },
    };
    let size = if abi >= 6 {
        24_usize
    } else if abi >= 4 {
        16
    } else {
        8
    };
    // SAFETY: the structure is at least as long as the size given.
    let ruleset = result(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0_u32)
    })?;
    let raw = RawFd::try_from(ruleset).map_err(|_| Errno::BADF)?;
    // SAFETY: a new descriptor that nobody else knows.
    let ruleset = unsafe { OwnedFd::from_raw_fd(raw) };
    let file = ACCESS_FS_EXECUTE | ACCESS_FS_READ_FILE;
    let folders = readable.iter().map(|folder| (folder, file | ACCESS_FS_READ_DIR));
    for (parent, allowed_access) in folders.chain([(program, file)]) {
        let rule = PathBeneathAttr { allowed_access, parent_fd: parent.as_raw_fd() };
        // SAFETY: the rule is of the kind named, and its descriptor is open.
        result(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0_u32,
            )
        })?;
    }
    // SAFETY: takes a descriptor and no flags.
    result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) })
        .map(drop)
}

/// Makes the program that `command` starts the leader of a session of its own, whose controlling
/// terminal is the program's standard input.
pub fn lead_session(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let lead = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls, and neither allocates nor
    // takes a lock.
    unsafe { command.pre_exec(lead) };
}
