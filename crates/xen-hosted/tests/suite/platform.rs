//! The platform's part of the conformance suite on this platform: domain 0's processes, sandboxed
//! domains, and both together.
//!
//! A case uses two domains from one process. Therefore one of the domains passes its socket to the
//! broker on: to this test, which is then domain 0 and a guest, or to another domain, whose sandbox
//! then contains the whole case.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, WITHIN, playing, this_program};
use conformance::platform::{self, Party, life};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use xen::domctl::{DomainControl, RunState};
use xen::domwatch::ShutdownReason;
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::{DomId, Error, GrantRef, Port};
use xen_hosted::domain::{DomainConfig, MissingFeature};
use xen_hosted::domctl::{Accounts, Control, CreatedDomain, Descriptors};
use xen_hosted::{HostDir, Platform, Role};

/// Maps and unmaps a page, as a backend, that it has mapped once before. It may make no system call
/// meanwhile.
pub(crate) fn map_without_calls() {
    let number = |name: &str| std::env::var(name).unwrap().parse::<u16>().unwrap();
    let (of, grant) = (DomId(number("DOMID")), GrantRef(number("GRANT").into()));
    let host = HostDir::new(std::env::var_os(support::DIR).unwrap());
    let mut grants = Platform::connect(&host, Role::Backend).unwrap().grants();
    drop(grants.map(of, grant, PageAccess::ReadWrite).unwrap());
    support::raw::no_more_calls();
    let done = (0..1000).all(|_| grants.map(of, grant, PageAccess::ReadWrite).is_ok());
    support::raw::exit_at_once(i32::from(!done));
}

/// Does not use its socket to the broker, and stays until it is no longer needed.
pub(crate) fn lend() {
    assert_eq!(rustix::io::read(std::io::stdin(), &mut [0]), Ok(0));
}

/// Runs each case with itself and the domain that lends it a socket; prints the result of each.
pub(crate) fn borrow() {
    let stdin = std::io::stdin();
    let own = Platform::guest().unwrap();
    let lent = Platform::over(receive(stdin.as_fd())).unwrap();
    let (mut a, mut b) = (party(&own, &own), party(&lent, &lent));
    for (_, case) in platform::cases() {
        let verdict = case(&mut a, &mut b).err().unwrap_or_default();
        rustix::net::send(&stdin, verdict.as_bytes(), SendFlags::NOSIGNAL).unwrap();
    }
    // Its resources are checked before it ends.
    assert_eq!(rustix::io::read(stdin, &mut [0]), Ok(0));
}

