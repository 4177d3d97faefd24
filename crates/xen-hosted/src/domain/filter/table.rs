//! The table of a domain's system calls: rows of calls that have the same rule. docs/platform.md
//! has the same table.

use crate::domain::config::ConsoleTerminal;
use confine::Arg;

/// A system call: its number on this architecture, and its name.
type Call = (libc::c_long, &'static str);

/// Calls by the names that libc has for their numbers.
macro_rules! calls {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

/// Requests of ioctl(2) by the names that libc has for their numbers: a condition for each, and the
/// names in words.
macro_rules! requests {
    ($first:ident $($more:ident)*) => {
        (
            &[&[Arg::Is(1, libc::$first)], $(&[Arg::Is(1, libc::$more)]),*],
            concat!("`", stringify!($first), "`", $(", `", stringify!($more), "`"),*),
        )
    };
}

/// A sandbox that calls are made in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sandbox {
    pub(crate) processes: Processes,
    /// True if no other domain has its user: what the kernel counts by user is its own.
    pub(crate) own_user: bool,
    /// The terminal of its console, as it has it.
    pub(crate) terminal: ConsoleTerminal,
}

/// The operations on processes that a domain may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Processes {
    /// All of them: it has a process namespace of its own, and sees no others.
    OfItsOwn,
    /// Starting threads, and signalling them, in the process with this number. There is no
    /// namespace, so another process would outlive the domain, and a call that names a process, a
    /// file or a socket could name that of any process of this user.
    ThreadsOf(u32),
}

/// The sandboxes that a row of the table is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SandboxSet {
    Every,
    /// One with namespaces.
    Namespaces,
    /// One without: a single process that sees the host.
    Alone,
    /// One with namespaces, or with a user of its own.
    NotOfTheHost,
    /// One with a terminal of its own, which has namespaces.
    Terminal,
    /// One without a terminal of its own.
    NoTerminal,
}

impl SandboxSet {
    pub(super) fn holds(self, sandbox: Sandbox) -> bool {
        let alone = sandbox.processes != Processes::OfItsOwn;
        match self {
            Self::Every => true,
            Self::Namespaces => !alone,
            Self::Alone => alone,
            Self::NotOfTheHost => !alone || sandbox.own_user,
            Self::Terminal => sandbox.terminal == ConsoleTerminal::Private,
            Self::NoTerminal => sandbox.terminal == ConsoleTerminal::None,
        }
    }
}

/// The placeholder in the table for the number of the domain's one process. An argument of 32 bits
/// never equals it.
pub(super) const OWN_PROCESS: u64 = u64::MAX;

/// Calls that have the same rule.
pub(super) struct FilterRow {
    pub(super) calls: &'static [Call],
    pub(super) sandboxes: SandboxSet,
    /// Alternatives: the call is let through where all conditions of one of them hold; without any,
    /// with all arguments.
    pub(super) when: &'static [&'static [Arg]],
    /// The conditions in words.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the table in the docs"))]
    arguments: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the table in the docs"))]
    why: &'static str,
}

impl FilterRow {
    const fn any(sandboxes: SandboxSet, calls: &'static [Call], why: &'static str) -> Self {
        Self { calls, sandboxes, when: &[], arguments: "", why }
    }

    const fn when(
        sandboxes: SandboxSet,
        calls: &'static [Call],
        when: &'static [&'static [Arg]],
        arguments: &'static str,
        why: &'static str,
    ) -> Self {
        Self { calls, sandboxes, when, arguments, why }
    }
}

