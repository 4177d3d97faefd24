//! Debian's daemons and tools, unpacked but not installed, and a folder for each test.
//!
//! They are looked for in `$XENBUS_PEERS`, then in `target/peers`: `root/` holds the unpacked
//! packages, `xenshim.so` the stand-in for Xen's control libraries. Without them a test says so in one
//! line and passes; with `CI=true` it fails.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use xenstore::Client;

/// Longest wait for anything that a daemon does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where Debian's programs are.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    /// Holds `root/` and `xenshim.so`.
    dir: PathBuf,
}

impl Peers {
    /// The peers, or `None` with a line on stderr.
    pub(crate) fn find() -> Option<Self> {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers");
        let dir = std::env::var_os("XENBUS_PEERS").map_or(built, PathBuf::from);
        if dir.join("xenshim.so").exists() && dir.join("root/usr/bin/xenstore").exists() {
            return Some(Self { dir });
        }
        let here = dir.display();
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "Debian's packages are not in {here}; `cargo test -p conformance` fetches them"
        );
        eprintln!(
            "skipped: Debian's packages are not in {here} (`cargo test -p conformance` fetches them)"
        );
        None
    }

    /// The folder of `xenstore-read` and so on.
    pub(crate) fn tools(&self) -> PathBuf {
        self.dir.join("root/usr/bin")
    }

    /// The folder of the daemons and of `xenstore-control`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.dir.join("root/usr/lib/xen-4.17/bin")
    }

    /// What LD_LIBRARY_PATH must be for Debian's programs.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.dir.join("root/usr/lib/x86_64-linux-gnu")
    }

    /// Starts C's daemon.
    pub(crate) fn c(&self) -> Daemon {
        self.c_with(&[])
    }

    /// Starts C's daemon with more arguments.
    pub(crate) fn c_with(&self, args: &[&str]) -> Daemon {
        let dir = Folder::new("c");
        let socket = dir.path().join("sock");
        let mut command = self.command("xenstored", &socket);
        command
            .args(["--no-fork"])
            .args(args)
            .env("XENSTORED_RUNDIR", dir.path())
            .env("XENSTORED_ROOTDIR", dir.path())
            .env("XENSTORED_PATH", &socket);
        Daemon::start(command, dir, socket)
    }

    /// Starts oxenstored, without its access log.
    pub(crate) fn oxenstored(&self) -> Daemon {
        let dir = Folder::new("ox");
        let socket = dir.path().join("sock");
        let config = dir.path().join("oxenstored.conf");
        let debian = self.dir.join("root/etc/xen/oxenstored.conf");
        let text = std::fs::read_to_string(&debian).unwrap();
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with("pid-file")).map(str::to_owned).collect();
        for (key, file) in
            [("pid-file", "pid"), ("xenstored-log-file", "log"), ("access-log-file", "access.log")]
        {
            lines.push(format!("{key} = {}", dir.path().join(file).display()));
        }
        std::fs::write(&config, lines.join("\n") + "\n").unwrap();
        let mut command = self.command("oxenstored", &socket);
        command
            .args(["--no-access-log", "--no-fork", "--config-file"])
            .arg(&config)
            .env("XENSHIM_SOCKET", &socket);
        Daemon::start(command, dir, socket)
    }

    fn command(&self, program: &str, _socket: &Path) -> Command {
        // Both daemons write there whatever they are told; without the right to create the folders
        // they complain, and work.
        for dir in ["/run/xen", "/var/log/xen"] {
            let _ = std::fs::create_dir_all(dir);
        }
        let mut command = Command::new(self.programs().join(program));
        command
            .env("LD_LIBRARY_PATH", self.libraries())
            .env("LD_PRELOAD", self.dir.join("xenshim.so"))
            .stdin(Stdio::null());
        command
    }
}

/// A folder that goes with the test.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A fresh one; short, as the path of a socket must be.
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xs-{name}-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running daemon; ends with the test.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    /// Its socket.
    pub(crate) socket: PathBuf,
    _dir: Folder,
}

impl Daemon {
    fn start(mut command: Command, dir: Folder, socket: PathBuf) -> Self {
        let log = std::fs::File::create(dir.path().join("output")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let mut daemon = Self { child, socket, _dir: dir };
        let begin = Instant::now();
        while Client::connect(&daemon.socket).is_err() {
            let ended = daemon.child.try_wait().unwrap();
            let output = std::fs::read_to_string(daemon._dir.path().join("output")).unwrap();
            assert!(ended.is_none(), "{command:?} ended with {ended:?}: {output}");
            assert!(begin.elapsed() < PATIENCE, "{command:?} does not listen: {output}");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// A connection to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
