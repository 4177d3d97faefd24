//! Compares this project's tool with Debian's xenstore-utils, on the same daemon with the same
//! contents: the output on stdout and stderr, the exit codes, and the resulting store.

use crate::support::{Daemon, DebianPeers, PATIENCE, each};
use conformance::DaemonKind;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xenstore::walk::{NodeParts, Options, walk};
use xenstore::{Client, Error, MsgType, Perm, Store, Ticket, TransactionId};

/// The invocations, shell words without quoting. `xenstore-` is put before the first word unless
/// that is `xenstore` itself. `\s` is a space within a word, `\e` an empty word.
const INVOCATIONS: &[&str] = &[
    // read
    "read /t/a",
    "read /t/a /t/b",
    "read -p /t/a /t/b",
    "read /t/a -p",
    "read -R /t/bytes",
    "read -pR /t/bytes /t/a",
    "read --raw --prefix /t/bytes",
    "read --pref /t/a",
    "read --r /t/a",
    "read --raw=1 /t/a",
    "read --nothing /t/a",
    "read --nothing=1 /t/a",
    "read -x /t/a",
    "read -xp /t/a",
    "read -s /t/a",
    "read -f /t/a",
    "read -t /t/a",
    "read -n 1 /t/a",
    "read -n",
    "read -h",
    "read -ph",
    "read --help",
    "read",
    "read -p",
    "read -- /t/a",
    "read -- -p",
    "read -",
    "read /t/empty",
    "read /t/bytes",
    "read /t/absent",
    "read /t/a /t/absent /t/b",
    "read t/a",
    "read \\e",
    "read /t/a/",
    "read /t//a",
    "read //",
    "read /",
    "read /t/b\\sad",
    "xenstore read /t/a",
    "xenstore read -p /t/a",
    "xenstore read -h",
    "xenstore read --r",
    "xenstore read -x",
    "xenstore read",
    "xenstore read /t/absent",
    "xenstore",
    "xenstore frobnicate",
    "xenstore -h",
    "xenstore Read /t/a",
    // write
    "write /t/new value",
    "write /t/new value /t/other value2",
    "write /t/new value /t/other",
    "write /t/new",
    "write",
    "write -h",
    "write /t/new \\e",
    "write /t/new a\\sb",
    "write /t/deep/er/and/deeper 1",
    "write /t/a new",
    "write /t/x \\\\x41\\\\x4g\\\\xzz\\\\x",
    "write /t/x \\\\0x41\\\\400\\\\8\\\\777",
    "write /t/x \\\\t\\\\n\\\\r\\\\\\\\\\\\q",
    "write /t/x end\\\\",
    "write /t/x \\\\x0x41\\\\x-4\\\\x+4\\\\x\\s4\\\\x-",
    "write -R /t/x \\\\x41\\\\t",
    "write /t/x -R \\\\x41",
    "write -p /t/x 1",
    "write /t/x -- -p",
    "write -- /t/x -p",
    "write t/x 1",
    "write /t/new 1 t/x 2",
    "write /t/new 1 /t/new 2",
    "write / root",
    "write -t /t/x 1",
    "xenstore write /t/x",
    "xenstore write /t/x 1",
    "write @releaseDomain 1",
    // list
    "list /t",
    "list /t /t/dir",
    "list -p /t",
    "list -p /",
    "list /",
    "list /t/a",
    "list /t/absent",
    "list /t /t/absent",
    "list",
    "list -h",
    "list -R /t",
    "list /many",
    "list -p /many",
    // ls
    "ls",
    "ls /",
    "ls /t",
    "ls -p /t",
    "ls -f /t",
    "ls -fp /t",
    "ls -f -p",
    "ls -p",
    "ls /t /t/dir",
    "ls /t/absent",
    "ls /t /t/absent /t/dir",
    "ls /t/a",
    "ls /t/",
    "ls t",
    "ls \\e",
    "ls -h",
    "ls -R",
    "ls --flat --prefix /wide",
    "ls /wide",
    "ls -p /wide",
    "ls -f /wide",
    "ls /long",
    "ls -p /long",
    "ls /many",
    "ls -x",
    "xenstore ls -p /t",
    "xenstore ls -u",
    "xenstore ls /t/absent",
    // rm
    "rm /t/a",
    "rm /t/a /t/b",
    "rm /t/absent",
    "rm /t/absent/child",
    "rm /t/a /t/absent/child /t/b",
    "rm -t /t/dir/one/leaf",
    "rm -t /t/dir/two/leaf",
    "rm -t /lonely/x/y/z",
    "rm -t /t/a",
    "rm -t /t/absent/child",
    "rm --tidy /lonely/x/y/z /t/b",
    "rm -t t/a",
    "rm t",
    "rm",
    "rm -h",
    "rm -p /t/a",
    "rm /",
    "rm -t /",
    "rm /t",
    // exists
    "exists /t/a",
    "exists /t/absent",
    "exists /t/a /t/absent",
    "exists /t/a /t/b",
    "exists t",
    "exists",
    "exists -h",
    "exists -p /t/a",
    // chmod
    "chmod /t/a r5",
    "chmod /t/a n0 r5 w6 b7",
    "chmod -u /t/dir/one/leaf n0 r1",
    "chmod -r /t/dir n0 r1",
    "chmod -u -r /t/dir/one b3",
    "chmod -ur /t/dir/one b3",
    "chmod /t/a x5",
    "chmod /t/a r5 \\e",
    "chmod /t/a 5",
    "chmod /t/a r",
    "chmod /t/a rx",
    "chmod /t/a r+5",
    "chmod /t/a r-1",
    "chmod /t/a r99999999999",
    "chmod /t/a",
    "chmod",
    "chmod -h",
    "chmod /t/absent r5",
    "chmod -r /t/absent r5",
    "chmod t/a r5",
    "chmod -u t/a r5",
    "chmod / r5",
    "chmod -r / r5",
    "chmod -u / r5",
    "chmod @releaseDomain r5",
    "chmod -u @releaseDomain n0 r5",
    "chmod -r /long n0 r1",
    "chmod \\e r5",
    "chmod -p /t/a r5",
    "chmod --rec /t/dir r5",
    // watch
    "watch -n 1 /t",
    "watch -n 2 /t /t/a",
    "watch -n1 @releaseDomain",
    "watch --number=1 /t",
    "watch --number 1 /t/absent",
    "watch -n 0 /t",
    "watch -n -5 /t",
    "watch -n x /t",
    "watch -n",
    "watch --number",
    "watch",
    "watch -h",
    "watch -n 1 t",
    "watch -n 1 /t/",
    "watch -n 3 /t /t",
    "watch -p /t",
    "xenstore watch -n 1 /t",
    "xenstore watch -n",
    // control
    "control",
    "control help",
    "control frobnicate",
    "control log on",
    "control log",
    "control log on off",
    "control check",
    "control print hello",
    "control quota",
    "control quota 0",
    "control quota 1",
    "control quota set transactions 9",
    "control quota set nonsense 9",
    "control quota-soft",
    "control live-update",
    "control live-update -c",
    "control live-update -t",
    "control live-update -F",
    "control live-update /absent/program",
    "control live-update -t 2 -c args /absent/program",
    "control -h",
    "control \\e",
];

