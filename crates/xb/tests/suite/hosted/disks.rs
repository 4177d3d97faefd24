//! Disks of guests that run: attached, detached, resized, mounted.

use super::support::{TestHost, XB};
use serde_json::json;
use std::process::{Command, Stdio};

#[test]
fn of_two_that_attach_one_number_one_is_told() {
    let host = TestHost::up("twice-attached");
    let config = host.config("web", "extra = \"exec sleep 1000\"");
    host.ok(&["create", &config]);
    for _ in 0..5 {
        let attach = || {
            let disk = "vdev=xvdb,target=memory:1048576";
            let mut command = host.command(&["disk", "attach", "web", disk]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let outputs = [attach(), attach()].map(|child| child.wait_with_output().unwrap());
        let (won, lost): (Vec<_>, Vec<_>) =
            outputs.iter().partition(|output| output.status.success());
        assert_eq!((won.len(), lost.len()), (1, 1), "{outputs:?}");
        let said = String::from_utf8_lossy(&lost[0].stderr);
        assert!(said.contains("has a disk xvdb already"), "{said}");
        assert_eq!(host.json(&["disk", "list", "web"])[0]["backend_state"], "Connected (4)");
        host.ok(&["disk", "detach", "web", "xvdb"]);
    }
}

#[test]
fn a_disk_in_use_is_not_detached_and_that_is_said_soon() {
    let host = TestHost::up("in-use");
    if !host.has_fuse("a_disk_in_use_is_not_detached_and_that_is_said_soon") {
        return;
    }
    let image = host.image("a.img", 1 << 20);
    let program = "exec 3< /dev/xvda; echo open; exec sleep 1000";
    let config = host.config("web", &format!("disk = [\"{image},,xvda\"]\nextra = \"{program}\""));
    host.ok(&["create", &config]);
    host.until_log("web", "open");
    // Earlier than after the half minute that it would wait otherwise.
    let begin = std::time::Instant::now();
    host.fails(
        &["disk", "detach", "web", "xvda"],
        1,
        "disk xvda of domain 1: it is in use; it closes when it is not",
    );
    assert!(begin.elapsed() < std::time::Duration::from_secs(25));
    host.ok(&["disk", "detach", "web", "xvda", "--force", "--timeout", "1"]);
    assert_eq!(host.json(&["disk", "list", "web"]), json!([]));
}

/// A disk is called by its name in each message, also one that was given by its number.
#[test]
fn a_disk_is_called_by_its_name() {
    let host = TestHost::up("called");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "web", "vdev=xvdb,target=memory:1048576"]);
    host.ok(&["disk", "attach", "web", "vdev=sda,target=memory:1048576"]);
    host.fails(
        &["disk", "attach", "web", "vdev=51728,target=memory:1048576"],
        1,
        "domain 1 has a disk xvdb already; xb disk detach 1 xvdb takes it away",
    );
    // A paused guest lets go of nothing.
    host.ok(&["pause", "web"]);
    let advice = "is let go of (the guest uses it? --force takes it away): not within";
    for (given, name) in [("51728", "xvdb"), ("xvdb", "xvdb"), ("sda", "sda")] {
        let words = format!("disk {name} of domain 1 {advice}");
        host.fails(&["disk", "detach", "web", given, "--timeout", "0.1"], 3, &words);
    }
    // The advice is not repeated to one who has followed it.
    let output = host.run(&["disk", "detach", "web", "sda", "--force", "--timeout", "1.5"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("--force"), "{said}");
    assert!(said.contains("waiting until disk sda of domain 1 is let go of"), "{said}");
}

/// An image that another program has locked is refused with that program's name.
#[test]
fn the_process_that_uses_an_image_is_named() {
    let host = TestHost::up("used");
    let image = host.image("a.img", 1 << 20);
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let file = std::fs::File::open(&image).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let pid = std::process::id();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let words =
        format!("disk xvdb ({image}): its image is in use by {} (process {pid})", name.trim());
    let spec = format!("{image},,xvdb,w");
    // A process that another test starts has the file open until it runs its program.
    host.until("this process is named alone", || {
        let output = host.run(&["disk", "attach", "web", &spec]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("its image is in use by ") && said.contains(&pid.to_string()),
            "{said}"
        );
        said.contains(&words).then_some(())
    });
}

#[test]
fn a_disk_without_a_vdev_gets_the_next_free_name() {
    let host = TestHost::up("no-vdev");
    let image = host.image("a.img", 1 << 20);
    let disks =
        format!("\"{image}\", \"vdev=xvda,target=memory:1048576\", \"target=memory:1048576\"");
    let config = host.config("web", &format!("disk = [{disks}]\nextra = \"exec sleep 1000\""));
    let named = |disks: &serde_json::Value| {
        let mut all: Vec<_> =
            disks.as_array().unwrap().iter().map(|disk| disk["vdev"].clone()).collect();
        all.sort_by_key(ToString::to_string);
        all
    };
    assert_eq!(named(&host.json(&["config", "check", &config])["disk"]), ["xvda", "xvdb", "xvdc"]);
    host.ok(&["create", &config]);
    let listed = || host.json(&["disk", "list", "web"]);
    assert_eq!(named(&listed()), ["xvda", "xvdb", "xvdc"]);
    assert_eq!(
        listed().as_array().unwrap().iter().find(|disk| disk["vdev"] == "xvdb").unwrap()["target"],
        image
    );
    host.ok(&["disk", "detach", "web", "xvda"]);
    assert_eq!(
        host.ok(&["disk", "attach", "web", "target=memory:1048576"]),
        "the disk is xvda of web\n"
    );
    // Of two at once each gets one.
    let attach = || {
        let mut command = host.command(&["disk", "attach", "web", "target=memory:1048576"]);
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    for mut child in [attach(), attach()] {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(named(&listed()), ["xvda", "xvdb", "xvdc", "xvdd", "xvde"]);
}

/// A disk whose detaching was given up, and that the guest lets go of later, does not keep its name.
#[test]
fn a_disk_that_closes_late_frees_its_name() {
    let host = TestHost::up("closes-late");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "web", "vdev=xvda,target=memory:1048576"]);
    let late = || {
        host.ok(&["pause", "web"]);
        let words = "disk xvda of domain 1 is let go of";
        host.fails(&["disk", "detach", "web", "xvda", "--timeout", "0.1"], 3, words);
        let again = ["disk", "attach", "web", "vdev=xvda,target=memory:1048576"];
        host.fails(&again, 1, "has a disk xvda already");
        host.ok(&["unpause", "web"]);
        host.until("it is closed", || {
            let disks = host.try_json(&["disk", "list", "web"])?;
            (disks[0]["backend_state"] == "Closed (6)").then_some(())
        });
    };
    late();
    host.ok(&["disk", "attach", "web", "vdev=xvda,target=memory:1048576"]);
    late();
    assert_eq!(
        host.ok(&["disk", "attach", "web", "target=memory:2097152"]),
        "the disk is xvda of web\n"
    );
    let disks = host.json(&["disk", "list", "web"]);
    assert_eq!((disks.as_array().unwrap().len(), &disks[0]["bytes"]), (1, &json!(2 << 20)));
}

#[test]
fn a_block_device_is_passed_on_with_its_new_size() {
    let test = "a_block_device_is_passed_on_with_its_new_size";
    let host = TestHost::up("device");
    let image = host.image("a.img", 1 << 20);
    let losetup = |args: &[&str]| Command::new("losetup").args(args).output();
    let device = match losetup(&["--find", "--show", &image]) {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        other => return conformance::skip(test, &format!("no loop device: {other:?}")),
    };
    let device = device.trim();
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "web", &format!("vdev=xvda,target={device}")]);
    let resize = ["disk", "resize", "web", "xvda", "2M"];
    host.fails(&resize, 1, "has 1 MiB, 1048576 bytes; enlarge the block device first");
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(2 << 20).unwrap();
    assert!(losetup(&["--set-capacity", device]).unwrap().status.success());
    assert_eq!(host.json(&resize)["bytes"], json!(2 << 20));
    host.fails(&["disk", "resize", "web", "xvda", "1M"], 1, "give its own size");
    host.ok(&["disk", "detach", "web", "xvda"]);
    assert!(losetup(&["--detach", device]).unwrap().status.success());
}

