//! A hosted host for tests: the real broker and the real store, and guests that run the test's own program.
//!
//! The promise: a test sees what a user of a hosted host sees. Every process is a real one and may be killed.
//!
//! A guest's program is the test's own executable: a variable of its environment names the part that
//! it plays ([`play`]).

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen::domctl::DomainControl;
use xen::{DomId, Port};
use xen_hosted::HostDir;
use xen_hosted::domain::{DomainConfig, Files, MissingFeature};
use xen_hosted::domctl::{Control, Descriptors};
use xenstore::{Client, Perm, Store};

/// The longest time that any step of a test may take.
pub const WITHIN: Duration = Duration::from_secs(60);

/// Waits until the condition that `what` names holds.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + WITHIN;
    while !so() {
        assert!(Instant::now() < end, "{what}: not within {WITHIN:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The variable that names the part of a process.
const PART: &str = "XENBUS_TEST_PART";

/// Plays the part that the environment names, if `parts` has it, and ends the process. Returns if
/// the environment names none, as in the process of the tests themselves. Called by a test that
/// does nothing else.
pub fn play(parts: &[(&str, fn())]) {
    let Ok(name) = std::env::var(PART) else { return };
    // The test runner has begun a line of its own.
    println!();
    let part = parts.iter().find(|part| part.0 == name).expect("a part of this program");
    part.1();
    std::process::exit(0);
}

/// Has a guest play another part than `guest`.
pub fn set_part(config: &mut DomainConfig, part: &str) {
    let is_part = |word: &OsString| word.as_encoded_bytes().starts_with(PART.as_bytes());
    config.env.retain(|word| !is_part(word));
    config.env.push(format!("{PART}={part}").into());
}

/// Returns a command that runs this executable to play a part: `test` is the test that calls
/// [`play`].
#[must_use]
pub fn player(test: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(arguments(test)).env(PART, part);
    command
}

/// Returns the arguments that make the test runner run one test.
fn arguments(test: &str) -> [&str; 4] {
    [test, "--exact", "--nocapture", "--test-threads=1"]
}

/// A running program, which ends when it is killed or dropped.
#[derive(Debug)]
pub struct Program {
    command: Command,
    log: PathBuf,
    child: Child,
}

impl Program {
    /// Starts a program whose output is appended to a log.
    #[must_use]
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let child = spawn(&mut command, &log);
        Self { command, log, child }
    }

    /// Kills the program, as the kernel does when memory is short, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the program and starts it again.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.child = spawn(&mut self.command, &self.log);
    }

    /// Ends the program in order.
    fn end(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }

    /// True until the program has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).expect("a log");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Returns the folder with `xen-hosted` and `xenstored` of this program's profile. Builds them
/// first if they are out of date.
fn programs() -> Result<&'static Path, &'static str> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = PATH.get_or_init(|| {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let folder = this.ancestors().nth(2).ok_or("this program is in no folder of a build")?;
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build.args(["build", "--quiet", "-p", "xen-hosted", "-p", "xenstored"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let built = built.map_err(|error| format!("cargo build: {error}"))?;
        if !built.status.success() {
            return Err(format!("cargo build: {}", String::from_utf8_lossy(&built.stderr)));
        }
        Ok(folder.to_owned())
    });
    built.as_deref().map_err(String::as_str)
}

/// A host: its folder, its broker, its store.
#[derive(Debug)]
pub struct Host {
    /// The host's folder, with all logs and sockets. It is removed with the host.
    pub dir: TempDir,
    store: Program,
    broker: Program,
    /// The control over the life of its domains.
    pub control: Control,
    /// The toolstack's connection to the store.
    pub tool: Client,
}

impl Host {
    /// Starts a host for a test; `None` if a program is missing, which is printed.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        let programs = match programs() {
            Ok(programs) => programs,
            Err(why) => {
                conformance::skip(test, why);
                return None;
            }
        };
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path();
        let host = HostDir::new(dir.join("host"));
        let mut broker = Command::new(programs.join("xen-hosted"));
        broker.arg(host.path());
        let broker = Program::start(broker, dir.join("broker.log"));
        until("the broker serves", || Control::connect(&host).is_ok());
        let mut store = Command::new(programs.join("xenstored"));
        store.arg("--no-fork").env("XENSTORED_RUNDIR", dir).env("XENSTORED_ROOTDIR", dir);
        let store = Program::start(at(store, dir), dir.join("store.log"));
        until("the store serves", || Client::connect(dir.join("store")).is_ok());
        let control = Control::connect(&host).expect("the broker");
        let tool = Client::connect(dir.join("store")).expect("the store");
        Some(Self { dir: folder, broker, store, control, tool })
    }

    /// Starts a program of domain 0 on this host, with the log `NAME.log` in its folder.
    #[must_use]
    pub fn program(&self, name: &str, command: Command) -> Program {
        Program::start(at(command, self.dir.path()), self.dir.path().join(format!("{name}.log")))
    }

    /// Returns the log of a program of this host; empty if there is none.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        // A full disk has no end to be read.
        if path.is_symlink() {
            return String::new();
        }
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

/// Sets the environment in which a program of domain 0 finds broker and store.
fn at(mut command: Command, dir: &Path) -> Command {
    command.env("XEN_HOSTED_HOST", dir.join("host")).env("XENSTORED_PATH", dir.join("store"));
    command
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["broker.log", "store.log", "backend.log", "consoled.log"] {
                eprintln!("--- {name}:\n{}", self.log(name));
            }
        }
        self.store.kill();
        // The broker removes its control groups.
        self.broker.end();
    }
}