const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;
/// Flags of open(2) that allow more than reading.
const CHANGES: u64 = (libc::O_WRONLY
    | libc::O_RDWR
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;
const NONBLOCK: u64 = libc::O_NONBLOCK as u64;
const SETFL: u64 = libc::F_SETFL as u64;
const THREAD: u64 = libc::CLONE_THREAD as u64;
const PROCESS: u64 = 0;
const GROUP: u64 = 1;

/// Conditions of which one has to hold, and the conditions in words.
type RequestConditions = (&'static [&'static [Arg]], &'static str);

/// The requests that programs make without having a terminal. C libraries ask whether a descriptor
/// is a terminal by `TCGETS2` (glibc from 2.42 on) or `TCGETS`.
const REQUESTS: RequestConditions = requests![TCGETS TCGETS2 TIOCGWINSZ FIONREAD FIOCLEX FIONCLEX];

/// The requests of a domain with a terminal:
///
/// - tcgetattr(3), tcsetattr(3) of each C library, tcgetwinsize(3), tcsetwinsize(3);
/// - tcgetpgrp(3), tcsetpgrp(3), tcgetsid(3), and to have a controlling terminal or no more;
/// - tcdrain(3), tcflush(3), tcflow(3), and how much waits on its way in and out;
/// - for who has the master, the other end and its number.
///
/// A break (`TCSBRKP`) is for serial lines; tcdrain(3) and the shortest break are one request.
const TERMINAL_REQUESTS: RequestConditions = requests![
    TCGETS TCGETS2 TIOCGWINSZ FIONREAD FIOCLEX FIONCLEX TCSETS TCSETSW TCSETSF TCSETS2 TCSETSW2 TCSETSF2 TIOCSWINSZ
    TIOCGPGRP TIOCSPGRP TIOCGSID TIOCSCTTY TIOCNOTTY TCSBRK TCFLSH TCXONC TIOCOUTQ TIOCGPTPEER TIOCGPTN
];

/// The table, without the calls that only some architectures have.
const ROWS: &[FilterRow] = &[
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2
            SYS_pwritev2 SYS_lseek SYS_sendfile SYS_copy_file_range SYS_splice SYS_ftruncate SYS_fallocate SYS_fsync
            SYS_fdatasync SYS_close SYS_close_range SYS_dup SYS_dup3
        ],
        "on descriptors that it has",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_readlinkat
            SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask
        ],
        "tells of files that it sees; without namespaces also whether others are there, and whose",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![SYS_flock],
        "on files that it has open; without namespaces programs and libraries of the host are among them",
    ),
    FilterRow::any(
        SandboxSet::Namespaces,
        calls![
            SYS_openat SYS_openat2 SYS_mkdirat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat SYS_symlinkat
            SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat
        ],
        "its files are its own: `/tmp`, what it serves at `/dev`, memory; and what its creator has given it as standard \
         input, output and errors. The host's are mounted for reading",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_openat],
        &[&[Arg::Without(2, CHANGES)]],
        "for reading, of a file that is there",
        "all files of its user have modes, times and names that Landlock does not guard, and contents that it does not \
         guard where there is none. So nothing is opened for writing, and nothing but a descriptor's contents is changed",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_mknodat],
        &[
            &[Arg::Masked(2, libc::S_IFMT as u64, libc::S_IFREG as u64)],
            &[Arg::Masked(2, libc::S_IFMT as u64, libc::S_IFIFO as u64)],
            &[Arg::Masked(2, libc::S_IFMT as u64, libc::S_IFSOCK as u64)],
        ],
        "files, FIFOs, sockets",
        "devices are drivers of the host",
    ),
    FilterRow::when(
        SandboxSet::Every,
        calls![SYS_fadvise64],
        &[&[Arg::IsNot(3, libc::POSIX_FADV_DONTNEED as u64)]],
        "no `POSIX_FADV_DONTNEED`",
        "the host's files are in the host's cache",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_pipe2 SYS_eventfd2 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_signalfd4
            SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6
        ],
        "its own, bounded by its descriptors and tasks; pipes and epoll see [users](#users)",
    ),
    FilterRow::when(
        SandboxSet::Every,
        calls![SYS_memfd_create],
        &[&[Arg::Without(1, libc::MFD_HUGETLB as u64)]],
        "no `MFD_HUGETLB`",
        "huge pages are the machine's, and in no account",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_fcntl],
        &[
            &[
                Arg::IsNot(1, SETFL),
                Arg::IsNot(1, libc::F_SETLEASE as u64),
                Arg::IsNot(1, libc::F_NOTIFY as u64),
            ],
            &[Arg::Is(1, SETFL), Arg::With(2, NONBLOCK)],
        ],
        "`F_SETFL` only with `O_NONBLOCK` among the flags; no leases, no notices",
        "a descriptor that blocks stops who shares it; a lease holds up who opens a file of the host",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_fcntl],
        &[
            &[Arg::Is(1, libc::F_DUPFD as u64)],
            &[Arg::Is(1, libc::F_DUPFD_CLOEXEC as u64)],
            &[Arg::Is(1, libc::F_GETFD as u64)],
            &[Arg::Is(1, libc::F_SETFD as u64)],
            &[Arg::Is(1, libc::F_GETFL as u64)],
            &[Arg::Is(1, SETFL), Arg::With(2, NONBLOCK)],
            &[Arg::Is(1, libc::F_GETLK as u64)],
            &[Arg::Is(1, libc::F_SETLK as u64)],
            &[Arg::Is(1, libc::F_SETLKW as u64)],
            &[Arg::Is(1, libc::F_OFD_GETLK as u64)],
            &[Arg::Is(1, libc::F_OFD_SETLK as u64)],
            &[Arg::Is(1, libc::F_OFD_SETLKW as u64)],
            &[Arg::Is(1, libc::F_GETPIPE_SZ as u64)],
            &[Arg::Is(1, libc::F_ADD_SEALS as u64)],
            &[Arg::Is(1, libc::F_GET_SEALS as u64)],
        ],
        "descriptors, flags as above, locks, seals",
        "an owner is sent signals, a lease and a notice hold up who opens a file",
    ),
    FilterRow::when(
        SandboxSet::NoTerminal,
        calls![SYS_ioctl],
        REQUESTS.0,
        REQUESTS.1,
        "is this a terminal, and how large, how much is there to read; each driver has others",
    ),
    FilterRow::when(
        SandboxSet::Terminal,
        calls![SYS_ioctl],
        TERMINAL_REQUESTS.0,
        TERMINAL_REQUESTS.1,
        "for shells, editors and job control: modes, size, foreground group, session, other end, what waits. Not what \
         types (`TIOCSTI`), pastes (`TIOCLINUX`), takes the host's console (`TIOCCONS`), loads a line discipline \
         (`TIOCSETD`), shuts others out (`TIOCEXCL`, `TIOCSPTLCK`) or makes a descriptor blocking (`FIONBIO`)",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_socket],
        &[&[Arg::Is(0, libc::AF_UNIX as u64)]],
        "`AF_UNIX`",
        "its network has no interface, and other families are much code",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_socketpair],
        &[&[Arg::Is(0, libc::AF_UNIX as u64)]],
        "`AF_UNIX`",
        "each family's code runs, and is loaded, before it is asked for pairs",
    ),
    FilterRow::any(
        SandboxSet::Namespaces,
        calls![SYS_bind SYS_listen SYS_accept4 SYS_connect],
        "between its own processes: names of sockets are those of its files and of its network",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_socketpair],
        &[
            &[Arg::Is(0, libc::AF_UNIX as u64), Arg::Masked(1, 0xf, libc::SOCK_STREAM as u64)],
            &[Arg::Is(0, libc::AF_UNIX as u64), Arg::Masked(1, 0xf, libc::SOCK_SEQPACKET as u64)],
        ],
        "`AF_UNIX`, streams and packets",
        "a datagram takes an address with it; a socket with a name is somebody else's: the store's, the broker's",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_shutdown SYS_sendto SYS_recvfrom SYS_recvmsg SYS_recvmmsg SYS_getsockopt SYS_getsockname SYS_getpeername
        ],
        "on sockets that it has",
    ),
    FilterRow::any(
        SandboxSet::NotOfTheHost,
        calls![SYS_sendmsg SYS_sendmmsg],
        "descriptors on their way are counted by user, see [users](#users)",
    ),
    FilterRow::when(
        SandboxSet::Every,
        calls![SYS_setsockopt],
        &[&[
            Arg::IsNot(2, libc::SO_ATTACH_FILTER as u64),
            Arg::IsNot(2, libc::SO_ATTACH_BPF as u64),
            Arg::IsNot(2, libc::SO_ATTACH_REUSEPORT_CBPF as u64),
            Arg::IsNot(2, libc::SO_ATTACH_REUSEPORT_EBPF as u64),
        ]],
        "no filters",
        "memory of compiled filters is bounded for the machine (`bpf_jit_limit`): a domain could have all of it, and \
         nobody else get a filter, nor another domain its sandbox",
    ),
    FilterRow::when(
        SandboxSet::Every,
        calls![SYS_mmap],
        &[&[Arg::Without(3, libc::MAP_HUGETLB as u64)]],
        "no `MAP_HUGETLB`",
        "huge pages are the machine's, and in no account",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_mprotect SYS_munmap SYS_mremap SYS_msync SYS_mincore SYS_mlock SYS_munlock SYS_membarrier
            SYS_brk
        ],
        "its own memory; it may lock none (`RLIMIT_MEMLOCK`)",
    ),
    FilterRow::when(
        SandboxSet::Every,
        calls![SYS_madvise],
        &[&[
            Arg::IsNot(2, libc::MADV_MERGEABLE as u64),
            Arg::IsNot(2, libc::MADV_COLD as u64),
            Arg::IsNot(2, libc::MADV_PAGEOUT as u64),
        ]],
        "not `MADV_MERGEABLE`, `MADV_COLD`, `MADV_PAGEOUT`",
        "memory is merged with nobody's; the host's files are in the host's cache",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_futex SYS_set_robust_list
            SYS_get_robust_list SYS_rseq SYS_set_tid_address SYS_gettid SYS_getpid SYS_getppid SYS_getpgid SYS_setpgid
            SYS_setsid SYS_getsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getgroups SYS_getresuid
            SYS_getresgid SYS_capget
        ],
        "itself and its children; no program gives it a privilege (`no_new_privs`)",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend
            SYS_rt_sigtimedwait SYS_sigaltstack SYS_restart_syscall
        ],
        "signals to itself",
    ),
    FilterRow::any(
        SandboxSet::Namespaces,
        calls![SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigqueueinfo SYS_pidfd_open SYS_pidfd_send_signal],
        "it sees no processes but its own; `RLIMIT_SIGPENDING` bounds what waits",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_kill SYS_tgkill],
        &[&[Arg::Is(0, OWN_PROCESS)]],
        "its own process",
        "others of its user are in sight",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_clone],
        &[&[Arg::Without(0, NAMESPACES)]],
        "no namespace",
        "in a namespace of its own it would have all privileges, and much more of the kernel",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_clone],
        &[&[Arg::Without(0, NAMESPACES), Arg::With(0, THREAD)]],
        "threads",
        "a process would outlive the domain",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_sched_yield SYS_sched_getaffinity SYS_sched_getparam SYS_sched_getscheduler SYS_sched_getattr SYS_sched_get_priority_max
            SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_ioprio_get SYS_getpriority SYS_getcpu
            SYS_getrusage
        ],
        "tells; gives way",
    ),
    FilterRow::any(
        SandboxSet::Namespaces,
        calls![SYS_sched_setaffinity SYS_prlimit64],
        "its own processes; no bound is raised beyond what the sandbox has set",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_sched_setaffinity SYS_prlimit64],
        &[&[Arg::Is(0, OWN_PROCESS)], &[Arg::Is(0, 0)]],
        "its own process",
        "others of its user are in sight",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_setpriority],
        &[&[Arg::Is(0, PROCESS)], &[Arg::Is(0, GROUP)]],
        "of a process or group",
        "users are the host's",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_setpriority],
        &[&[Arg::Is(0, PROCESS), Arg::Is(1, 0)]],
        "its own process",
        "`PRIO_USER` would slow broker and store",
    ),
    FilterRow::when(
        SandboxSet::Every,
        calls![SYS_prctl],
        &[
            &[Arg::Is(0, libc::PR_GET_PDEATHSIG as u64)],
            &[Arg::Is(0, libc::PR_GET_DUMPABLE as u64)],
            &[Arg::Is(0, libc::PR_SET_DUMPABLE as u64)],
            &[Arg::Is(0, libc::PR_GET_KEEPCAPS as u64)],
            &[Arg::Is(0, libc::PR_SET_KEEPCAPS as u64)],
            &[Arg::Is(0, libc::PR_SET_NAME as u64)],
            &[Arg::Is(0, libc::PR_GET_NAME as u64)],
            &[Arg::Is(0, libc::PR_GET_SECCOMP as u64)],
            &[Arg::Is(0, libc::PR_CAPBSET_READ as u64)],
            &[Arg::Is(0, libc::PR_GET_SECUREBITS as u64)],
            &[Arg::Is(0, libc::PR_SET_TIMERSLACK as u64)],
            &[Arg::Is(0, libc::PR_GET_TIMERSLACK as u64)],
            &[Arg::Is(0, libc::PR_SET_CHILD_SUBREAPER as u64)],
            &[Arg::Is(0, libc::PR_GET_CHILD_SUBREAPER as u64)],
            &[Arg::Is(0, libc::PR_SET_NO_NEW_PRIVS as u64)],
            &[Arg::Is(0, libc::PR_GET_NO_NEW_PRIVS as u64)],
            &[Arg::Is(0, libc::PR_GET_TID_ADDRESS as u64)],
            &[Arg::Is(0, libc::PR_SET_THP_DISABLE as u64)],
            &[Arg::Is(0, libc::PR_GET_THP_DISABLE as u64)],
            &[Arg::Is(0, libc::PR_CAP_AMBIENT as u64)],
            &[Arg::Is(0, libc::PR_GET_SPECULATION_CTRL as u64)],
            &[Arg::Is(0, libc::PR_SET_SPECULATION_CTRL as u64)],
            &[Arg::Is(0, libc::PR_SET_VMA as u64)],
        ],
        "names, dumpability, timer slack, subreaper, what tells",
        "not its death with the broker, nor filters (as above), nor core scheduling, which would keep a processor idle \
         beside it, nor memory that is merged with others'",
    ),
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_setitimer
            SYS_getitimer
            SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_times SYS_getrandom SYS_uname SYS_sysinfo
        ],
        "time, chance, and what machine this is; `RLIMIT_SIGPENDING` bounds its timers",
    ),
];

