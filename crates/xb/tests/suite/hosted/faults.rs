//! Bad input and faults: a sentence that helps, an exit code that is not 0, and nothing left behind.

use super::support::{DAEMONS, TestHost, XB};
use super::traces::entries;
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use xen_console::serve::rate::{OUTPUT_BURST, OUTPUT_RATE};

#[test]
fn what_cannot_be_is_refused_in_a_sentence_and_leaves_nothing() {
    let host = TestHost::up("refused");
    let nodes = || host.nodes();
    let before = nodes();
    let (good, busy) = (host.image("good.img", 1 << 20), host.image("busy.img", 1 << 20));
    let corrupt = host.path("corrupt.qcow2").to_str().unwrap().to_owned();
    std::fs::write(&corrupt, b"QFI\xfb\0\0\0\x03 and nothing that makes sense").unwrap();
    let corrupt_words = format!(
        "disk xvda (qcow2:{corrupt}): {corrupt}: the file ends within its header, behind 37 bytes"
    );
    let disk = |spec: &str| format!("disk = [\"{spec}\"]\nextra = \"exec sleep 1000\"");
    let writer = host.config("writer", &disk(&format!("{busy},,xvda,w")));
    for (rest, words) in [
        (disk("/not/there.img,,xvda"), "disk xvda: /not/there.img: No such file or directory"),
        (
            disk("there.img,,xvda"),
            "disk xvda: /dev/there.img: No such file or directory (there.img is not in /",
        ),
        (
            disk(&format!("{good},vhd,xvda")),
            "disk xvda: format vhd is not served; raw and qcow2 are",
        ),
        (disk(&format!("{corrupt},qcow2,xvda")), &corrupt_words),
        (disk(&format!("drbd:{good},xvda,w")), "hotplug script block-drbd is not run"),
        (disk("vdev=hdc,cdrom"), "disk hdc: a drive without a medium is not supported"),
        (
            disk(&format!("backend=bad,vdev=xvda,target={good}")),
            "backend=bad: a domain cannot serve itself; name another one",
        ),
        (
            disk(&format!("specification=virtio,vdev=xvda,target={good}")),
            "specification=virtio is not supported",
        ),
        ("kernel = \"/not/there\"".into(), "kernel /not/there: No such file or directory"),
        ("ramdisk = \"/initrd\"".into(), "hosted guests have no ramdisk"),
        ("memory = \"lots\"".into(), "bad.cfg:2:10: \"lots\"; expected a number"),
        (
            format!("disk = [\"{good},,xvda\"]\nkernel = \"/bin/true\""),
            "has ended before its disk xvda was connected",
        ),
    ] {
        let config = host.config("bad", &rest);
        host.fails(&["create", &config], 1, words);
        assert_eq!(nodes(), before, "{rest}");
    }
    let driver = host.config("bad", &disk(&format!("backend=drv,vdev=xvda,target={good}")));
    host.fails(&["create", &driver], 4, "backend=drv: there is no domain drv; xb list shows all");
    assert_eq!(nodes(), before);
    host.ok(&["create", &writer]);
    let other = host.config("other", &disk(&format!("{busy},,xvda,w")));
    let by =
        "is in use by writer, as its disk xvda (xb disk detach writer xvda takes it away there)";
    host.fails(&["create", &other], 1, by);
    host.fails(&["create", &writer], 1, "there is a domain writer already");
    host.fails(&["disk", "attach", "writer", &format!("{busy},,xvdb,w")], 1, by);
    host.fails(&["disk", "attach", "writer", "nonsense"], 1, "/dev/nonsense: No such file");
    host.fails(
        &["disk", "attach", "nobody", &format!("{good},,xvda")],
        4,
        "there is no domain nobody",
    );
    host.fails(&["disk", "mount", "writer", "xvda"], 1, "writer: ");
    host.fails(&["destroy", "0"], 1, "domain 0 is the host itself");
    host.fails(&["create", "/not/there.cfg"], 1, "/not/there.cfg: No such file or directory");
    host.ok(&["destroy", "writer"]);
    assert_eq!(nodes(), before);
}

