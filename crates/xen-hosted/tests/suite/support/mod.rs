//! A whole host for tests: the broker, the real daemon, and domains whose programs are parts of the test
//! program itself.
//!
//! A test program that finds a role in its environment plays it, in its test `roles::role`, and does nothing
//! else.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen::DomId;
use xen::domctl::{DomainControl, DomainInfo, RunState};
use xen::evtchn::EventChannels;
use xen_hosted::domain::{DomainConfig, Files};
use xen_hosted::domctl::{Control, CreatedDomain, Descriptors};
use xen_hosted::{HostDir, Platform};
use xen_io::xs_ring::ClientRing;
use xenstore_core::wire::MsgType;

pub(crate) mod actor;
pub(crate) mod calls;
pub(crate) mod files;
pub(crate) mod puppet;
pub(crate) mod raw;
pub(crate) mod typist;

/// The variable that names the role.
pub(crate) const ROLE: &str = "XEN_HOSTED_TEST_ROLE";
/// The arguments with which the test program plays its role.
pub(crate) const PLAYING: [&str; 4] = ["roles::role", "--exact", "--nocapture", "--test-threads=1"];
/// The variable that names the directory of the host.
pub(crate) const DIR: &str = "XEN_HOSTED_TEST_DIR";
/// The longest time that any operation may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(30);

/// The role that this process plays, if any.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Waits until the condition `so` holds; `what` names it.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + WITHIN;
    while !so() {
        assert!(Instant::now() < end, "{what}: not within {WITHIN:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the path of the broker's program: the one that cargo has built, or the one beside a
/// moved test.
fn broker() -> OsString {
    let elsewhere = std::env::var_os("XEN_HOSTED_TEST_BROKER");
    elsewhere.unwrap_or_else(|| env!("CARGO_BIN_EXE_xen-hosted").into())
}

/// A broker in a directory of its own, and the daemon if one was started.
pub(crate) struct BrokerHost {
    pub(crate) dir: TempDir,
    pub(crate) broker: Child,
    pub(crate) store: Option<Child>,
}

impl BrokerHost {
    /// A host with a broker.
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a host whose broker's command is changed.
    pub(crate) fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        // This process has ports, too.
        xen_hosted::limits::raise_descriptors();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(broker());
        command.arg(dir.path().join("host")).stdout(Stdio::piped());
        change(&mut command);
        Self { broker: serving(&mut command), dir, store: None }
    }

    /// Starts a host whose broker is an ordinary user with this number. To be called by root.
    pub(crate) fn start_as(user: u32) -> Self {
        Self::start_with(|command| run_as(command, user))
    }

    /// Starts a host whose broker may not make a namespace.
    pub(crate) fn start_without_namespaces() -> Self {
        // In a namespace that lets nobody make another, as a user without rights in it.
        let script = "echo 1 > /proc/sys/user/max_user_namespaces && \
                      exec unshare -U --map-user=1000 --map-group=1000 \"$0\" \"$1\"";
        Self::start_with(|command| {
            let dir = command.get_args().next().unwrap().to_owned();
            let broker = command.get_program().to_owned();
            let mut inside = Command::new("unshare");
            inside.args(["-Ur", "sh", "-c", script]).arg(broker).arg(dir).stdout(Stdio::piped());
            *command = inside;
        })
    }

    /// Starts a host whose broker is root where nobody may make a user namespace.
    pub(crate) fn start_as_root_without_user_namespaces() -> Self {
        // Root in a user namespace with all ids: there the bound is not everybody's.
        let inside = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$1\"";
        let script = format!("echo $$ >&0 && read mapped && exec sh -c '{inside}' \"$0\" \"$1\"");
        Self::start_with(|command| {
            let dir = command.get_args().next().unwrap().to_owned();
            let broker = command.get_program().to_owned();
            let mut inside = Command::new("unshare");
            let (ours, theirs) = UnixStream::pair().unwrap();
            inside.args(["-U", "sh", "-c", &script]).arg(broker).arg(dir);
            inside.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::piped());
            *command = inside;
            std::thread::spawn(move || map_all_ids(&ours));
        })
    }

    /// Starts another broker in the same directory, after the end of the one before.
    pub(crate) fn restart_broker(&mut self) {
        let mut command = Command::new(broker());
        command.arg(self.host().path()).stdout(Stdio::piped());
        self.broker = serving(&mut command);
    }

    /// Returns the directory that broker and peers share.
    pub(crate) fn host(&self) -> HostDir {
        HostDir::new(self.dir.path().join("host"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Starts the daemon and waits until it answers. Its socket accepts connections before its
    /// set-up with the broker is complete, so a connection alone is not enough.
    pub(crate) fn start_store(&mut self) {
        let log = File::create(self.dir.path().join("store.log")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(PLAYING)
            .env(ROLE, "store")
            .env(DIR, self.dir.path())
            .env("XENSTORED_PATH", self.socket())
            .env("XENSTORED_RUNDIR", self.dir.path())
            .env("XENSTORED_ROOTDIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.store = Some(child);
        until("the store serves", || UnixStream::connect(self.socket()).is_ok());
        self.client().is_domain_introduced(0).unwrap();
    }

    pub(crate) fn control(&self) -> Control {
        Control::connect(&self.host()).unwrap()
    }

    /// Returns a client of the daemon, for domain 0.
    pub(crate) fn client(&self) -> xenstore::Client {
        xenstore::Client::connect(self.socket()).unwrap()
    }

    /// Returns the daemon's log.
    pub(crate) fn store_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("store.log")).unwrap_or_default()
    }
}

impl Drop for BrokerHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the store's log:\n{}", self.store_log());
        }
        if let Some(store) = &mut self.store {
            let _ = store.kill();
            let _ = store.wait();
        }
        terminate(&self.broker);
        let _ = self.broker.wait();
    }
}