/// The message about the disk for which a guest has no room names the limit, and the log of a backend
/// is for people as well.
#[test]
fn the_limit_of_disks_is_named() {
    let host = TestHost::up("limit");
    let config = host.config("web", "memory = 16\nextra = \"exec sleep 1000\"");
    host.ok(&["create", &config]);
    let attach = ["disk", "attach", "web", "target=memory:1048576"];
    let refused = host.until("there is no room", || {
        let output = host.run(&attach);
        (!output.status.success()).then(|| String::from_utf8(output.stderr).unwrap())
    });
    let words = "the guest has too little memory for one more device (granting the buffers: ";
    assert!(refused.contains(words) && !refused.contains("ENOSPC"), "{refused}");
    assert!(refused.contains("give it more (memory=), or detach another device"), "{refused}");
    host.ok(&["disk", "detach", "web", "xvda"]);
    let image = host.image("a.img", 1 << 20);
    host.ok(&["disk", "attach", "web", &format!("{image},,xvda,w")]);
    let log = host.log_of("xen-blockd");
    assert!(
        log.contains("1048576 bytes of memory") && log.contains(&format!("; {image}, ")),
        "{log}"
    );
    assert!(!log.contains(" { "), "{log}");
}

/// When an attach returns, the guest's programs can use the disk.
#[test]
fn an_attached_disk_can_be_used_at_once() {
    let host = TestHost::up("at-hand");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let broker = host.pid("broker").unwrap().as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{broker}/task/{broker}/children"));
    let tmp = format!("/proc/{}/root/tmp", children.unwrap().trim());
    let own_root = std::fs::read_dir(&tmp).is_ok();
    for _ in 0..20 {
        host.ok(&["disk", "attach", "web", "vdev=xvdb,target=memory:1048576"]);
        let ready = host.ok(&["store", "read", "/local/domain/1/device/vbd/51728/ready"]);
        assert_eq!(ready.trim(), "1");
        if own_root {
            assert!(std::path::Path::new(&tmp).join("xvdb.nbd").exists());
        }
        host.ok(&["disk", "detach", "web", "xvdb"]);
    }
}