#[test]
fn a_host_is_up_once_in_a_directory() {
    let host = TestHost::up("twice");
    assert!(host.ok(&["host", "up"]).contains("was up already"));
    host.fails(&["demo"], 1, "a host is up in");
    assert_eq!(host.json(&["host", "status"])["up"], json!(true), "the demo has left it alone");
    assert!(host.ok(&["host", "down"]).contains("is down"));
    assert!(host.ok(&["host", "down"]).contains("is down"), "what is down is down");
    host.fails(&["list"], 4, "no host is up in");
    host.nothing_is_left();
    let long = format!("/tmp/{}", "x".repeat(100));
    let output = Command::new(XB).args(["--host", &long, "host", "up"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("too long for the sockets in it"),
        "{output:?}"
    );
}

#[test]
fn of_two_that_bring_a_host_up_one_does() {
    let host = TestHost::down("two-up");
    for _ in 0..5 {
        let up =
            || host.command(&["host", "up"]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let outputs = [up(), up()].map(|child| child.unwrap().wait_with_output().unwrap());
        assert!(outputs.iter().any(|output| output.status.success()), "{outputs:?}");
        for output in outputs.iter().filter(|output| !output.status.success()) {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("another xb is bringing the host in"), "{said}");
        }
        assert_eq!(host.json(&["host", "status"])["up"], json!(true));
        host.ok(&["host", "down"]);
        host.nothing_is_left();
    }
}

#[test]
fn a_daemon_that_is_gone_is_named() {
    let host = TestHost::up("gone");
    let config = host.config("web", "extra = \"exec sleep 1000\"");
    // A host that exists and cannot be used is not reported as down.
    let (control, aside) = (host.path("h/host/control"), host.path("aside"));
    std::fs::rename(&control, &aside).unwrap();
    let wrong = std::os::unix::net::UnixListener::bind(&control).unwrap();
    host.fails(&["list"], 1, "the broker does not answer: ");
    drop(wrong);
    std::fs::rename(&aside, &control).unwrap();
    host.kill("keeper");
    host.fails(&["create", &config], 1, "host up starts it");
    host.kill("xenstored");
    host.fails(&["list"], 1, "host up starts what is down");
    host.kill("broker");
    host.fails(&["list"], 4, "no host is up in");
}

#[test]
fn a_hundred_rounds_leave_nothing() {
    let host = TestHost::up("rounds");
    let image = host.image("a.img", 1 << 20);
    let config =
        host.config("web", &format!("disk = [\"{image},,xvda\"]\nextra = \"exec sleep 1000\""));
    let round = || {
        host.ok(&["create", &config]);
        host.ok(&["destroy", "web"]);
    };
    // Files that are made once and kept are made by the first rounds.
    (0..3).for_each(|_| round());
    let left = || {
        let daemons = DAEMONS.map(|daemon| {
            let pid = host.pid(daemon).unwrap().as_raw_nonzero();
            let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            let mounts =
                mounts.lines().filter(|line| line.contains(host.path("").to_str().unwrap()));
            (entries(format!("/proc/{pid}/fd").as_ref()).len(), mounts.count())
        });
        (daemons, host.nodes())
    };
    // The last process may still be ending.
    let mut last = left();
    let before = host.until("the daemons to be at rest", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = left();
        let same = now == last;
        last = now.clone();
        same.then_some(now)
    });
    // A daemon may keep the memory that it has grown to, for later rounds.
    let kib = || {
        DAEMONS.map(|daemon| {
            let pid = host.pid(daemon).unwrap().as_raw_nonzero();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        })
    };
    let memory = kib();
    (0..100).for_each(|_| round());
    host.until("descriptors, mounts and nodes are as before", || (left() == before).then_some(()));
    for (now, then) in kib().into_iter().zip(memory) {
        // 20 KiB a round would be more.
        assert!(now < then + 2048, "{:?} KiB, before {memory:?}", kib());
    }
}

