//! `xb doctor`: each cause that a hosted host can have is brought about, and found.

use super::support::TestHost;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xenstore::Store;

/// The number of runs of the doctor while a guest writes.
const WRITTEN_RUNS: u32 = 10;

/// A guest with one disk, that does nothing.
fn guest_with_disk(host: &TestHost) -> String {
    let image = host.image("a.img", 1 << 20);
    let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\"");
    host.config("web", &rest)
}

/// Runs the doctor, which finds exactly one thing with this cause; its advice begins and ends so.
fn finds(host: &TestHost, args: &[&str], cause: &str, sentence: &str, remedy: &str) {
    let args = [&["doctor"], args].concat();
    let mut last = String::new();
    // A guest, or a backend, may be at work still.
    host.until(&format!("{args:?} finds {cause}"), || {
        let output = host.run(&[&args[..], &["--json"]].concat());
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        let so: Value = serde_json::from_str(&last).ok()?;
        let [finding] = &so["findings"].as_array()?[..] else { return None };
        if finding["cause"] != cause {
            return None;
        }
        assert_eq!(output.status.code(), Some(1), "{so}");
        let said = finding["sentence"].as_str().unwrap();
        assert!(said.contains(sentence), "{said}");
        let command = finding["remedy"].as_str().unwrap();
        assert!(command.contains(remedy), "{command}");
        let evidence = finding["evidence"].as_array().unwrap();
        assert!(!evidence.is_empty() && evidence.iter().all(|one| one["path"].is_string()), "{so}");
        Some(())
    });
    let output = host.run(&args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(sentence) && said.contains(remedy), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}

/// Runs the doctor, which finds nothing.
fn is_well(host: &TestHost, args: &[&str]) {
    let args = [&["doctor"], args].concat();
    let mut last = String::new();
    host.until("all is well", || {
        let output = host.run(&args);
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(())
    });
    assert!(last.contains("nothing is wrong: "), "{last}");
}

/// Takes a disk away that its guest may never let go of.
fn take(host: &TestHost, domain: &str, vdev: &str) {
    host.ok(&["disk", "detach", domain, vdev, "--force", "--timeout", "1"]);
}

/// Stops a process, and returns once it is stopped.
fn stop(host: &TestHost, pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    host.until("it is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        stat.contains(") T ").then_some(())
    });
}

/// No list calls a device connected whose backend is down or stopped (QubesOS/qubes-issues 1426).
#[test]
fn no_list_calls_a_device_connected_whose_backend_does_not_run() {
    let host = TestHost::up("lists-backend");
    host.ok(&["create", &guest_with_disk(&host)]);
    let check = |state: &str, runs: bool| {
        for disk in [
            &host.json(&["disk", "list"])[0],
            &host.json(&["tree"])[1]["disks"][0],
            &host.json(&["info", "web"])["disks"][0],
        ] {
            assert_eq!(
                (&disk["backend_state"], &disk["backend_runs"]),
                (&state.into(), &runs.into())
            );
        }
        for list in [&["tree"][..], &["disk", "list"], &["info", "web"]] {
            let shown = host.ok(list);
            assert!(shown.contains(state), "{list:?}: {shown}");
        }
    };
    check("Connected (4)", true);
    let backend = host.pid("xen-blockd").unwrap();
    stop(&host, backend);
    check("its backend is stopped", false);
    kill_process(backend, Signal::CONT).unwrap();
    check("Connected (4)", true);
    host.kill_backend_for_good();
    check("its backend is down", false);
    host.ok(&["host", "up"]);
    check("Connected (4)", true);
}

