//! Loop devices and mounts of the host's kernel for a guest whose configuration says
//! `kernel_block=1`: the part of its domain 0, as root.
//!
//! The guest is created with [`Devices::KernelFiles`](crate::domain::Devices::KernelFiles). The
//! loop device's file is the guest's own `/dev/xvda`, so each read and write of the kernel takes
//! the path of the guest's programs: FUSE, frontend, ring, backend. The file system is mounted into
//! the guest's mount namespace; there, files of root on the disk belong to the guest's user.
//!
//! **Such a guest is trusted with the host's kernel:** it chooses each byte that the kernel's file
//! system reads, and file systems are not made for hostile input.
//!
//! When the guest dies, mount and loop device go with it. Data that was not synced is lost, as with
//! a machine whose power fails.
#![allow(unsafe_code)]

use crate::domctl::process_number;
use crate::sys::MountAttr;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::process::{
    Gid, Pid, PidfdFlags, Signal, Uid, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use rustix::time::Timespec;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use xen::gnttab::PageAccess;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// The number of tries to get a free loop device, as another process may take the one that was
/// found.
const TRIES: usize = 16;
/// The longest time that the guest may take to answer, in seconds.
const WITHIN_S: i64 = 30;

/// `struct loop_config` (`linux/loop.h`), with `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    numbers: [u64; 5],
    lo_number: u32,
    lo_encrypt: [u32; 2],
    lo_flags: u32,
    names: [u8; 160],
    rest: [u64; 10],
}

/// A loop device over a file of a guest. It is removed when nobody has it open or mounted any more.
#[derive(Debug)]
pub struct LoopDevice {
    /// Only kept open: the kernel removes a loop device that nobody has open.
    _device: OwnedFd,
    path: PathBuf,
    guest: GuestNamespaces,
}

/// The means of entering a guest's namespaces.
#[derive(Debug)]
struct GuestNamespaces {
    /// Its first process.
    process: OwnedFd,
    /// The id of its user on the host.
    outer: u32,
}

/// A step on the way to a mount.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Step {
    /// Finding the guest's first process.
    Process,
    /// Opening `/dev/loop-control`.
    Control,
    /// Finding a loop device that nobody uses.
    Free,
    /// Opening a loop device of domain 0.
    Device(PathBuf),
    /// Opening this file in the guest, and giving it to a loop device.
    File(String),
    /// Making the mount of a loop device, whose file system is of this type.
    Mount {
        /// The loop device.
        device: PathBuf,
        /// `ext4`.
        fs_type: String,
    },
    /// Making a namespace in which the guest's user is root.
    Users,
    /// Mapping the owners of files to the guest's user.
    Owners(PathBuf),
    /// Putting the mount of a loop device at this path in the guest.
    Place(PathBuf, String),
    /// Unmounting what is at this path in the guest.
    Unmount(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("the guest's first process"),
            Self::Control => f.write_str("/dev/loop-control (no module loop, or not root)"),
            Self::Free => f.write_str("a free loop device"),
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::File(file) => write!(f, "a loop device of the guest's {file}"),
            Self::Mount { device, fs_type } => {
                write!(f, "mounting {} ({fs_type})", device.display())
            }
            Self::Users => f.write_str("a user namespace"),
            Self::Owners(path) => write!(f, "mounting {}: its owners", path.display()),
            Self::Place(device, place) => {
                write!(f, "mounting {} at {place} in the guest", device.display())
            }
            Self::Unmount(place) => write!(f, "unmounting {place} in the guest"),
        }
    }
}

/// The error of making a loop device or a mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The step that failed.
    pub step: Step,
    /// The system's error.
    pub errno: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.errno)
    }
}

impl std::error::Error for Error {}

/// Returns a converter for the `map_err` of a system call: its error becomes that of a step.
fn at(step: Step) -> impl FnOnce(Errno) -> Error {
    move |errno| Error { step, errno }
}

/// Converts a path for system calls.
fn path(text: &str, step: Step) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error { step, errno: Errno::INVAL })
}

