//! A host of real processes: broker, store, block backend; guests with disks.

use super::guest;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use xen::DomId;
use xen::domctl::{DomainControl, RunState};
use xen_block::disk::DiskAccess;
use xen_block::vbd::{Trust, Vbd};
use xen_hosted::HostDir;
use xen_hosted::domain::{Config, Devices, Files, Lack};
use xen_hosted::domctl::{Control, Descriptors, process_number};
use xenbus::toolstack::{self, NewDevice};
use xenstore::{Client, Perm, Store};

/// How long anything may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// Waits until `what` is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + WITHIN;
    while !so() {
        assert!(Instant::now() < end, "{what}: not within {WITHIN:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The folder with `xen-hosted` and `xenstored`, of the same profile as this program, built where they are
/// old.
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

/// Whether this program of the machine is there.
pub(crate) fn has(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&dirs).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().any(|dir| dir.join(program).exists())
}

pub(crate) struct Host {
    pub(crate) dir: PathBuf,
    broker: Child,
    store: Child,
    pub(crate) backend: Child,
    pub(crate) control: Control,
    pub(crate) tool: Client,
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

impl Host {
    /// A host with a backend; `None` where a program is missing, which is said.
    pub(crate) fn start(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let programs = match programs() {
            Ok(programs) => programs,
            Err(why) => {
                conformance::skip(test, why);
                return None;
            }
        };
        let (broker, store) = (programs.join("xen-hosted"), programs.join("xenstored"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xen-block-hosted-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let broker = spawn(Command::new(broker).arg(dir.join("host")), &dir.join("broker.log"));
        until("the broker serves", || Control::connect(&HostDir::new(dir.join("host"))).is_ok());
        let mut daemon = Command::new(store);
        daemon.arg("--no-fork").env("XEN_HOSTED_HOST", dir.join("host"));
        daemon.env("XENSTORED_PATH", dir.join("store")).env("XENSTORED_RUNDIR", &dir);
        let store = spawn(daemon.env("XENSTORED_ROOTDIR", &dir), &dir.join("store.log"));
        until("the store serves", || Client::connect(dir.join("store")).is_ok());
        let backend = backend(&dir);
        let control = Control::connect(&HostDir::new(dir.join("host"))).unwrap();
        let tool = Client::connect(dir.join("store")).unwrap();
        Some(Self { dir, broker, store, backend, control, tool })
    }

    /// Kills the backend, as the kernel does where memory is short, starts another, and waits until that has
    /// taken over a device.
    pub(crate) fn kill_backend(&mut self) {
        let taken = |host: &Self| host.log("backend.log").matches("done again").count();
        let before = taken(self);
        self.backend.kill().unwrap();
        self.backend.wait().unwrap();
        self.backend = backend(&self.dir);
        until("the backend takes over", || taken(self) > before);
    }

    /// Ends the backend, and starts another whose log and statistics are on a full disk.
    pub(crate) fn fill_the_backends_disk(&mut self) {
        self.backend.kill().unwrap();
        self.backend.wait().unwrap();
        std::fs::create_dir_all(self.dir.join("host/xen-blockd")).unwrap();
        for name in ["backend.log", "host/xen-blockd/stats"] {
            let path = self.dir.join(name);
            // The one before may not have come so far.
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink("/dev/full", path).unwrap();
        }
        self.backend = backend(&self.dir);
    }

    /// Kills the backend three times, and then until one was killed with requests that it had not answered.
    pub(crate) fn kill_backend_at_work(&mut self, pause: Duration) {
        for kills in 0..100 {
            let log = self.log("backend.log");
            let mut again = log.lines().filter(|line| line.contains("done again"));
            if kills >= 3 && again.any(|line| !line.contains("; 0 requests")) {
                return;
            }
            std::thread::sleep(if kills < 3 { pause } else { Duration::from_millis(20) });
            self.kill_backend();
        }
        panic!("no backend was killed at work: {}", self.log("backend.log"));
    }

    /// Creates a guest with these disks (name, target), and waits until they are connected.
    pub(crate) fn guest(&mut self, disks: &[(&str, String)]) -> Guest {
        self.guest_with(Devices::Files, disks)
    }

    /// The same, whose `/dev` is of this kind.
    pub(crate) fn guest_with(&mut self, devices: Devices, disks: &[(&str, String)]) -> Guest {
        let guest = Guest::create(self, devices);
        for (vdev, target) in disks {
            self.attach(&guest, vdev, target, DiskAccess::ReadWrite);
        }
        let mut left: BTreeSet<String> =
            disks.iter().map(|(vdev, _)| format!("connected {vdev}")).collect();
        while !left.is_empty() {
            let line = guest.hear();
            assert!(!line.starts_with("error "), "waiting for {left:?}: {line}");
            left.remove(&line);
        }
        guest
    }

    pub(crate) fn vbd(guest: &Guest, vdev: &str, target: &str, access: DiskAccess) -> Vbd {
        Vbd {
            frontend: guest.domid,
            backend: DomId::DOM0,
            backend_kind: "vbd".into(),
            vdev: vdev.into(),
            target: target.into(),
            access,
            trust: Trust::Trusted,
        }
    }

    pub(crate) fn attach(&mut self, guest: &Guest, vdev: &str, target: &str, access: DiskAccess) {
        let device = Self::vbd(guest, vdev, target, access).device().unwrap();
        toolstack::add(&mut self.tool, &device).unwrap();
    }

    pub(crate) fn detach(&mut self, guest: &Guest, vdev: &str) {
        let device = self.ask_to_detach(guest, vdev);
        let state = format!("{}/state", device.backend_path());
        until("the backend closes", || self.tool.read(&state).is_ok_and(|state| state == b"6"));
        toolstack::forget(&mut self.tool, &device).unwrap();
    }

    /// Asks for a disk to go; when it has, its backend is Closed.
    pub(crate) fn ask_to_detach(&mut self, guest: &Guest, vdev: &str) -> NewDevice {
        let device = Self::vbd(guest, vdev, "", DiskAccess::ReadWrite).device().unwrap();
        toolstack::detach(&mut self.tool, &device).unwrap();
        device
    }

    /// Ends a guest in order, and takes its number back.
    pub(crate) fn end(&mut self, mut guest: Guest) {
        guest.tell("end");
        until("the guest ends", || {
            matches!(self.control.info(guest.domid).unwrap().state, RunState::Shutdown(_))
        });
        self.destroy(&guest);
    }

    pub(crate) fn destroy(&mut self, guest: &Guest) {
        self.control.destroy(guest.domid).unwrap();
    }

    /// An image of zeroes.
    pub(crate) fn image(&self, name: &str, mib: u64) -> String {
        let path = self.dir.join(name);
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        let path = self.dir.join(name);
        // A full disk has no end to be read.
        if path.is_symlink() {
            return String::new();
        }
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

fn backend(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xen-blockd"));
    command.env("XEN_HOSTED_HOST", dir.join("host")).env("XENSTORED_PATH", dir.join("store"));
    spawn(&mut command, &dir.join("backend.log"))
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["broker.log", "store.log", "backend.log"] {
                eprintln!("--- {name}:\n{}", self.log(name));
            }
        }
        for child in [&mut self.backend, &mut self.store] {
            let _ = child.kill();
            let _ = child.wait();
        }
        // In order: it removes its control groups.
        if let Some(pid) = rustix::process::Pid::from_raw(self.broker.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.broker.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A guest, seen from the test; its program is [`guest::play`].
pub(crate) struct Guest {
    pub(crate) domid: DomId,
    pub(crate) lacks: Vec<Lack>,
    input: PipeWriter,
    lines: Receiver<String>,
    runs: u32,
}

impl Guest {
    fn create(host: &mut Host, devices: Devices) -> Self {
        let mut config = Config::default();
        config.files = Files::System;
        config.devices = devices;
        config.memory_max_kib = 256 << 10;
        let args = ["guest", "hosted::role", "--exact", "--nocapture", "--test-threads=1"];
        config.args = args.map(OsString::from).to_vec();
        config.env = vec![
            format!("{}=1", guest::ROLE).into(),
            "PATH=/usr/bin:/usr/sbin:/bin:/sbin".into(),
            "RUST_BACKTRACE=1".into(),
        ];
        let file = |fd: OwnedFd| File::from(fd);
        let (read_in, input) = std::io::pipe().unwrap();
        let (output, write_out) = std::io::pipe().unwrap();
        let program = File::open(std::env::current_exe().unwrap()).unwrap();
        let (read_in, write_out) = (file(read_in.into()), file(write_out.into()));
        let error = std::io::stderr();
        let descriptors = Descriptors {
            program: program.as_fd(),
            input: read_in.as_fd(),
            output: write_out.as_fd(),
            error: error.as_fd(),
        };
        let created = host.control.create(&config, descriptors).unwrap();
        let domid = created.domid;
        let home = format!("/local/domain/{domid}");
        for (node, value) in [("", ""), ("/name", "guest"), ("/device", "")] {
            host.tool.write(format!("{home}{node}"), value).unwrap();
            let perm = Perm::parse(format!("n{domid}").as_bytes()).unwrap();
            host.tool.set_perms(format!("{home}{node}"), &[perm]).unwrap();
        }
        let (gfn, port) = (created.store_gfn.0, created.store_port.0);
        host.tool.introduce(domid.0, gfn, port).unwrap();
        host.control.unpause(domid).unwrap();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Some(said) = line.strip_prefix("> ") else { continue };
                if send.send(said.to_owned()).is_err() {
                    return;
                }
            }
        });
        Self { domid, lacks: created.lacks, input, lines, runs: 0 }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// What it says next.
    pub(crate) fn hear(&self) -> String {
        let heard = self.lines.recv_timeout(WITHIN);
        heard.unwrap_or_else(|error| panic!("the guest says nothing: {error}"))
    }

    /// Waits until it says this.
    pub(crate) fn heard(&self, what: &str) {
        loop {
            let line = self.hear();
            assert!(!line.starts_with("error "), "waiting for {what:?}: {line}");
            if line == what {
                return;
            }
        }
    }

    /// Starts a shell command in the guest; [`Guest::ended`] waits for its end.
    pub(crate) fn start(&mut self, command: &str) -> u32 {
        self.runs += 1;
        let number = self.runs;
        self.tell(&format!("run {number} {command}"));
        number
    }

    /// Waits for the end of a command: whether it went well, and what it wrote.
    pub(crate) fn ended(&self, number: u32) -> (bool, String) {
        let (ended, well, wrote) = self.end_of_any();
        assert_eq!(ended, number, "{wrote}");
        (well, wrote)
    }

    /// Waits for the end of whichever command: its number, whether it went well, and what it wrote.
    pub(crate) fn end_of_any(&self) -> (u32, bool, String) {
        loop {
            let line = self.hear();
            let Some(rest) = line.strip_prefix("ran ") else { continue };
            let mut words = rest.splitn(3, ' ');
            let number = words.next().unwrap_or_default().parse().unwrap();
            let well = words.next() == Some("well");
            return (number, well, words.next().unwrap_or_default().replace('\u{1}', "\n"));
        }
    }

    /// Runs a shell command, which goes well; what it wrote.
    pub(crate) fn run(&mut self, command: &str) -> String {
        let number = self.start(command);
        let (well, wrote) = self.ended(number);
        assert!(well, "{command}: {wrote}");
        wrote
    }

    /// Runs a shell command, which fails; what it wrote.
    pub(crate) fn fails(&mut self, command: &str) -> String {
        let number = self.start(command);
        let (well, wrote) = self.ended(number);
        assert!(!well, "{command}: {wrote}");
        wrote
    }
}

/// The number, in domain 0, of a guest's first process.
pub(crate) fn pid_of(control: &mut Control, domid: DomId) -> u32 {
    let process = control.process(domid).unwrap();
    process_number(process.as_fd()).unwrap().as_raw_nonzero().get().unsigned_abs()
}