#[test]
fn what_can_be_no_disk_is_not_waited_for() {
    let host = TestHost::up("no-disk");
    let fifo = host.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let folder = host.path("");
    for path in [fifo.as_path(), folder.as_path(), "/dev/null".as_ref()] {
        for access in ["r", "w"] {
            let rest = format!("disk = [\"{},,xvda,{access}\"]", path.display());
            let output = host.run(&["create", &host.config("web", &rest)]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            let is_folder = path == folder && access == "w" && said.contains("Is a directory");
            assert!(is_folder || said.contains("is no file and no block device"), "{said}");
        }
    }
}

/// Makes an image with QEMU's tools; false where they are not installed.
fn qcow2(test: &str, arguments: &[&str]) -> bool {
    match Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).args(arguments).status() {
        Ok(status) => assert!(status.success(), "{arguments:?}"),
        Err(_) => {
            conformance::skip(test, "there is no qemu-img (Debian: qemu-utils)");
            return false;
        }
    }
    true
}

/// Such an image ended the daemon for all guests, and the next daemon, too.
#[test]
fn an_image_that_names_itself_ends_nobody() {
    let host = TestHost::up("names-itself");
    let image = host.path("a.qcow2").to_str().unwrap().to_owned();
    if !qcow2("an_image_that_names_itself_ends_nobody", &[&image, "16M"]) {
        return;
    }
    let rebase = ["rebase", "-u", "-F", "qcow2", "-b", &image, &image];
    assert!(Command::new("qemu-img").args(rebase).status().unwrap().success());
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let daemon = host.pid("xen-blockd");
    let disk = format!("format=qcow2,vdev=xvdb,target={image}");
    host.fails(&["disk", "attach", "web", &disk], 1, "behind which it is itself");
    assert_eq!(host.pid("xen-blockd"), daemon);
    // While one is in the store, the next daemon starts with it.
    host.ok(&["disk", "attach", "--no-wait", "web", &disk]);
    host.kill("xen-blockd");
    host.ok(&["host", "up"]);
    host.ok(&["disk", "attach", "web", "vdev=xvdc,target=memory:1048576"]);
    assert_eq!(host.json(&["host", "status"])["up"], json!(true));
    host.ok(&["disk", "detach", "web", "xvdb", "--force"]);
}

