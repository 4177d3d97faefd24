//! `xb` on hosted hosts: the program itself, the real daemons, guests that run; and what is left of them.

mod faults;
mod support;
mod traces;

use serde_json::json;
use support::Host;

#[test]
fn a_guest_from_birth_to_death() {
    let host = Host::up("life");
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
    host.fails(&["info", "web"], 4, "there is no domain web");
}

#[test]
fn an_exit_status_is_passed_on() {
    let host = Host::up("status");
    for status in [0, 3, 0x41, 255] {
        let config = host.config("job", &format!("extra = \"exit {status}\""));
        let output = host.run(&["create", &config, "--wait"]);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
    }
    let config = host.config("job", "extra = \"kill -9 $$\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(128 + 9));
    // A program of one's own instead of the guest init: nobody tells its status, only the reason.
    let config = host.config("own", "kernel = \"/bin/false\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(1));
    let config = host.config("own", "kernel = \"/bin/true\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(0));
    host.until_alone();
}

#[test]
fn what_follows_an_end_is_as_the_configuration_says() {
    let host = Host::up("after");
    let config = host.config("again", "extra = \"exec sleep 1000\"");
    let first = host.json(&["create", &config])["domid"].clone();
    host.ok(&["reboot", "again", "--wait"]);
    let second = host.until("it runs again", || {
        let domid = host.try_json(&["info", "again"])?["domid"].clone();
        (domid != first).then_some(domid)
    });
    assert_ne!(first, second);
    host.ok(&["destroy", "again"]);
    let config = host.config("kept", "on_crash = \"preserve\"\nextra = \"exit 1\"");
    host.ok(&["create", &config]);
    host.until("it has crashed", || {
        (host.json(&["info", "kept"])["state"] == "crashed").then_some(())
    });
    host.fails(&["shutdown", "kept"], 1, "kept has ended (crashed); xb destroy kept takes it down");
    host.ok(&["destroy", "kept"]);
    // It ends at once each time: it is not started for ever.
    let config = host.config("hasty", "on_poweroff = \"restart\"\nextra = \"true\"");
    host.ok(&["create", &config]);
    host.until_alone();
    assert!(host.log_of("keeper").contains("too soon to start it again"));
}

#[test]
fn a_log_is_bounded() {
    let host = Host::up("chatty");
    let config = host.config("chatty", "extra = \"seq 1000000; echo the end\"");
    assert_eq!(host.run(&["create", &config, "--wait"]).status.code(), Some(0));
    host.until_log("chatty", "the end");
    let folder = host.path("h/guests/chatty");
    let sizes =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let all: u64 = sizes.sum();
    assert!(all < 3 << 20, "{all} bytes of a log that was 6.9 MB");
}

#[test]
fn disks_come_and_go() {
    let host = Host::up("disks");
    if !host.has_fuse("disks_come_and_go") {
        return;
    }
    let (image, other) = (host.image("a.img", 16 << 20), host.image("b.img", 16 << 20));
    let program = "dd if=/dev/xvda bs=512 count=1 of=/tmp/first 2>/dev/null; cat /tmp/first; \
                   until [ -e /dev/sda ]; do sleep 0.02; done; echo written by web | dd of=/dev/sda conv=notrunc,fsync 2>/dev/null; \
                   echo done; exec sleep 1000";
    std::fs::write(&image, format!("{:<1024}", "from outside\n")).unwrap();
    let config =
        host.config("web", &format!("disk = [\"{image},,xvda,r\"]\nextra = \"{program}\""));
    host.ok(&["create", &config]);
    host.until_log("web", "from outside");
    host.ok(&["disk", "attach", "web", &format!("vdev=sda,target={other}")]);
    host.until_log("web", "done");
    assert!(
        std::fs::read(&other).unwrap().starts_with(b"written by web\n"),
        "the data is in the image"
    );
    let disks = host.json(&["disk", "list", "web"]);
    assert_eq!(disks.as_array().unwrap().len(), 2);
    let of = |vdev: &str| {
        disks.as_array().unwrap().iter().find(|disk| disk["vdev"] == vdev).unwrap().clone()
    };
    assert_eq!((&of("xvda")["access"], &of("sda")["devid"]), (&json!("r"), &json!(2048)));
    assert_eq!(of("sda")["backend_state"], json!("Connected (4)"));
    host.fails(&["disk", "attach", "web", &format!("{other},,sda")], 1, "has a disk sda already");
    host.ok(&["disk", "resize", "web", "sda", "32M"]);
    assert_eq!(host.json(&["disk", "list", "web"])[0]["bytes"], json!(32 << 20));
    host.fails(&["disk", "resize", "web", "sda", "1M"], 1, "only grow");
    let written = host.until("the backend has counted", || {
        let stats = host.try_json(&["disk", "stats", "web"])?;
        let of = stats.as_array()?.iter().find(|disk| disk["vdev"] == "sda")?;
        of["write"]["bytes"].as_u64().filter(|bytes| *bytes > 0)
    });
    assert!((512..=1 << 20).contains(&written), "{written} bytes for one line");
    host.ok(&["disk", "detach", "web", "2048"]);
    host.fails(&["disk", "detach", "web", "sda"], 4, "domain 1 has no disk sda");
    let nodes = host.ok(&["store", "ls", "-f", "/"]);
    assert!(!nodes.contains("2048"), "{nodes}");
    host.ok(&["destroy", "web"]);
    host.until_alone();
}

#[test]
fn a_backend_that_was_killed_comes_back_with_the_host() {
    let host = Host::up("killed");
    let image = host.image("a.img", 1 << 20);
    let config =
        host.config("web", &format!("disk = [\"{image},,xvda\"]\nextra = \"exec sleep 1000\""));
    host.ok(&["create", &config]);
    host.kill("xen-blockd");
    let status = host.run(&["host", "status"]);
    assert_eq!(status.status.code(), Some(4), "{status:?}");
    assert!(host.ok(&["host", "up"]).contains("is up"));
    host.ok(&["disk", "attach", "web", "vdev=xvdb,target=memory:1048576"]);
    host.ok(&["disk", "detach", "web", "xvda"]);
}

#[test]
fn configurations_are_converted_and_checked() {
    let host = Host::down("convert");
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

#[test]
fn help_completions_and_manual_pages_are_of_one_table() {
    let host = Host::down("help");
    let commands: &[&[&str]] = &[
        &["host", "up"],
        &["host", "down"],
        &["host", "status"],
        &["create"],
        &["list"],
        &["tree"],
        &["info"],
        &["pause"],
        &["unpause"],
        &["shutdown"],
        &["reboot"],
        &["destroy"],
        &["log"],
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
        let example = format!("Example: xb {}", command[0]);
        assert!(
            help.contains(&example) || help.contains("Example: xb --host"),
            "{command:?}: {help}"
        );
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
    let host = Host::up("arguments");
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
    let host = Host::up("toml");
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
    let host = Host::up("halfway");
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
fn a_disk_is_mounted_once() {
    let test = "a_disk_is_mounted_once";
    let host = Host::up("mounted");
    if !rustix::process::geteuid().is_root() {
        return conformance::skip(test, "only root has disks mounted");
    }
    if !host.has_fuse(test) {
        return;
    }
    if let Err(error) = std::fs::File::open("/dev/loop-control") {
        return conformance::skip(test, &format!("/dev/loop-control: {error}"));
    }
    let image = host.image("a.img", 16 << 20);
    let made = std::process::Command::new("mkfs.ext4").args(["-qF", &image]).status().unwrap();
    assert!(made.success());
    let disk = format!("disk = [\"{image},,xvda,w\"]\nkernel_block = 1\n");
    let config = host.config("web", &(disk + "extra = \"exec sleep 1000\""));
    host.ok(&["create", &config]);
    host.ok(&["disk", "mount", "web", "xvda"]);
    host.fails(
        &["disk", "mount", "web", "xvda"],
        1,
        "is mounted at /mnt in it already; xb disk unmount web",
    );
    host.ok(&["disk", "unmount", "web"]);
    host.ok(&["disk", "mount", "web", "xvda"]);
    host.ok(&["disk", "unmount", "web"]);
}