fn words(invocation: &str) -> Vec<String> {
    let word = |word: &str| {
        word.replace("\\s", " ").replace("\\e", "").replace("\\\\", "\u{1}").replace('\u{1}', "\\")
    };
    invocation.split(' ').map(word).collect()
}

/// Puts the store into the initial state of every invocation.
fn fill(client: &mut Client) -> Result<(), Error> {
    for top in client.directory("/")? {
        if top != b"tool" {
            client.rm([b"/", &top[..]].concat())?;
        }
    }
    client.set_perms("/", &perms("n0"))?;
    client.set_perms("/tool", &perms("n0"))?;
    client.set_perms("@releaseDomain", &perms("n0"))?;
    client.write("/", "")?;
    let all: Vec<u8> = (0..=255).collect();
    let mut requests = Vec::new();
    for (path, value) in [
        ("/t/a", &b"value of a"[..]),
        ("/t/b", b"b"),
        ("/t/empty", b""),
        ("/t/bytes", &all),
        ("/t/dir", b"kept"),
        ("/t/dir/one/leaf", b"1"),
        ("/t/dir/two/leaf", b"2"),
        ("/t/dir/two/other", b"3"),
        ("/lonely/x/y/z", b"alone"),
        ("/wide/value-that-fits", &[b'v'; 48]),
        ("/wide/value-to-be-cut", &[b'v'; 120]),
        ("/wide/controls-to-be-cut", &[1; 70]),
        ("/wide/a-name-that-is-longer-than-a-line-has-room-for-so-that-it-is-cut-somewhere", b"v"),
        ("/wide/exactly", &[b'e'; 65]),
        ("/wide/one-more", &[b'e'; 65]),
    ] {
        requests.push((path.to_owned(), value.to_vec()));
    }
    let mut deep = "/long".to_owned();
    for level in 0..90 {
        deep.push_str(&format!("/{}", level % 10));
        requests.push((deep.clone(), b"on the way down".to_vec()));
    }
    for child in 0..200 {
        requests.push((format!("/many/child-with-a-long-name-{child}"), Vec::new()));
    }
    let sent: Vec<Ticket> = requests
        .iter()
        .map(|(path, value)| {
            client.submit(TransactionId::NONE, MsgType::Write, &[path.as_bytes(), b"\0", value])
        })
        .collect::<Result<_, Error>>()?;
    for ticket in sent {
        client.wait(ticket)?;
    }
    client.set_perms("/t/b", &perms("n0 r1 w2 b3"))?;
    client.set_perms("/t/dir/two", &perms("r7"))?;
    Ok(())
}