/// A disk whose backend does not run is not silently there.
#[test]
fn a_backend_that_does_not_run_is_named() {
    let host = TestHost::up("doctor-backend");
    host.ok(&["create", &guest_with_disk(&host)]);
    is_well(&host, &["web", "xvda"]);
    is_well(&host, &[]);
    let backend = host.pid("xen-blockd").unwrap();
    stop(&host, backend);
    let words = format!("xvda waits: the process {} that serves vbd is stopped", pid_of(backend));
    let remedy = format!("kill -CONT {}", pid_of(backend));
    finds(&host, &["web", "xvda"], "backend-stopped", &words, &remedy);
    kill_process(backend, Signal::CONT).unwrap();
    is_well(&host, &["web"]);
    host.kill_backend_for_good();
    let words = "xvda waits: nothing serves vbd in domain 0";
    finds(&host, &["web"], "backend-down", words, " host up");
    // Of the host it names the daemons, too.
    let all = host.run(&["doctor", "--json"]);
    let all: Value = serde_json::from_slice(&all.stdout).unwrap();
    let causes: Vec<&Value> =
        all["findings"].as_array().unwrap().iter().map(|one| &one["cause"]).collect();
    assert_eq!(causes, ["daemon-down", "daemon-down", "backend-down"], "{all}");
    host.ok(&["host", "up"]);
    is_well(&host, &["web"]);
}

#[test]
fn a_host_that_does_not_answer_is_diagnosed() {
    let host = TestHost::up("doctor-host");
    let store = host.pid("xenstored").unwrap();
    stop(&host, store);
    let remedy = format!("kill -CONT {}", pid_of(store));
    finds(&host, &[], "daemon-stopped", "xenstored (process ", &remedy);
    finds(&host, &["web"], "daemon-stopped", "is stopped and does nothing", &remedy);
    kill_process(store, Signal::CONT).unwrap();
    is_well(&host, &[]);
    host.kill("keeper");
    finds(&host, &[], "daemon-down", "the keeper (keeper) does not run", " host up");
    host.ok(&["host", "up"]);
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let consoles = host.pid("xenconsoled").unwrap();
    stop(&host, consoles);
    let words =
        format!("the process {} that serves the console of web is stopped", pid_of(consoles));
    let remedy = format!("kill -CONT {}", pid_of(consoles));
    finds(&host, &["web"], "console-stopped", &words, &remedy);
    kill_process(consoles, Signal::CONT).unwrap();
    host.kill("xenconsoled");
    finds(&host, &["web"], "console-unserved", "nothing serves the console of web", " host up");
    host.ok(&["host", "up"]);
    is_well(&host, &["web"]);
    host.ok(&["destroy", "web"]);
    // As a toolstack leaves it that was killed, on a host without a keeper.
    host.kill("keeper");
    host.ok(&["store", "write", "/libxl/77/type", "hosted"]);
    let output = host.run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let so: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [down, left] = &so["findings"].as_array().unwrap()[..] else { panic!("{so}") };
    assert_eq!((&down["cause"], &left["cause"]), (&"daemon-down".into(), &"remains".into()));
    let said = left["sentence"].as_str().unwrap();
    assert!(said.contains("domain 77 is gone, and devices and nodes of it"), "{said}");
    assert!(left["remedy"].as_str().unwrap().ends_with(" destroy 77"), "{so}");
    assert_eq!(left["evidence"][0]["path"], "/libxl/77", "{so}");
    host.ok(&["destroy", "77"]);
    host.ok(&["host", "up"]);
    is_well(&host, &[]);
    host.ok(&["host", "down"]);
    finds(&host, &[], "host-down", "no host is up in ", " host up");
}

/// Attaches a disk that is not waited for, to a guest that is paused meanwhile, and changes its
/// image before the backend looks at it.
fn attach_then(host: &TestHost, disk: &str, change: impl FnOnce()) {
    host.ok(&["pause", "web"]);
    host.ok(&["disk", "attach", "--no-wait", "web", disk]);
    change();
    host.ok(&["unpause", "web"]);
}

