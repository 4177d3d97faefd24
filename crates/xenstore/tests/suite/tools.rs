//! The tool's features beyond Debian's: JSON, export, import, diff, help, and the bulk read.

use crate::support::{Daemon, each};
use conformance::DaemonKind;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use xenstore::walk::{NodeParts, Options, walk};
use xenstore::{Client, Error, Perm, Store};
use xenstore_core::wire::{Header, MsgType, split_message};

/// The daemons that sort their listings.
const SORTED: [DaemonKind; 2] = [DaemonKind::OCaml, DaemonKind::Ours];

fn tool(daemon: &Daemon, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xenstore"))
        .args(args)
        .env("XENSTORED_PATH", &daemon.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A tool that does not read its input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn stdout(daemon: &Daemon, args: &[&str], code: i32) -> String {
    let output = tool(daemon, args, b"");
    assert_eq!(output.status.code(), Some(code), "{args:?} {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fill(client: &mut Client) {
    let all: Vec<u8> = (0..=255).collect();
    client.write("/t/bytes", all).unwrap();
    client.write("/t/text", "two\nlines \"é\"").unwrap();
    client.write("/t/dir/leaf", "").unwrap();
    let perms = ["n0", "r5"].map(|perm| Perm::parse(perm.as_bytes()).unwrap());
    client.set_perms("/t/dir", &perms).unwrap();
}

#[test]
fn an_export_comes_back() {
    for daemon in each(&DaemonKind::ALL) {
        fill(&mut daemon.client());
        let export = stdout(&daemon, &["export", "/t"], 0);
        assert_eq!(stdout(&daemon, &["export", "--loose", "/t"], 0), export);
        let imported = tool(&daemon, &["import", "/copy"], export.as_bytes());
        assert!(imported.status.success(), "{imported:?}");
        assert_eq!(stdout(&daemon, &["export", "/copy"], 0), export.replace("\"/t\"", "\"/copy\""));
        assert_eq!(stdout(&daemon, &["diff", "/t", "/copy"], 0), "");

        daemon.client().write("/copy/text", "other").unwrap();
        daemon.client().write("/copy/new", "").unwrap();
        let expected = "+ new = \"\"  (n0)\n\
                        - text = \"two\\nlines \"\\xc3\\xa9\"\"  (n0)\n\
                        + text = \"other\"  (n0)\n";
        assert_eq!(stdout(&daemon, &["diff", "/t", "/copy"], 1), expected);
        let against_export = tool(&daemon, &["diff", "/t", "-"], export.as_bytes());
        assert_eq!((against_export.status.code(), against_export.stdout.len()), (Some(0), 0));

        let replaced = tool(&daemon, &["import", "--replace", "/copy"], export.as_bytes());
        assert!(replaced.status.success(), "{replaced:?}");
        stdout(&daemon, &["diff", "/t", "/copy"], 0);
        stdout(&daemon, &["diff", "/t", "/absent"], 2);
    }
}

#[test]
fn a_large_import_goes_in_parts() {
    for daemon in each(&SORTED) {
        let nodes: Vec<String> = (0..6000)
            .map(|at| {
                format!(
                    "{{\"path\": \"{}/{at}\", \"value\": \"{at}\", \"perms\": [\"n0\"]}}",
                    at % 70
                )
            })
            .collect();
        let text = format!("{{\"xenstore-export\": 1, \"nodes\": [{}]}}", nodes.join(","));
        let output = tool(&daemon, &["import", "/big"], text.as_bytes());
        let progress = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && progress.contains("6000 of 6000 nodes"), "{progress}");
        assert_eq!(daemon.client().read("/big/69/5949").unwrap(), b"5949");
        assert_eq!(stdout(&daemon, &["ls", "-f", "/big"], 0).lines().count(), 6070);
    }
}

#[test]
fn json_lines() {
    for daemon in each(&SORTED) {
        fill(&mut daemon.client());
        let lines = stdout(&daemon, &["ls", "--json", "/t"], 0);
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with(r#"{"path": "/t/bytes", "value": {"base64": "AAECAw"#));
        assert_eq!(lines[1], r#"{"path": "/t/dir", "value": "", "perms": ["n0", "r5"]}"#);
        assert_eq!(
            lines[3],
            r#"{"path": "/t/text", "value": "two\nlines \"é\"", "perms": ["n0"]}"#
        );
        let event = stdout(&daemon, &["watch", "--json", "-n", "1", "/t"], 0);
        assert_eq!(event, "{\"path\": \"/t\", \"watch\": \"/t\"}\n");
    }
}

#[test]
fn help_and_completions() {
    let Some(daemon) = Daemon::start(DaemonKind::Ours) else { return };
    let help = stdout(&daemon, &["--help"], 0);
    assert!(help.contains("export") && help.contains("$ xenstore ls"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&daemon, &["completions", shell], 0).contains("recurse"));
    }
    let script = stdout(&daemon, &["completions", "bash"], 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("completions");
    std::fs::write(&file, script).unwrap();
    assert!(Command::new("bash").arg("-n").arg(file).status().unwrap().success());
    stdout(&daemon, &["completions", "tcsh"], 2);
    stdout(&daemon, &["export"], 2);
    stdout(&daemon, &["export", "--nonsense", "/t"], 2);
}

/// Forwards everything to a daemon except CONTROL `subtree`, which it answers from `parts`. It
/// stands for the daemon's side of the bulk read, whose own tests are with this project's daemon.
/// It answers ENOSYS after the last part.
fn with_bulk_read(daemon: &Daemon, folder: &TempDir, parts: &'static [&'static [u8]]) -> Client {
    let socket = folder.path().join("sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut behind = UnixStream::connect(&daemon.socket).unwrap();
    std::thread::spawn(move || {
        let (mut front, _) = listener.accept().unwrap();
        let mut parts = parts.iter();
        let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = front.read(&mut buffer) {
            input.extend_from_slice(&buffer[..count]);
            while let Some((header, payload, rest)) = split_message(&input).unwrap() {
                if payload.starts_with(b"subtree\0") {
                    let (kind, payload) = match parts.next() {
                        Some(part) => (MsgType::Control, *part),
                        None => (MsgType::Error, &b"ENOSYS\0"[..]),
                    };
                    let len = payload.len() as u32;
                    let reply = Header { kind: kind.code(), len, ..header };
                    front.write_all(&[&reply.to_bytes()[..], payload].concat()).unwrap();
                } else {
                    behind.write_all(&[&header.to_bytes()[..], payload].concat()).unwrap();
                    let mut reply = [0; 16];
                    behind.read_exact(&mut reply).unwrap();
                    let len = Header::parse(&reply).unwrap().len as usize;
                    let mut payload = vec![0; len];
                    behind.read_exact(&mut payload).unwrap();
                    front.write_all(&[&reply[..], &payload].concat()).unwrap();
                }
                input = rest.to_vec();
            }
        }
    });
    Client::connect(socket).unwrap()
}

#[test]
fn a_bulk_read_that_ends_halfway_is_finished_the_plain_way() {
    for daemon in each(&SORTED) {
        let paths = ["/t/a", "/t/a/x", "/t/a/y", "/t/a-b", "/t/b", "/t/b/z", "/t/c"];
        for path in paths {
            daemon.client().write(path, format!("plain {path}")).unwrap();
        }
        const FIRST: &[u8] = b"1\0\0n0\x000\0a\0n0\x004\0bulka/x\0n0,r5\x004\0bulk";
        const LAST: &[u8] = b"\0a/y\0n0\x000\0a-b\0n0\x000\0b\0n0\x000\0b/z\0n0\x000\0c\0n0\x000\0";
        const CASES: [(&[&[u8]], usize); 5] = [
            (&[], 0),
            (&[b"OK\0"], 0),
            (&[FIRST], 2),
            (&[FIRST, b"nonsense"], 2),
            (&[FIRST, LAST], 7),
        ];
        for (parts, from_bulk) in CASES {
            let folder = tempfile::tempdir().unwrap();
            let mut client = with_bulk_read(&daemon, &folder, parts);
            let mut seen = Vec::new();
            let options = Options { parts: NodeParts::ValuesAndPerms, ..Options::default() };
            walk(&mut client, b"/t", options, |node| {
                assert!(!node.perms.unwrap()?.is_empty());
                let plain = node.value?.starts_with(b"plain");
                seen.push((String::from_utf8(node.path).unwrap(), node.depth, plain));
                Ok::<(), Error>(())
            })
            .unwrap();
            // `-` comes before `/`: the order is that of names, not of paths.
            let expected: Vec<_> = paths
                .iter()
                .enumerate()
                .map(|(at, path)| {
                    ((*path).to_owned(), path.matches('/').count() - 2, at >= from_bulk)
                })
                .collect();
            assert_eq!(seen, expected, "{} parts", parts.len());
        }
    }
}
