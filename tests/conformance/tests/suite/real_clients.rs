//! Clients from elsewhere: Debian's `xenstore-*` tools, Xen's own `test-xenstore`, and Python's
//! `pyxs`, against every daemon over its socket.

use conformance::peers::{Peers, target_dir};
use conformance::{Daemon, DaemonKind, skip};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The longest time of any of the clients.
const WITHIN: Duration = Duration::from_secs(60);

macro_rules! against_each {
    ($($name:ident => $check:ident),* $(,)?) => {
        mod c { $(#[test] fn $name() { super::on(super::DaemonKind::C, super::$check); })* }
        mod ox { $(#[test] fn $name() { super::on(super::DaemonKind::OCaml, super::$check); })* }
        mod ours { $(#[test] fn $name() { super::on(super::DaemonKind::Ours, super::$check); })* }
    };
}

against_each! {
    debian_tools => tools,
    debian_xenstore_watch => watch,
    xens_test_xenstore => test_xenstore,
    python_pyxs => pyxs,
}

fn on(kind: DaemonKind, check: fn(&mut Daemon, &Peers)) {
    let peers = match Peers::get() {
        Ok(peers) => peers,
        Err(why) => return skip("Debian's clients", why),
    };
    if let Some(mut daemon) = Daemon::start(kind) {
        check(&mut daemon, peers);
        assert!(daemon.runs(), "the daemon is gone: {}", daemon.exit());
    }
}

/// Runs a command to its end, which must come within [`WITHIN`].
fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdout = child.stdout.take().expect("its output");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text)
    });
    let end = Instant::now() + WITHIN;
    while child.try_wait().expect("its state").is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{command:?} did not end within {WITHIN:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut output = child.wait_with_output().expect("its end");
    output.stdout = reader.join().expect("its reader").expect("its output");
    output
}

/// Runs one of Debian's tools; returns its output and true if it succeeded.
fn tool(daemon: &Daemon, peers: &Peers, line: &str) -> (String, bool) {
    let mut words = line.split(' ');
    let name = words.next().expect("a tool");
    let mut command = peers.command(name);
    let output = run(command.args(words).env("XENSTORED_PATH", daemon.socket()));
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

fn tools(daemon: &mut Daemon, peers: &Peers) {
    let check = |line: &str, expected: (&str, bool)| {
        let (text, success) = tool(daemon, peers, line);
        assert_eq!((text.as_str(), success), expected, "{line}");
    };
    check("xenstore-write /a/b one /a/c two", ("", true));
    check("xenstore-read /a/b", ("one\n", true));
    check("xenstore-read -p /a/b /a/c", ("/a/b: one\n/a/c: two\n", true));
    check("xenstore-read /nothing", ("", false));
    check("xenstore-list /a", ("b\nc\n", true));
    check("xenstore-list -p /a", ("/a/b\n/a/c\n", true));
    check("xenstore-exists /a/b", ("", true));
    check("xenstore-exists /a/x", ("", false));
    check("xenstore-ls /a", ("b = \"one\"\nc = \"two\"\n", true));
    check("xenstore-ls -f /a", ("/a/b = \"one\"\n/a/c = \"two\"\n", true));
    check("xenstore-chmod /a/b r0", ("", true));
    let dots = " .".repeat(25);
    let listed = format!("b = \"one\" {dots}  (r0)\nc = \"two\" {dots}  (n0)\n");
    check("xenstore-ls -p /a", (&listed, true));
    check("xenstore-chmod -r /a b0", ("", true));
    check("xenstore-rm /a/b", ("", true));
    check("xenstore-exists /a/b", ("", false));
    check("xenstore-rm -t /a/c", ("", true));
    check("xenstore-exists /a", ("", false));
    check("xenstore-write /bad/ x", ("", false));
    check("xenstore-control check", ("OK\n", true));
}

fn watch(daemon: &mut Daemon, peers: &Peers) {
    let mut command = peers.command("xenstore-watch");
    command.args(["-n", "3", "/w"]).env("XENSTORED_PATH", daemon.socket());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("xenstore-watch");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut next = || lines.next().expect("one more line").expect("a line");
    assert_eq!(next(), "/w");
    let mut dom0 = daemon.connect();
    dom0.expect_ok("WRITE", "/w/x|v");
    assert_eq!(next(), "/w/x");
    dom0.expect_ok("RM", "/w|");
    assert_eq!(next(), "/w");
    let end = Instant::now() + WITHIN;
    while child.try_wait().expect("its state").is_none() {
        assert!(Instant::now() < end, "xenstore-watch -n 3 does not end after three events");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn test_xenstore(daemon: &mut Daemon, peers: &Peers) {
    let mut command = peers.command("test-xenstore");
    let output = run(command.args(["-i", "50"]).env("XENSTORED_PATH", daemon.socket()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the Python of a virtual environment with `pyxs` under `target/`, made once.
fn python() -> Result<PathBuf, String> {
    let folder = target_dir().join("pyxs");
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let lock = File::create(folder.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let python = folder.join("venv/bin/python");
    if folder.join("complete").exists() {
        return Ok(python);
    }
    let run = |command: &mut Command, what: &str| {
        let output = command.output().map_err(|error| format!("{what}: {error}"))?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{what}: {words}")) }
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")), "python3 -m venv")?;
    let mut pip = Command::new(&python);
    run(pip.args(["-m", "pip", "install", "--quiet", "pyxs"]), "pip install pyxs")?;
    File::create(folder.join("complete")).map_err(|error| error.to_string())?;
    Ok(python)
}

const PYXS: &str = r#"
import sys
import pyxs

with pyxs.Client(unix_socket_path=sys.argv[1]) as client:
    client[b"/py/a"] = b"one"
    client.write(b"/py/b", b"two")
    assert client.read(b"/py/a") == b"one"
    assert client.exists(b"/py/b") and not client.exists(b"/py/x")
    assert sorted(client.list(b"/py")) == [b"a", b"b"], client.list(b"/py")
    assert client.read(b"/py/x", b"default") == b"default"
    client.set_perms(b"/py/a", [b"r0"])
    assert client.get_perms(b"/py/a") == [b"r0"]
    client.mkdir(b"/py/d")
    client.delete(b"/py/d")
    assert not client.exists(b"/py/d")
    assert client.get_domain_path(7) == b"/local/domain/7"
    assert not client.is_domain_introduced(7)
    client.transaction()
    client.write(b"/py/t", b"in a transaction")
    assert client.commit()
    assert client.read(b"/py/t") == b"in a transaction"
    client.transaction()
    client.write(b"/py/u", b"never")
    client.rollback()
    assert not client.exists(b"/py/u")
    try:
        client.read(b"/py/nothing")
        raise SystemExit("no error for an absent node")
    except pyxs.PyXSError as error:
        assert error.args[0] == 2, error.args
    monitor = client.monitor()
    monitor.watch(b"/py/w", b"token")
    events = monitor.wait()
    assert next(events) == (b"/py/w", b"token")
    client.write(b"/py/w", b"v")
    assert next(events) == (b"/py/w", b"token")
    monitor.unwatch(b"/py/w", b"token")
    monitor.close()
print("done")
"#;

fn pyxs(daemon: &mut Daemon, _: &Peers) {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip("pyxs", &why),
    };
    let script = daemon.dir().join("client.py");
    std::fs::write(&script, PYXS).expect("the script");
    let output = run(Command::new(python).arg(&script).arg(daemon.socket()));
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{words}");
}
