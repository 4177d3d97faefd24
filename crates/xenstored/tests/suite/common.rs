//! A daemon in a directory of its own, and a client that sends raw messages.

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const READ: u32 = 2;
pub(crate) const WATCH: u32 = 4;
pub(crate) const WRITE: u32 = 11;
pub(crate) const CONTROL: u32 = 0;

/// The longest time that any step may take before it counts as stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a directory that is removed when the test is over.
pub(crate) fn dir() -> TempDir {
    tempfile::Builder::new().prefix("xs-").tempdir().unwrap()
}

/// Waits until `done` holds. Panics with the name of the awaited condition if it does not.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns a command for the program, without variables of the tester's environment that would
/// affect it.
pub(crate) fn xenstored(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenstored"));
    clean(&mut command, socket);
    command
}

pub(crate) fn clean(command: &mut Command, socket: &Path) {
    for name in ["XENSTORED_RUNDIR", "XENSTORED_ROOTDIR", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.env("XENSTORED_PATH", socket).stdin(Stdio::null());
}

/// A daemon in the foreground, killed when the test is over.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) pid_file: PathBuf,
    pub(crate) dir: TempDir,
}

impl Daemon {
    pub(crate) fn start(args: &[&str]) -> Self {
        let dir = dir();
        let command = xenstored(&dir.path().join("socket"));
        Self::start_with(command, dir, args)
    }

    pub(crate) fn start_with(mut command: Command, dir: TempDir, args: &[&str]) -> Self {
        let pid_file = dir.path().join("pid");
        let stderr = std::fs::File::create(dir.path().join("stderr")).unwrap();
        command.args(["-N", "--pid-file"]).arg(&pid_file).args(args).stderr(stderr);
        let mut child = command.spawn().unwrap();
        let stderr = dir.path().join("stderr");
        wait_for("the pid file", || {
            if let Some(status) = child.try_wait().unwrap() {
                let text = std::fs::read_to_string(&stderr).unwrap_or_default();
                panic!("the daemon ended, {status}: {text}");
            }
            pid_file.exists()
        });
        Self { child, socket: dir.path().join("socket"), pid_file, dir }
    }

    pub(crate) fn pid(&self) -> i32 {
        std::fs::read_to_string(&self.pid_file).unwrap().trim().parse().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of the daemon", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn send_signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn message(kind: u32, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let mut bytes: Vec<u8> =
        [kind, req_id, 0, len].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes
}

/// A received message: type, request id, payload.
pub(crate) type RawMessage = (u32, u32, Vec<u8>);

pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    pub(crate) fn connect(socket: impl AsRef<OsStr>) -> Self {
        let stream = UnixStream::connect(Path::new(socket.as_ref())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Waits for the next message; `None` if the daemon has closed.
    pub(crate) fn receive(&mut self) -> Option<RawMessage> {
        let mut header = [0; 16];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no answer within {PATIENCE:?}")
            }
            Err(_) => return None,
        }
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(12) as usize];
        self.0.read_exact(&mut payload).unwrap();
        Some((word(0), word(4), payload))
    }

    pub(crate) fn call(&mut self, kind: u32, payload: &[u8]) -> RawMessage {
        self.send(&message(kind, 1, payload));
        self.receive().expect("the daemon closed the connection")
    }

    pub(crate) fn write(&mut self, path: &str, value: &[u8]) {
        let payload = [path.as_bytes(), b"\0", value].concat();
        assert_eq!(self.call(WRITE, &payload), (WRITE, 1, b"OK\0".to_vec()));
    }

    pub(crate) fn control(&mut self, words: &[&str]) -> String {
        let payload: Vec<u8> =
            words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        let (kind, _, payload) = self.call(CONTROL, &payload);
        assert_eq!(kind, CONTROL, "{words:?}: {}", String::from_utf8_lossy(&payload));
        String::from_utf8(payload).unwrap().trim_end_matches('\0').to_owned()
    }

    /// Returns one of the numbers that `stats` prints.
    pub(crate) fn stat(&mut self, name: &str) -> u64 {
        let text = self.control(&["stats"]);
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }
}
