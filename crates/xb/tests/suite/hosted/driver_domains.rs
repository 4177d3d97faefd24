//! Driver domains: `backend=` of disks, and guests that serve the disks of others.

use super::supervisor::{pieces, verifying_guest};
use super::support::TestHost;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use xen_hosted::domain::MissingFeature;
use xenstore::{Client, Store};

/// A domain that does nothing.
fn idle(host: &TestHost, name: &str) -> String {
    host.config(name, "kernel = \"/bin/sleep\"\nextra = \"1000\"")
}

#[test]
fn a_backend_that_cannot_be_is_refused() {
    let host = TestHost::up("backend-choice");
    for name in ["web", "drv"] {
        host.ok(&["create", &idle(&host, name)]);
    }
    let attach = |domain: &str, backend: &str, vdev: &str| {
        let disk = format!("vdev={vdev},backend={backend},target=memory:1048576");
        ["disk", "attach", "--no-wait", domain, &disk].map(str::to_owned)
    };
    let fails = |args: [String; 5], code: i32, words: &str| {
        host.fails(&args.each_ref().map(String::as_str), code, words);
    };
    fails(attach("web", "nobody", "xvda"), 4, "backend=nobody: there is no domain nobody");
    for itself in ["web", "1"] {
        fails(attach("web", itself, "xvda"), 1, "a domain cannot serve itself");
    }
    let disk = "disk = [\"vdev=xvda,backend=self,target=memory:1048576\"]";
    let config = host.config("self", disk);
    for command in [&["config", "check", &config][..], &["create", &config]] {
        host.fails(command, 1, "backend=self: a domain cannot serve itself");
    }
    let disk = "disk = [\"vdev=xvda,backend=nobody,target=memory:1048576\"]";
    let config = host.config("lost", disk);
    host.fails(&["create", &config], 4, "backend=nobody: there is no domain nobody");
    // Found by name or number; a file of that domain is not looked for here.
    let disk = "vdev=xvda,backend=drv,target=/not/there";
    host.ok(&["disk", "attach", "--no-wait", "web", disk]);
    let back = "/local/domain/2/backend/vbd/1/51712";
    let node = |name: &str| host.ok(&["store", "read", &format!("{back}/{name}")]);
    assert_eq!(node("params").trim(), "/not/there");
    assert_eq!(node("script").trim(), "/etc/xen/scripts/block");
    fails(
        attach("drv", "web", "xvda"),
        1,
        "it would be a circle, as web uses itself what drv serves",
    );
    // The same by way of a third.
    host.ok(&["create", &idle(&host, "third")]);
    host.ok(&attach("drv", "3", "xvda").each_ref().map(String::as_str));
    fails(attach("third", "web", "xvda"), 1, "it would be a circle");
    for domain in ["web", "drv"] {
        host.ok(&["disk", "detach", domain, "xvda", "--force", "--timeout", "0.2"]);
    }
}

/// Plays the supervisor of a driver domain, which says that it serves `kinds`.
fn with_supervisor<T>(host: &TestHost, kinds: &str, body: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    let path = host.path("h/store");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut store = Client::connect(path).unwrap();
            let nodes = "/local/domain/1/data/devd";
            store.write(format!("{nodes}/kinds"), kinds).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                if let Some(number) = store.try_read(format!("{nodes}/asked")).unwrap() {
                    store.write(format!("{nodes}/answered"), number).unwrap();
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let done = body();
        is_over.store(true, Ordering::Relaxed);
        done
    })
}