#[test]
fn what_is_no_host_is_left_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let host = TestHost::down("not-a-host");
    let folder = host.path("h");
    std::fs::create_dir_all(folder.join("log")).unwrap();
    std::fs::write(folder.join("log/precious"), "kept").unwrap();
    let refused = |words: &str| {
        for command in [&["host", "up"][..], &["host", "down"], &["list"], &["demo"], &["log", "x"]]
        {
            host.fails(command, 1, words);
        }
        assert_eq!(std::fs::read(host.path("kept/log/precious")).unwrap(), b"kept");
    };
    std::fs::rename(&folder, host.path("kept")).unwrap();
    symlink(host.path("kept"), &folder).unwrap();
    refused("is no folder");
    std::fs::remove_file(&folder).unwrap();
    // Empty, and everybody's.
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    refused("may be written into by others");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
    host.fails(&["list"], 4, "no host is up in");
    host.ok(&["host", "up"]);
    // Another user's file beside a host stays, and the folder with it.
    std::fs::write(folder.join("precious"), "kept").unwrap();
    host.ok(&["host", "down"]);
    assert_eq!(entries(&folder), [folder.join("precious")]);
    refused("holds other things and no host of xb");
    std::fs::remove_dir_all(&folder).unwrap();
    if rustix::process::geteuid().is_root() {
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(12345), None).unwrap();
        refused("is user 12345's");
        std::fs::remove_dir(&folder).unwrap();
    }
}

#[test]
fn a_guest_outlives_the_console_daemon_and_the_next_one_goes_on_with_its_log() {
    let host = TestHost::up("outlives");
    let image = host.image("a.img", 1 << 20);
    // More output than a ring and a terminal hold, all of it read later.
    let config = host.config(
        "web",
        &format!(
            "extra = \"echo first; until [ -e /dev/xvda ]; do sleep 0.02; done; echo second; seq 20000; echo third; exec sleep 1000\"\n\
             disk = [\"{image},,xvdb\"]"
        ),
    );
    if !host.has_fuse("a_guest_outlives_the_console_daemon_and_the_next_one_goes_on_with_its_log") {
        return;
    }
    let domid = host.json(&["create", &config])["domid"].clone();
    host.until_log("web", "first");
    host.kill("xenconsoled");
    // The guest's init logs the disk, and serves it.
    host.ok(&["disk", "attach", "web", "vdev=xvda,target=memory:1048576"]);
    host.ok(&["disk", "detach", "web", "xvdb"]);
    assert_eq!(host.json(&["info", "web"])["state"], json!("running"));
    assert!(!host.ok(&["log", "web"]).contains("second"));
    host.ok(&["host", "up"]);
    host.until_log("web", "third");
    let log = host.ok(&["log", "web"]);
    assert!(log.starts_with("guest-init: disk xvdb: ") && log.contains("first\n"), "{log:.200}");
    assert!(
        log.contains("guest-init: disk xvda: Connected") && log.contains("\n20000\n"),
        "{log:.200}"
    );
    assert_eq!(host.json(&["info", "web"])["domid"], domid);
    // A guest that ends without a keeper is settled by the next one.
    host.kill("keeper");
    host.ok(&["shutdown", "web", "--wait"]);
    host.ok(&["host", "up"]);
    host.until_alone();
}

#[test]
fn a_daemons_log_is_bounded() {
    use std::io::Write;
    let host = TestHost::up("daemons-log");
    let path = host.path("h/log/xen-blockd.log");
    let mut log = std::fs::File::options().append(true).open(&path).unwrap();
    log.write_all(&vec![b'x'; 3 << 20]).unwrap();
    host.until("the log is set aside", || {
        (std::fs::metadata(&path).ok()?.len() < 1 << 20).then_some(())
    });
    log.write_all(b"and on\n").unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        b"and on\n",
        "what holds it open goes on from its start"
    );
}

/// Returns the number of bytes that a process has written.
fn written(pid: rustix::process::Pid) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", pid.as_raw_nonzero())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn a_guest_that_prints_without_end_is_read_at_its_rate() {
    let host = TestHost::up("prints");
    let daemon = host.pid("xenconsoled").unwrap();
    let burst = OUTPUT_RATE * OUTPUT_BURST.as_secs();
    let (begin, before) = (Instant::now(), written(daemon));
    host.ok(&["create", &host.config("loud", "extra = \"exec yes\"")]);
    host.until("its burst is spent", || (written(daemon) - before >= burst).then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    let bytes = written(daemon) - before;
    // The record of what is in the log, its index and the terminal take less than a tenth of it.
    let most = (burst + OUTPUT_RATE * begin.elapsed().as_secs()) / 10 * 11 + (1 << 19);
    assert!(bytes <= most, "{bytes} bytes, of {most}");
    // Other guests' output is read meanwhile, and it is destroyed like any guest.
    host.ok(&["create", &host.config("web", "extra = \"echo hello; exec sleep 1000\"")]);
    host.until_log("web", "hello");
    host.ok(&["destroy", "loud"]);
}