/// Sends a descriptor.
fn pass(over: BorrowedFd<'_>, fd: BorrowedFd<'_>) {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(over, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// Receives the descriptor that is sent.
fn receive(over: BorrowedFd<'_>) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(over, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .unwrap();
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.expect("a descriptor comes")
}

/// Returns a domain as one or two of its processes have it.
fn party(backend: &Platform, frontend: &Platform) -> Party {
    let evtchn: Box<dyn EventChannels> = Box::new(backend.channels().unwrap());
    let maps: Box<dyn GrantMap> = Box::new(backend.grants());
    let offers: Box<dyn GrantOffer> = Box::new(frontend.offers());
    Party { domid: backend.domid(), evtchn, maps, offers }
}

/// Returns domain 0, as a backend and a frontend.
fn domain_0(host: &BrokerHost) -> Party {
    let connect = |role| Platform::connect(&host.host(), role).unwrap();
    party(&connect(Role::Backend), &connect(Role::Frontend))
}

/// A domain, and the socket that is its standard input.
pub(crate) struct SocketGuest {
    pub(crate) created: CreatedDomain,
    socket: OwnedFd,
}

impl SocketGuest {
    fn start(control: &mut Control, role: &str) -> Self {
        Self::try_start(control, &playing(role)).unwrap()
    }

    /// Creates it as `config` says.
    pub(crate) fn try_start(control: &mut Control, config: &DomainConfig) -> Result<Self, Error> {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (input, socket) = socketpair(family, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(WITHIN),
        )
        .unwrap();
        let (program, error) = (this_program(), std::io::stderr());
        let descriptors = Descriptors {
            program: program.as_fd(),
            input: input.as_fd(),
            output: error.as_fd(),
            error: error.as_fd(),
        };
        let created = control.create(config, descriptors)?;
        control.unpause(created.domid)?;
        Ok(Self { created, socket })
    }

    pub(crate) fn domid(&self) -> DomId {
        self.created.domid
    }

    /// Receives its socket to the broker, which is taken: a guest that sees the host may send none.
    pub(crate) fn lent(&self, control: &mut Control) -> OwnedFd {
        let process = control.process(self.domid()).unwrap();
        let environment = format!("/proc/{}/environ", support::pid_of(&process));
        let mut number = None;
        support::until("its program runs", || {
            let environment = std::fs::read_to_string(&environment).unwrap();
            let mut lines = environment.split('\0');
            let names = lines.find_map(|line| line.strip_prefix("LISTEN_FDNAMES="));
            number = names.map(|names| support::number_of("xen-broker", names));
            number.is_some()
        });
        pidfd_getfd(process, number.unwrap(), PidfdGetfdFlags::empty()).unwrap()
    }
}

/// Returns the domain's use of resources that it has to give back.
fn resources_in_use(control: &mut Control, domid: DomId) -> [u64; 3] {
    let Accounts { ports, granted, mapped, .. } = control.accounts(domid).unwrap();
    [ports, granted, mapped]
}

/// Runs all cases from this process; each leaves nothing behind.
fn all_cases(control: &mut Control, mut a: Party, mut b: Party) {
    let cases = platform::cases();
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let before = [a.domid, b.domid].map(|domid| resources_in_use(control, domid));
        if let Err(why) = case(&mut a, &mut b) {
            panic!("{name} between {} and {}: {why}", a.domid, b.domid);
        }
        let after = [a.domid, b.domid].map(|domid| resources_in_use(control, domid));
        assert_eq!(before, after, "{name} has left something");
    }
}

#[test]
fn domain_0_with_itself() {
    let host = BrokerHost::start();
    all_cases(&mut host.control(), domain_0(&host), domain_0(&host));
}

#[test]
fn domain_0_with_a_guest() {
    let host = BrokerHost::start();
    let mut control = host.control();
    for turned in [false, true] {
        // Two more, so that there is somebody else to bind and to grant to.
        let guests =
            ["lender", "sleeper", "sleeper"].map(|role| SocketGuest::start(&mut control, role));
        let lent = Platform::over(guests[0].lent(&mut control)).unwrap();
        let (own, guest) = (domain_0(&host), party(&lent, &lent));
        if turned {
            all_cases(&mut control, guest, own);
        } else {
            all_cases(&mut control, own, guest);
        }
        for guest in guests {
            control.destroy(guest.domid()).unwrap();
        }
    }
}

#[test]
fn two_guests_within_a_sandbox() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let _third = SocketGuest::start(&mut control, "sleeper");
    let lender = SocketGuest::start(&mut control, "lender");
    let borrower = SocketGuest::start(&mut control, "borrower");
    let domids = [&lender, &borrower].map(SocketGuest::domid);
    let before = domids.map(|domid| resources_in_use(&mut control, domid));
    pass(borrower.socket.as_fd(), lender.lent(&mut control).as_fd());
    for (name, _) in platform::cases() {
        let mut verdict = [0; 1024];
        let (_, len) = rustix::net::recv(&borrower.socket, &mut verdict, RecvFlags::empty())
            .unwrap_or_else(|error| panic!("{name}: no verdict: {error}"));
        let why = String::from_utf8_lossy(&verdict[..len]);
        assert!(why.is_empty(), "{name} between two guests: {why}");
    }
    assert_eq!(
        before,
        domids.map(|domid| resources_in_use(&mut control, domid)),
        "something was left"
    );
}

#[test]
fn the_broker_has_no_console_ring_to_signal() {
    let host = BrokerHost::start();
    let platform = Platform::connect(&host.host(), Role::Store).unwrap();
    let mut channels = platform.channels().unwrap();
    assert_eq!(channels.bind_virq(Virq::ConRing), Err(Error::Inval));
    channels.bind_virq(Virq::DomExc).unwrap();
}

