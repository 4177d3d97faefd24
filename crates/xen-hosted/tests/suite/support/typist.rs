//! A domain's acts at the terminal of its console: typing, and reading what it shows.

use super::{WITHIN, calls, raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname};
use rustix::termios::{Winsize, isatty, tcgetpgrp, tcgetsid, tcgetwinsize, tcsetwinsize};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::Instant;

/// The holder of the master of the domain's terminal, and the shell at its other end.
#[derive(Default)]
pub(crate) struct Typist {
    master: Option<OwnedFd>,
    shell: Option<Child>,
    /// The bytes that the terminal has shown since the last text that was waited for.
    shown: Vec<u8>,
}

impl Typist {
    /// Does an act, one word each.
    pub(crate) fn act(&mut self, words: &[&str]) -> String {
        match *words {
            ["take"] => match xen_hosted::guest_terminal() {
                Ok(master) => {
                    self.master = Some(master);
                    "done".to_owned()
                }
                Err(error) => error.to_string(),
            },
            ["facts"] => self.facts(),
            ["device"] => {
                let stat = rustix::fs::fstat(self.other_end()).unwrap();
                format!("{} {}", stat.st_dev, stat.st_uid == rustix::process::getuid().as_raw())
            }
            ["size", columns, rows] => {
                let (ws_col, ws_row) = (columns.parse().unwrap(), rows.parse().unwrap());
                let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
                tcsetwinsize(self.master(), size).map_or_else(|e| e.to_string(), |()| "done".into())
            }
            ["shell"] => self.start_shell(),
            ["foreground"] => {
                let of_shell = tcgetpgrp(self.master()).unwrap() == self.shell_pid();
                if of_shell { "the shell" } else { "a job" }.to_owned()
            }
            ["key", byte] => self.write(&[byte.parse().unwrap()]),
            ["type", ref text @ ..] => self.write(format!("{}\n", text.join(" ")).as_bytes()),
            ["shows", ref text @ ..] => self.wait_for(&text.join(" ")),
            ["end"] => self.end(),
            ["request", number] => {
                calls::request(self.other_end(), number.parse().unwrap()).to_string()
            }
            _ => panic!("no such act at a terminal: {words:?}"),
        }
    }

    fn master(&self) -> &OwnedFd {
        self.master.as_ref().expect("the terminal was taken")
    }

    /// Opens the other end without making it a controlling terminal.
    fn other_end(&self) -> OwnedFd {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        ioctl_tiocgptpeer(self.master(), flags).unwrap()
    }

    fn facts(&self) -> String {
        let (master, other) = (self.master(), self.other_end());
        let size = tcgetwinsize(&other).unwrap();
        let flags = rustix::fs::fcntl_getfl(master).unwrap();
        let name = ptsname(master, Vec::new()).unwrap();
        format!(
            "terminal={} size={}x{} nonblocking={} name={}",
            isatty(&other),
            size.ws_col,
            size.ws_row,
            flags.contains(OFlags::NONBLOCK),
            name.to_str().unwrap()
        )
    }

    /// Starts a shell in a session of its own with the terminal as its controlling terminal.
    fn start_shell(&mut self) -> String {
        let [input, output, errors] = [(); 3].map(|()| self.other_end());
        let mut command = Command::new("/bin/sh");
        command.arg("-i").stdin(input).stdout(output).stderr(errors);
        command.env_clear().envs([("PATH", "/usr/bin:/bin"), ("TERM", "dumb")]);
        raw::before_exec(&mut command, || {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
        self.shell = Some(command.spawn().unwrap());
        // The command has copies of the other end.
        drop(command);
        match tcgetsid(self.master()) {
            Ok(session) => format!("session={}", session == self.shell_pid()),
            Err(errno) => errno.to_string(),
        }
    }

    fn shell_pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.shell.as_ref().expect("the shell was started"))
    }

    /// Types bytes: the terminal takes few at once, and all of these.
    fn write(&self, bytes: &[u8]) -> String {
        assert_eq!(rustix::io::write(self.master(), bytes), Ok(bytes.len()));
        "done".to_owned()
    }

    /// Reads what the terminal shows; the error once nobody has its other end.
    fn read(&mut self, until: Instant) -> Result<(), Errno> {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap();
        let master = self.master.as_ref().expect("the terminal was taken");
        poll(&mut [PollFd::new(master, PollFlags::IN)], Some(&left))?;
        let mut bytes = [0; 1024];
        match rustix::io::read(master, &mut bytes) {
            Ok(count) => self.shown.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Waits until the terminal shows a text, and forgets it and what was before it.
    fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + WITHIN / 2;
        loop {
            let mut windows = self.shown.windows(text.len());
            if let Some(at) = windows.position(|window| window == text.as_bytes()) {
                self.shown.drain(..at + text.len());
                return "true".to_owned();
            }
            let read = self.read(end);
            if read.is_err() || Instant::now() >= end {
                return format!("{read:?} after {:?}", String::from_utf8_lossy(&self.shown));
            }
        }
    }

    /// Waits for the shell's end and for that of what the terminal shows. Returns its status, and
    /// the error by which the master tells.
    fn end(&mut self) -> String {
        let end = Instant::now() + WITHIN / 2;
        let read = loop {
            match self.read(end) {
                Ok(()) if Instant::now() < end => {}
                read => break read,
            }
        };
        let status = self.shell.as_mut().expect("the shell was started").wait().unwrap();
        format!("{:?} {:?}", status.code(), read.map_err(Errno::raw_os_error))
    }
}