/// The older forms that x86 keeps beside those above.
#[cfg(target_arch = "x86_64")]
const ROWS_OF_X86: &[FilterRow] = &[
    FilterRow::any(
        SandboxSet::Every,
        calls![
            SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents SYS_dup2 SYS_pipe SYS_eventfd SYS_epoll_create
            SYS_epoll_wait SYS_poll SYS_select SYS_getpgrp SYS_arch_prctl SYS_time SYS_alarm SYS_pause
        ],
        "as those above",
    ),
    FilterRow::any(
        SandboxSet::Namespaces,
        calls![
            SYS_open SYS_creat SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_link SYS_symlink SYS_chmod SYS_chown
            SYS_lchown SYS_accept SYS_fork SYS_vfork
        ],
        "as those above",
    ),
    FilterRow::when(
        SandboxSet::Namespaces,
        calls![SYS_mknod],
        &[
            &[Arg::Masked(1, libc::S_IFMT as u64, libc::S_IFREG as u64)],
            &[Arg::Masked(1, libc::S_IFMT as u64, libc::S_IFIFO as u64)],
            &[Arg::Masked(1, libc::S_IFMT as u64, libc::S_IFSOCK as u64)],
        ],
        "files, FIFOs, sockets",
        "as `mknodat`",
    ),
    FilterRow::when(
        SandboxSet::Alone,
        calls![SYS_open],
        &[&[Arg::Without(1, CHANGES)]],
        "for reading, of a file that is there",
        "as `openat`",
    ),
];
#[cfg(not(target_arch = "x86_64"))]
const ROWS_OF_X86: &[FilterRow] = &[];

