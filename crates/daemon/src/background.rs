//! Starts a daemon in the background, and tells the waiting parent that it is ready.
//!
//! The program starts itself again as a child instead of forking: a fork that continues to run
//! needs `unsafe` in Rust and inherits half a process. The child's standard input is a pipe to the
//! parent. The parent exits with 0 once the child has reported through the pipe that it serves. If
//! the child ended before, the parent exits with its status; the child has then printed the reason.
//! It ends with 0 only if another daemon serves in its place.

use crate::Error;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// The byte that the child sends once it is ready.
const READY: u8 = b'R';

/// The start of a program in the background.
#[derive(Clone, Copy, Debug)]
pub struct BackgroundStart {
    /// The program's name, which begins each line on standard error.
    pub name: &'static str,
    /// The environment variable that marks the child. Its value is the parent's pid.
    pub child_of: &'static str,
    /// The option that keeps the program in the foreground, as the user writes it.
    pub foreground: &'static str,
}

impl BackgroundStart {
    /// True if this process is the background child of another.
    #[must_use]
    pub fn is_child(&self) -> bool {
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
        std::env::var(self.child_of).ok().is_some_and(|pid| Some(pid) == parent)
    }

    /// Starts the daemon as a child and waits until it is ready or has ended. Returns this
    /// process's exit code. A child that does not serve, and in whose place no other daemon serves,
    /// must not end with 0.
    ///
    /// # Errors
    /// [`Error::Background`] if it cannot be started.
    pub fn start_child(&self) -> Result<ExitCode, Error> {
        self.try_start().map_err(|error| Error::Background { foreground: self.foreground, error })
    }

    fn try_start(&self) -> io::Result<ExitCode> {
        let (mut reader, writer) = io::pipe()?;
        let mut args = std::env::args_os();
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(name) = args.next() {
            command.arg0(name);
        }
        command.args(args);
        command.env(self.child_of, rustix::process::getpid().as_raw_nonzero().to_string());
        command.stdin(Stdio::from(writer));
        let mut child = command.spawn()?;
        // Otherwise this process would keep the pipe's writing end, and not notice the end of the
        // child.
        drop(command);
        let mut word = [0];
        match reader.read(&mut word) {
            Ok(1) if word == [READY] => Ok(ExitCode::SUCCESS),
            _ => {
                let status = child.wait()?;
                let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                if status.code().is_none() {
                    eprintln!("{}: the daemon ended before it was ready: {status}", self.name);
                }
                Ok(ExitCode::from(code))
            }
        }
    }

    /// Leaves the parent's standard streams, and tells the parent that the daemon is ready.
    ///
    /// # Errors
    /// [`Error::Null`] if `/dev/null` cannot be used.
    pub fn detach(&self) -> Result<(), Error> {
        self.try_detach().map_err(Error::Null)
    }

    fn try_detach(&self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        if self.is_child() {
            // The parent may be gone, which does no harm.
            let _ = rustix::io::write(rustix::stdio::stdin(), &[READY]);
        }
        rustix::stdio::dup2_stdin(&null)?;
        Ok(())
    }
}

/// Leaves the parent's terminal and directory. The caller has resolved relative paths before.
///
/// # Errors
/// [`Error::Directory`] if `/` cannot be entered.
pub fn leave_session() -> Result<(), Error> {
    // This fails only for the leader of a process group. A child is no leader.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").map_err(Error::Directory)
}
