//! Filters of system calls, as the kernel's seccomp takes them (`seccomp(2)`, `SECCOMP_SET_MODE_FILTER`).

use libc::c_long;
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use std::fmt;

/// A condition on an argument, by its place from 0. The lower 32 bits are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// It equals the value.
    Is(u8, u64),
    /// It differs from the value.
    IsNot(u8, u64),
    /// It is at least the value.
    AtLeast(u8, u64),
    /// It has none of the bits.
    Without(u8, u64),
    /// It has all of the bits.
    With(u8, u64),
    /// Its bits in the mask are exactly those of the last value.
    Masked(u8, u64, u64),
}

/// The reason why there is no filter, or why the kernel does not accept it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The rules cannot be compiled, or there is no filter for this architecture.
    Compile(seccompiler::BackendError),
    /// The kernel refuses it.
    Install(seccompiler::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compile(error) => write!(f, "the filter cannot be compiled: {error}"),
            Self::Install(error) => write!(f, "the kernel refuses the filter: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<seccompiler::BackendError> for Error {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Compile(error)
    }
}

/// System calls, each with the arguments that it is allowed with.
#[derive(Clone, Default, Debug)]
pub struct Calls(BTreeMap<c_long, Vec<Vec<Arg>>>);

/// The errors with which refused calls fail.
#[derive(Clone, Copy, Debug)]
pub struct Refusals<'c> {
    /// Lists of calls, each with its own error.
    pub listed: &'c [(&'c [c_long], Errno)],
    /// The first number of newer calls, which C libraries do not require of a kernel, and their
    /// error.
    pub from: (u32, Errno),
    /// The error of all other calls.
    pub others: Errno,
}

impl Calls {
    /// Makes a list of these calls, with any arguments.
    #[must_use]
    pub fn any(calls: &[c_long]) -> Self {
        Self(calls.iter().map(|call| (*call, Vec::new())).collect())
    }

    /// Adds a call where all conditions of one of the alternatives hold; with any arguments where
    /// there is no alternative.
    #[must_use]
    pub fn when(mut self, call: c_long, alternatives: impl IntoIterator<Item = Vec<Arg>>) -> Self {
        self.0.insert(call, alternatives.into_iter().collect());
        self
    }

    /// Adds the calls for memory that cannot be executed.
    #[must_use]
    pub fn memory_without_code(self) -> Self {
        let not_executable = || [vec![Arg::Without(2, libc::PROT_EXEC as u64)]];
        self.when(libc::SYS_mmap, not_executable()).when(libc::SYS_mprotect, not_executable())
    }

    /// Adds the calls for sockets of the Unix domain.
    #[must_use]
    pub fn unix_sockets(self) -> Self {
        self.when(libc::SYS_socket, [vec![Arg::Is(0, libc::AF_UNIX as u64)]])
    }

    /// Adds these requests to devices, and the one with which the standard library looks for
    /// terminals.
    #[must_use]
    pub fn requests<'r>(self, requests: impl IntoIterator<Item = &'r u32>) -> Self {
        let all = requests.into_iter().chain(&[TCGETS]);
        let alternatives: Vec<_> = all.map(|number| vec![Arg::Is(1, (*number).into())]).collect();
        self.when(libc::SYS_ioctl, alternatives)
    }

    /// Compiles the filter that allows these calls and kills the process for all others.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn else_kill(self) -> Result<Filter, Error> {
        Ok(Filter(self.compile(SeccompAction::KillProcess, SeccompAction::Allow)?))
    }

    /// Compiles the filter that allows these calls and has all others fail.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn else_fail(self, refusals: Refusals<'_>) -> Result<Filter, Error> {
        let program = self.compile(SeccompAction::Errno(REFUSED), SeccompAction::Allow)?;
        Ok(Filter(with_errors(program, refusals)))
    }

    /// Compiles the filter that has these calls fail and allows all others.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn fail(self, errno: Errno) -> Result<Filter, Error> {
        let errno = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
        Ok(Filter(self.compile(SeccompAction::Allow, errno)?))
    }

    fn compile(
        self,
        otherwise: SeccompAction,
        these: SeccompAction,
    ) -> Result<BpfProgram, seccompiler::BackendError> {
        let rules = self.0.into_iter().map(|(call, alternatives)| {
            let rules = alternatives.iter().map(|all| rule(all)).collect::<Result<_, _>>()?;
            Ok((call, rules))
        });
        let rules = rules.collect::<Result<_, seccompiler::BackendError>>()?;
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, otherwise, these, arch)?.try_into()
    }
}

/// `TCGETS` of `asm-generic/ioctls.h`.
const TCGETS: u32 = 0x5401;