/// Returns all rows.
pub(super) fn rows() -> impl Iterator<Item = &'static FilterRow> {
    ROWS.iter().chain(ROWS_OF_X86)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Formats the table as docs/platform.md has it.
    fn table() -> String {
        let mut text = String::from("| calls | sandbox | arguments | why |\n|---|---|---|---|\n");
        for row in rows() {
            let names: Vec<String> = row
                .calls
                .iter()
                .map(|(_, name)| format!("`{}`", name.strip_prefix("SYS_").unwrap_or(name)))
                .collect();
            let place = match row.sandboxes {
                SandboxSet::Every => "every",
                SandboxSet::Namespaces => "with namespaces",
                SandboxSet::Alone => "without namespaces",
                SandboxSet::NotOfTheHost => "with namespaces, or a user of its own",
                SandboxSet::Terminal => "with a terminal of its own",
                SandboxSet::NoTerminal => "without a terminal of its own",
            };
            let arguments = if row.arguments.is_empty() { "any" } else { row.arguments };
            let names = names.join(", ");
            text += &format!("| {names} | {place} | {arguments} | {} |\n", row.why);
        }
        text
    }

    /// Writes the table where `WRITE_TABLES` is set, instead of comparing it.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_table_of_calls_is_in_the_docs() {
        let (begin, end) = ("<!-- system calls -->\n", "<!-- end of system calls -->");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/platform.md");
        let docs = std::fs::read_to_string(path).unwrap();
        let (before, rest) = docs.split_once(begin).unwrap();
        let (is, after) = rest.split_once(end).unwrap();
        let should = table();
        if is != should && std::env::var_os("WRITE_TABLES").is_some() {
            std::fs::write(path, [before, begin, &should, end, after].concat()).unwrap();
            return;
        }
        assert_eq!(is, should, "WRITE_TABLES=1 cargo test -p xen-hosted table_of_calls writes it");
    }
}
