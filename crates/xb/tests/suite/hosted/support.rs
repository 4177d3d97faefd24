//! A host for a test: `xb` as a user runs it, with all of it removed at the end.

use super::traces::{self, Traces};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Once;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest time that any operation may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// The daemons of a host.
pub(crate) const DAEMONS: [&str; 6] =
    ["broker", "xenstored", "xenconsoled", "keeper", "xen-blockd", "devd"];

/// The program.
pub(crate) const XB: &str = env!("CARGO_BIN_EXE_xb");

/// A folder of a test, with a hosted host in `h`.
pub(crate) struct TestHost {
    folder: TempDir,
    before: Traces,
    /// The store's nodes without any guest.
    nodes: Option<Vec<String>>,
}

impl TestHost {
    /// Makes a host that is not up yet.
    pub(crate) fn down(test: &str) -> Self {
        static BUILT: Once = Once::new();
        BUILT.call_once(|| {
            // As in a fresh checkout: cargo builds the programs that xb runs.
            let output = Command::new(XB).args(["store", "--", "--help"]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        });
        let folder = tempfile::Builder::new().prefix(&format!("xb-{test}-")).tempdir().unwrap();
        let before = traces::of(folder.path());
        Self { folder, before, nodes: None }
    }

    /// Makes a host that is up.
    pub(crate) fn up(test: &str) -> Self {
        let mut host = Self::down(test);
        host.ok(&["host", "up"]);
        host.nodes = Some(host.nodes());
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(XB);
        command.arg("--host").arg(self.path("h")).args(args);
        command.env_remove("XB_HOST").env("TMPDIR", self.folder.path());
        // The programs were built by the first command.
        command.env_remove("CARGO");
        // A backend that a test stops is not taken for one that hangs.
        command.env("XB_BACKEND_SILENCE", "600");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that succeeds, and returns its output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "xb {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that fails with this code and these words.
    pub(crate) fn fails(&self, args: &[&str], code: i32, words: &str) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "xb {args:?}: {said}");
        assert!(said.contains(words), "xb {args:?}: {said}");
    }

    pub(crate) fn try_json(&self, args: &[&str]) -> Option<serde_json::Value> {
        let output = self.run(&[args, &["--json"]].concat());
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        self.try_json(args).unwrap_or_else(|| panic!("xb {args:?} has failed"))
    }