#[test]
fn an_image_folder_is_given_to_a_host_that_is_up() {
    let host = TestHost::up("image-dir");
    let folder = host.path("images");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(host.path("own")).unwrap();
    let base = folder.join("base.qcow2").to_str().unwrap().to_owned();
    let top = host.path("own/top.qcow2").to_str().unwrap().to_owned();
    if !qcow2("an_image_folder_is_given_to_a_host_that_is_up", &[&base, "16M"])
        || !qcow2("", &["-F", "qcow2", "-b", &base, &top])
    {
        return;
    }
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "web", "vdev=xvdc,target=memory:1048576"]);
    let disk = format!("format=qcow2,vdev=xvdb,target={top}");
    host.fails(&["disk", "attach", "web", &disk], 1, "add a line to /etc/xenbus/image-dirs: ");
    host.ok(&["host", "up", "--image-dir", folder.to_str().unwrap()]);
    host.ok(&["disk", "attach", "web", &disk]);
    host.ok(&["disk", "detach", "web", "xvdb"]);
    // The state stays.
    host.kill("xen-blockd");
    host.ok(&["host", "up"]);
    host.ok(&["disk", "attach", "web", &disk]);
    host.fails(&["host", "up", "--image-dir", "/not/there"], 1, "/not/there");
}

#[test]
fn disks_come_and_go() {
    let host = TestHost::up("disks");
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
    host.fails(&["disk", "resize", "web", "sda", "1M"], 1, "a disk only grows");
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
fn a_disk_is_mounted_once() {
    let test = "a_disk_is_mounted_once";
    let host = TestHost::up("mounted");
    if !host.can_mount(test) {
        return;
    }
    let image = host.image("a.img", 16 << 20);
    let made = Command::new("mkfs.ext4").args(["-qF", &image]).status().unwrap();
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

#[test]
fn a_disk_is_resized_to_whole_sectors() {
    let host = TestHost::up("resize");
    let image = host.image("a.img", 1 << 20);
    let config =
        host.config("web", &format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\""));
    host.ok(&["create", &config]);
    let path =
        host.command(&["store", "ls", "-f", "/local/domain/0/backend/vbd/1"]).output().unwrap();
    let nodes = String::from_utf8(path.stdout).unwrap();
    let physical =
        nodes.lines().find_map(|line| line.split_once("physical-sector-size = \"")).unwrap().1;
    let physical: u64 = physical.trim_end_matches('"').parse().unwrap();
    let odd = (1 << 20) + physical - 512;
    if physical > 512 {
        let words = format!("served in whole sectors of {physical} bytes: {odd} is none");
        host.fails(&["disk", "resize", "web", "xvda", &odd.to_string()], 1, &words);
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 20, "the image is as it was");
    }
    let whole = (1 << 20) + physical;
    host.ok(&["disk", "resize", "web", "xvda", &whole.to_string()]);
    assert_eq!(host.json(&["disk", "list", "web"])[0]["bytes"], whole);
}