impl LoopDevice {
    /// Makes a loop device of `file` (`/dev/xvda`) in the guest whose first `process` this is
    /// (`xen_hosted::domctl::Control::process`). Needs root.
    ///
    /// # Errors
    /// [`Step::Control`], [`Step::File`] with `ENOENT` where the guest has no such file, and the others on the way.
    pub fn attach(process: BorrowedFd<'_>, file: &str, access: PageAccess) -> Result<Self, Error> {
        let guest = GuestNamespaces::new(process)?;
        let name = path(file, Step::File(file.to_owned()))?;
        let writes = access == PageAccess::ReadWrite;
        let flags = if writes { OFlags::RDWR } else { OFlags::RDONLY } | OFlags::CLOEXEC;
        let control = open("/dev/loop-control", flags, Mode::empty());
        let control = control.map_err(at(Step::Control))?;
        for _ in 0..TRIES {
            let number = ioctl(control.as_fd(), LOOP_CTL_GET_FREE, 0);
            let number = number.map_err(at(Step::Free))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path, flags, Mode::empty());
            let device = device.map_err(at(Step::Device(path.clone())))?;
            let configure = || {
                guest.enter_as_user()?;
                let file = open(name.as_c_str(), flags, Mode::empty())?;
                let mut config = LoopConfig::new(&file, access);
                let config: *mut LoopConfig = &raw mut config;
                ioctl(device.as_fd(), LOOP_CONFIGURE, config as usize).map(drop)
            };
            match in_child(configure) {
                Ok(()) => return Ok(Self { _device: device, path, guest }),
                Err(Errno::BUSY) => {}
                Err(errno) => return Err(at(Step::File(file.to_owned()))(errno)),
            }
        }
        Err(at(Step::Free)(Errno::BUSY))
    }

    /// Returns the path of the device: `/dev/loop0`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts its file system at `to` in the guest, an existing folder (`/mnt`), without
    /// set-user-id programs and devices.
    ///
    /// # Errors
    /// [`Step::Mount`], [`Step::Users`], [`Step::Owners`] or [`Step::Place`].
    pub fn mount(&self, fs_type: &str, access: PageAccess, to: &str) -> Result<(), Error> {
        let mount = Step::Mount { device: self.path.clone(), fs_type: fs_type.to_owned() };
        let failed = || at(mount.clone());
        let place = Step::Place(self.path.clone(), to.to_owned());
        let name = path(to, place.clone())?;
        let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed())?;
        fsconfig_set_string(&context, "source", &*self.path).map_err(failed())?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if access == PageAccess::Read {
            fsconfig_set_flag(&context, "ro").map_err(failed())?;
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        // Done in another process: the call reads files that the guest serves, and waits for it.
        in_child(|| fsconfig_create(&context)).map_err(failed())?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        let mount = mount.map_err(failed())?;
        let owners = || at(Step::Owners(self.path.clone()));
        let users = users_as(self.guest.outer).map_err(at(Step::Users))?;
        map_owners(mount.as_fd(), users.as_fd()).map_err(owners())?;
        let put = || {
            self.guest.enter_mounts()?;
            let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(mount.as_fd(), c"", rustix::fs::CWD, name.as_c_str(), from)
        };
        in_child(put).map_err(at(place))
    }
}

/// Unmounts the file system at `from` in the guest, after all of it was written.
///
/// # Errors
/// [`Step::Unmount`], with `EBUSY` where the guest uses it.
pub fn unmount_in(process: BorrowedFd<'_>, from: &str) -> Result<(), Error> {
    let guest = GuestNamespaces::new(process)?;
    let name = path(from, Step::Unmount(from.to_owned()))?;
    let leave = || {
        guest.enter_mounts()?;
        unmount(name.as_c_str(), UnmountFlags::empty())
    };
    in_child(leave).map_err(at(Step::Unmount(from.to_owned())))
}

