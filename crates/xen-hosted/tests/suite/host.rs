//! A whole host: broker, the real daemon, sandboxed domains that reach it over their rings.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, create, ended, introduce};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use xen::domctl::{DomainControl, RunState};
use xen::domwatch::ShutdownReason;
use xen_hosted::Platform;
use xen_hosted::domain::MissingFeature;
use xen_hosted::domctl::{Control, CreatedDomain};
use xenstore::Store;
use xenstore_core::wire::MsgType;

/// Reads its name from the store, and writes it back.
pub(crate) fn read_name() -> i32 {
    let mut store = support::GuestStore::open();
    let (kind, value) = store.ask(MsgType::Read, b"name\0");
    assert_eq!(kind, MsgType::Read as u32, "{:?}", String::from_utf8_lossy(&value));
    let mut payload = b"data/seen\0".to_vec();
    payload.extend_from_slice(&value);
    let (kind, _) = store.ask(MsgType::Write, &payload);
    assert_eq!(kind, MsgType::Write as u32);
    0
}

/// A missing descriptor is named in the error, with the program that provides it.
#[test]
fn a_descriptor_that_was_not_given_is_named() {
    // This is no domain's program.
    let missing = Platform::guest().unwrap_err().to_string();
    assert!(missing.starts_with("no descriptor is named \"xen-broker\""), "{missing}");
    assert!(missing.contains("LISTEN_FDNAMES") && missing.contains("Control::create"), "{missing}");
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let missing = guest.ask("take devices");
    let start = "no descriptor is named \"fuse-devices\"; LISTEN_FDNAMES has \"xen-broker\"; ";
    assert!(missing.starts_with(start) && missing.contains("Devices::Files"), "{missing}");
    let taken = guest.ask("take socket");
    let start = "the descriptor \"xen-broker\" is closed, or was taken before; ";
    assert!(taken.starts_with(start), "{taken}");
}

#[test]
fn a_domain_reaches_the_store_over_its_ring() {
    let mut host = BrokerHost::start();
    host.start_store();
    let mut control = host.control();
    let mut client = host.client();
    client.watch("/local/domain", "t").unwrap();
    while client.next_event(Some(Duration::from_millis(100))).unwrap().is_some() {}
    let mut times = Vec::new();
    for round in 0..10 {
        let begin = Instant::now();
        let created = create(&mut control, "name-reader");
        let made = begin.elapsed();
        let home = format!("/local/domain/{}", created.domid);
        client.write(format!("{home}/name"), format!("guest{round}")).unwrap();
        client.write(format!("{home}/data"), "").unwrap();
        for node in ["", "/name", "/data"] {
            let perms = [xenstore::Perm::parse(format!("n{}", created.domid).as_bytes()).unwrap()];
            client.set_perms(format!("{home}{node}"), &perms).unwrap();
        }
        introduce(&mut client, &created);
        control.unpause(created.domid).unwrap();
        let path = format!("{home}/data/seen");
        support::until("the guest has written", || client.read(&path).is_ok());
        times.push((made, begin.elapsed()));
        assert_eq!(client.read(&path).unwrap(), format!("guest{round}").into_bytes());
        let info = ended(&mut control, created.domid);
        assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Poweroff));
        control.destroy(created.domid).unwrap();
        support::until("the store has let go of it", || {
            !client.is_domain_introduced(created.domid.0).unwrap()
        });
    }
    eprintln!("created, created to having written: {times:?}");
    assert_eq!(control.list().unwrap().len(), 1, "domain 0 alone is left");
}

#[test]
fn an_exit_status_says_why() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let created = create(&mut control, "reboot");
    assert_eq!(control.info(created.domid).unwrap().state, RunState::Paused);
    control.unpause(created.domid).unwrap();
    let info = ended(&mut control, created.domid);
    assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Reboot));
    control.destroy(created.domid).unwrap();
}

/// Reads the store from a domain of this host, over all steps once.
fn reaches_the_store(host: &BrokerHost, control: &mut Control) -> CreatedDomain {
    let mut client = host.client();
    let created = create(control, "name-reader");
    let home = format!("/local/domain/{}", created.domid);
    for (node, value) in [("", ""), ("/name", "guest"), ("/data", "")] {
        client.write(format!("{home}{node}"), value).unwrap();
        let perm = xenstore::Perm::parse(format!("n{}", created.domid).as_bytes()).unwrap();
        client.set_perms(format!("{home}{node}"), &[perm]).unwrap();
    }
    introduce(&mut client, &created);
    control.unpause(created.domid).unwrap();
    let info = ended(control, created.domid);
    assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Poweroff));
    assert_eq!(client.read(format!("{home}/data/seen")).unwrap(), b"guest");
    created
}