#[test]
fn the_life_of_domains() {
    let host = BrokerHost::start();
    for (name, case) in life::CASES {
        // Each with a watch of its own, which has seen nothing yet.
        let platform = Platform::connect(&host.host(), Role::Store).unwrap();
        let (mut channels, mut watch) = (platform.channels().unwrap(), platform.watch());
        let virq = channels.bind_virq(Virq::DomExc).unwrap();
        let mut makes = host.control();
        let mut control = host.control();
        let mut life = life::LifeHost {
            control: &mut control,
            watch: &mut watch,
            create: &mut || {
                let created = support::create(&mut makes, "sleeper");
                let unpaused = makes.unpause(created.domid);
                unpaused.map(|()| created.domid).map_err(|error| error.to_string())
            },
            wait: &mut || {
                let came = channels.wait(Some(WITHIN));
                came == Ok(Some(virq)) && channels.unmask(virq).is_ok()
            },
        };
        if let Err(why) = case(&mut life) {
            panic!("{name}: {why}");
        }
        channels.close(virq).unwrap();
    }
    let mut control = host.control();
    support::until("domain 0 alone is left", || control.list().unwrap().len() == 1);
}

#[test]
fn a_page_is_mapped_and_unmapped_without_a_system_call() {
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let grant = guest.ask("offer 0");
    let mapper = std::process::Command::new(std::env::current_exe().unwrap())
        .args(support::PLAYING)
        .env(support::ROLE, "mapper")
        .env(support::DIR, host.host().path())
        .envs([("DOMID", guest.domid().to_string()), ("GRANT", grant)])
        .status()
        .unwrap();
    // The filter's signal would be its end.
    assert_eq!(mapper.code(), Some(0), "{mapper}");
}

/// The account of a domain is what it used.
#[test]
fn the_account_of_a_domain_is_what_it_used() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut guest = Puppet::start(&host);
    let domid = guest.domid();
    let before = control.accounts(domid).unwrap();
    let arena = 4 * 1024 + 12;
    if guest.created.lacks.contains(&MissingFeature::Accounting) {
        conformance::skip("processor time and memory", "no control group for it here");
    } else {
        assert!(before.cpu_time_ns > 0 && before.memory_kib >= arena, "{before:?}");
        assert_eq!(guest.ask("hold 8"), "done");
        let held = control.accounts(domid).unwrap();
        assert!(held.cpu_time_ns > before.cpu_time_ns, "{held:?}");
        let grown = held.memory_kib - before.memory_kib;
        assert!((7 * 1024..10 * 1024).contains(&grown), "8 MiB more: {grown} KiB");
        // Its arena is charged in full from the start, so the pages that it touches add nothing.
        assert_eq!(guest.ask("offer-batch 0 1016"), "done");
        let offered = control.accounts(domid).unwrap();
        let grown = offered.memory_kib.saturating_sub(held.memory_kib);
        assert!(grown < 1024, "4 MiB of an arena were counted twice: {grown} KiB");
        assert_eq!((offered.arenas, offered.granted), (1, 1016));
    }
    // A notification is counted when it is received, and a flood as often as its receiver saw it.
    let mut channels = Platform::connect(&host.host(), Role::Backend).unwrap().channels().unwrap();
    let port = guest.ask("alloc 0");
    let mine = channels.bind_interdomain(domid, Port(port.parse().unwrap())).unwrap();
    for round in 0..3 {
        if round > 0 {
            assert_eq!(guest.ask(&format!("flood {port} 10")), "done");
        }
        assert_eq!(channels.wait(Some(WITHIN)).unwrap(), Some(mine));
        channels.unmask(mine).unwrap();
        while channels.pending().unwrap().is_some() {}
        assert_eq!(control.accounts(domid).unwrap().notified, round + 1);
    }
    channels.close(mine).unwrap();
    assert_eq!(control.accounts(domid).unwrap().notified, 3, "also when the channel is closed");
}

