//! The killing of a domain: always possible, whatever its processes wait for.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, playing, until};
use std::process::Command;
use xen::domctl::DomainControl;
use xen_hosted::domain::{Devices, DomainConfig, MissingFeature};

fn with_files() -> DomainConfig {
    let mut config = playing("puppet");
    config.devices = Devices::Files;
    config
}

/// Makes a domain that waits for itself: it has written into a file that it no longer serves.
/// `None` where this machine lets no domain have files.
fn waiting(host: &BrokerHost) -> Option<Puppet> {
    let mut guest = Puppet::start_with(&mut host.control(), &with_files());
    if guest.created.lacks.contains(&MissingFeature::Devices) {
        let open = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        let why = match open {
            Ok(_) => "this kernel lets nobody unmount by force in a namespace",
            Err(_) => "this user may not open /dev/fuse",
        };
        conformance::skip("domains that serve files", why);
        return None;
    }
    assert_eq!(guest.ask("dirty-files"), "done");
    Some(guest)
}

fn is_killed(host: &BrokerHost) {
    let mut control = host.control();
    let (Some(destroyed), Some(shut_down)) = (waiting(host), waiting(host)) else { return };
    control.destroy(destroyed.domid()).unwrap();
    control.shutdown(shut_down.domid(), xen::domwatch::ShutdownReason::Crash).unwrap();
    control.destroy(shut_down.domid()).unwrap();
    until("both are gone", || control.list().unwrap().len() == 1);
}

#[test]
fn who_serves_its_own_files_no_more_is_killed() {
    is_killed(&BrokerHost::start());
}

/// Changes the broker's command so that it lacks fusectl, by which it ends connections where it is
/// root.
fn without_fusectl(command: &mut Command) {
    let (dir, broker) =
        (command.get_args().next().unwrap().to_owned(), command.get_program().to_owned());
    let script = "[ ! -d /sys/fs/fuse/connections ] || mount -t tmpfs none /sys/fs/fuse/connections; \
                  exec \"$0\" \"$1\"";
    let mut inside = Command::new("unshare");
    let user = if rustix::process::geteuid().is_root() { "-m" } else { "-mUr" };
    inside.args([user, "sh", "-c", script]).arg(broker).arg(dir);
    inside.stdout(std::process::Stdio::piped());
    support::raw::before_exec(&mut inside, support::raw::refusing(libc::SYS_fsopen, libc::EPERM));
    *command = inside;
}

/// An ordinary user's machine may have no fusectl mounted.
#[test]
fn who_serves_its_own_files_no_more_is_killed_without_fusectl() {
    let host = BrokerHost::start_with(without_fusectl);
    let mut control = host.control();
    let (Some(destroyed), Some(_ended_by_the_broker)) = (waiting(&host), waiting(&host)) else {
        return;
    };
    control.destroy(destroyed.domid()).unwrap();
    until("it is gone", || control.list().unwrap().len() == 2);
}

/// Without any means to end its connection a domain gets none.
#[test]
fn who_could_not_be_killed_gets_no_files() {
    let host = BrokerHost::start_with(|command| {
        without_fusectl(command);
        let by_force = (1, rustix::mount::UnmountFlags::FORCE.bits().into());
        let refuse = support::raw::refusing_exactly(libc::SYS_umount2, by_force, libc::EPERM);
        support::raw::before_exec(command, refuse);
    });
    let mut guest = Puppet::start_with(&mut host.control(), &with_files());
    assert!(guest.created.lacks.contains(&MissingFeature::Devices), "{:?}", guest.created.lacks);
    assert_eq!(guest.ask("dirty-files"), "no devices");
}

/// True while a process has a thread that has not ended; the first may have.
fn lives(pid: u32) -> bool {
    let threads = support::entries(format!("/proc/{pid}/task").as_ref());
    threads.iter().any(|thread| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
    })
}

/// Makes a host whose broker was killed with its domain, which could not end. Returns it with the
/// domain's process.
fn left_behind(start: fn() -> BrokerHost) -> Option<(BrokerHost, u32)> {
    let mut host = start();
    let guest = waiting(&host)?;
    let pid = support::pid_of(&host.control().process(guest.domid()).unwrap());
    host.broker.kill().unwrap();
    host.broker.wait().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(lives(pid), "it waits for itself");
    Some((host, pid))
}

#[test]
fn a_broker_ends_what_a_killed_one_has_left() {
    let Some((mut host, pid)) = left_behind(BrokerHost::start) else { return };
    host.restart_broker();
    assert!(!lives(pid) && crate::faults::groups(&host) == 0);
    assert_eq!(host.control().list().unwrap().len(), 1);
}

#[test]
fn who_takes_a_host_down_ends_what_a_killed_broker_has_left() {
    let Some((host, pid)) = left_behind(BrokerHost::start) else { return };
    let holds = || std::fs::read(host.host().path().join("holds")).unwrap_or_default();
    let has = |word: &[u8]| holds().split(|byte| *byte == 0).any(|line| line.starts_with(word));
    assert!(has(b"process=") && rustix::process::geteuid().is_root() == has(b"users="));
    let left = xen_hosted::hypervisor::clear(&host.host()).unwrap();
    assert!(left.is_empty() && !lives(pid), "{left:?}");
    assert_eq!(crate::faults::host_groups(&host), Vec::<std::path::PathBuf>::new());
    assert_eq!(holds(), b"");
}

#[test]
fn what_a_killed_broker_has_left_is_ended_without_fusectl() {
    // `unshare` and the shell are this process's child no more once the broker runs in their place.
    let start = || BrokerHost::start_with(without_fusectl);
    let Some((mut host, pid)) = left_behind(start) else { return };
    host.restart_broker();
    until("it is gone", || !lives(pid));
}

/// A broker logs what does not end with it, and ends with a status that is not 0.
#[test]
fn a_broker_tells_what_does_not_end_with_it() {
    let mut host = BrokerHost::start_with(|command| {
        let refuse = support::raw::refusing(libc::SYS_pidfd_send_signal, libc::EPERM);
        support::raw::before_exec(command, refuse);
        command.stderr(std::process::Stdio::piped());
    });
    let guest = Puppet::start(&host);
    let pid = support::pid_of(&host.control().process(guest.domid()).unwrap());
    support::terminate(&host.broker);
    let status = host.broker.wait().unwrap();
    let mut said = String::new();
    let errors = host.broker.stderr.as_mut().unwrap();
    std::io::Read::read_to_string(errors, &mut said).unwrap();
    assert!(said.contains(&format!("process {pid} does not end")), "{said}");
    assert_eq!(status.code(), Some(1));
    until("it ends with its broker", || !lives(pid));
    // Its groups are there yet, and noted.
    assert_eq!(xen_hosted::hypervisor::clear(&host.host()).unwrap(), []);
    assert_eq!(crate::faults::host_groups(&host), Vec::<std::path::PathBuf>::new());
}

/// A domain can cancel its death with the broker; it is identified by its process as well.
#[test]
fn who_outlives_its_broker_is_ended_by_the_next() {
    let mut host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let pid = support::pid_of(&host.control().process(guest.domid()).unwrap());
    guest.tell("shed");
    let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    until("it has run another program", || name() == "sleep\n");
    host.broker.kill().unwrap();
    host.broker.wait().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(lives(pid), "no signal has told it");
    host.restart_broker();
    assert!(!lives(pid));
}