/// The wait for a broker that does not answer is as long as requested.
#[test]
fn a_broker_that_is_stopped_is_waited_for_as_long_as_was_said() {
    let host = TestHost::up("stopped");
    let broker = host.pid("broker").unwrap();
    let signal = |signal| rustix::process::kill_process(broker, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    for args in [&["list", "--timeout", "1"][..], &["destroy", "web", "--timeout", "1"]] {
        let begin = Instant::now();
        host.fails(args, 3, "the broker answers (its log: ");
        // The broker's own bound is 30 s.
        assert!(begin.elapsed() < Duration::from_secs(20), "{args:?}: {:?}", begin.elapsed());
    }
    signal(rustix::process::Signal::CONT);
    host.ok(&["list", "--timeout", "20"]);
}

/// Guests' logs leave room for the records of disks, which lie beside them.
#[test]
fn guests_that_print_do_not_fill_the_records_folder() {
    let host = TestHost::down("full");
    let loud = "extra = \"exec yes\"";
    let guests: Vec<String> = (0..8).map(|at| host.config(&format!("loud{at}"), loud)).collect();
    let quiet = host.config(
        "quiet",
        "disk = [\"vdev=xvda,target=memory:1048576\"]\nextra = \"exec sleep 1000\"",
    );
    // Eight guests print two MiB at once, and more later; the folder has twelve.
    let script = format!(
        "set -e; mkdir $DIR/h && mount -t tmpfs -o size=12m,mode=700 none $DIR/h
         xb() {{ $XB --host $DIR/h \"$@\"; }}
         xb host up > /dev/null
         for config in {}; do xb create $config > /dev/null; done
         sleep 4
         df --output=avail -k $DIR/h | tail -1
         xb create {quiet} > /dev/null
         xb --json disk list quiet
         xb host down > /dev/null
         umount $DIR/h && rmdir $DIR/h",
        guests.join(" ")
    );
    let test = "guests_that_print_do_not_fill_the_records_folder";
    let Some(output) = super::demo::apart(test, &host, &script) else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let (free, disk) = said.trim().split_once('\n').unwrap();
    // An eighth of it, except for the bytes that were just being written.
    let free: u64 = free.trim().parse().unwrap();
    assert!((1024..6 * 1024).contains(&free), "{free} KiB are free");
    assert!(disk.contains("Connected (4)"), "{disk}");
}

/// A kernel without Xen is a program, or a script; a file that cannot be run is refused at once.
#[test]
fn a_kernel_that_cannot_be_run_is_refused_and_a_script_runs() {
    let host = TestHost::up("kernel");
    let nodes = host.nodes();
    let file = |name: &str, bytes: &[u8], mode: u32| {
        let path = host.path(name);
        std::fs::write(&path, bytes).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut linux = vec![0; 1024];
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    let script = "#!/bin/sh -e\necho \"hello $1 from $0\"; cat \"$0\" | wc -l; exec sleep 1000\n";
    for (name, bytes, mode, words) in [
        (
            "linux",
            &linux[..],
            0o755,
            "is a Linux kernel: without Xen a guest's kernel is a program",
        ),
        (
            "arm",
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xff\xff",
            0o755,
            "of another machine",
        ),
        ("text", b"hello\n", 0o755, "is no program"),
        ("plain", script.as_bytes(), 0o644, "may not be run (chmod +x)"),
        ("none", b"#!/not/there\n", 0o755, "No such file or directory"),
    ] {
        let kernel = file(name, bytes, mode);
        let config = host.config("bad", &format!("kernel = \"{kernel}\""));
        host.fails(&["create", &config], 1, words);
        assert_eq!(host.nodes(), nodes, "{name}");
    }
    let kernel = file("script", script.as_bytes(), 0o755);
    let config = host.config("web", &format!("kernel = \"{kernel}\"\nextra = \"world\""));
    host.ok(&["create", &config]);
    host.until_log("web", "hello world from /kernel\n2");
}