/// A guest, seen from the test.
#[derive(Debug)]
pub struct Guest {
    /// The domain number.
    pub domid: DomId,
    /// The guest's port of its console.
    pub console_port: Port,
    /// The features that this machine does not have and the guest does without.
    pub lacks: Vec<MissingFeature>,
    input: PipeWriter,
    lines: Receiver<String>,
}

impl Guest {
    /// Starts a guest that runs this executable to play the part `guest`: `test` is the test that
    /// calls [`play`]. `shape` changes the guest's configuration.
    #[must_use]
    pub fn create(host: &mut Host, test: &str, shape: impl FnOnce(&mut DomainConfig)) -> Self {
        Self::create_printing(host, test, std::io::stderr().as_fd(), shape, |_, _, _| {})
    }

    /// Starts a guest as [`Guest::create`] does, whose error output is `error`. `prepare` is called
    /// with the domain's number and the port of its console, when the store knows the domain and
    /// before its program runs.
    #[must_use]
    pub fn create_printing(
        host: &mut Host,
        test: &str,
        error: BorrowedFd<'_>,
        shape: impl FnOnce(&mut DomainConfig),
        prepare: impl FnOnce(&mut Host, DomId, Port),
    ) -> Self {
        let mut config = DomainConfig::default();
        config.files = Files::System;
        config.memory_max_kib = 256 << 10;
        config.args = ["guest"].into_iter().chain(arguments(test)).map(OsString::from).collect();
        config.env = vec![
            format!("{PART}=guest").into(),
            "PATH=/usr/bin:/usr/sbin:/bin:/sbin".into(),
            "RUST_BACKTRACE=1".into(),
        ];
        shape(&mut config);
        let file = |fd: OwnedFd| File::from(fd);
        let (read_in, input) = std::io::pipe().expect("a pipe");
        let (output, write_out) = std::io::pipe().expect("a pipe");
        let this = std::env::current_exe().expect("this program");
        let program = File::open(this).expect("this program");
        let (read_in, write_out) = (file(read_in.into()), file(write_out.into()));
        let descriptors = Descriptors {
            program: program.as_fd(),
            input: read_in.as_fd(),
            output: write_out.as_fd(),
            error,
        };
        let created = host.control.create(&config, descriptors).expect("a domain");
        let domid = created.domid;
        let home = format!("/local/domain/{domid}");
        for (node, value) in [("", ""), ("/name", "guest"), ("/device", "")] {
            host.tool.write(format!("{home}{node}"), value).expect("a node");
            let perm = Perm::parse(format!("n{domid}").as_bytes()).expect("a permission");
            host.tool.set_perms(format!("{home}{node}"), &[perm]).expect("a node");
        }
        let (gfn, port) = (created.store_gfn.0, created.store_port.0);
        host.tool.introduce(domid.0, gfn, port).expect("an introduction");
        prepare(host, domid, created.console_port);
        host.control.unpause(domid).expect("a start");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Some(said) = line.strip_prefix("> ") else { continue };
                if send.send(said.to_owned()).is_err() {
                    return;
                }
            }
        });
        let console_port = created.console_port;
        Self { domid, console_port, lacks: created.lacks, input, lines }
    }

    /// Writes a line to the guest's input.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("a guest that reads");
    }

    /// Returns the next line that the guest prints after `> `.
    #[must_use]
    pub fn hear(&self) -> String {
        let heard = self.lines.recv_timeout(WITHIN);
        heard.unwrap_or_else(|error| panic!("the guest says nothing: {error}"))
    }

    /// Waits until it says this.
    pub fn heard(&self, what: &str) {
        let end = Instant::now() + WITHIN;
        loop {
            let line = self.hear();
            assert!(!line.starts_with("error "), "waiting for {what:?}: {line}");
            if line == what {
                return;
            }
            assert!(Instant::now() < end, "waiting for {what:?}: not within {WITHIN:?}");
        }
    }
}
