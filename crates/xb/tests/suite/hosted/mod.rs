//! `xb` on hosted hosts: the program itself, the real daemons, guests that run; and a check that
//! nothing is left of them.

mod commands;
mod consoles;
mod demo;
mod devices;
mod disks;
mod doctor;
mod driver_domains;
mod ends;
mod examples;
mod faults;
mod interrupts;
mod lists;
mod logs;
mod races;
mod supervisor;
mod support;
mod top;
mod traces;
mod user;
mod words;

use serde_json::json;
use support::TestHost;

#[test]
fn a_guest_from_birth_to_death() {
    let host = TestHost::up("life");
    let config = host.config("web", "memory = 32\nextra = \"echo hello; exec sleep 1000\"");
    assert_eq!(host.json(&["create", &config])["name"], json!("web"));
    let listed = host.json(&["list"]);
    let domain = &listed[1];
    assert_eq!((&domain["name"], &domain["state"]), (&json!("web"), &json!("running")));
    assert_eq!(domain["memory_max_kib"], json!(32 * 1024));
    host.ok(&["pause", "web"]);
    assert_eq!(host.json(&["info", "web"])["state"], json!("paused"));
    host.ok(&["unpause", "web"]);
    host.fails(&["unpause", "web"], 1, "web is not paused; it is running");
    host.until_log("web", "hello");
    host.ok(&["shutdown", "web", "--wait"]);
    host.until_alone();
    assert!(host.ok(&["log", "web"]).contains("hello"), "the log outlives the guest");
    let ended = host.json(&["info", "web"]);
    assert_eq!((&ended["state"], &ended["ended"]), (&json!("shutdown"), &json!(true)));
    host.fails(&["info", "nobody"], 4, "there is no domain nobody");
}

#[test]
fn a_backend_that_was_killed_comes_back_with_the_host() {
    let host = TestHost::up("killed");
    let image = host.image("a.img", 1 << 20);
    let config =
        host.config("web", &format!("disk = [\"{image},,xvda\"]\nextra = \"exec sleep 1000\""));
    host.ok(&["create", &config]);
    host.kill_backend_for_good();
    let status = host.run(&["host", "status"]);
    assert_eq!(status.status.code(), Some(4), "{status:?}");
    assert!(host.ok(&["host", "up"]).contains("is up"));
    host.ok(&["disk", "attach", "web", "vdev=xvdb,target=memory:1048576"]);
    host.ok(&["disk", "detach", "web", "xvda"]);
}

