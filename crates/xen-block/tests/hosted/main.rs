//! Block devices of hosted guests, from end to end with the real processes: broker, store, backend, and
//! sandboxed guests whose programs use `/dev/xvda` and an NBD socket.

mod guest;
mod host;

use host::{Host, has};
use std::process::Command;

/// Plays the guest, where the environment says so; not a test of its own.
#[test]
fn role() {
    if std::env::var_os(guest::ROLE).is_some() {
        guest::play();
        // What other tests this program has is none of the guest's.
        std::process::exit(0);
    }
}

/// Whether these tools are there; says so where not.
fn has_all(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().copied().filter(|program| !has(program)).collect();
    if !missing.is_empty() {
        conformance::skip(test, &format!("not on this machine: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Runs a program of the host, which goes well; what it wrote.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let wrote = [output.stdout, output.stderr].concat();
    let wrote = String::from_utf8_lossy(&wrote).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {wrote}");
    wrote
}

#[test]
fn a_program_has_a_file_system_on_its_device() {
    let test = "a_program_has_a_file_system_on_its_device";
    if !has_all(test, &["mkfs.ext4", "debugfs", "e2fsck"]) {
        return;
    }
    let Some(mut host) = Host::start(test) else { return };
    let image = host.image("disk", 64);
    let mut guest = host.guest(&[("xvda", image.clone())]);
    assert_eq!(guest.run("stat -c %s /dev/xvda"), (64 << 20).to_string());
    eprintln!("{}", guest.run("time mkfs.ext4 -F -q -b 1024 /dev/xvda"));
    guest.run("head -c 3000000 /usr/bin/qemu-img > /tmp/a; debugfs -w -R 'write /tmp/a a' /dev/xvda");
    guest.run("debugfs -R 'dump a /tmp/b' /dev/xvda && cmp /tmp/a /tmp/b");
    guest.run("e2fsck -fn /dev/xvda");
    guest.run("dd if=/dev/zero of=/dev/null bs=1k count=5 && test $(stat -c %s /dev/null) = 0");
    run("e2fsck", &["-fn", &image]);
    host.end(guest);
}
