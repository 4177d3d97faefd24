//! The demo, on each kind of machine.

use super::support::{TestHost, XB};
use std::process::Command;

/// Runs a shell command in a mount namespace of its own, as root.
pub(crate) fn apart(test: &str, host: &TestHost, script: &str) -> Option<std::process::Output> {
    if !rustix::process::geteuid().is_root() {
        conformance::skip(test, "only root can have mounts of its own");
        return None;
    }
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script])
        .env("XB", XB)
        .env_remove("CARGO")
        .env("DIR", host.path(""));
    Some(command.env("TMPDIR", host.path("")).output().unwrap())
}

/// Returns a script that puts a device without a driver at this path: it exists, and cannot be
/// opened.
fn without(path: &str) -> String {
    format!("mknod $DIR/none c 10 253 && mount --bind $DIR/none {path}")
}

/// Runs the demo after a script, apart, and returns its output.
fn demo_after(test: &str, host: &TestHost, script: &str) -> Option<String> {
    let output = apart(test, host, &format!("{script} && exec $XB --host $DIR/h demo"))?;
    assert!(output.status.success(), "{output:?}");
    host.nothing_is_left();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_demo_without_fuse_says_so_and_goes_on() {
    let host = TestHost::down("no-fuse");
    let test = "the_demo_without_fuse_says_so_and_goes_on";
    let Some(said) = demo_after(test, &host, &without("/dev/fuse")) else { return };
    assert!(said.contains("/dev/fuse cannot be opened") && said.contains("they use NBD"), "{said}");
    writes_and_compares(&said);
}

#[test]
fn the_demo_without_fuse_and_namespaces_says_what_is_not_done() {
    let host = TestHost::down("no-namespaces");
    let test = "the_demo_without_fuse_and_namespaces_says_what_is_not_done";
    // Whether there are namespaces is asked of this program.
    let script =
        "mkdir $DIR/false && ln -s /bin/false $DIR/false/unshare && export PATH=$DIR/false:$PATH";
    let script = format!("{script} && {}", without("/dev/fuse"));
    let Some(said) = demo_after(test, &host, &script) else { return };
    for words in [
        "no namespaces are to be had",
        "disks connect and move here, and nothing is read or written",
        "attached to two while it runs",
        "the backend is killed (SIGKILL) and started again\n",
        "all is taken down",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_disk_is_not_mounted_without_loop_devices() {
    let host = TestHost::down("no-loop-mount");
    let test = "a_disk_is_not_mounted_without_loop_devices";
    if !host.has_fuse(test) {
        return;
    }
    let image = host.image("a.img", 1 << 20);
    let rest =
        format!("disk = [\"{image},,xvda,w\"]\nkernel_block = 1\nextra = \"exec sleep 1000\"");
    let config = host.config("web", &rest);
    let script = format!(
        "{} && $XB --host $DIR/h host up && $XB --host $DIR/h create {config} && \
         $XB --host $DIR/h disk mount web xvda; code=$?; $XB --host $DIR/h host down; exit $code",
        without("/dev/loop-control")
    );
    let Some(output) = apart(test, &host, &script) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("web: /dev/loop-control (no module loop, or not root): "), "{said}");
    host.nothing_is_left();
}

#[test]
fn the_demo_without_loop_devices_uses_debugfs() {
    let host = TestHost::down("no-loop");
    let test = "the_demo_without_loop_devices_uses_debugfs";
    if !host.has_fuse(test) {
        return;
    }
    let Some(said) = demo_after(test, &host, &without("/dev/loop-control")) else { return };
    assert!(said.contains("there is no loop device"), "{said}");
    writes_and_compares(&said);
}

/// Checks that data was written, and that the same data was read; and again with a backend that
/// died in between.
pub(crate) fn writes_and_compares(shown: &str) {
    for words in [
        "e2fsck finds nothing wrong: 40 files, sha256 ",
        "two reads the tree and compares: the checksums are the same",
        "killed (SIGKILL) and started again: after ",
        "two has noticed nothing but a pause: what it wrote is what it reads",
        "all is taken down",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn the_demo_shows_each_step_and_leaves_nothing() {
    let host = TestHost::down("demo");
    let shown = host.ok(&["demo"]);
    for words in [
        "a host is up",
        "guest one",
        "40 files, sha256 ",
        "guest two is created, with a disk of its own",
        "detached from one",
        "attached to two while it runs",
        "the checksums are the same",
        "a third disk is plugged into two",
        "the backend is stopped (SIGSTOP), and xb doctor finds it: xvdc waits: the process ",
        "killed (SIGKILL) and started again: after ",
        "what it wrote is what it reads",
        "   ├─ vbd xvdb 64 MiB Connected (4) <- ",
        "all is taken down",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let (_, after) = shown.split_once("started again: after ").unwrap();
    let written: u32 = after.split_once(" of 128 writes").unwrap().0.parse().unwrap();
    assert!((8..128).contains(&written), "killed while it wrote: {written}");
    host.nothing_is_left();
    let kept = host.ok(&["demo", "--keep"]);
    assert!(kept.contains("Try next:"), "{kept}");
    // The three suggested commands work as printed.
    let (_, next) = kept.split_once("Try next:\n").unwrap();
    let next: Vec<&str> = next.lines().collect();
    assert_eq!(next.len(), 3, "{kept}");
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 3);
    for line in next {
        let output = Command::new("sh").args(["-c", line]).env_remove("CARGO").output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }
    host.nothing_is_left();
}

#[test]
fn who_looks_on_sees_what_is_being_done() {
    let host = TestHost::down("looks-on");
    let line = format!("{XB} --host {} demo", host.path("h").display());
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_remove("CARGO").env_remove("XB_HOST");
    let output = script.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    let step = "a third disk is plugged into two";
    let (before, after) = shown.split_once(&format!("     ...  {step}\r")).unwrap();
    assert!(!before.contains(step) && after.contains(&format!("s  {step}\r\n")), "{shown}");
}

#[test]
fn what_takes_long_is_told_of() {
    let host = TestHost::up("long");
    let config =
        host.config("web", "extra = \"trap '' TERM; echo deaf; while :; do sleep 1; done\"");
    host.ok(&["create", &config]);
    host.until_log("web", "deaf");
    let output = host.run(&["shutdown", "web", "--wait", "--timeout", "3"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.starts_with("xb: waiting until web ends\nxb: web ends: not within 3.0 s"),
        "{said}"
    );
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let host = TestHost::down("full");
    let test = "a_full_disk_is_said_and_leaves_nothing";
    // The room that is left: too little for a host, for an image, for a guest's data.
    for (room, command, words) in
        [("0", "host up", "No space left on device"), ("300", "demo", "No space left on device")]
    {
        let script = format!(
            "mkdir -p $DIR/small && mount -t tmpfs -o size=2m none $DIR/small && \
             head -c $((2097152 - {room} * 1024)) /dev/zero > $DIR/small/all; \
             $XB --host $DIR/small/h {command}; code=$?; ls -A $DIR/small >&2; exit $code"
        );
        let Some(output) = apart(test, &host, &script) else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
        assert!(said.contains(words), "{command}: {said}");
        // The output of ls.
        assert_eq!(said.lines().last(), Some("all"), "{command}: {said}");
    }
    host.nothing_is_left();
}

#[test]
fn a_guest_is_not_created_on_a_full_disk_and_nothing_of_it_stays() {
    let host = TestHost::down("full-create");
    let test = "a_guest_is_not_created_on_a_full_disk_and_nothing_of_it_stays";
    let config = host.config("web", "disk = [\"vdev=xvda,target=memory:1048576\"]");
    let script = format!(
        "xb() {{ $XB --host $DIR/small/h \"$@\"; }}; \
         mkdir -p $DIR/small && mount -t tmpfs -o size=4m none $DIR/small && xb host up && \
         xb store ls -f / > $DIR/before && cat /dev/zero > $DIR/small/all; \
         xb create {config}; code=$?; \
         rm $DIR/small/all; xb store ls -f / > $DIR/after; xb create {config}; xb host down; exit $code"
    );
    let Some(output) = apart(test, &host, &script) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("xb: /") && said.contains("No space left on device"), "{said}");
    let nodes = |name: &str| std::fs::read_to_string(host.path(name)).unwrap();
    assert_eq!(nodes("after"), nodes("before"));
    // With room it continues normally.
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("web is domain 1\n"), "{shown}");
    host.nothing_is_left();
}

/// Records of disks are mapped: one without room ended the daemon of all (SIGBUS).
#[test]
fn a_full_record_folder_ends_nobody() {
    let host = TestHost::down("full-record");
    let test = "a_full_record_folder_ends_nobody";
    let config = host.config("web", "extra = \"exec sleep 1000\"");
    let script = format!(
        "xb() {{ $XB --host $DIR/small/h \"$@\"; }}; \
         mkdir -p $DIR/small && mount -t tmpfs -o size=4m none $DIR/small && xb host up && \
         xb create {config} && xb disk attach web vdev=xvda,target=memory:1048576 && \
         cat $DIR/small/h/run/xen-blockd.pid > $DIR/before; cat /dev/zero > $DIR/small/all; \
         xb disk attach web vdev=xvdb,target=memory:1048576; code=$?; \
         cat $DIR/small/h/run/xen-blockd.pid > $DIR/after; rm $DIR/small/all; xb host status > $DIR/status; \
         xb disk attach web vdev=xvdc,target=memory:1048576 && xb disk list web && xb host down; exit $code"
    );
    let Some(output) = apart(test, &host, &script) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("No space left on device"), "{said}");
    let read = |name: &str| std::fs::read_to_string(host.path(name)).unwrap();
    assert_eq!(read("after"), read("before"));
    assert!(!read("status").contains("down"), "{}", read("status"));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("xvda") && shown.contains("xvdc"), "{shown}");
    host.nothing_is_left();
}

#[test]
fn a_guest_whose_image_is_on_a_full_disk_is_told_and_lives() {
    let host = TestHost::down("full-image");
    let test = "a_guest_whose_image_is_on_a_full_disk_is_told_and_lives";
    if !host.has_fuse(test) {
        return;
    }
    let program = "dd if=/dev/zero of=/dev/xvda bs=64k count=64 conv=notrunc,fsync 2> /tmp/said; echo dd: $?; cat /tmp/said; exit 9";
    let small = host.path("small");
    let image = small.join("a.img");
    let rest = format!("disk = [\"{},,xvda,w\"]\nextra = \"{program}\"", image.display());
    let config = host.config("web", &rest);
    let script = format!(
        "mkdir -p $DIR/small && mount -t tmpfs -o size=1m none $DIR/small && truncate -s 8M {} && \
         $XB --host $DIR/h host up && $XB --host $DIR/h create {config} --wait; code=$?; \
         $XB --host $DIR/h log web; cat $DIR/h/log/xen-blockd.log; $XB --host $DIR/h host down; exit $code",
        image.display()
    );
    let Some(output) = apart(test, &host, &script) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert!(said.contains("dd: 1") && said.contains("rror"), "{said}");
    let line = said.lines().find(|line| line.contains(" failed: No space left on device"));
    assert!(
        line.is_some_and(|line| line.contains("the host's file system under it is full")),
        "{said}"
    );
    host.nothing_is_left();
}
