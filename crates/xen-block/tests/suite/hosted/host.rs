//! A host of real processes: broker, store, block backend, and guests with disks.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;
use testhost::Program;
pub(crate) use testhost::until;
use xen::DomId;
use xen::domctl::{DomainControl, RunState};
use xen_block::disk::DiskAccess;
use xen_block::vbd::{Trust, Vbd};
use xen_hosted::domain::Devices;
use xen_hosted::domctl::{Control, process_number};
use xenbus::toolstack::{self, NewDevice};
use xenstore::Store;

/// True if the machine has this program.
pub(crate) fn has(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&dirs).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().any(|dir| dir.join(program).exists())
}

pub(crate) struct BlockHost {
    pub(crate) backend: Program,
    host: testhost::Host,
}

impl Deref for BlockHost {
    type Target = testhost::Host;

    fn deref(&self) -> &testhost::Host {
        &self.host
    }
}

impl DerefMut for BlockHost {
    fn deref_mut(&mut self) -> &mut testhost::Host {
        &mut self.host
    }
}

impl BlockHost {
    /// Starts a host with a backend; `None`, with a printed line, if a program is missing.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let host = testhost::Host::start(test)?;
        let backend = backend(&host);
        Some(Self { host, backend })
    }

    /// Kills the backend, as the kernel does when memory is short, starts another, and waits until
    /// that has taken over a device.
    pub(crate) fn kill_backend(&mut self) {
        let taken = |host: &Self| host.log("backend.log").matches("done again").count();
        let before = taken(self);
        self.backend.kill_and_restart();
        until("the backend takes over", || taken(self) > before);
    }

    /// Ends the backend, and starts another one that has its log and statistics on a full disk.
    pub(crate) fn fill_the_backends_disk(&mut self) {
        self.backend.kill();
        std::fs::create_dir_all(self.dir.path().join("host/xen-blockd")).unwrap();
        for name in ["backend.log", "host/xen-blockd/stats"] {
            let path = self.dir.path().join(name);
            // The earlier backend may not have written the file yet.
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink("/dev/full", path).unwrap();
        }
        self.backend = backend(&self.host);
    }

    /// Kills the backend three times, and then until one was killed with unanswered requests.
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
    pub(crate) fn guest(&mut self, disks: &[(&str, String)]) -> BlockGuest {
        self.guest_with(Devices::Files, disks)
    }

    /// Creates a guest as [`BlockHost::guest`] does, with this kind of `/dev`.
    pub(crate) fn guest_with(&mut self, devices: Devices, disks: &[(&str, String)]) -> BlockGuest {
        let guest = BlockGuest::create(self, devices);
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

    pub(crate) fn vbd(guest: &BlockGuest, vdev: &str, target: &str, access: DiskAccess) -> Vbd {
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

    pub(crate) fn attach(
        &mut self,
        guest: &BlockGuest,
        vdev: &str,
        target: &str,
        access: DiskAccess,
    ) {
        let device = Self::vbd(guest, vdev, target, access).device().unwrap();
        toolstack::add(&mut self.tool, &device).unwrap();
    }

    pub(crate) fn detach(&mut self, guest: &BlockGuest, vdev: &str) {
        let device = self.ask_to_detach(guest, vdev);
        let state = format!("{}/state", device.backend_path());
        let tool = &mut self.tool;
        until("the backend closes", || tool.read(&state).is_ok_and(|state| state == b"6"));
        toolstack::forget(&mut self.tool, &device).unwrap();
    }

    /// Requests that a disk is detached; its backend is Closed once it has gone.
    pub(crate) fn ask_to_detach(&mut self, guest: &BlockGuest, vdev: &str) -> NewDevice {
        let device = Self::vbd(guest, vdev, "", DiskAccess::ReadWrite).device().unwrap();
        toolstack::detach(&mut self.tool, &device).unwrap();
        device
    }

    /// Ends a guest properly, and frees its number.
    pub(crate) fn end(&mut self, mut guest: BlockGuest) {
        guest.tell("end");
        until("the guest ends", || {
            matches!(self.control.info(guest.domid).unwrap().state, RunState::Shutdown(_))
        });
        self.destroy(&guest);
    }

    pub(crate) fn destroy(&mut self, guest: &BlockGuest) {
        self.control.destroy(guest.domid).unwrap();
    }

    /// Creates an image of zeroes.
    pub(crate) fn image(&self, name: &str, mib: u64) -> String {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn backend(host: &testhost::Host) -> Program {
    host.program("backend", Command::new(env!("CARGO_BIN_EXE_xen-blockd")))
}

/// A guest, seen from the test; its program is [`guest::play`].
pub(crate) struct BlockGuest {
    guest: testhost::Guest,
    runs: u32,
}

impl Deref for BlockGuest {
    type Target = testhost::Guest;

    fn deref(&self) -> &testhost::Guest {
        &self.guest
    }
}

impl DerefMut for BlockGuest {
    fn deref_mut(&mut self) -> &mut testhost::Guest {
        &mut self.guest
    }
}

impl BlockGuest {
    fn create(host: &mut BlockHost, devices: Devices) -> Self {
        let shape = |config: &mut xen_hosted::domain::DomainConfig| config.devices = devices;
        let guest = testhost::Guest::create(host, "hosted::part", shape);
        Self { guest, runs: 0 }
    }

    /// Starts a shell command in the guest; [`BlockGuest::wait_for_end`] waits for its end.
    pub(crate) fn start(&mut self, command: &str) -> u32 {
        self.runs += 1;
        let number = self.runs;
        self.tell(&format!("run {number} {command}"));
        number
    }

    /// Waits for the end of a command: true if it succeeded, and its output.
    pub(crate) fn wait_for_end(&self, number: u32) -> (bool, String) {
        let (ended, well, wrote) = self.end_of_any();
        assert_eq!(ended, number, "{wrote}");
        (well, wrote)
    }

    /// Waits for the end of any command: its number, true if it succeeded, and its output.
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

    /// Runs a shell command, which must succeed; returns its output.
    pub(crate) fn run(&mut self, command: &str) -> String {
        let number = self.start(command);
        let (well, wrote) = self.wait_for_end(number);
        assert!(well, "{command}: {wrote}");
        wrote
    }

    /// Runs a shell command, which must fail; returns its output.
    pub(crate) fn fails(&mut self, command: &str) -> String {
        let number = self.start(command);
        let (well, wrote) = self.wait_for_end(number);
        assert!(!well, "{command}: {wrote}");
        wrote
    }
}

/// Returns the process number, in domain 0, of a guest's first process.
pub(crate) fn pid_of(control: &mut Control, domid: DomId) -> u32 {
    let process = control.process(domid).unwrap();
    process_number(process.as_fd()).unwrap().as_raw_nonzero().get().unsigned_abs()
}