#[test]
fn an_ordinary_user_has_it_all_but_what_is_said() {
    if !rustix::process::geteuid().is_root() {
        // Then all other tests run that way.
        return;
    }
    let nobody = 65534;
    let mut host = BrokerHost::start_as(nobody);
    host.start_store();
    let mut control = host.control();
    let created = reaches_the_store(&host, &mut control);
    assert!(created.lacks.contains(&MissingFeature::OwnUser), "{:?}", created.lacks);
    assert!(!created.lacks.contains(&MissingFeature::Namespaces), "{:?}", created.lacks);
    control.destroy(created.domid).unwrap();
}

#[test]
fn without_user_namespaces_the_rest_remains() {
    let mut host = BrokerHost::start_without_namespaces();
    host.start_store();
    let mut control = host.control();
    let created = reaches_the_store(&host, &mut control);
    assert!(created.lacks.contains(&MissingFeature::Namespaces), "{:?}", created.lacks);
    control.destroy(created.domid).unwrap();
}

#[test]
fn root_does_without_user_namespaces() {
    if !rustix::process::geteuid().is_root() {
        conformance::skip("root without user namespaces", "this is not root");
        return;
    }
    let mut host = BrokerHost::start_as_root_without_user_namespaces();
    host.start_store();
    let mut control = host.control();
    let created = reaches_the_store(&host, &mut control);
    assert_eq!(created.lacks, [MissingFeature::UserNamespace]);
    control.destroy(created.domid).unwrap();
    // It has the rights of other guests, and an id of its own.
    let mut guest = Puppet::start(&host);
    let who = guest.ask("who");
    let uid = who.strip_prefix("pid=1 uid=").and_then(|rest| rest.strip_suffix(" capabilities=0"));
    assert!(uid.is_some_and(|uid| uid.parse::<u32>().unwrap() >= 0x6000_0000), "{who}");
    assert_eq!(guest.ask("kill 50"), "Err(3)");
}

/// As on Ubuntu 24.04: a user namespace can be made, and the operations in it are refused.
#[test]
fn namespaces_that_are_refused_late_are_done_without() {
    let nobody = 65534;
    let refusals = [(libc::SYS_mount, libc::EACCES), (libc::SYS_unshare, libc::EPERM)];
    for (call, errno) in refusals {
        for user in [0, nobody] {
            if user == 0 && !rustix::process::geteuid().is_root() {
                continue;
            }
            let refuse = support::raw::refusing(call, errno);
            let mut host = BrokerHost::start_with(move |command| {
                if rustix::process::geteuid().is_root() {
                    support::run_as(command, user);
                }
                support::raw::before_exec(command, refuse);
            });
            host.start_store();
            let mut control = host.control();
            let created = reaches_the_store(&host, &mut control);
            assert!(created.lacks.contains(&MissingFeature::Namespaces), "{:?}", created.lacks);
            assert!(!created.lacks.contains(&MissingFeature::UserNamespace), "{:?}", created.lacks);
            control.destroy(created.domid).unwrap();
            let who = Puppet::start(&host).ask("who");
            assert!(!who.contains("uid=0 ") && who.ends_with(" capabilities=0"), "{who}");
        }
    }
}

#[test]
fn two_brokers_do_not_serve_one_directory_and_many_serve_many() {
    let (a, b) = (BrokerHost::start(), BrokerHost::start());
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_xen-hosted"))
        .arg(a.host().path())
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another broker serves"));
    let (mut of_a, mut of_b) = (a.control(), b.control());
    let created = create(&mut of_a, "reboot");
    assert_eq!(of_a.list().unwrap().len(), 2);
    assert_eq!(of_b.list().unwrap().len(), 1);
    of_a.destroy(created.domid).unwrap();
}

#[test]
fn a_directory_that_others_can_look_into_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let above = folder.path();
    let serve = |dir: &std::path::Path| {
        let broker = std::process::Command::new(env!("CARGO_BIN_EXE_xen-hosted")).arg(dir).output();
        let broker = broker.unwrap();
        assert!(!broker.status.success());
        let said = String::from_utf8_lossy(&broker.stderr).into_owned();
        assert!(said.contains("another user's, or open to others"), "{said}");
    };
    std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o750)).unwrap();
    serve(above);
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(above, Some(65534), Some(65534)).unwrap();
        serve(above);
    }
}