/// A crashed domain can still be examined: it has its ports until the toolstack destroys it.
#[test]
fn a_crashed_domain_keeps_its_ports_until_it_is_destroyed() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut guest = Puppet::start(&host);
    let domid = guest.domid();
    let [bound, unbound] = [(); 2].map(|()| Port(guest.ask("alloc 0").parse().unwrap()));
    let backend = Platform::connect(&host.host(), Role::Backend).unwrap();
    let mut channels = backend.channels().unwrap();
    let mine = channels.bind_interdomain(domid, bound).unwrap();
    let interdomain = PortStatus::Interdomain { remote: domid, remote_port: bound };
    let process = control.process(domid).unwrap();
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).unwrap();
    let state = support::ended(&mut control, domid).state;
    assert_eq!(state, RunState::Shutdown(ShutdownReason::Crash));
    assert_eq!(channels.status(mine), Ok(interdomain));
    assert_eq!(control.accounts(domid).unwrap().ports, 4);
    // As a debugger of crashed domains does.
    let late = channels.bind_interdomain(domid, unbound).unwrap();
    channels.notify(late).unwrap();
    control.destroy(domid).unwrap();
    assert_eq!(channels.status(mine), Ok(PortStatus::Unbound(domid)));
    assert_eq!(channels.status(late), Ok(PortStatus::Unbound(domid)));
}

/// A guest is refused all requests of control, also over a socket that it has handed on.
#[test]
fn control_is_domain_0s() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let guest = SocketGuest::start(&mut control, "lender");
    let lent = Platform::over(guest.lent(&mut control)).unwrap();
    assert_eq!(lent.domid(), guest.domid());
    let mut theirs = Control::over(&lent);
    assert_eq!(theirs.list().map(drop), Err(Error::Perm));
    assert_eq!(theirs.pause(guest.domid()), Err(Error::Perm));
    assert_eq!(theirs.destroy(DomId::DOM0), Err(Error::Perm));
    assert!(control.accounts(guest.domid()).unwrap().refused >= 3);
}

/// A process that a guest has connected ends like one of domain 0: the other ends of its ports and
/// the pages that it had mapped are free again, and the guest goes on.
#[test]
fn a_guests_process_ends_and_another_takes_its_place() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let guest = SocketGuest::start(&mut control, "lender");
    let domid = guest.domid();
    let first = Platform::over(guest.lent(&mut control)).unwrap();
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let (mut channels, mut offers) = (frontend.channels().unwrap(), frontend.offers());
    let page = offers.offer(domid, PageAccess::ReadWrite).unwrap();
    let port = channels.alloc_unbound(domid).unwrap();
    let before = resources_in_use(&mut control, domid);
    for _ in 0..3 {
        let socket = first.connect_process().unwrap();
        let process = Platform::over(socket.try_clone().unwrap()).unwrap();
        assert_eq!(process.domid(), domid);
        let (mut own, mut grants) = (process.channels().unwrap(), process.grants());
        let bound = own.bind_interdomain(DomId::DOM0, port).unwrap();
        let mapped = grants.map(DomId::DOM0, page.grant(), PageAccess::ReadWrite).unwrap();
        assert_eq!(
            channels.status(port).map(|status| status != PortStatus::Unbound(domid)),
            Ok(true)
        );
        let [ports, _, maps] = resources_in_use(&mut control, domid);
        assert_eq!((ports, maps), (before[0] + 1, before[2] + 1), "all count for the guest");
        own.notify(bound).unwrap();
        let leaked = [process.connect_process().map(drop), first.connect_process().map(drop)];
        assert_eq!(leaked, [Err(Error::Perm), Ok(())], "a process connects no others");
        // Its end, with nothing released.
        rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
        support::until("its port is free", || {
            channels.status(port) == Ok(PortStatus::Unbound(domid))
        });
        support::until("its resources are given back", || {
            resources_in_use(&mut control, domid) == before
        });
        drop(mapped);
    }
    let held: Vec<OwnedFd> = std::iter::from_fn(|| first.connect_process().ok()).collect();
    assert_eq!(held.len(), xen_hosted::limits::PROCESS_CONNECTIONS_MAX);
    assert_eq!(first.connect_process().map(drop), Err(Error::NoSpc));
    assert_eq!(frontend.connect_process().map(drop), Err(Error::Perm), "domain 0 has sockets");
    drop(held);
    support::until("one is free again", || first.connect_process().is_ok());
    let process = Platform::over(first.connect_process().unwrap()).unwrap();
    control.destroy(domid).unwrap();
    let gone = process.channels().and_then(|mut own| own.alloc_unbound(DomId::DOM0));
    assert!(gone.is_err(), "it ends with its domain");
}