#[test]
fn a_driver_domain_is_awaited_and_what_is_missing_is_said() {
    let host = TestHost::up("backend-waits");
    host.ok(&["create", &idle(&host, "drv")]);
    let disk = "disk = [\"vdev=xvda,backend=drv,target=memory:1048576\"]";
    let web = host.config("web", disk);
    let late = |words: &str| {
        host.fails(&["create", &web, "--timeout", "0.5"], 3, words);
        assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 2, "nothing is left of it");
    };
    late("domain drv serves vbd: not within 500 ms; it runs no xb devd; start it in drv with: ");
    with_supervisor(&host, "vif", || late("its xb devd answers, and drv serves vif; "));
    late("its xb devd does not answer any more");
    let odd = "\u{202e}x\u{1b}[2J; rm vbd\u{7} ".repeat(100);
    with_supervisor(&host, &odd, || late("its xb devd answers, and drv serves rm; "));
    host.ok(&["pause", "drv"]);
    late("drv is paused; let it go on with: xb unpause drv");
    host.ok(&["unpause", "drv"]);
    // It is asked for its answer; what comes after that is the device's.
    with_supervisor(&host, "qdisk vbd", || {
        host.fails(&["create", &web, "--timeout", "1"], 3, "disk xvda of domain ");
    });
    // Its supervisor is over, which is named also for a device that was not waited for.
    host.ok(&["create", &idle(&host, "other")]);
    let disk = "vdev=xvdb,backend=drv,target=memory:1048576";
    host.ok(&["disk", "attach", "--no-wait", "other", disk]);
    let found = host.run(&["doctor", "other", "xvdb", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    let finding = &found["findings"][0];
    assert_eq!(finding["cause"], "backend-supervisor-silent", "{found}");
    let words =
        "xvdb is not looked after: the xb devd of domain 1, which serves it, does not answer";
    assert!(finding["sentence"].as_str().unwrap().starts_with(words), "{found}");
    host.ok(&["destroy", "other"]);
    host.ok(&["destroy", "drv"]);
    host.fails(&["create", &web], 4, "there is no domain drv");
}

/// Returns the process with a command that `is_wanted`.
fn process_with(is_wanted: impl Fn(&Path, &str) -> bool) -> Option<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.into_iter().find_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8(command).ok()?;
        let pid = is_wanted(&entry.path(), &command)
            .then(|| entry.file_name().to_str()?.parse().ok())??;
        Pid::from_raw(pid)
    })
}

/// Returns the first process of the driver domain whose program says these words.
fn driver_domain_process(words: &str) -> Option<Pid> {
    let is_guest = |command: &str| command.starts_with("xb\0guest-init\0");
    process_with(|_, command| is_guest(command) && command.contains(words))
}

/// Returns the process of that domain's backend.
fn backend_in_guest(words: &str) -> Option<Pid> {
    let parent = driver_domain_process(words)?.as_raw_nonzero().get();
    process_with(|process, command| {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        // proc_pid_stat(5): the command in brackets, the state, the parent.
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let of_guest = after.split_whitespace().nth(1) == Some(&parent.to_string());
        of_guest && command.starts_with("/opt/xen-blockd\0")
    })
}

/// A guest serves another one's disk. Its backend alone is killed, and the other guest sees a pause
/// (QubesOS/qubes-issues 6047).
#[test]
fn a_hosted_driver_domain_serves_a_disk_and_its_backend_is_killed() {
    let host = TestHost::up("driver");
    let test = "a_hosted_driver_domain_serves_a_disk_and_its_backend_is_killed";
    if !host.has_fuse(test) {
        return;
    }
    let image = format!("/tmp/image-{}", std::process::id());
    let program = format!("truncate -s 8M {image} && echo ready; exec sleep 1000");
    let rest = format!("driver_domain = 1\nmemory = 256\nextra = \"{program}\"");
    let created = host.json(&["create", &host.config("disks", &rest)]);
    let lacks = created["lacks"].to_string();
    if lacks.contains(&MissingFeature::Namespaces.to_string()) {
        conformance::skip(test, "hosted guests have no namespaces here");
        return;
    }
    host.until_log("disks", "ready");
    let web = verifying_guest(&host, &format!("vdev=xvda,backend=disks,target={image}"));
    host.ok(&["create", &web]);
    let mut done = 0;
    for _ in 0..3 {
        done = host.until("it goes on", || Some(pieces(&host)).filter(|now| *now > done));
        let before = backend_in_guest(&image).unwrap();
        kill_process(before, Signal::KILL).unwrap();
        host.until("another backend runs", || {
            backend_in_guest(&image).filter(|now| *now != before).map(drop)
        });
    }
    host.until_log("web", "all pieces");
    let disk = &host.json(&["disk", "list", "web"])[0];
    assert_eq!(disk["backend_state"], "Connected (4)");
    assert!(host.run(&["doctor", "web"]).status.success());
    for _ in 0..5 {
        host.ok(&["disk", "attach", "web", "vdev=xvdb,backend=disks,target=memory:1048576"]);
        host.ok(&["disk", "detach", "web", "xvdb"]);
    }
    // No folder stays (QubesOS/qubes-issues 5369).
    host.ok(&["destroy", "web"]);
    host.until("no node of it is left", || {
        let nodes = host.ok(&["store", "ls", "/local/domain/1/backend"]);
        nodes.trim().is_empty().then_some(())
    });
}