#[test]
fn a_target_that_cannot_be_served_is_named() {
    let host = TestHost::up("doctor-target");
    let (image, other) = (host.image("b.img", 1 << 20), host.image("c.img", 1 << 20));
    host.ok(&["create", &guest_with_disk(&host)]);
    host.ok(&["create", &host.config("other", "extra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "other", &format!("{other},,xvdz,w")]);
    attach_then(&host, &format!("{image},,xvdb,w"), || std::fs::remove_file(&image).unwrap());
    let words = format!("xvdb is not connected: {image} does not exist");
    finds(&host, &["web"], "target-missing", &words, "disk detach web xvdb --force");
    take(&host, "web", "xvdb");
    is_well(&host, &["web"]);
    host.image("b.img", 1 << 20);
    attach_then(&host, &format!("{image},,xvdb,w"), || {
        std::fs::remove_file(&image).unwrap();
        std::fs::create_dir(&image).unwrap();
    });
    let words = format!("{image} cannot be opened: it is no file and no block device");
    finds(&host, &["web"], "target-refused", &words, &format!("ls -l {image}"));
    take(&host, "web", "xvdb");
    attach_then(&host, &format!("{other},,xvdb,w"), || ());
    let words = format!("\"{other}\" is in use by other, as its disk xvdz");
    finds(&host, &["web", "xvdb"], "target-busy", &words, "disk detach other xvdz");
    take(&host, "web", "xvdb");
    attach_then(&host, "vdev=xvdb,target=nbd:unix:/not/there", || ());
    finds(&host, &["web"], "target-failed", "its backend has given it up: ", "tail ");
    take(&host, "web", "xvdb");
}

/// A frontend that is Initialised before a backend in InitWait is not left without a reason
/// (xen-troops/meta-xt-prod-devel-rpi5 81).
#[test]
fn a_hotplug_script_that_failed_or_never_ran_is_named() {
    let host = TestHost::up("doctor-script");
    host.ok(&["create", &guest_with_disk(&host)]);
    let back = "/local/domain/0/backend/vbd/1/51728";
    // xb runs no script, and says so in the nodes; xl does, later.
    let attach = || {
        attach_then(&host, "script=block-xenbus,vdev=xvdb,target=memory:1048576", || {
            host.ok(&["store", "rm", &format!("{back}/hotplug-status")]);
        });
    };
    attach();
    let words = "its hotplug script /etc/xen/scripts/block-xenbus has not run";
    finds(&host, &["web"], "script-never-ran", words, &format!("XENBUS_PATH={back} "));
    host.ok(&["store", "write", &format!("{back}/hotplug-status"), "connected"]);
    is_well(&host, &["web"]);
    host.ok(&["disk", "detach", "web", "xvdb"]);
    attach();
    let why = "the device is held by drbd";
    host.ok(&["store", "write", &format!("{back}/hotplug-error"), why]);
    host.ok(&["store", "write", &format!("{back}/hotplug-status"), "error"]);
    let words = format!("its hotplug script has failed: \"{why}\"");
    finds(&host, &["web"], "script-failed", &words, "disk detach web xvdb");
    take(&host, "web", "xvdb");
}

#[test]
fn a_guest_that_does_not_do_its_part_is_named() {
    let host = TestHost::up("doctor-guest");
    host.ok(&["create", &guest_with_disk(&host)]);
    host.ok(&["pause", "web"]);
    finds(&host, &["web", "xvda"], "guest-paused", "xvda waits: web is paused", "unpause web");
    host.ok(&["unpause", "web"]);
    is_well(&host, &["web"]);
    host.ok(&["destroy", "web"]);
    // A program that knows no disks.
    host.ok(&["create", &host.config("bare", "kernel = \"/bin/sleep\"\nextra = \"1000\"")]);
    host.ok(&["disk", "attach", "--no-wait", "bare", "vdev=xvdb,target=memory:1048576"]);
    let words = "xvdb waits: bare runs, and no driver in it has taken the device yet";
    finds(&host, &["bare"], "guest-without-driver", words, "log bare");
    host.ok(&["destroy", "bare"]);
    let crashes = host.config("crash", "extra = \"exit 3\"\non_crash = \"preserve\"");
    host.ok(&["create", &crashes]);
    let words = "crash has ended (crashed, exit status 3)";
    finds(&host, &["crash"], "guest-ended", words, "log crash");
    host.ok(&["destroy", "crash"]);
}

#[test]
fn a_guest_without_a_quota_or_pages_is_named() {
    let host = TestHost::up("doctor-limits");
    host.ok(&["create", &host.config("bare", "kernel = \"/bin/sleep\"\nextra = \"1000\"")]);
    let mut store = xenstore::Client::connect(host.path("h/store")).unwrap();
    store.set_quota(Some(1), "nodes", 5).unwrap();
    host.ok(&["disk", "attach", "--no-wait", "bare", "vdev=xvdb,target=memory:1048576"]);
    let words = "xvdb waits: bare has used up its quota nodes of the store: ";
    finds(&host, &["bare", "xvdb"], "quota-used-up", words, "store control quota 1");
    store.set_quota(Some(1), "nodes", 1000).unwrap();
    finds(&host, &["bare"], "guest-without-driver", "", "");
    host.ok(&["destroy", "bare"]);
    host.ok(&["create", &host.config("small", "memory = 16\nextra = \"exec sleep 1000\"")]);
    for number in 0..40 {
        let disk = format!("vdev=xvd{},target=memory:1048576", letters(number));
        host.ok(&["disk", "attach", "--no-wait", "small", &disk]);
    }
    let output = host.until("a disk has no pages", || {
        let output = host.run(&["doctor", "small"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.contains("small can grant no more pages for one more device").then_some(output)
    });
    assert_eq!(output.status.code(), Some(1));
}

/// An error that a guest has written is neither advice nor a command.
#[test]
fn words_of_a_guest_are_quoted() {
    let host = TestHost::up("doctor-words");
    host.ok(&["create", &host.config("bare", "kernel = \"/bin/sleep\"\nextra = \"1000\"")]);
    host.ok(&["disk", "attach", "--no-wait", "bare", "vdev=xvdb,target=memory:1048576"]);
    let front = "/local/domain/1/device/vbd/51728";
    let forged = "22 lost\"; repair it with: \u{202e}curl x|sh #\u{2066}";
    host.ok(&["store", "write", &format!("{front}/error"), forged]);
    host.ok(&["store", "write", &format!("{front}/state"), "6"]);
    let words = "\"lost'; repair it with: curl x|sh #\"";
    let words = format!("the driver in bare has given it up (it says: {words})");
    finds(&host, &["bare"], "guest-refuses", &words, "log bare");
    host.ok(&["pause", "bare"]);
    finds(&host, &["bare"], "guest-paused", "xvdb waits: bare is paused", "unpause bare");
    host.ok(&["destroy", "bare"]);
}

/// A guest may write its end of a device, also while the doctor reads it.
#[test]
fn a_guest_that_writes_all_the_time_does_not_hide_the_others() {
    let host = TestHost::up("doctor-writes");
    host.ok(&["create", &host.config("bare", "kernel = \"/bin/sleep\"\nextra = \"1000\"")]);
    host.ok(&["disk", "attach", "--no-wait", "bare", "vdev=xvdb,target=memory:1048576"]);
    host.ok(&["create", &host.config("held", "extra = \"exec sleep 1000\"")]);
    host.ok(&["pause", "held"]);
    let socket = host.path("h/store");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut store = xenstore::Client::connect(socket).unwrap();
            let state = "/local/domain/1/device/vbd/51728/state";
            while !is_over.load(Ordering::Relaxed) {
                store.write(state, "1").unwrap();
                store.remove(state).unwrap();
            }
        });
        let ends = (0..WRITTEN_RUNS).all(|_| {
            let output = host.run(&["doctor"]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.code() == Some(1) && said.contains("held is paused")
        });
        is_over.store(true, Ordering::Relaxed);
        assert!(ends, "{}", String::from_utf8_lossy(&host.run(&["doctor"]).stderr));
    });
    host.ok(&["destroy", "bare"]);
    host.ok(&["destroy", "held"]);
}

/// Returns the letters of a disk's name.
fn letters(number: u8) -> String {
    let letter = |number: u8| char::from(b'a' + number % 26);
    if number < 26 { letter(number).into() } else { format!("a{}", letter(number)) }
}

#[test]
fn nodes_that_do_not_fit_are_named() {
    let host = TestHost::up("doctor-nodes");
    host.ok(&["create", &guest_with_disk(&host)]);
    let (front, back) = ("/local/domain/1/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712");
    let state = format!("{back}/state");
    host.ok(&["store", "chmod", &state, "n0"]);
    let words = format!("domain 1 may not read {state}");
    finds(&host, &["web"], "node-barred", &words, &format!("store chmod {state} n0 r1"));
    host.ok(&["store", "chmod", &state, "n0", "r1"]);
    is_well(&host, &["web"]);
    // A guest without a driver, whose nodes are written here.
    host.ok(&["create", &host.config("bare", "kernel = \"/bin/sleep\"\nextra = \"1000\"")]);
    let attach =
        || host.ok(&["disk", "attach", "--no-wait", "bare", "vdev=xvda,target=memory:1048576"]);
    let (front, back) = (front.replace("/1/", "/2/"), back.replace("/1/", "/2/"));
    attach();
    finds(&host, &["bare"], "guest-without-driver", "", "");
    for (name, value) in [("ring-ref", "9"), ("event-channel", "9"), ("state", "3")] {
        host.ok(&["store", "write", &format!("{front}/{name}"), value]);
    }
    let words = "its backend cannot use the rings that the frontend names: ";
    finds(&host, &["bare"], "ring-not-mappable", words, "disk detach bare xvda");
    take(&host, "bare", "xvda");
    attach();
    host.ok(&["store", "rm", &front]);
    let words = format!("its frontend has no nodes ({front})");
    finds(&host, &["bare"], "end-missing", &words, "disk detach bare xvda");
    take(&host, "bare", "xvda");
    attach();
    host.ok(&["store", "rm", &back]);
    finds(&host, &["bare"], "end-missing", &format!("its backend has no nodes ({back})"), "");
    take(&host, "bare", "xvda");
    attach();
    host.ok(&["store", "write", &format!("{front}/state"), "7"]);
    let words = "its ends are in states that do not fit: frontend Reconfiguring (7), backend ";
    finds(&host, &["bare"], "states-do-not-fit", words, "disk detach bare xvda");
    take(&host, "bare", "xvda");
    host.ok(&["destroy", "bare"]);
}

/// A device of a driver domain, whose backend is nowhere, or whose domain does not run
/// (QubesOS/qubes-issues 1426).
#[test]
fn a_driver_domain_that_serves_nothing_or_is_gone_is_named() {
    let host = TestHost::up("doctor-driver");
    // Neither knows devices: what the store says is written here.
    for name in ["web", "drv"] {
        let rest = "kernel = \"/bin/sleep\"\nextra = \"1000\"";
        host.ok(&["create", &host.config(name, rest)]);
    }
    let mut store = xenstore::Client::connect(host.path("h/store")).unwrap();
    let id = xenbus::Id { frontend: xen::DomId(1), devid: 51728 };
    let device = xenbus::toolstack::NewDevice::new("vbd", id, xen::DomId(2));
    xenbus::toolstack::add(&mut store, &device).unwrap();
    let words = "xvdb waits: domain 2, which is to serve it, runs nothing that serves vbd";
    finds(&host, &["web"], "backend-domain-without-backend", words, "log 2");
    // Both ends are connected, as far as the store knows.
    for end in [device.frontend_path(), device.backend_path()] {
        store.write(format!("{end}/state"), "4").unwrap();
    }
    is_well(&host, &["web"]);
    let listed = |state: &str| {
        let tree = host.ok(&["tree"]);
        assert!(tree.contains(&format!("backend {state}")), "{tree}");
    };
    host.ok(&["pause", "drv"]);
    let words = "xvdb waits: domain 2, which serves it, is paused";
    finds(&host, &["web"], "backend-domain-away", words, "unpause 2");
    listed("its backend's domain is paused");
    host.ok(&["unpause", "drv"]);
    host.ok(&["destroy", "drv"]);
    let words = "xvdb waits: domain 2, which serves it, is gone";
    finds(&host, &["web"], "backend-domain-away", words, "disk detach web xvdb");
    listed("its backend's domain is gone");
    take(&host, "web", "xvdb");
}

#[test]
fn a_disk_that_waits_for_its_limit_or_its_server_is_named() {
    let host = TestHost::up("doctor-limit");
    if !host.has_fuse("a_disk_that_waits_for_its_limit_or_its_server_is_named") {
        return;
    }
    let image = host.image("a.img", 16 << 20);
    let program = "while :; do dd if=/dev/zero of=/dev/xvda bs=64k count=16 conv=notrunc; done";
    let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"{program}\"");
    host.ok(&["create", &host.config("web", &rest)]);
    is_well(&host, &["web"]);
    let limit = "/local/domain/0/backend/vbd/1/51712/limit-bytes-per-second";
    host.ok(&["store", "write", limit, "1048576"]);
    let words = "xvda is slow: its requests wait for its limit of 1 MiB a second";
    let requests = "/local/domain/0/backend/vbd/1/51712/limit-requests-per-second";
    let lift = ["store", "write", limit, "0", requests, "0"];
    finds(&host, &["web"], "throttled", words, &lift.join(" "));
    host.ok(&lift);
    is_well(&host, &["web"]);
}

#[test]
fn a_disk_that_its_guest_uses_is_not_let_go_of() {
    let host = TestHost::up("doctor-use");
    if !host.has_fuse("a_disk_that_its_guest_uses_is_not_let_go_of") {
        return;
    }
    let image = host.image("a.img", 1 << 20);
    let program = "exec 3< /dev/xvda; echo open; exec sleep 1000";
    let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"{program}\"");
    host.ok(&["create", &host.config("web", &rest)]);
    host.until_log("web", "open");
    host.fails(&["disk", "detach", "web", "xvda"], 1, "it is in use");
    let words = "xvda is not let go of: web uses it";
    finds(&host, &["web"], "in-use", words, "disk detach web xvda --force");
    take(&host, "web", "xvda");
}