fn perms(text: &str) -> Vec<Perm> {
    text.split(' ').map(|perm| Perm::parse(perm.as_bytes()).unwrap()).collect()
}

/// Returns all nodes of the store as text.
fn contents(client: &mut Client) -> Vec<String> {
    let mut lines = Vec::new();
    let options = Options { parts: NodeParts::ValuesAndPerms, ..Options::default() };
    walk(client, b"/", options, |node| {
        let path = node.path.escape_ascii().to_string();
        let perms: Vec<String> = node.perms.unwrap()?.iter().map(ToString::to_string).collect();
        lines.push(format!("{path} = {} ({})", node.value?.escape_ascii(), perms.join(",")));
        Ok::<(), Error>(())
    })
    .unwrap();
    lines.push(format!("/ {:?}", client.get_perms("/").unwrap()));
    lines
}

/// One of the two sets of programs.
struct Tools {
    /// The folders to search for programs.
    dirs: Vec<PathBuf>,
    libraries: Option<PathBuf>,
}

impl Tools {
    fn command(&self, invocation: &str, socket: &Path) -> Command {
        let words = words(invocation);
        let name = match &words[0][..] {
            "xenstore" => "xenstore".to_owned(),
            name => format!("xenstore-{name}"),
        };
        let dir = if name == "xenstore-control" { self.dirs.last() } else { self.dirs.first() };
        let mut command = Command::new(dir.unwrap().join(&name));
        command.args(&words[1..]).env("XENSTORED_PATH", socket).env_remove("POSIXLY_CORRECT");
        command.env("LC_ALL", "C").stdin(Stdio::null());
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Replaces the names of the folders, which argv\[0\] shows.
    fn normalise(&self, output: &[u8]) -> String {
        let mut text = output.escape_ascii().to_string().replace("\\n", "\n");
        for dir in &self.dirs {
            text = text.replace(dir.to_str().unwrap(), "BIN");
        }
        text
    }

    /// Runs an invocation and returns its effects.
    fn run(&self, invocation: &str, daemon: &Daemon) -> String {
        let mut client = daemon.client();
        fill(&mut client).unwrap();
        let output = output(self.command(invocation, &daemon.socket));
        format!(
            "exit code {:?}\nstdout:\n{}\nstderr:\n{}\nstore:\n{}",
            output.status.code(),
            self.normalise(&output.stdout),
            self.normalise(&output.stderr),
            contents(&mut client).join("\n"),
        )
    }

    /// Runs an invocation and returns its output on a terminal with `columns` columns.
    fn run_on_terminal(&self, invocation: &str, daemon: &Daemon, columns: u16) -> String {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap());
        let mut command = self.command(invocation, &daemon.socket);
        let mut child = command.stdout(slave.unwrap()).stderr(Stdio::null()).spawn().unwrap();
        drop(command);
        let mut output = Vec::new();
        // EIO marks the end of the output: the other end of the terminal is closed.
        let _ = File::from(master).read_to_end(&mut output);
        format!("{:?}\n{}", child.wait().unwrap().code(), self.normalise(&output))
    }
}

/// Does the same as `Command::output`, for a program that may never end: it has 20 seconds.
fn output(mut command: Command) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let [out, err] = ["out", "err"].map(|name| folder.path().join(name));
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_micros(300)),
            None => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
        }
    };
    Output { status, stdout: std::fs::read(out).unwrap(), stderr: std::fs::read(err).unwrap() }
}