/// A guest serves another one's disk, and is killed as a whole. Another one takes its number, and the
/// devices: the other guest sees a pause (QubesOS/qubes-issues 6047, 1426).
#[test]
fn a_hosted_driver_domain_is_killed_and_another_serves_its_disks() {
    let host = TestHost::up("succession");
    let test = "a_hosted_driver_domain_is_killed_and_another_serves_its_disks";
    let words = format!("serving of {}", std::process::id());
    let Some(number) = create_driver_domain(&host, test, &words) else { return };
    host.ok(&["create", &verifying_guest(&host, "vdev=xvda,backend=disks,target=/dev/xvda")]);
    let mut done = 0;
    for life in 1..=3 {
        host.until("it goes on", || Some(pieces(&host)).filter(|now| *now > done));
        let process = host.until("its program runs", || driver_domain_process(&words));
        kill_process(process, Signal::KILL).unwrap();
        await_successor(&host, number, life);
        done = pieces(&host);
    }
    host.until_log("web", "all pieces");
    let disk = &host.json(&["disk", "list", "web"])[0];
    let states = (&disk["frontend_state"], &disk["backend_state"]);
    assert_eq!(states, (&"Connected (4)".into(), &"Connected (4)".into()));
    assert!(host.run(&["doctor", "web"]).status.success());
    // Its successor serves new devices, and lets go of those that it has taken over.
    host.ok(&["disk", "attach", "web", "vdev=xvdb,backend=disks,target=memory:1048576"]);
    host.ok(&["disk", "detach", "web", "xvdb"]);
    host.ok(&["destroy", "web"]);
    host.until("no node of it is left", || {
        let nodes = host.ok(&["store", "ls", &format!("/local/domain/{number}/backend")]);
        nodes.trim().is_empty().then_some(())
    });
    // One that is destroyed has no successor.
    host.ok(&["destroy", "disks"]);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 1, "domain 0 alone is left");
}

/// Creates a driver domain, restarted whatever its end, that has a disk of its own and whose program
/// says these words. Returns its number; `None` where there can be none.
fn create_driver_domain(host: &TestHost, test: &str, words: &str) -> Option<u64> {
    if !host.has_fuse(test) {
        return None;
    }
    let disk = format!("disk = [\"{},,xvda,w\"]", host.image("drv.img", 16 << 20));
    let program = format!("memory = 256\nextra = \"echo {words}; exec sleep 1000\"");
    let rest = format!("driver_domain = 1\non_crash = \"restart\"\n{disk}\n{program}");
    let created = host.json(&["create", &host.config("disks", &rest)]);
    if created["lacks"].to_string().contains(&MissingFeature::Namespaces.to_string()) {
        conformance::skip(test, "hosted guests have no namespaces here");
        return None;
    }
    created["domid"].as_u64()
}

/// Waits until the driver domain has been restarted so often, under the same number.
fn await_successor(host: &TestHost, number: u64, restarts: u64) {
    host.until("its successor runs", || {
        let info = host.try_json(&["info", "disks"])?;
        assert_eq!(info["domid"].as_u64(), Some(number), "{info}");
        (info["restarts"].as_u64() == Some(restarts)).then_some(())
    });
    // One that ends before it is complete is not started again, like any guest.
    host.until("its successor is complete", || {
        let complete = host.log_of("keeper").matches("disks runs again, as domain").count() as u64;
        (complete == restarts).then_some(())
    });
}

/// A succession outlives the keeper's end while the domain waits for its restart, and the end of a
/// guest that uses its disks; a reboot is one, too.
#[test]
fn a_driver_domain_is_succeeded_whatever_else_ends() {
    let host = TestHost::up("succession-faults");
    let words = format!("faults of {}", std::process::id());
    let test = "a_driver_domain_is_succeeded_whatever_else_ends";
    let Some(number) = create_driver_domain(&host, test, &words) else { return };
    let disk = "disk = [\"vdev=xvda,backend=disks,target=/dev/xvda\"]";
    let web = host.config("web", &format!("{disk}\nextra = \"exec sleep 1000\""));
    host.ok(&["create", &web]);
    let kill = || {
        let process = host.until("its program runs", || driver_domain_process(&words));
        kill_process(process, Signal::KILL).unwrap();
        process
    };
    kill();
    host.kill("keeper");
    host.ok(&["host", "up"]);
    await_successor(&host, number, 1);
    host.until("web is well", || host.run(&["doctor", "web"]).status.success().then_some(()));
    kill();
    host.ok(&["destroy", "web"]);
    await_successor(&host, number, 2);
    host.until("no node of it is left", || {
        let nodes = host.ok(&["store", "ls", &format!("/local/domain/{number}/backend")]);
        nodes.trim().is_empty().then_some(())
    });
    host.ok(&["create", &web]);
    host.ok(&["reboot", "disks"]);
    await_successor(&host, number, 3);
    host.until("web is well", || host.run(&["doctor", "web"]).status.success().then_some(()));
    // Nobody has been told to use it again: what it serves closes, and is named.
    host.ok(&["destroy", "disks"]);
    host.fails(&["doctor", "web"], 1, "");
    host.ok(&["disk", "detach", "web", "xvda", "--force", "--timeout", "1"]);
}