/// A second backend is refused, wherever it keeps its record, as it would answer the same requests.
#[test]
fn a_second_backend_is_refused_and_takes_nothing_away() {
    let host = TestHost::up("second");
    let image = host.image("a.img", 1 << 20);
    let config =
        host.config("web", &format!("disk = [\"{image},,xvda\"]\nextra = \"exec sleep 1000\""));
    host.ok(&["create", &config]);
    let second = Command::new(std::path::Path::new(XB).with_file_name("xen-blockd"))
        .arg("--record-dir")
        .arg(host.path("elsewhere"))
        .env("XEN_HOSTED_HOST", host.path("h/host"))
        .env("XENSTORED_PATH", host.path("h/store"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another xen-blockd serves vbd here"), "{said}");
    let disk = &host.json(&["disk", "list", "web"])[0];
    assert_eq!(disk["backend_state"], "Connected (4)");
    assert_eq!(disk["frontend_state"], "Connected (4)");
}

/// A killed backend holds its locks until the kernel has released them.
#[test]
fn a_backend_starts_whenever_one_was_killed_and_what_that_said_is_kept() {
    let host = TestHost::up("again");
    let images = ["a.img", "b.img", "c.img"].map(|name| host.image(name, 1 << 20));
    let disks: Vec<String> = std::iter::zip(&images, ["xvda", "xvdb", "xvdc"])
        .map(|(image, vdev)| format!("\"{image},,{vdev},w\""))
        .collect();
    let program = "while :; do dd if=/dev/zero of=/dev/xvda bs=64k count=16 conv=notrunc; done";
    let disks = disks.join(", ");
    host.ok(&["create", &host.config("web", &format!("disk = [{disks}]\nextra = \"{program}\""))]);
    for round in 1..=20 {
        let pid = host.pid("xen-blockd").unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // The old process may still be visible.
        host.until("it is up", || {
            host.ok(&["host", "up"]);
            (host.pid("xen-blockd")? != pid).then_some(())
        });
        let served = || host.log_of("xen-blockd").matches("xen-blockd: serving").count();
        // Its supervisor may have started it, and it may not serve yet.
        host.until("it serves", || (served() > round).then_some(()));
        assert_eq!(served(), round + 1, "the log is kept: {}", host.log_of("xen-blockd"));
        host.until("all disks are connected again", || {
            let disks = host.json(&["disk", "list", "web"]);
            let mut disks = disks.as_array()?.iter();
            disks.all(|disk| disk["backend_state"] == "Connected (4)").then_some(())
        });
    }
    assert!(!host.log_of("xen-blockd").contains("EBUSY"), "{}", host.log_of("xen-blockd"));
}

/// As with `xl`: a name without / in front is relative to the folder where the command was given,
/// also when the guest is started again.
#[test]
fn a_relative_name_is_looked_for_where_the_command_was_given() {
    let host = TestHost::up("relative");
    let image = host.image("a.img", 1 << 20);
    let config = host.config("web", "disk = [\"a.img,,xvda,w\"]\nextra = \"exec sleep 1000\"");
    let here = |args: &[&str]| {
        let output = host.command(args).current_dir(host.path("")).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let target = || host.json(&["disk", "list", "web"])[0]["target"].clone();
    host.fails(&["create", &config], 1, "/dev/a.img: No such file or directory");
    here(&["create", &config]);
    assert_eq!(target(), image);
    host.ok(&["reboot", "web", "--wait"]);
    host.until("it runs again", || (host.try_json(&["info", "web"])?["domid"] == 2).then_some(()));
    host.until("its disk is there", || (target() == image).then_some(()));
    host.image("b.img", 1 << 20);
    here(&["disk", "attach", "web", "b.img,,xvdb,w"]);
}

#[test]
fn a_disk_whose_server_is_gone_is_not_listed_as_connected() {
    let host = TestHost::up("server-gone");
    let image = host.image("a.img", 1 << 20);
    let socket = host.path("socket").to_str().unwrap().to_owned();
    let serve = || {
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "-f", "raw", "-k", &socket, &image]).spawn()
    };
    let Ok(mut server) = serve() else {
        let test = "a_disk_whose_server_is_gone_is_not_listed_as_connected";
        return conformance::skip(test, "there is no qemu-nbd (Debian: qemu-utils)");
    };
    host.until("it serves", || host.path("socket").exists().then_some(()));
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "web", &format!("vdev=xvda,target=nbd:unix:{socket}")]);
    let is = |state: &str| {
        let disks = host.json(&["disk", "list"]);
        (disks[0]["backend_state"] == state).then_some(())
    };
    assert_eq!(is("Connected (4)"), Some(()));
    server.kill().unwrap();
    server.wait().unwrap();
    host.until("its server's end is told", || is("its server is gone"));
    assert!(host.ok(&["tree"]).contains("its server is gone"));
    let mut server = serve().unwrap();
    host.until("it is connected again", || is("Connected (4)"));
    server.kill().unwrap();
    server.wait().unwrap();
    host.ok(&["destroy", "web"]);
}