#[test]
fn a_disk_that_is_mounted_is_not_let_go_of() {
    let test = "a_disk_that_is_mounted_is_not_let_go_of";
    let host = TestHost::up("doctor-mount");
    if !host.can_mount(test) {
        return;
    }
    let image = host.image("a.img", 16 << 20);
    let made = std::process::Command::new("mkfs.ext4").args(["-qF", &image]).status().unwrap();
    assert!(made.success());
    let rest =
        format!("disk = [\"{image},,xvda,w\"]\nkernel_block = 1\nextra = \"exec sleep 1000\"");
    host.ok(&["create", &host.config("web", &rest)]);
    host.ok(&["disk", "mount", "web", "xvda"]);
    host.fails(&["disk", "detach", "web", "xvda"], 1, "it is in use");
    let words = "xvda is not let go of: web uses it: it is open there, or mounted";
    finds(&host, &["web"], "in-use", words, "disk unmount web");
    host.ok(&["disk", "unmount", "web"]);
    host.until("it is let go of", || {
        host.run(&["disk", "detach", "web", "xvda"]).status.success().then_some(())
    });
}

/// A guest whose device is reset again and again has to wait.
#[test]
fn a_guest_that_connects_too_often_is_named() {
    let host = TestHost::up("doctor-often");
    host.ok(&["create", &guest_with_disk(&host)]);
    let (front, back) = ("/local/domain/1/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712");
    let mut store = xenstore::Client::connect(host.path("h/store")).unwrap();
    store.watch(format!("{back}/state"), "state").unwrap();
    // A frontend that begins anew while it is connected, as after a crash of its kernel.
    host.until("the backend lets it wait", || {
        while store.poll_event().unwrap().is_some() {}
        store.write(format!("{front}/state"), "1").unwrap();
        let mut has_begun = false;
        for _ in 0..200 {
            let event = store.next_event(Some(Duration::from_millis(10))).unwrap();
            has_begun |= event.is_some();
            let mut state = |end: &str| store.read(format!("{end}/state")).unwrap();
            match (state(front).as_slice(), state(back).as_slice()) {
                (b"4", b"4") if has_begun => return None,
                // It waits as long as the first of its connects counts.
                (b"3", b"2") => {}
                _ => continue,
            }
            // Each connect passes through these states. The doctor takes its time for a second
            // look, in which too few connects would be made.
            let counts = host.try_json(&["disk", "stats"]);
            if counts.is_none_or(|counts| counts[0]["connects"] != 16) {
                continue;
            }
            let output = host.run(&["doctor", "web", "--json"]);
            let so: Value = serde_json::from_slice(&output.stdout).ok()?;
            if so["findings"][0]["cause"] == "too-many-connects" {
                return Some(());
            }
        }
        None
    });
    let words =
        "xvda waits: web has connected it 16 times within seconds, and has to wait a moment";
    finds(&host, &["web"], "too-many-connects", words, "log web");
    is_well(&host, &["web"]);
}