/// A disk in a driver domain's memory ends with that: a successor does not serve another image in place
/// of the one that the guest has used.
#[test]
fn a_disk_that_is_lost_with_its_driver_domain_closes() {
    let host = TestHost::up("succession-lost");
    let test = "a_disk_that_is_lost_with_its_driver_domain_closes";
    if !host.has_fuse(test) {
        return;
    }
    let words = format!("truncate -s 8M /tmp/lost-{} && echo ready", std::process::id());
    let program = format!("extra = \"{words}; exec sleep 1000\"");
    let rest = format!("driver_domain = 1\non_crash = \"restart\"\n{program}");
    let created = host.json(&["create", &host.config("disks", &rest)]);
    if created["lacks"].to_string().contains(&MissingFeature::Namespaces.to_string()) {
        conformance::skip(test, "hosted guests have no namespaces here");
        return;
    }
    host.until_log("disks", "ready");
    let image = format!("/tmp/lost-{}", std::process::id());
    let disk = |vdev: &str, target: &str| format!("\"vdev={vdev},backend=disks,target={target}\"");
    let (first, second) = (disk("xvda", &image), disk("xvdb", "memory:1048576"));
    let disks = format!("disk = [{first}, {second}]\nextra = \"exec sleep 1000\"");
    host.ok(&["create", &host.config("web", &disks)]);
    kill_process(driver_domain_process(&words).unwrap(), Signal::KILL).unwrap();
    for vdev in ["xvda", "xvdb"] {
        let said = host.until("it is closed", || {
            let found = host.run(&["doctor", "web", vdev, "--json"]);
            let found: serde_json::Value = serde_json::from_slice(&found.stdout).ok()?;
            let sentence = found["findings"][0]["sentence"].as_str()?.to_owned();
            sentence.contains("is lost with it").then_some(sentence)
        });
        assert!(said.contains("in the memory of the driver domain that has ended"), "{said}");
    }
    // They are added anew.
    for vdev in ["xvda", "xvdb"] {
        host.ok(&["disk", "detach", "web", vdev, "--force"]);
        let disk = format!("vdev={vdev},backend=disks,target=memory:1048576");
        host.ok(&["disk", "attach", "web", &disk]);
    }
    assert!(host.run(&["doctor", "web"]).status.success());
}

/// A backend that comes late connects: its guest is created once its domain serves
/// (xen-troops/meta-xt-prod-devel-rpi5 81).
#[test]
fn a_guest_waits_for_a_driver_domain_that_comes_late() {
    let host = TestHost::up("driver-late");
    let driver = host.config("disks", "driver_domain = 1\nextra = \"exec sleep 1000\"");
    let created = host.json(&["create", &driver, "--paused"]);
    let lacks = created["lacks"].to_string();
    if lacks.contains(&MissingFeature::Namespaces.to_string()) {
        let test = "a_guest_waits_for_a_driver_domain_that_comes_late";
        conformance::skip(test, "hosted guests have no namespaces here");
        return;
    }
    let disk = "disk = [\"vdev=xvda,backend=disks,target=memory:1048576\"]";
    let web = host.config("web", &format!("{disk}\nextra = \"exec sleep 1000\""));
    let mut command = host.command(&["create", &web]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut notes = BufReader::new(child.stderr.take().unwrap());
    notes.read_line(&mut said).unwrap();
    assert_eq!(said, "xb: waiting until domain disks serves vbd\n");
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 2, "it is not begun");
    host.ok(&["unpause", "disks"]);
    notes.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(host.json(&["disk", "list", "web"])[0]["frontend_state"], "Connected (4)");
}
