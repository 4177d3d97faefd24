//! Ordinary programs in a guest: each command of `tests/commands` has the same result there as
//! outside.
//!
//! A line is a command of a shell, run in a folder that the commands before have left. Where ` ## `
//! and a reason stand behind it, its result differs in a guest for that reason.

use super::support::TestHost;
use std::process::{Command, Stdio};

/// One command of the table.
struct CommandCase {
    command: &'static str,
    /// The reason for which its result differs in a guest.
    reason: Option<&'static str>,
}

fn rows() -> Vec<CommandCase> {
    let lines = include_str!("../../commands").lines();
    lines
        .map(|line| match line.split_once(" ## ") {
            Some((command, reason)) => CommandCase { command, reason: Some(reason) },
            None => CommandCase { command: line, reason: None },
        })
        .collect()
}

/// Returns a script that runs all commands, and prints the status and the output of each.
fn script(rows: &[CommandCase]) -> String {
    let mut script = String::from(
        "umask 022; mkdir /tmp/commands; cd /tmp/commands; export HOME=$PWD LC_ALL=C TZ=UTC\n",
    );
    for row in rows {
        let command = row.command.replace('\'', "'\\''");
        script += &format!("sh -c '{command}' > /tmp/output 2>&1 < /dev/null; status=$?; ");
        script +=
            "echo \"= $status $(cksum < /tmp/output) $(head -c 300 /tmp/output | base64 -w0)\"\n";
    }
    script
}

/// Returns the answers in a script's output.
fn answers(printed: &str) -> Vec<String> {
    printed.lines().filter_map(|line| line.strip_prefix("= ")).map(str::to_owned).collect()
}

/// Formats an answer for a person: status, and the beginning of the output.
fn shown(answer: &str) -> String {
    let mut words = answer.split(' ');
    let status = words.next().unwrap_or_default().to_owned();
    let mut decode = Command::new("base64")
        .arg("-d")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = words.next_back().unwrap_or_default();
    std::io::Write::write_all(&mut decode.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = decode.wait_with_output().unwrap();
    format!("status {status}: {}", String::from_utf8_lossy(&output.stdout).trim_end())
}

#[test]
fn ordinary_programs_do_in_a_guest_what_they_do_outside() {
    let rows = rows();
    assert!(rows.len() >= 150, "{}", rows.len());
    let script = script(&rows);
    let host = TestHost::up("commands");
    if !host.has_fuse("ordinary programs in a guest") {
        return;
    }
    // Outside: in namespaces of its own, where /tmp is empty.
    let outside = Command::new("unshare")
        .args([
            "-mUr",
            "sh",
            "-c",
            "mount -t tmpfs none /tmp && cd / && exec sh -c \"$0\"",
            &script,
        ])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&outside.stderr).into_owned();
    let outside = answers(&String::from_utf8_lossy(&outside.stdout));
    if outside.is_empty() {
        return conformance::skip("commands outside a guest", &format!("no namespaces: {said}"));
    }
    assert_eq!(outside.len(), rows.len(), "{said}");
    let extra = script.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let config = host.config("web", &format!("memory = 256\nextra = \"{extra}\""));
    host.ok(&["create", &config, "--wait", "--timeout", "300"]);
    let inside = answers(&host.ok(&["log", "web"]));
    assert_eq!(inside.len(), rows.len(), "{}", host.ok(&["log", "web"]));
    let mut wrong = Vec::new();
    for ((row, outside), inside) in rows.iter().zip(&outside).zip(&inside) {
        let command = row.command;
        if outside.starts_with("127 ") {
            let program = command.split(' ').next().unwrap_or_default();
            conformance::skip(command, &format!("{program} is not installed"));
            continue;
        }
        let (out, inner) = (shown(outside), shown(inside));
        match row.reason {
            None if outside != inside => {
                wrong.push(format!("{command}\n  outside: {out}\n  inside: {inner}"));
            }
            Some(reason) if outside == inside => {
                wrong
                    .push(format!("{command}\n  does the same, and not as {reason:?} says: {out}"));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