/// Returns the number of a process.
fn pid_of(pid: Pid) -> String {
    pid.as_raw_nonzero().to_string()
}

/// A backend that comes late connects, and a wait that has run out says why
/// (canonical/multipass 3314).
#[test]
fn a_wait_that_runs_out_ends_with_the_reason() {
    let host = TestHost::up("doctor-waits");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let disk = "vdev=xvdb,target=memory:1048576";
    let advice = format!("start it with: xb --host {} host up", host.path("h").display());
    host.kill_backend_for_good();
    let attach = ["disk", "attach", "web", disk];
    let late = [&attach[..], &["--timeout", "0.5"]].concat();
    let words = format!("xvdb waits: nothing serves vbd in domain 0; {advice}");
    host.fails(&late, 3, &words);
    host.ok(&[&attach[..], &["--no-wait"]].concat());
    finds(&host, &["web"], "backend-down", "xvdb waits: nothing serves vbd", "host up");
    host.ok(&["host", "up"]);
    is_well(&host, &["web"]);
    assert_eq!(host.json(&["disk", "list"])[0]["backend_state"], "Connected (4)");
    let backend = host.pid("xen-blockd").unwrap();
    stop(&host, backend);
    let words = format!("let it go on with: kill -CONT {}", pid_of(backend));
    host.fails(&["disk", "detach", "web", "xvdb", "--timeout", "0.5"], 3, &words);
    let config = host.config("late", &format!("disk = [\"{disk}\"]"));
    host.fails(&["create", &config, "--timeout", "1"], 3, &words);
    kill_process(backend, Signal::CONT).unwrap();
    host.ok(&["pause", "web"]);
    let words = "web is paused; let it go on with: ";
    host.fails(&["shutdown", "web", "--wait", "--timeout", "0.5"], 3, words);
    let store = host.pid("xenstored").unwrap();
    stop(&host, store);
    let words = format!("let it go on with: kill -CONT {}", pid_of(store));
    host.fails(&["list", "--timeout", "1"], 3, &words);
    kill_process(store, Signal::CONT).unwrap();
    host.ok(&["destroy", "web"]);
}