impl GuestNamespaces {
    fn new(process: BorrowedFd<'_>) -> Result<Self, Error> {
        let pid = process_number(process).map_err(at(Step::Process))?;
        let proc = rustix::fs::stat(format!("/proc/{}", pid.as_raw_nonzero()));
        let outer = proc.map_err(at(Step::Process))?.st_uid;
        let process = rustix::io::fcntl_dupfd_cloexec(process, 3).map_err(at(Step::Process))?;
        Ok(Self { process, outer })
    }

    /// Makes the calling process see the guest's files. The process has to have one thread.
    fn enter_mounts(&self) -> Result<(), Errno> {
        let mounts = ThreadNameSpaceType::MOUNT;
        move_into_thread_name_spaces(self.process.as_fd(), mounts)
    }

    /// Makes the calling process the guest's user, who alone may use its files. The process has to
    /// have one thread.
    fn enter_as_user(&self) -> Result<(), Errno> {
        self.enter_mounts()?;
        let (uid, gid) = (Uid::from_raw(self.outer), Gid::from_raw(self.outer));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)
    }
}

impl LoopConfig {
    fn new(file: &OwnedFd, access: PageAccess) -> Self {
        let mut lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
        if access == PageAccess::Read {
            lo_flags |= LO_FLAGS_READ_ONLY;
        }
        Self {
            fd: file.as_raw_fd().unsigned_abs(),
            block_size: 512,
            numbers: [0; 5],
            lo_number: 0,
            lo_encrypt: [0; 2],
            lo_flags,
            names: [0; 160],
            rest: [0; 10],
        }
    }
}

fn result(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value >= 0 {
        return Ok(value);
    }
    let number = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    Err(Errno::from_raw_os_error(number))
}

/// One of the calls above: its argument is none, or a `LoopConfig` that lives as long.
fn ioctl(fd: BorrowedFd<'_>, call: libc::Ioctl, argument: usize) -> Result<libc::c_long, Errno> {
    // SAFETY: the calls of this module take nothing, or read one `LoopConfig`, which has the layout of
    // `linux/loop.h`.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), call, argument) }.into())
}

/// Starts a process with a copy of this one's memory, in new namespaces of `flags`, which runs
/// `child` and ends with its result. `child` only makes system calls: a lock of another thread is
/// never unlocked there.
fn clone(flags: libc::c_int, child: impl FnOnce() -> Result<(), Errno>) -> Result<Pid, Errno> {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and a stack the child goes on here with its own copy of everything.
    let pid = result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    if pid == 0 {
        let status = child().err().map_or(0, Errno::raw_os_error);
        // SAFETY: ends the child without running what its parent has registered for its own end.
        unsafe { libc::_exit(status) }
    }
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)
}

/// Runs `child` in a process of its own, as it enters a guest. Returns its result.
fn in_child(child: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let pid = clone(0, child)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec { tv_sec: WITHIN_S, tv_nsec: 0 };
    let ended = loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => {}
            ended => break ended?,
        }
    };
    if ended == 0 {
        // The guest does not serve its own files in time.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        return Err(Errno::TIMEDOUT);
    }
    let status =
        waitpid(Some(pid), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
    match status {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw_os_error(errno)),
        None => Err(Errno::INTR),
    }
}

/// Makes a user namespace in which the host's user `outer` is root.
fn users_as(outer: u32) -> Result<OwnedFd, Errno> {
    let wait = || {
        // SAFETY: ends this process with its parent; it calls nothing else but this and pause(2).
        result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into())?;
        loop {
            // SAFETY: sleeps until a signal.
            unsafe { libc::pause() };
        }
    };
    let pid = clone(libc::CLONE_NEWUSER, wait)?;
    let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let made = (|| {
        std::fs::write(proc.join("uid_map"), format!("0 {outer} 1"))?;
        std::fs::write(proc.join("gid_map"), format!("0 {outer} 1"))?;
        File::open(proc.join("ns/user")).map(OwnedFd::from)
    })();
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
    made.map_err(|error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Maps the owners of files in a mount that is attached to no path yet to the ids that they have in
/// `users`.
fn map_owners(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: u64::from(users.as_raw_fd().unsigned_abs()),
        ..MountAttr::default()
    };
    // SAFETY: the path ends with a null, and the structure has the size that is given.
    result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
