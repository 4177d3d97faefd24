//! The protection of the broker's own time and descriptors from its peers.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, cpu_time_ms};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    socket_with,
};
use std::os::fd::OwnedFd;
use std::time::Duration;
use xen::domctl::DomainControl;
use xen::gnttab::{GrantOffer, PageAccess};
use xen::{DomId, Error};
use xen_hosted::domctl::Control;
use xen_hosted::{Platform, Role};

/// Checks that the broker uses no processor while no requests are sent.
fn check_idle(host: &BrokerHost, when: &str) {
    let before = cpu_time_ms(host.broker.id());
    std::thread::sleep(Duration::from_millis(500));
    let used = cpu_time_ms(host.broker.id()) - before;
    assert!(used < 100, "{when}: {used} ms of 500");
}

/// Makes a connection without the library.
fn connected(host: &BrokerHost, role: Role) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(host.host().socket(role)).unwrap()).unwrap();
    socket
}

#[test]
fn who_hangs_up_does_not_keep_the_broker_busy() {
    let host = BrokerHost::start();
    let mut control = host.control();
    for when in ["unread", "resting"] {
        let mut guest = Puppet::start(&host);
        assert_eq!(guest.ask(&format!("hang-up {when}")), "done");
        check_idle(&host, when);
        // It lives and keeps its resources, without a way to request more.
        let accounts = control.accounts(guest.domid()).unwrap();
        assert_eq!((accounts.ports, accounts.arenas), (2, 1));
        control.destroy(guest.domid()).unwrap();
    }
    support::until("both are gone", || control.list().unwrap().len() == 1);
}

#[test]
fn a_full_table_of_descriptors_is_waited_for() {
    let limit = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    let host = BrokerHost::start_with(|command| {
        let set = move || {
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
            Ok(())
        };
        support::raw::before_exec(command, set);
    });
    // Each takes two of the broker's descriptors; the last ones wait to be accepted.
    let crowd: Vec<_> = (0..60).map(|_| connected(&host, Role::Control)).collect();
    check_idle(&host, "descriptors are used up");
    drop(crowd);
    assert_eq!(host.control().list().unwrap().len(), 1);
}

/// One connection too many is refused with an error of its own, and not as if there were no broker.
#[test]
fn who_finds_all_connections_in_use_is_told_so() {
    let host = BrokerHost::start();
    let most = xen_hosted::limits::PEERS_MAX + 1;
    let mut crowd: Vec<_> = (0..most).map(|_| connected(&host, Role::Control)).collect();
    let connect = || Control::connect(&host.host()).map(drop);
    support::until("the last is let in", || connect() == Err(Error::Busy));
    for _ in 0..50 {
        assert_eq!(connect(), Err(Error::Busy));
    }
    crowd.pop();
    support::until("there is room again", || connect() == Ok(()));
}

/// The first descriptor of connections and domains; the broker's own are below.
const OF_PEERS: u64 = 24;

/// The kernel has no room for what the broker sends, and no event tells when it has.
#[test]
fn what_cannot_be_sent_is_not_sent_again_at_once() {
    let to_peers = [(0, OF_PEERS)];
    let refuse = support::raw::refusing_where(libc::SYS_sendmsg, &to_peers, libc::ETOOMANYREFS);
    let host = BrokerHost::start_with(|command| support::raw::before_exec(command, refuse));
    let crowd: Vec<_> = (0..8).map(|_| connected(&host, Role::Control)).collect();
    // Its answer has descriptors.
    let hello = 0_u64.to_ne_bytes();
    for socket in &crowd {
        rustix::net::send(socket, &hello, SendFlags::NOSIGNAL).unwrap();
    }
    check_idle(&host, "no room");
    let answer = rustix::net::recv(&crowd[7], &mut [0_u8; 64], RecvFlags::DONTWAIT);
    assert_eq!(answer.map(drop), Err(Errno::AGAIN), "it was not sent");
}

/// A creation that fails leaves no process, whichever of its descriptors the broker cannot watch.
#[test]
fn a_creation_that_fails_leaves_no_process() {
    let shell = std::fs::File::open("/bin/sh").unwrap();
    let mut last = Ok(());
    for first in OF_PEERS.. {
        assert!(first < 200, "creation never succeeds: {last:?}");
        let refuse = support::raw::refusing_where(libc::SYS_epoll_ctl, &[(2, first)], libc::ENOSPC);
        let host = BrokerHost::start_with(|command| support::raw::before_exec(command, refuse));
        let created = support::create_with(&mut host.control(), &support::playing("none"), &shell);
        if created.is_ok() {
            break;
        }
        last = created.map(drop);
        let broker = host.broker.id();
        let children = format!("/proc/{broker}/task/{broker}/children");
        support::until("no process is left", || {
            std::fs::read_to_string(&children).unwrap().is_empty()
        });
    }
    // The highest number is that of the process itself.
    assert_eq!(last, Err(Error::NoSpc));
}

/// The kernel drops descriptors for which the receiver has no room.
#[test]
fn who_has_no_room_for_a_port_is_told_so_and_has_none() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let (mut one, mut two) = (Puppet::start(&host), Puppet::start(&host));
    let port = one.ask(&format!("alloc {}", two.domid()));
    let held =
        |control: &mut Control, puppet: &Puppet| control.accounts(puppet.domid()).unwrap().ports;
    let before = held(&mut control, &two);
    let bind = format!("bind {} {port}", one.domid());
    assert_eq!(two.ask("no-room"), "done");
    assert_eq!(two.ask(&bind), Error::Other(Errno::MFILE.raw_os_error()).to_string());
    assert_eq!(two.ask("room"), "done");
    assert_eq!(held(&mut control, &two), before);
    assert_eq!(two.ask(&bind), "done");
}

/// A guest lets go of an arena late, when there is another in its place.
#[test]
fn a_late_release_does_not_free_a_page_that_is_mapped() {
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let of_guest = guest.domid();
    let connect = || Platform::connect(&host.host(), Role::Frontend).unwrap();
    let before = connect();
    let offered = before.offers().offer(of_guest, PageAccess::ReadWrite).unwrap();
    let grant = offered.grant();
    assert_eq!(guest.ask(&format!("map {} {grant} rw", DomId::DOM0)), "done");
    drop((offered, before));
    // The same reference of another arena; what was mapped before goes only when this is there.
    let mut offers = connect().offers();
    let mut offered = Vec::new();
    support::until("the slot is free again", || {
        offers.offer_batch(of_guest, PageAccess::ReadWrite, 1, &mut offered).unwrap();
        let same = offered.last().unwrap().grant() == grant;
        if !same {
            offers = connect().offers();
            offered.clear();
        }
        same
    });
    assert_eq!(guest.ask(&format!("map {} {grant} rw", DomId::DOM0)), "done");
    assert_eq!(guest.ask("alloc 0"), "3", "the broker has heard of it");
    let left = usize::try_from(xen_hosted::limits::ARENA_PAGES).unwrap() - 8 - 1;
    offers.offer_batch(of_guest, PageAccess::ReadWrite, left, &mut offered).unwrap();
    let ended = offered.remove(0);
    assert_eq!(ended.grant(), grant);
    drop(ended);
    let next = offers.offer(of_guest, PageAccess::ReadWrite).unwrap().grant();
    assert!(next.0 >= xen_hosted::limits::ARENA_PAGES, "it is mapped, and its arena full: {next}");
}