/// Returns the rule of conditions that all hold.
fn rule(all: &[Arg]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = all.iter().map(|arg| {
        let (index, how, value) = match *arg {
            Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
            Arg::IsNot(index, value) => (index, SeccompCmpOp::Ne, value),
            Arg::AtLeast(index, value) => (index, SeccompCmpOp::Ge, value),
            Arg::Without(index, bits) => (index, SeccompCmpOp::MaskedEq(bits), 0),
            Arg::With(index, bits) => (index, SeccompCmpOp::MaskedEq(bits), bits),
            Arg::Masked(index, bits, value) => (index, SeccompCmpOp::MaskedEq(bits), value),
        };
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, how, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// A filter in the form that the kernel accepts.
#[derive(Clone, Debug)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Installs the filter for this thread and for all that it starts, for good, in addition to
    /// those that it has: of several filters the strictest result counts. It allocates no memory
    /// and takes no lock.
    ///
    /// # Errors
    /// [`Error::Install`].
    pub fn install(&self) -> Result<(), Error> {
        // This also sets no-new-privileges, without which an ordinary user may not filter.
        seccompiler::apply_filter(&self.0).map_err(Error::Install)
    }

    /// Returns the number of its instructions; the kernel accepts 4096. For tests of the lists.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.0.len()
    }
}

/// Makes the calls that a process has to have made once before a filter applies: the first reading
/// of the clock finds the vDSO.
pub fn prepare() {
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
}

/// The error that stands for all errors in the library's program.
const REFUSED: u32 = 0xfff;

const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// Gives each refused call in a program its own error, where the program has one for all: the
/// library supports only one.
fn with_errors(mut program: BpfProgram, refusals: Refusals<'_>) -> BpfProgram {
    let refuses = |errno: Errno| libc::SECCOMP_RET_ERRNO | errno.raw_os_error().unsigned_abs();
    let for_all = libc::SECCOMP_RET_ERRNO | REFUSED;
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if instruction.code == RETURN && instruction.k == for_all {
            let k = u32::try_from(end - at - 1).unwrap_or(0);
            *instruction = sock_filter { code: JUMP, jt: 0, jf: 0, k };
        }
    }
    let step = |code, k, jf| sock_filter { code, jt: 0, jf, k };
    // The number of the call is the first word of `struct seccomp_data`.
    program.push(step(LOAD, 0, 0));
    for (calls, errno) in refusals.listed {
        for number in *calls {
            program.push(step(EQUAL, u32::try_from(*number).unwrap_or(0), 1));
            program.push(step(RETURN, refuses(*errno), 0));
        }
    }
    let (from, errno) = refusals.from;
    program.push(step(AT_LEAST, from, 1));
    program.push(step(RETURN, refuses(errno), 0));
    program.push(step(RETURN, refuses(refusals.others), 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    const ROLE: &str = "CONFINE_TEST_ROLE";

    /// Runs a test again in a process of its own, where it plays `role` behind the filter.
    fn status_of(test: &str, role: &str) -> ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("filter::tests::{test}"), "--test-threads=1"])
            .env(ROLE, role)
            .output()
            .unwrap()
            .status
    }

    /// Calls that a test's process makes before it ends.
    const NEEDED: &[c_long] = &[
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_futex,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_fcntl,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];

    #[test]
    fn what_is_on_no_list_kills() {
        let test = "what_is_on_no_list_kills";
        let Ok(role) = std::env::var(ROLE) else {
            for role in ["nothing", "local socket", "memory"] {
                assert!(status_of(test, role).success(), "{role}");
            }
            for role in ["program", "network", "request", "privilege"] {
                assert_eq!(status_of(test, role).signal(), Some(libc::SIGSYS), "{role}");
            }
            return;
        };
        prepare();
        let null = std::fs::File::open("/dev/null").unwrap();
        let filter = Calls::any(NEEDED).memory_without_code().unix_sockets().requests([]);
        filter.else_kill().unwrap().install().unwrap();
        use rustix::net::{AddressFamily, SocketType, socket};
        match role.as_str() {
            "local socket" => drop(socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()),
            "memory" => drop(vec![1_u8; 8 << 20]),
            "program" => drop(Command::new("/bin/true").status()),
            "network" => drop(socket(AddressFamily::INET, SocketType::STREAM, None)),
            "request" => drop(rustix::io::ioctl_fionread(&null)),
            "privilege" => drop(rustix::thread::set_no_new_privs(false)),
            _ => {}
        }
    }

    #[test]
    fn each_refused_call_fails_with_its_error() {
        let refusals = Refusals {
            listed: &[(&[libc::SYS_getppid], Errno::OPNOTSUPP)],
            from: (libc::SYS_openat2 as u32, Errno::NOSYS),
            others: Errno::PERM,
        };
        let all_but = Calls::any(NEEDED).when(libc::SYS_mmap, []).else_fail(refusals).unwrap();
        let tried = std::thread::spawn(move || {
            all_but.install().unwrap();
            use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
            let (flags, mode) = (OFlags::RDONLY, Mode::empty());
            let old = openat(CWD, "/", flags, mode).unwrap_err();
            let new = openat2(CWD, "/", flags, mode, ResolveFlags::empty()).unwrap_err();
            (old, new)
        });
        assert_eq!(tried.join().unwrap(), (Errno::PERM, Errno::NOSYS));
    }

    #[test]
    fn no_refused_call_is_left_without_its_error() {
        let refusals = Refusals {
            listed: &[],
            from: (libc::SYS_openat2 as u32, Errno::NOSYS),
            others: Errno::PERM,
        };
        let calls = Calls::any(NEEDED).memory_without_code().unix_sockets().requests([]);
        let Filter(program) = calls.else_fail(refusals).unwrap();
        let for_all = libc::SECCOMP_RET_ERRNO | REFUSED;
        assert!(!program.iter().any(|step| step.code == RETURN && step.k == for_all));
    }

    #[test]
    fn a_call_fails_for_some_arguments() {
        let socket = |family| rustix::net::socket(family, rustix::net::SocketType::STREAM, None);
        let some = Calls::default()
            .when(libc::SYS_socket, [vec![Arg::Is(0, libc::AF_UNIX as u64)]])
            .fail(Errno::NOSYS)
            .unwrap();
        let tried = std::thread::spawn(move || {
            some.install().unwrap();
            use rustix::net::AddressFamily;
            (socket(AddressFamily::UNIX).map(drop), socket(AddressFamily::INET).map(drop))
        });
        assert_eq!(tried.join().unwrap(), (Err(Errno::NOSYS), Ok(())));
    }
}
