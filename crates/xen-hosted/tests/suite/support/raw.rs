//! A domain's acts beneath the library: on its socket's bytes, and on an arena's memory.
#![allow(unsafe_code)]

use confine::{Arg, Calls};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The domain's socket to the broker, beside the library that has it.
pub(crate) fn socket() -> BorrowedFd<'static> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap();
    // SAFETY: a domain's program is started with it, and keeps it to its end.
    unsafe { BorrowedFd::borrow_raw(super::number_of("xen-broker", &names)) }
}

/// Sends words as a request, with a descriptor where `attach` says so, and takes the answer.
pub(crate) fn request(words: &[u64], attach: bool) -> (Vec<u64>, Vec<OwnedFd>) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let own = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    if attach {
        send_with(socket(), &bytes, &[own.as_fd()]).unwrap();
    } else {
        rustix::net::send(socket(), &bytes, SendFlags::NOSIGNAL).unwrap();
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 4096];
    let iov = &mut [IoSliceMut::new(&mut buffer)];
    let got = recvmsg(socket(), iov, &mut control, RecvFlags::empty()).unwrap();
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    let (words, _) = buffer[..got.bytes].as_chunks::<8>();
    (words.iter().map(|word| u64::from_ne_bytes(*word)).collect(), fds)
}

/// Sends bytes and descriptors.
fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    attached: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    // For as many as one message may have.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(attached)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Sends a descriptor as often as one message may have it.
pub(crate) fn pass(socket: impl AsFd, fd: impl AsFd) -> rustix::io::Result<()> {
    send_with(socket, b"x", &[fd.as_fd(); 253])
}

/// Sends words as a request, and takes no answer.
pub(crate) fn send_words(words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    rustix::net::send(socket(), &bytes, SendFlags::NOSIGNAL).unwrap();
}

/// Shuts the socket down in both directions. Returns the result.
pub(crate) fn hang_up() -> String {
    name(rustix::net::shutdown(socket(), rustix::net::Shutdown::Both))
}

/// Sends any bytes as a packet. Returns true if the socket took them.
pub(crate) fn send(bytes: &[u8]) -> bool {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(socket(), bytes, flags).is_ok()
}

/// Empties the pages of the own arena for `peer` behind the library's back.
pub(crate) fn punch(peer: u64) -> String {
    let (_, fds) = request(&[7, peer, 1, 0], false);
    let len = rustix::fs::fstat(&fds[0]).unwrap().st_size.unsigned_abs();
    let pages = u64::from(xen_hosted::limits::ARENA_PAGES) * 4096;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    name(fallocate(&fds[0], hole, len - pages, pages))
}

/// Grants `peer` page 9 of a writable arena without ever touching it, and does to the page all that
/// may harm a domain that maps it. Returns the reference and the results.
pub(crate) fn grant_and_abuse(peer: u64) -> String {
    let (words, fds) = request(&[7, peer, 1, 0], false);
    let came = abuse(&fds[0]);
    let entry = u32::try_from(peer << 16 | 1).unwrap();
    rustix::io::pwrite(&fds[0], &entry.to_ne_bytes(), 64 + 8 * 9).unwrap();
    let grant = words[2] * u64::from(xen_hosted::limits::ARENA_PAGES) + 9;
    format!("{grant} {came}")
}

/// Seals the pages of an arena that `peer` may only read before the broker does. Returns the
/// broker's answer.
pub(crate) fn seal_first(peer: u64) -> String {
    let (words, fds) = request(&[7, peer, 0, 0], false);
    let sealed = fcntl_add_seals(&fds[1], SealFlags::SEAL);
    let (mapped, _) = request(&[22, words[2]], false);
    format!("{} seal={} mapped={}", words[2], name(sealed), mapped[1])
}

fn name(result: Result<(), Errno>) -> String {
    match result {
        Ok(()) => "done".to_owned(),
        Err(errno) => format!("{}", errno.raw_os_error()),
    }
}

/// Tries with an arena's memfd all that may harm the other side. Returns the results.
pub(crate) fn abuse(fd: &OwnedFd) -> String {
    let len = 4096;
    let map = |access| {
        // SAFETY: a new mapping, which is left in place.
        unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, fd, 0) }
    };
    let write = map(ProtFlags::READ | ProtFlags::WRITE).map(drop);
    let upgrade = map(ProtFlags::READ).and_then(|at| {
        // SAFETY: the mapping that was just made and that nobody uses.
        unsafe { mprotect(at, len, MprotectFlags::READ | MprotectFlags::WRITE) }
    });
    let pwrite = rustix::io::pwrite(fd, b"x", 0).map(drop);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    format!(
        "map={} mprotect={} pwrite={} truncate={} grow={} punch={} seal={}",
        name(write),
        name(upgrade),
        name(pwrite),
        name(ftruncate(fd, 0)),
        name(ftruncate(fd, 1 << 30)),
        name(fallocate(fd, hole, 0, 4096)),
        name(fcntl_add_seals(fd, SealFlags::FUTURE_WRITE)),
    )
}

