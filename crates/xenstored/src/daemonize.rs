//! Starts the daemon in the background, and tells the waiting parent that it is ready.
//!
//! The program starts itself again as a child instead of forking: a fork that continues to run
//! needs `unsafe` in Rust and inherits half a process. The child's standard input is a pipe to the
//! parent. The parent exits with 0 once the child has reported through the pipe that it accepts
//! connections, and with 1 if the child ended before; the child has then printed the reason.

use crate::Error;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// The environment variable that marks the child. Its value is the parent's pid.
const CHILD_OF: &str = "XENSTORED_CHILD_OF";
/// The byte that the child sends once it is ready.
const READY: u8 = b'R';

/// True if this process is the background child of another.
pub(crate) fn is_child() -> bool {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    std::env::var(CHILD_OF).ok().is_some_and(|pid| Some(pid) == parent)
}

/// Starts the daemon as a child and waits until it is ready or has ended.
///
/// # Errors
/// [`Error::Start`] if it cannot be started.
pub(crate) fn start_child() -> Result<ExitCode, Error> {
    let failed = |error: io::Error| {
        Error::start(format!("cannot start in the background: {error}; try --no-fork"))
    };
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    let mut args = std::env::args_os();
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    command.env(CHILD_OF, rustix::process::getpid().as_raw_nonzero().to_string());
    command.stdin(Stdio::from(writer));
    let mut child = command.spawn().map_err(failed)?;
    // Otherwise this process would keep the pipe's writing end, and not notice the end of the
    // child.
    drop(command);
    let mut word = [0];
    match reader.read(&mut word) {
        Ok(1) if word == [READY] => Ok(ExitCode::SUCCESS),
        _ => {
            let status = child.wait().map_err(failed)?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            if status.code().is_none() {
                eprintln!("xenstored: the daemon ended before it was ready: {status}");
            }
            Ok(ExitCode::from(if code == 0 { 1 } else { code }))
        }
    }
}

/// Leaves the parent's terminal and directory. Relative paths were resolved before.
///
/// # Errors
/// [`Error::Start`] if `/` cannot be entered.
pub(crate) fn leave_session() -> Result<(), Error> {
    // This fails only for the leader of a process group. A child is no leader.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").map_err(|error| Error::start(format!("chdir /: {error}")))
}

/// Leaves the parent's standard streams, and tells the parent that the daemon is ready.
///
/// # Errors
/// [`Error::Start`] if `/dev/null` cannot be used.
pub(crate) fn detach() -> Result<(), Error> {
    let failed = |error: io::Error| Error::start(format!("/dev/null: {error}"));
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| failed(error.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|error| failed(error.into()))?;
    if is_child() {
        // The parent may be gone, which does no harm.
        let _ = rustix::io::write(rustix::stdio::stdin(), &[READY]);
    }
    rustix::stdio::dup2_stdin(&null).map_err(|error| failed(error.into()))
}

/// Sends `state` to the service manager that `NOTIFY_SOCKET` names. Does nothing if it is not set.
/// Source: sd_notify(3).
///
/// # Errors
/// The error of the socket.
pub(crate) fn sd_notify(state: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(to) if !to.is_empty() => notify(&to, state),
        _ => Ok(()),
    }
}

/// Sends `state` as one datagram to a path, or to an abstract address if it begins with `@`.
fn notify(to: &OsStr, state: &str) -> io::Result<()> {
    let address = match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(to)?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, state.as_bytes(), SendFlags::NOSIGNAL, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_service_manager_hears_at_an_abstract_address() {
        let name = format!("xenstored-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify(OsStr::new(&format!("@{name}")), "READY=1\nMAINPID=7").unwrap();
        let mut word = [0; 64];
        let len = manager.recv(&mut word).unwrap();
        assert_eq!(&word[..len], b"READY=1\nMAINPID=7");
    }
}