#[test]
fn configurations_are_converted_and_checked() {
    let host = TestHost::down("convert");
    let config = host.config("web", "vif = [\"bridge=x\"]\ndisk = [\"/a,,xvda\"]");
    let output = host.run(&["config", "convert", &config]);
    let toml = String::from_utf8(output.stdout).unwrap();
    assert!(toml.contains("vif = [\"bridge=x\"]"), "{toml}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("vif is not supported yet"), "{said}");
    let path = host.path("web.toml");
    std::fs::write(&path, &toml).unwrap();
    let back = host.ok(&["config", "convert", path.to_str().unwrap()]);
    assert_eq!(back, "name = \"web\"\nvif = [\"bridge=x\"]\ndisk = [\"/a,,xvda\"]\n");
    let config = host.config("bad", "disk = [\"/a,wrong,xvda\"]");
    host.fails(&["config", "check", &config], 1, "bad.cfg:2:13: \"wrong\"; expected a format");
}

/// All that `create` would refuse is said at once, by both commands in the same words.
#[test]
fn a_check_refuses_what_create_would() {
    let host = TestHost::up("check");
    let (image, folder) = (host.image("a.img", 1 << 20), host.path(""));
    let folder = folder.to_str().unwrap();
    let good = host.config("good", &format!("memory = 64\ndisk = [\"{image},,xvda\"]"));
    assert_eq!(host.json(&["config", "check", &good])["name"], "good");
    let faults = [
        ("ramdisk = \"/initrd\"".into(), "hosted guests have no ramdisk"),
        ("memory = 99999999".into(), "memory = 99999999: this machine has "),
        ("kernel = \"/not/there\"".into(), "kernel /not/there: No such file or directory"),
        ("disk = [\"/not/there,,xvda\"]".into(), "disk xvda: /not/there: No such file"),
        ("memory = 8".into(), "memory = 8: a hosted guest needs "),
        ("disk = [\"/a,vhd,xvda\"]".into(), "disk xvda: format vhd is not served"),
        (format!("disk = [\"{folder},,xvda,r\"]"), "is no file and no block device"),
    ];
    for (rest, words) in &faults {
        let config = host.config("bad", rest);
        host.fails(&["config", "check", &config], 1, words);
        host.fails(&["create", &config], 1, words);
    }
    let all: Vec<&str> = faults[..4].iter().map(|(rest, _): &(String, _)| rest.as_str()).collect();
    let output = host.run(&["config", "check", &host.config("bad", &all.join("\n")), "--json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
    for ((_, words), line) in std::iter::zip(&faults[..4], said.lines()) {
        let error: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(error["error"].as_str().unwrap().contains(words), "{said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[test]
fn help_completions_and_manual_pages_are_of_one_table() {
    let host = TestHost::down("help");
    let commands: &[&[&str]] = &[
        &["host", "up"],
        &["host", "down"],
        &["host", "status"],
        &["host", "log"],
        &["create"],
        &["list"],
        &["tree"],
        &["doctor"],
        &["top"],
        &["info"],
        &["pause"],
        &["unpause"],
        &["shutdown"],
        &["reboot"],
        &["destroy"],
        &["log"],
        &["devd"],
        &["store"],
        &["disk", "attach"],
        &["disk", "detach"],
        &["disk", "list"],
        &["disk", "resize"],
        &["disk", "mount"],
        &["disk", "unmount"],
        &["disk", "stats"],
        &["config", "convert"],
        &["config", "check"],
        &["demo"],
        &["completions"],
        &["man"],
    ];
    for command in commands {
        let help = host.ok(&[*command, &["--help"]].concat());
        let example = format!("Example: xb {}", command.join(" "));
        assert!(help.contains(&example), "{command:?}: {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(host.ok(&["completions", shell]).contains("detach"), "{shell}");
    }
    let folder = host.path("man");
    std::fs::create_dir(&folder).unwrap();
    host.ok(&["man", folder.to_str().unwrap()]);
    assert!(
        std::fs::read_to_string(folder.join("xb-disk-attach.1"))
            .unwrap()
            .contains("xb disk attach web")
    );
    host.fails(&["nonsense"], 2, "unrecognized subcommand");
    host.fails(&["list", "--timeout", "soon"], 2, "a number of seconds");
}

#[test]
fn arguments_come_behind_the_file_as_in_it() {
    let host = TestHost::up("arguments");
    let image = host.image("a.img", 1 << 20);
    let config = host.config("web", &format!("disk = [\"{image},,xvda\"]\nextra = \"exec sleep\""));
    host.ok(&[
        "create",
        &config,
        "disk+=[\"vdev=xvdb,target=memory:1048576\"]",
        "extra+=\" 1000\"",
    ]);
    let disks = host.json(&["disk", "list", "web"]);
    let names: Vec<_> = disks.as_array().unwrap().iter().map(|disk| &disk["vdev"]).collect();
    assert_eq!(names, ["xvda", "xvdb"]);
    host.fails(&["create", &config, "disk+=1"], 1, "two lists or two strings");
}

#[test]
fn what_toml_alone_can_say_does_not_hinder_a_restart_and_a_uuid_is_had_once() {
    let host = TestHost::up("toml");
    let uuid = "0a1b2c3d-0000-4000-8000-000000000001";
    let path = host.path("web.toml");
    let text =
        format!("name = \"web\"\nNot-xl = 1\nuuid = \"{uuid}\"\nextra = \"exec sleep 1000\"\n");
    std::fs::write(&path, text).unwrap();
    let first = host.json(&["create", path.to_str().unwrap()])["domid"].clone();
    let other = host.config("other", &format!("uuid = \"{uuid}\""));
    host.fails(&["create", &other], 1, "has the uuid 0a1b2c3d-0000-4000-8000-000000000001 already");
    host.ok(&["reboot", "web", "--wait"]);
    host.until("it runs again", || {
        let info = host.try_json(&["info", "web"])?;
        (info["domid"] != first && info["uuid"] == uuid).then_some(())
    });
}

#[test]
fn a_destroy_that_failed_halfway_is_finished_by_the_next() {
    let host = TestHost::up("halfway");
    let nodes = host.nodes();
    let config = host
        .config("web", "disk = [\"vdev=xvda,target=memory:1048576\"]\nextra = \"exec sleep 1000\"");
    let domid = host.json(&["create", &config])["domid"].to_string();
    let backend = host.pid("xen-blockd").unwrap();
    let stop = |signal| rustix::process::kill_process(backend, signal).unwrap();
    stop(rustix::process::Signal::STOP);
    // Interrupted while it waits for the backend, with the domain gone.
    let mut child = host.command(&["destroy", "web"]).spawn().unwrap();
    host.until("the domain is gone", || {
        (host.json(&["list"]).as_array()?.len() == 1).then_some(())
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(host.ok(&["store", "read", &format!("/libxl/{domid}/type")]).contains("hosted"));
    stop(rustix::process::Signal::CONT);
    host.ok(&["destroy", "web"]);
    assert_eq!(host.nodes(), nodes);
    host.fails(&["destroy", "web"], 4, "there is no domain web");
}

#[test]
fn a_node_that_stays_is_seen() {
    let host = TestHost::up("node");
    let before = host.nodes();
    for path in ["/local/domain/7/name", "/local/domain/0/backend/vbd/7/51712", "/vm/x", "/libxl/7"]
    {
        host.ok(&["store", "write", path, "left"]);
        assert_ne!(host.nodes(), before, "{path}");
        let top = path.split("/7").next().unwrap();
        let of_it = if top == path { path.to_owned() } else { format!("{top}/7") };
        host.ok(&["store", "rm", &of_it]);
        assert_eq!(host.nodes(), before, "{path}");
    }
}