/// Writes into a file through a mapping, which stays.
pub(crate) fn write_mapped(file: impl AsFd, bytes: &[u8]) {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping that nobody else knows, as long as what is copied.
    unsafe {
        let at = mmap(std::ptr::null_mut(), bytes.len(), access, MapFlags::SHARED, file, 0);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.unwrap().cast(), bytes.len());
    }
}

/// Clears `O_NONBLOCK` of a descriptor in both possible ways. Returns the results.
pub(crate) fn make_blocking(fd: impl AsFd) -> String {
    let flags = rustix::fs::OFlags::empty();
    let setfl = rustix::fs::fcntl_setfl(&fd, flags);
    let ioctl = rustix::io::ioctl_fionbio(&fd, false);
    format!("setfl={} fionbio={}", name(setfl), name(ioctl))
}

/// Makes a process that is a copy of this one; `None` in the copy.
pub(crate) fn fork() -> std::io::Result<Option<i32>> {
    // SAFETY: the copy does nothing but sleep until it is killed.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Runs another program in place of this one, from a thread: its signals at another process's death
/// are not inherited.
pub(crate) fn run_from_a_thread(
    program: &'static std::ffi::CStr,
    argument: &'static std::ffi::CStr,
) -> ! {
    std::thread::spawn(move || {
        let arguments = [program.as_ptr(), argument.as_ptr(), std::ptr::null()];
        let no_variables = [std::ptr::null()];
        // SAFETY: both lists end with a null, and their strings are the program's own.
        unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), no_variables.as_ptr()) };
    });
    loop {
        std::thread::park();
    }
}

/// Lists the open descriptors that this program was started with.
pub(crate) fn descriptors() -> String {
    let opened: Vec<String> = (0..1024)
        .filter(|number| {
            // SAFETY: asks about a number; harmless for any.
            let flags = unsafe { libc::fcntl(*number, libc::F_GETFD) };
            // Descriptors that the library has opened since close with the program.
            flags >= 0 && (flags & libc::FD_CLOEXEC == 0 || *number == 3)
        })
        .map(|number| number.to_string())
        .collect();
    opened.join(" ")
}

/// Tries operations on the process `pid` of the same user without being its parent.
pub(crate) fn others(pid: libc::pid_t) -> String {
    let errno = |result: libc::c_long| match result {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    };
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    let all = [1_u64; 16];
    let who = libc::id_t::try_from(pid).unwrap();
    // SAFETY: all arguments are numbers, or memory of this function that the calls read.
    let came = unsafe {
        [
            ("setpriority", errno(libc::setpriority(libc::PRIO_PROCESS, who, 19).into())),
            (
                "prlimit",
                errno(libc::syscall(
                    libc::SYS_prlimit64,
                    pid,
                    libc::RLIMIT_CORE,
                    &raw const limit,
                    0,
                )),
            ),
            ("affinity", errno(libc::syscall(libc::SYS_sched_setaffinity, pid, 128, all.as_ptr()))),
            ("setown", errno(libc::fcntl(0, libc::F_SETOWN, pid).into())),
            (
                "dgram",
                errno(
                    libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, [0; 2].as_mut_ptr())
                        .into(),
                ),
            ),
        ]
    };
    came.map(|(name, errno)| format!("{name}={errno}")).join(" ")
}

/// Has a system call refused to this process and to all that it starts.
pub(crate) fn refusing(
    call: libc::c_long,
    errno: i32,
) -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
    refusing_where(call, &[], errno)
}

/// Has a system call refused where all these arguments, by their place, are at least these values.
pub(crate) fn refusing_where(
    call: libc::c_long,
    at_least: &[(u8, u64)],
    errno: i32,
) -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
    refusing_if(
        call,
        at_least.iter().map(|(place, least)| Arg::AtLeast(*place, *least)).collect(),
        errno,
    )
}

/// Refuses a system call where an argument, by its place, is exactly this value.
pub(crate) fn refusing_exactly(
    call: libc::c_long,
    (place, value): (u8, u64),
    errno: i32,
) -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
    refusing_if(call, vec![Arg::Is(place, value)], errno)
}

fn refusing_if(
    call: libc::c_long,
    all: Vec<Arg>,
    errno: i32,
) -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
    let alternatives = if all.is_empty() { Vec::new() } else { vec![all] };
    let errno = Errno::from_raw_os_error(errno);
    let filter = Calls::default().when(call, alternatives).fail(errno).unwrap();
    move || filter.install().map_err(std::io::Error::other)
}

/// Makes this process be killed for any further system call but the one that ends it.
pub(crate) fn no_more_calls() {
    Calls::any(&[libc::SYS_exit_group]).else_kill().unwrap().install().unwrap();
}

/// Ends this process with a status, and does nothing else.
pub(crate) fn exit_at_once(status: i32) -> ! {
    // SAFETY: nothing of this process is used again.
    unsafe { libc::_exit(status) }
}

/// Has `set` run in the new process before its program does.
pub(crate) fn before_exec(
    command: &mut std::process::Command,
    set: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt;
    // SAFETY: what the tests set here are system calls that take no lock and no memory.
    unsafe { command.pre_exec(set) };
}
