//! Block devices of hosted guests, from end to end with the real processes: broker, store, backend,
//! and sandboxed guests whose programs use `/dev/xvda` and an NBD socket.

mod fio;
mod guest;
mod host;

use host::{BlockGuest, BlockHost, has, until};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;
use xen::gnttab::PageAccess;
use xen_block::disk::DiskAccess;
use xen_hosted::domain::{Devices, MissingFeature};
use xen_hosted::mount::{LoopDevice, Step, unmount_in};

/// Runs the guest if the environment requires it; not a test of its own.
#[test]
fn part() {
    testhost::play(&[("guest", guest::play)]);
}

/// True if the machine has these tools; prints a line if not.
fn has_all(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().copied().filter(|program| !has(program)).collect();
    if !missing.is_empty() {
        conformance::skip(test, &format!("not on this machine: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Runs a program of the host, which must succeed; returns its output.
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
    let Some(mut host) = BlockHost::start(test) else { return };
    let image = host.image("disk", 64);
    let mut guest = host.guest(&[("xvda", image.clone())]);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    assert_eq!(guest.run("stat -c %s /dev/xvda"), (64 << 20).to_string());
    guest.run("mkfs.ext4 -F -q -b 1024 /dev/xvda");
    guest.run("seq 1 400000 > /tmp/a && debugfs -w -R 'write /tmp/a a' /dev/xvda");
    guest.run("debugfs -R 'dump a /tmp/b' /dev/xvda && cmp /tmp/a /tmp/b");
    guest.run("e2fsck -fn /dev/xvda");
    guest.run("dd if=/dev/zero of=/dev/null bs=1k count=5 && test $(stat -c %s /dev/null) = 0");
    assert_eq!(guest.run("ls /dev"), "full\nnull\nrandom\nurandom\nxvda\nzero");
    run("e2fsck", &["-fn", &image]);
    // No other process depends on the guest's mount, or sees it, not even domain 0's root.
    let pid = host::pid_of(&mut host.control, guest.domid);
    let seen = std::fs::metadata(format!("/proc/{pid}/root/dev/xvda"));
    if rustix::process::geteuid().is_root() {
        assert_eq!(seen.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    }
    host.end(guest);
}

/// True if a guest has files at `/dev` here; prints a line if not.
fn has_files(test: &str, guest: &BlockGuest) -> bool {
    let lacks = guest.lacks.contains(&MissingFeature::Devices);
    if lacks {
        conformance::skip(test, &MissingFeature::Devices.to_string());
    }
    !lacks
}

#[test]
fn qemus_tools_use_the_socket_of_a_guest() {
    let test = "qemus_tools_use_the_socket_of_a_guest";
    if !has_all(test, &["qemu-io", "qemu-img"]) {
        return;
    }
    let Some(mut host) = BlockHost::start(test) else { return };
    let image = host.image("disk", 32);
    let mut guest = host.guest(&[("xvda", image)]);
    let url = "'nbd+unix:///?socket=/tmp/xvda.nbd'";
    for command in
        ["write -P 0x11 0 8M", "flush", "discard 1M 1M", "read -P 0x11 2M 6M", "read -P 0 1M 1M"]
    {
        let wrote = guest.run(&format!("qemu-io -f raw -c '{command}' {url}"));
        assert!(!wrote.contains("failed"), "{command}: {wrote}");
    }
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    // Data that was written through the socket reads the same through the file, and the other way
    // round.
    guest.run(&format!("qemu-img compare -f raw -F raw /dev/xvda {url}"));
    guest.run("seq 1 700000 | dd of=/dev/xvda bs=64k conv=fsync seek=3 iflag=fullblock");
    guest.run(&format!("qemu-img compare -f raw -F raw /dev/xvda {url}"));
    host.end(guest);
}

#[test]
fn a_kernel_mount_for_a_guest_that_may_have_one() {
    let test = "a_kernel_mount_for_a_guest_that_may_have_one";
    if !rustix::process::geteuid().is_root() {
        return conformance::skip(test, "only root can mount for a guest");
    }
    if !has_all(test, &["mkfs.ext4", "e2fsck"]) {
        return;
    }
    let Some(mut host) = BlockHost::start(test) else { return };
    let image = host.image("disk", 64);
    let mut guest = host.guest_with(Devices::KernelFiles, &[("xvda", image.clone())]);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    guest.run("mkfs.ext4 -F -q /dev/xvda");
    let process = host.control.process(guest.domid).unwrap();
    let device = LoopDevice::attach(process.as_fd(), "/dev/xvda", PageAccess::ReadWrite);
    let device = match device {
        Err(error) if error.step == Step::Control => {
            host.end(guest);
            return conformance::skip(test, &error.to_string());
        }
        device => device.unwrap(),
    };
    device.mount("ext4", PageAccess::ReadWrite, "/mnt").unwrap();
    let name = device.path().file_name().unwrap().to_str().unwrap().to_owned();
    drop(device);
    guest.run(
        "for n in 1 2 3 4 5 6 7 8; do mkdir -p /tmp/tree/$n/deeper && seq 1 ${n}0000 > /tmp/tree/$n/deeper/numbers && \
         chmod 64$((n % 8)) /tmp/tree/$n/deeper/numbers && ln -s deeper/numbers /tmp/tree/$n/link || exit 1; done; \
         cp -a /tmp/tree /mnt/",
    );
    let sums =
        "find tree -type f | sort | xargs cksum && find tree -printf '%y %m %l %P\\n' | sort";
    let before = guest.run(&format!("cd /mnt && {sums}"));
    assert!(before.lines().count() > 30, "{before}");
    assert_eq!(guest.run(&format!("cd /tmp && {sums}")), before);
    guest.fails("umount /mnt");
    unmount_in(process.as_fd(), "/mnt").unwrap();
    until("the loop device is gone", || {
        !std::path::Path::new(&format!("/sys/block/{name}/loop")).exists()
    });
    guest.fails("ls /mnt/tree");
    run("e2fsck", &["-fn", &image]);
    // Another guest finds all of it.
    host.detach(&guest, "xvda");
    let mut other = host.guest_with(Devices::KernelFiles, &[("xvdb", image.clone())]);
    let process = host.control.process(other.domid).unwrap();
    let device = LoopDevice::attach(process.as_fd(), "/dev/xvdb", PageAccess::Read).unwrap();
    device.mount("ext4", PageAccess::Read, "/mnt").unwrap();
    drop(device);
    assert_eq!(other.run(&format!("cd /mnt && {sums}")), before);
    other.fails("touch /mnt/tree/new");
    host.end(guest);
    // The mount is still there: it ends with the guest.
    host.destroy(&other);
    until("the loop device is gone", || {
        !std::path::Path::new(&format!("/sys/block/{name}/loop")).exists()
    });
}

#[test]
fn a_backend_that_is_killed_is_not_noticed() {
    let test = "a_backend_that_is_killed_is_not_noticed";
    let Some(mut host) = BlockHost::start(test) else { return };
    let image = host.image("disk", 64);
    let mut guest = host.guest(&[("xvda", image)]);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    guest.run("head -c 16000000 /dev/zero | tr '\\0' x > /tmp/x; dd if=/tmp/x of=/dev/xvda bs=4k status=none");
    // The guest writes and reads all the time, and compares each byte.
    let work = guest.start(
        "until test -e /tmp/enough; do \
         dd if=/tmp/x of=/dev/xvda bs=64k conv=fsync,notrunc status=none || exit 1; \
         cmp -n 15000000 /tmp/x /dev/xvda || exit 1; done; echo all",
    );
    host.kill_backend_at_work(Duration::from_millis(100));
    let enough = guest.start("touch /tmp/enough");
    let mut ends = [guest.end_of_any(), guest.end_of_any()];
    ends.sort();
    assert_eq!(ends, [(work, true, "all".into()), (enough, true, String::new())]);
    // The devices have reported no error, and continue.
    guest.run("cmp -n 15000000 /tmp/x /dev/xvda");
    let front = format!("/local/domain/{}/device/vbd/51712/state", guest.domid);
    assert_eq!(xenstore::Store::read(&mut host.tool, front).unwrap(), b"4");
    assert!(host.dir.path().join("host/xen-blockd").is_dir(), "the record is the host's");
    host.end(guest);
}

#[test]
fn a_full_disk_of_the_host_stops_no_backend() {
    let test = "a_full_disk_of_the_host_stops_no_backend";
    let Some(mut host) = BlockHost::start(test) else { return };
    let image = host.image("disk", 8);
    host.fill_the_backends_disk();
    let mut guest = host.guest(&[("xvda", image.clone())]);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    // Statistics are written after each check of sizes; the backend that serves then has survived
    // both.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(16 << 20).unwrap();
    until("the new size shows", || guest.run("stat -c %s /dev/xvda") == (16 << 20).to_string());
    guest.run("cmp -n 16000000 /dev/xvda /dev/zero");
    assert!(host.backend.is_running(), "the backend has ended");
    host.end(guest);
}

/// A program that has the device open can continue to use it; when the program has ended, the
/// device closes.
fn detach_while_open(host: &mut BlockHost, guest: &mut BlockGuest) {
    let user = guest.start(
        "exec 3< /dev/xvdb && echo > /tmp/opened; until test -e /tmp/enough; do \
         dd of=/dev/null bs=64k count=1 status=none <&3 || exit 1; done; rm /tmp/enough /tmp/opened",
    );
    guest.run("until test -e /tmp/opened; do :; done");
    host.ask_to_detach(guest, "xvdb");
    let error = format!("/local/domain/{}/device/vbd/51728/error", guest.domid);
    until("the frontend refuses", || {
        let said = xenstore::Store::read(&mut host.tool, &error).unwrap_or_default();
        said.starts_with(b"16 EBUSY")
    });
    let enough = guest.start("touch /tmp/enough");
    let mut ends = [guest.end_of_any(), guest.end_of_any()];
    ends.sort();
    assert_eq!(ends, [(user, true, String::new()), (enough, true, String::new())]);
}

#[test]
fn devices_come_and_go_and_grow() {
    let test = "devices_come_and_go_and_grow";
    let Some(mut host) = BlockHost::start(test) else { return };
    let (one, two) = (host.image("one", 8), host.image("two", 8));
    let mut guest = host.guest(&[("xvda", one.clone())]);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    host.attach(&guest, "xvdb", &two, DiskAccess::ReadOnly);
    guest.heard("connected xvdb");
    assert_eq!(guest.run("ls /dev"), "full\nnull\nrandom\nurandom\nxvda\nxvdb\nzero");
    guest.run("cmp -n 8000000 /dev/xvdb /dev/zero");
    let wrote = guest.fails("echo x > /dev/xvdb");
    assert!(wrote.contains("Read-only") || wrote.contains("ermission"), "{wrote}");
    detach_while_open(&mut host, &mut guest);
    host.detach(&guest, "xvdb");
    guest.heard("removed xvdb");
    assert_eq!(
        guest.run("ls /dev /tmp"),
        "/dev:\nfull\nnull\nrandom\nurandom\nxvda\nzero\n\n/tmp:\nran.7\nxvda.nbd"
    );
    // The same file twice, for writing: both ends report the reason.
    host.attach(&guest, "xvdc", &one, DiskAccess::ReadWrite);
    let path = format!("/local/domain/0/backend/vbd/{}/51744", guest.domid);
    let error =
        format!("/local/domain/0/error/{}/error", path.strip_prefix("/local/domain/0/").unwrap());
    let mut said = Vec::new();
    until("the backend refuses", || {
        said = xenstore::Store::read(&mut host.tool, &error).unwrap_or_default();
        !said.is_empty()
    });
    assert!(said.starts_with(b"16 EBUSY"), "{}", String::from_utf8_lossy(&said));
    // Bytes that are not whole sectors, and bytes past the end.
    guest.run("printf abc | dd of=/dev/xvda bs=1 seek=511 conv=notrunc status=none");
    let three =
        guest.run("dd if=/dev/xvda bs=1 skip=510 count=5 status=none | od -An -c | tr -s ' '");
    assert_eq!(three, " \\0 a b c \\0");
    guest.fails("dd if=/dev/zero of=/dev/xvda bs=1M count=9 status=none");
    // A new size becomes visible without any action.
    std::fs::File::options().write(true).open(&one).unwrap().set_len(16 << 20).unwrap();
    until("the new size shows", || guest.run("stat -c %s /dev/xvda") == (16 << 20).to_string());
    host.end(guest);
}

/// fio writes and verifies at queue depth 32 on a guest's file, while the backend is killed three
/// times.
fn verify_while_killed(test: &str, seconds: u64) {
    if !rustix::process::geteuid().is_root() {
        return conformance::skip(
            test,
            "only root can run a program of the host as a guest's user",
        );
    }
    if !has_all(test, &["nsenter"]) {
        return;
    }
    let fio = match fio::Fio::get() {
        Ok(fio) => fio,
        Err(why) => return conformance::skip(test, &why),
    };
    let Some(mut host) = BlockHost::start(test) else { return };
    let image = host.image("disk", 64);
    let guest = host.guest(&[("xvda", image)]);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    // The guest's filter does not permit libaio(7), so fio runs outside of it, as the guest's user
    // on its file.
    let pid = host::pid_of(&mut host.control, guest.domid);
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-U", "-S", "1000", "-G", "1000"]);
    command.arg(&fio.program).arg(format!("--filename=/proc/{pid}/root/dev/xvda"));
    command.args(["--name=verify", "--rw=randwrite", "--bs=4k", "--size=64m", "--ioengine=libaio"]);
    command.args(["--iodepth=32", "--direct=1", "--verify=crc32c", "--verify_backlog=1024"]);
    command.args([
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--time_based",
        "--fsync=512",
        "--output-format=terse",
    ]);
    command.arg(format!("--runtime={seconds}")).current_dir(&host.dir);
    if let Some(libraries) = &fio.libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    host.kill_backend_at_work(Duration::from_millis(seconds * 1000 / 4));
    let output = child.wait_with_output().unwrap();
    let (wrote, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}{wrote}");
    // Terse output: field 5 is the error, 6 and 47 the amounts read and written, in KiB.
    let fields: Vec<&str> = wrote.lines().last().unwrap_or_default().split(';').collect();
    let number = |at: usize| fields.get(at - 1).and_then(|field| field.parse::<u64>().ok());
    assert_eq!(number(5), Some(0), "{wrote}");
    let (read, written) = (number(6).unwrap_or(0), number(47).unwrap_or(0));
    eprintln!("{test}: verified {read} KiB, wrote {written} KiB in {seconds} s");
    assert!(read > 4096 && written > 4096, "{wrote}");
    host.end(guest);
}

#[test]
fn fio_verifies_while_the_backend_is_killed() {
    verify_while_killed("fio_verifies_while_the_backend_is_killed", 6);
}

#[test]
#[ignore = "takes 60 s; CI runs it"]
fn fio_verifies_for_60_s_while_the_backend_is_killed() {
    verify_while_killed("fio_verifies_for_60_s_while_the_backend_is_killed", 60);
}

#[test]
fn many_devices_share_what_grants_there_are() {
    let test = "many_devices_share_what_grants_there_are";
    let Some(mut host) = BlockHost::start(test) else { return };
    let names: Vec<String> = ('a'..='g').map(|letter| format!("xvd{letter}")).collect();
    let disks: Vec<_> = names.iter().map(|name| (&**name, host.image(name, 8))).collect();
    let mut guest = host.guest(&disks);
    if !has_files(test, &guest) {
        return host.end(guest);
    }
    // All in one go, in requests larger than the last device's buffers.
    guest.run("head -c 4000000 /dev/zero | tr '\\0' y > /tmp/y");
    guest.run(
        "for d in /dev/xvd?; do dd if=/tmp/y of=$d bs=256k conv=notrunc status=none & done; wait; \
         for d in /dev/xvd?; do cmp -n 4000000 /tmp/y $d || exit 1; done",
    );
    host.end(guest);
}