fn both(peers: &DebianPeers, folder: &TempDir) -> (Tools, Tools) {
    let debian =
        Tools { dirs: vec![peers.tools(), peers.programs()], libraries: Some(peers.libraries()) };
    for name in
        ["", "-read", "-write", "-list", "-ls", "-rm", "-exists", "-chmod", "-watch", "-control"]
    {
        let link = folder.path().join(format!("xenstore{name}"));
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xenstore"), link).unwrap();
    }
    (debian, Tools { dirs: vec![folder.path().to_owned()], libraries: None })
}

/// Compares all invocations, and prints all that differ.
fn compare(what: &[String], mut run: impl FnMut(&str) -> (String, String)) {
    let mut different = Vec::new();
    for invocation in what {
        let begin = Instant::now();
        let (theirs, ours) = run(invocation);
        if begin.elapsed() > Duration::from_secs(1) {
            eprintln!("{invocation}: {:?}", begin.elapsed());
        }
        if theirs != ours {
            different.push(format!("== {invocation}\n-- Debian's\n{theirs}\n-- ours\n{ours}"));
        }
    }
    assert!(
        different.is_empty(),
        "{} of {} invocations differ:\n{}",
        different.len(),
        what.len(),
        different.join("\n")
    );
}

#[test]
fn the_same_on_stdout_and_stderr_and_in_the_store() {
    let Some(peers) = DebianPeers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (debian, ours) = both(&peers, &folder);
    let all: Vec<String> = INVOCATIONS.iter().map(|at| (*at).to_owned()).collect();
    for daemon in each(&[DaemonKind::C, DaemonKind::Ours]) {
        compare(&all, |invocation| {
            (debian.run(invocation, &daemon), ours.run(invocation, &daemon))
        });
    }
}

#[test]
fn ls_is_cut_the_same_on_a_terminal_of_any_width() {
    let Some(peers) = DebianPeers::find() else { return };
    let Some(daemon) = Daemon::start(DaemonKind::C) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (debian, ours) = both(&peers, &folder);
    fill(&mut daemon.client()).unwrap();
    let columns = [0, 1, 2, 3, 9, 10, 11, 20, 40, 61, 62, 80, 200];
    let all: Vec<String> =
        ["ls /wide", "ls -p /wide", "ls -f /wide", "ls -fp /wide", "ls -p /long"]
            .iter()
            .flat_map(|at| columns.map(|columns| format!("{at} {columns}")))
            .collect();
    compare(&all, |both| {
        let (invocation, columns) = both.rsplit_once(' ').unwrap();
        let columns = columns.parse().unwrap();
        let run = |tools: &Tools| tools.run_on_terminal(invocation, &daemon, columns);
        (run(&debian), run(&ours))
    });
}

#[test]
fn the_same_without_a_daemon() {
    let Some(peers) = DebianPeers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (debian, ours) = both(&peers, &folder);
    let socket = folder.path().join("nobody");
    for listening in [false, true] {
        if listening {
            // A socket without a listener.
            drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        }
        let all =
            ["read /a", "ls", "control help", "watch /a", "rm /a", "read -h"].map(str::to_owned);
        compare(&all, |invocation| {
            let run = |tools: &Tools| {
                let output = output(tools.command(invocation, &socket));
                let code = output.status.code();
                let (out, err) = (tools.normalise(&output.stdout), tools.normalise(&output.stderr));
                format!("{code:?}\n{out}\n{err}")
            };
            (run(&debian), run(&ours))
        });
    }
}

#[test]
fn posixly_correct_ends_flags_at_the_first_operand() {
    let Some(peers) = DebianPeers::find() else { return };
    let Some(daemon) = Daemon::start(DaemonKind::C) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (debian, ours) = both(&peers, &folder);
    fill(&mut daemon.client()).unwrap();
    let all = ["read /t/a -p", "read -p /t/a -R", "write /t/x -p"].map(str::to_owned);
    compare(&all, |invocation| {
        let run = |tools: &Tools| {
            let mut command = tools.command(invocation, &daemon.socket);
            command.env("POSIXLY_CORRECT", "1");
            let output = output(command);
            let (out, err) = (tools.normalise(&output.stdout), tools.normalise(&output.stderr));
            format!("{:?}\n{out}\n{err}", output.status.code())
        };
        (run(&debian), run(&ours))
    });
}