    /// Lists all nodes of the store, except the folders that hold domains and stay.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let mut stay: Vec<String> =
            ["/libxl", "/local/domain/0", "/vm"].map(str::to_owned).to_vec();
        stay.extend(["/local", "/local/domain"].map(str::to_owned));
        for end in ["backend", "error", "error/backend"] {
            stay.push(format!("/local/domain/0/{end}"));
        }
        for kind in ["vbd", "adder"] {
            stay.push(format!("/local/domain/0/backend/{kind}"));
            stay.push(format!("/local/domain/0/error/backend/{kind}"));
        }
        let nodes = self.ok(&["store", "ls", "-f", "/"]);
        // The supervisor of domain 0 has its say there.
        let own = "/local/domain/0/data";
        let stays = |line: &&str| {
            line.starts_with(own) || stay.iter().any(|path| *line == format!("{path} = \"\""))
        };
        nodes.lines().filter(|line| !stays(line)).map(str::to_owned).collect()
    }

    /// Writes a configuration. Returns its path.
    pub(crate) fn config(&self, name: &str, rest: &str) -> String {
        let path = self.path(&format!("{name}.cfg"));
        std::fs::write(&path, format!("name = \"{name}\"\n{rest}\n")).unwrap();
        path.to_str().unwrap().into()
    }

    /// Makes a raw image. Returns its path.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> String {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path.to_str().unwrap().into()
    }

    /// Returns the log of a daemon.
    pub(crate) fn log_of(&self, daemon: &str) -> String {
        std::fs::read_to_string(self.path("h/log").join(format!("{daemon}.log")))
            .unwrap_or_default()
    }

    /// Waits until `so` returns a value.
    pub(crate) fn until<T>(&self, what: &str, mut so: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + WITHIN;
        loop {
            if let Some(answer) = so() {
                return answer;
            }
            assert!(
                Instant::now() < end,
                "{what}: not within {WITHIN:?}; the keeper: {}",
                self.log_of("keeper")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a guest has printed something.
    pub(crate) fn until_log(&self, name: &str, words: &str) {
        self.until(&format!("{name} prints {words:?}"), || {
            let output = self.run(&["log", name]);
            String::from_utf8_lossy(&output.stdout).contains(words).then_some(())
        });
    }

    /// Waits until no guest is there.
    pub(crate) fn until_alone(&self) {
        self.until("all guests are gone", || {
            (self.json(&["list"]).as_array()?.len() == 1).then_some(())
        });
    }

    pub(crate) fn pid(&self, daemon: &str) -> Option<rustix::process::Pid> {
        let text =
            std::fs::read_to_string(self.path("h/run").join(format!("{daemon}.pid"))).ok()?;
        rustix::process::Pid::from_raw(text.split(' ').next()?.parse().ok()?)
    }

    fn runs(&self, daemon: &str) -> bool {
        let pid = self.pid(daemon).map(rustix::process::Pid::as_raw_nonzero);
        pid.is_some_and(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        })
    }

    /// Kills a daemon as a crash would.
    pub(crate) fn kill(&self, daemon: &str) {
        let pid = self.pid(daemon).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // Another one may have taken its place.
        self.until("it is gone", || {
            (self.pid(daemon) != Some(pid) || !self.runs(daemon)).then_some(())
        });
    }

    /// Kills the block backend, and before it its supervisor, which would start it again.
    pub(crate) fn kill_backend_for_good(&self) {
        self.kill("devd");
        self.kill("xen-blockd");
    }

    /// True if guests have files for their disks here; reports it where not.
    pub(crate) fn has_fuse(&self, test: &str) -> bool {
        let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if let Err(error) = &fuse {
            conformance::skip(test, &format!("/dev/fuse: {error}"));
        }
        fuse.is_ok()
    }

    /// True if disks can be mounted by the host's kernel here; reports it where not.
    pub(crate) fn can_mount(&self, test: &str) -> bool {
        if !rustix::process::geteuid().is_root() {
            conformance::skip(test, "only root has disks mounted");
            return false;
        }
        if let Err(error) = std::fs::File::open("/dev/loop-control") {
            conformance::skip(test, &format!("/dev/loop-control: {error}"));
            return false;
        }
        self.has_fuse(test)
    }

    /// Checks that all is down, and that nothing is left.
    pub(crate) fn nothing_is_left(&self) {
        let left = traces::remaining(self.folder.path(), &self.before);
        assert!(left.is_empty(), "something is left: {left:#?}");
        assert!(!self.path("h").exists(), "the folder is gone");
    }

    /// Checks, where the host is up, that no node is left of its guests after their destruction.
    fn no_node_is_left(&self) {
        let (Some(nodes), Some(domains)) = (&self.nodes, self.try_json(&["list"])) else { return };
        for domain in domains.as_array().unwrap().iter().filter(|domain| domain["domid"] != 0) {
            self.run(&["destroy", &domain["domid"].to_string()]);
        }
        // The keeper may be settling one of them, or start it again.
        self.until("no node is left of guests", || {
            for domain in self.try_json(&["list"])?.as_array()?.iter().skip(1) {
                self.run(&["destroy", &domain["domid"].to_string()]);
            }
            (self.nodes() == *nodes).then_some(())
        });
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in DAEMONS {
                eprintln!("--- {daemon}: {}", self.log_of(daemon));
            }
        } else if ["broker", "xenstored", "xen-blockd"].iter().all(|daemon| self.runs(daemon)) {
            self.no_node_is_left();
        }
        let down = self.run(&["host", "down"]);
        if !std::thread::panicking() {
            assert!(down.status.success(), "{down:?}");
            self.nothing_is_left();
        }
    }
}
