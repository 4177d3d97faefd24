//! The interface for programs: JSON, exit codes, and arguments that would have no effect.

use super::support::{TestHost, XB};
use super::traces::entries;
use serde_json::{Value, json};
use std::process::Command;

#[test]
fn every_command_that_does_something_prints_json() {
    let host = TestHost::down("json");
    let h = host.path("h").to_str().unwrap().to_owned();
    assert_eq!(host.json(&["host", "up"]), json!({ "host": h, "up": true, "was_up": false }));
    assert_eq!(host.json(&["host", "up"])["was_up"], json!(true));
    assert_eq!(host.json(&["host", "status"])["up"], json!(true));
    let program = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let config = host.config("web", &format!("extra = \"{program}\""));
    assert_eq!(host.json(&["create", &config])["domid"], json!(1));
    let image = host.image("a.img", 1 << 20);
    let attached = host.json(&["disk", "attach", "web", &format!("{image},,xvdb,w")]);
    assert_eq!(
        (&attached["vdev"], &attached["backend_state"]),
        (&json!("xvdb"), &json!("Connected (4)"))
    );
    assert_eq!(host.json(&["disk", "resize", "web", "xvdb", "2M"])["bytes"], json!(2 << 20));
    let tree = host.json(&["tree"]);
    assert_eq!((&tree[1]["name"], &tree[1]["disks"][0]["target"]), (&json!("web"), &json!(image)));
    assert_eq!(
        host.json(&["disk", "detach", "web", "xvdb"]),
        json!({ "domid": 1, "vdev": "xvdb", "detached": true })
    );
    assert_eq!(host.json(&["pause", "web"])["state"], json!("paused"));
    assert_eq!(host.json(&["unpause", "web"])["state"], json!("running"));
    assert_eq!(
        host.json(&["reboot", "web", "--wait"]),
        json!({ "name": "web", "domid": 2, "asked": "reboot", "ended": false })
    );
    // A program that has just begun may be asked before it listens for signals; its init ends it
    // then.
    assert_eq!(
        host.json(&["shutdown", "web", "--wait"]),
        json!({ "name": "web", "domid": 2, "asked": "poweroff", "ended": true })
    );
    host.until_alone();
    host.ok(&["create", &config]);
    assert_eq!(host.json(&["destroy", "web"]), json!({ "domid": 3, "destroyed": true }));
    let nodes = host.ok(&["--json", "store", "ls", "/local/domain/0"]);
    assert!(nodes.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{nodes}");
    assert_eq!(host.json(&["host", "down"]), json!({ "host": h, "up": false }));
}

#[test]
fn an_error_is_json_where_json_is_asked_for() {
    let host = TestHost::up("json-error");
    let output = host.run(&["info", "nobody", "--json"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(4), &b""[..]));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    let words = "there is no domain nobody; xb list shows all";
    assert_eq!(error, json!({ "error": words, "code": 4 }));
    let config = host.config("web", "vif = [\"\"]\nvcpus = 4000\nextra = \"exec sleep 1000\"");
    let output = host.run(&["create", &config, "--json"]);
    let notes = String::from_utf8(output.stderr).unwrap();
    let notes: Vec<Value> = notes.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |words: &str| {
        notes.iter().any(|note| note["note"].as_str().is_some_and(|note| note.contains(words)))
    };
    assert!(has("vif is not supported yet"), "{notes:?}");
    assert!(has("vcpus = 4000 has no effect: this machine has "), "{notes:?}");
}

#[test]
fn what_would_have_no_effect_is_refused() {
    let host = TestHost::down("no-effect");
    let config = host.config("web", "");
    for command in [
        &["demo", "--json"][..],
        &["man", "/tmp", "--json"],
        &["config", "convert", &config, "--json"],
        &["completions", "bash", "--json"],
    ] {
        let output = host.run(command);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let words = "--json has no effect on this command; leave it out";
        assert_eq!(error, json!({ "error": words, "code": 2 }), "{command:?}");
        assert_eq!(output.status.code(), Some(2));
    }
    for command in
        [&["log", "web"][..], &["config", "check", &config], &["host", "status"], &["man", "/tmp"]]
    {
        let command = [&["--timeout", "1"], command].concat();
        host.fails(&command, 2, "--timeout has no effect on this command; leave it out");
    }
    host.fails(&["--timeout", "1", "store", "ls"], 2, "--timeout has no effect");
    host.fails(&["store", "ls"], 4, "no host is up in");
}

#[test]
fn a_host_that_does_not_come_up_in_time_is_given_up() {
    let host = TestHost::down("late");
    // All four daemons may be found at the first look by chance; not each time.
    let late = host.until("it is late", || {
        let output = host.run(&["host", "up", "--timeout", "0"]);
        if output.status.success() {
            host.ok(&["host", "down"]);
        }
        (!output.status.success()).then_some(output)
    });
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert_eq!(late.status.code(), Some(3), "{said}");
    assert!(said.contains(" serves (its log: ") && said.contains("not within 0 ms"), "{said}");
    assert!(!host.path("h").exists());
    host.fails(&["demo", "--timeout", "0"], 3, "not within 0 ms");
    assert!(!host.path("h").exists());
    host.fails(&["demo", "--within", "0.001"], 1, "all is as it should be, but has taken ");
    host.nothing_is_left();
}

#[test]
fn cargo_builds_what_is_ours_and_nothing_elsewhere() {
    let host = TestHost::down("cargo");
    let with = |manifest: &str| {
        let mut command = host.command(&["store", "--", "--help"]);
        command.env("CARGO", "/bin/false").env("CARGO_MANIFEST_DIR", manifest).output().unwrap()
    };
    // Built from this project, each time.
    let ours = with(env!("CARGO_MANIFEST_DIR"));
    let said = String::from_utf8_lossy(&ours.stderr).into_owned();
    assert_eq!(ours.status.code(), Some(1), "{said}");
    assert!(said.contains("cargo build of the daemons: exit status: 1"), "{said}");
    let other = with("/somewhere/else");
    assert!(other.status.success(), "{other:?}");
    assert!(String::from_utf8_lossy(&other.stdout).contains("xenstore COMMAND"), "{other:?}");
}

/// No program takes an option for a file or folder.
#[test]
fn options_are_options_in_every_program() {
    let host = TestHost::down("options");
    let empty = host.path("empty");
    std::fs::create_dir(&empty).unwrap();
    for program in ["xb", "xen-hosted", "xenstored", "xenconsoled", "xen-blockd", "xenstore"] {
        let run = |option: &str| {
            let path = std::path::Path::new(XB).with_file_name(program);
            Command::new(path).arg(option).current_dir(&empty).output().unwrap()
        };
        let help = run("--help");
        let text = String::from_utf8_lossy(&help.stdout).to_lowercase();
        assert!(help.status.success() && text.contains("usage"), "{program}: {help:?}");
        assert!(!run("--no-such-option").status.success(), "{program}");
        assert_eq!(entries(&empty), Vec::<std::path::PathBuf>::new(), "{program}");
    }
}