/// Has a broker's command run as a user, who gets the folder for the host. To be called by root.
pub(crate) fn run_as(command: &mut Command, user: u32) {
    let dir = command.get_args().next().map(PathBuf::from).unwrap();
    let above = dir.parent().unwrap();
    std::os::unix::fs::chown(above, Some(user), Some(user)).unwrap();
    command.uid(user).gid(user).current_dir(above);
}

/// Maps all ids into the new user namespace of the process that sends its number.
fn map_all_ids(socket: &UnixStream) {
    let mut pid = String::new();
    BufReader::new(socket).read_line(&mut pid).unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", pid.trim()), "0 0 4294967295").unwrap();
    }
    (&*socket).write_all(b"\n").unwrap();
}

/// Starts a broker and waits until it serves.
fn serving(command: &mut Command) -> Child {
    let mut broker = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(broker.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("serving"), "the broker did not start: {line:?}");
    broker
}

/// Asks a process to end.
pub(crate) fn terminate(child: &Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Returns the configuration of a domain that plays `role`.
pub(crate) fn playing(role: &str) -> DomainConfig {
    let mut config = DomainConfig::default();
    config.files = Files::System;
    config.args = ["guest"].into_iter().chain(PLAYING).map(OsString::from).collect();
    config.env = vec![format!("{ROLE}={role}").into()];
    config
}

/// Opens this program, as the program of a domain.
pub(crate) fn this_program() -> File {
    File::open(std::env::current_exe().unwrap()).unwrap()
}

/// Creates a domain that plays `role`, paused.
pub(crate) fn create(control: &mut Control, role: &str) -> CreatedDomain {
    create_with(control, &playing(role), &this_program()).unwrap()
}

/// Creates a domain with nothing to read and this program's output, paused.
pub(crate) fn create_with(
    control: &mut Control,
    config: &DomainConfig,
    program: &File,
) -> Result<CreatedDomain, xen::Error> {
    let input = File::open("/dev/null")?;
    let (output, error) = (std::io::stdout(), std::io::stderr());
    let descriptors = Descriptors {
        program: program.as_fd(),
        input: input.as_fd(),
        output: output.as_fd(),
        error: error.as_fd(),
    };
    control.create(config, descriptors)
}

/// Introduces a domain to the store, as the toolstack does between creation and start.
pub(crate) fn introduce(client: &mut xenstore::Client, created: &CreatedDomain) {
    let domid = created.domid.0;
    client.introduce(domid, created.store_gfn.0, created.store_port.0).unwrap();
}

/// Waits until a domain has shut down. Returns its state.
pub(crate) fn ended(control: &mut Control, domid: DomId) -> DomainInfo {
    let mut last = None;
    until("the domain ends", || {
        let info = control.info(domid).unwrap();
        last = Some(info);
        matches!(info.state, RunState::Shutdown(_))
    });
    last.unwrap()
}

/// Plays the store.
pub(crate) fn play_store() -> ExitCode {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let platform = xen_hosted::store_platform(&HostDir::new(dir.join("host"))).unwrap();
    let environment = xenstored::paths::Environment::of_process();
    let args = ["--no-fork".into()];
    let xenstored::config::Invocation::Run(config) =
        xenstored::config::parse(args, &environment).unwrap()
    else {
        return ExitCode::FAILURE;
    };
    let platform = xenstored::Platform {
        evtchn: Box::new(platform.evtchn),
        grants: Box::new(platform.grants),
        domains: Box::new(platform.domains),
        ioctls: &[],
        name: format!("the broker of {}", dir.display()),
    };
    match xenstored::run(&config, xenstored::PlatformChoice::Platform(platform)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A guest's side of the store, over its ring.
pub(crate) struct GuestStore {
    /// Its socket stays open as long as this is there.
    _platform: Platform,
    pub(crate) channels: xen_hosted::evtchn::Channels,
    pub(crate) offers: xen_hosted::gnttab::Offers,
    ring: ClientRing,
    pub(crate) port: xen::Port,
    request: u32,
    /// The rest of the last request, which the ring had no room for.
    unsent: Option<Vec<u8>>,
}

impl GuestStore {
    pub(crate) fn open() -> Self {
        let platform = Platform::guest().unwrap();
        let channels = platform.channels().unwrap();
        let mut offers = platform.offers();
        let (page, port) = platform.store_ring(&mut offers).unwrap();
        Self {
            _platform: platform,
            channels,
            offers,
            ring: ClientRing::new(page),
            port,
            request: 0,
            unsent: None,
        }
    }

    /// Sends a request without waiting, and reads what has arrived: the ring stays in use, whatever
    /// happens to the store.
    pub(crate) fn poke(&mut self) -> Result<(), xen::Error> {
        let mut bytes = Vec::new();
        for word in [MsgType::Directory as u32, 1, 0, 2] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(b"/\0");
        let rest = self.unsent.take().unwrap_or(bytes);
        let sent = self.ring.write(&rest).unwrap();
        self.unsent = rest.get(sent..).filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec);
        self.ring.read(&mut [0; 1024]).unwrap();
        self.channels.notify(self.port)
    }

    /// Sends one request and returns its reply.
    pub(crate) fn ask(&mut self, kind: MsgType, payload: &[u8]) -> (u32, Vec<u8>) {
        self.request += 1;
        let mut bytes = Vec::new();
        for word in [kind as u32, self.request, 0, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        let end = Instant::now() + WITHIN;
        let mut sent = 0;
        let mut got = Vec::new();
        loop {
            let count = self.ring.write(&bytes[sent..]).unwrap();
            sent += count;
            if count > 0 {
                self.channels.notify(self.port).unwrap();
            }
            let mut buffer = [0; 1024];
            let count = self.ring.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            if count > 0 && (count == 1024 || sent < bytes.len()) {
                self.channels.notify(self.port).unwrap();
            }
            if let Ok(Some((header, payload, _))) = xenstore_core::wire::split_message(&got) {
                assert_eq!(header.req_id, self.request);
                return (header.kind, payload.to_vec());
            }
            if count > 0 {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the store does not answer");
            if let Some(port) = self.channels.wait(Some(left)).unwrap() {
                self.channels.unmask(port).unwrap();
            }
        }
    }
}

/// Returns the processor time that a process has used, in ms.
pub(crate) fn cpu_time_ms(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may hold anything; the times are the 12th and 13th field behind it.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

/// Returns the number of a pidfd's process.
pub(crate) fn pid_of(pidfd: &std::os::fd::OwnedFd) -> u32 {
    use std::os::fd::AsFd;
    let pid = xen_hosted::domctl::process_number(pidfd.as_fd()).unwrap();
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Returns the number of the descriptor with this name, according to `LISTEN_FDNAMES`.
pub(crate) fn number_of(name: &str, names: &str) -> i32 {
    let at = names.split(':').position(|named| named == name);
    3 + i32::try_from(at.unwrap_or_else(|| panic!("no {name} among {names}"))).unwrap()
}

/// Returns the entries of a folder.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).into_iter().flatten().flatten();
    list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
