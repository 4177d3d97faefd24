//! The attempts of a hostile domain at forbidden acts: each attempt is an error, and a neighbour
//! does not notice it.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, ended, entries, playing, until};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;
use xen::domctl::{DomainControl, RunState};
use xen::domwatch::ShutdownReason;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::{Error, GrantRef, Port};
use xen_hosted::domain::MissingFeature;
use xen_hosted::domctl::Control;
use xen_hosted::{Platform, Role};

#[test]
fn grants_are_for_one_peer_and_one_access() {
    let host = BrokerHost::start();
    let mut a = Puppet::start(&host);
    let mut b = Puppet::start(&host);
    let mut c = Puppet::start(&host);
    let (of_a, of_b) = (a.domid(), b.domid());
    // A page of A for B, which B maps and C does not.
    let grant = a.ask(&format!("offer {of_b}"));
    assert_eq!(b.ask(&format!("map {of_a} {grant} rw")), "done");
    assert_eq!(c.ask(&format!("map {of_a} {grant} rw")), "GNTST_general_error");
    assert_eq!(c.ask(&format!("map {of_a} 1 ro")), "GNTST_general_error", "the store's page");
    assert_eq!(c.ask(&format!("map {of_a} 999999 ro")), "GNTST_bad_gntref");
    assert_eq!(c.ask("map 4000 8 ro"), "GNTST_bad_domain");
    assert_eq!(c.ask("map 32752 8 ro"), "GNTST_general_error", "DOMID_SELF: its own, for domain 0");
    // The next page was not granted.
    let next = grant.parse::<u32>().unwrap() + 1;
    assert_eq!(b.ask(&format!("map {of_a} {next} rw")), "GNTST_general_error");
    // The grant ends: the mapping stays, and no new one can be made.
    assert_eq!(a.ask("take-back"), "done");
    assert_eq!(b.ask(&format!("write {grant}")), "done");
    assert_eq!(b.ask(&format!("unmap {grant}")), "true");
    assert_eq!(b.ask(&format!("map {of_a} {grant} rw")), "GNTST_general_error");
    let refused = host.control().accounts(of_b).unwrap().refused;
    assert_eq!(refused, 2, "what the library refuses is counted too");
    let accounts = host.control().accounts(c.domid()).unwrap();
    assert_eq!(accounts.refused, 5, "refusals are counted: {accounts:?}");
}

#[test]
fn a_page_for_reading_is_not_written_by_any_means() {
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let offered = offers.offer(guest.domid(), PageAccess::Read).unwrap();
    offered.page().copy_in(0, b"as it was").unwrap();
    let grant = offered.grant();
    assert_eq!(guest.ask(&format!("map 0 {grant} rw")), "GNTST_general_error");
    assert_eq!(guest.ask(&format!("map 0 {grant} ro")), "done");
    assert_eq!(guest.ask(&format!("write {grant}")), "the page is mapped for reading only");
    assert_eq!(host.control().accounts(guest.domid()).unwrap().refused, 2, "both are counted");
    let slot = grant.0 / xen_hosted::limits::ARENA_PAGES;
    assert_eq!(
        guest.ask(&format!("abuse 0 {slot}")),
        "map=1 mprotect=13 pwrite=1 truncate=1 grow=1 punch=1 seal=1"
    );
    let mut bytes = [0; 9];
    offered.page().copy_out(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"as it was");
}

#[test]
fn a_writable_arena_cannot_be_cut_or_sealed() {
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let offered = offers.offer(guest.domid(), PageAccess::ReadWrite).unwrap();
    offered.page().copy_in(0, b"as it was").unwrap();
    let slot = offered.grant().0 / xen_hosted::limits::ARENA_PAGES;
    // It may write and empty shared memory; its peer does not fault.
    assert_eq!(
        guest.ask(&format!("abuse 0 {slot}")),
        "map=done mprotect=done pwrite=done truncate=1 grow=1 punch=done seal=1"
    );
    offered.page().copy_out(0, &mut [0; 4096]).unwrap();
    offered.page().copy_in(0, &[1; 4096]).unwrap();
}

/// The peer of an arena can write its table. A forged end makes no page be granted twice, and
/// nobody waits.
#[test]
fn an_end_that_a_peer_forges_is_its_own_end() {
    let host = BrokerHost::start();
    let (mut guest, mut other) = (Puppet::start(&host), Puppet::start(&host));
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let to = guest.domid();
    let mut first = Vec::new();
    offers.offer_batch(to, PageAccess::ReadWrite, 1500, &mut first).unwrap();
    let slots: BTreeSet<u32> =
        first.iter().map(|page| page.grant().0 / xen_hosted::limits::ARENA_PAGES).collect();
    assert_eq!(slots.len(), 2);
    first[0].page().copy_in(0, b"in use").unwrap();
    let slot = slots.first().unwrap();
    assert_eq!(guest.ask(&format!("forge-end 0 {slot} 1")), "done");
    let mut more = Vec::new();
    // Uses the rest of the second arena; then the request is refused.
    assert!(offers.offer_batch(to, PageAccess::ReadWrite, 3000, &mut more).is_err());
    assert!(more.is_empty());
    assert_eq!(guest.ask(&format!("forge-end 0 {slot} 0")), "done");
    let _ = offers.offer_batch(to, PageAccess::ReadWrite, 3000, &mut more);
    let mut grants: Vec<u32> = first.iter().chain(&more).map(|page| page.grant().0).collect();
    grants.sort_unstable();
    grants.dedup();
    assert_eq!(grants.len(), first.len() + more.len(), "a page is granted twice");
    let mut bytes = [0; 6];
    first[0].page().copy_out(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"in use");
    offers.offer(other.domid(), PageAccess::ReadWrite).unwrap();
    assert_eq!(other.ask("alloc 0"), "3");
}

#[test]
fn ports_of_others_are_out_of_reach() {
    let host = BrokerHost::start();
    let mut a = Puppet::start(&host);
    let mut b = Puppet::start(&host);
    let backend = Platform::connect(&host.host(), Role::Backend).unwrap();
    let mut channels = backend.channels().unwrap();
    let of_a = a.domid();
    let port = a.ask("alloc 0");
    // For domain 0, and not for B.
    assert!(b.ask(&format!("bind {of_a} {port}")).starts_with("EINVAL"));
    assert!(b.ask(&format!("notify {port}")).starts_with("EINVAL"));
    assert!(b.ask(&format!("close {port}")).starts_with("EINVAL"));
    assert!(b.ask("bind 4000 1").starts_with("ESRCH"));
    assert!(b.ask("bind-virq").starts_with("EPERM"));
    assert_eq!(host.control().accounts(b.domid()).unwrap().refused, 5);
    let mine = channels.bind_interdomain(of_a, Port(port.parse().unwrap())).unwrap();
    // A binding begins with an event.
    assert_eq!(channels.wait(Some(support::WITHIN)).unwrap(), Some(mine));
    channels.unmask(mine).unwrap();
    assert_eq!(channels.pending().unwrap(), None);
    assert_eq!(a.ask(&format!("notify {port}")), "done");
    assert_eq!(channels.wait(Some(support::WITHIN)).unwrap(), Some(mine));
    // Events while the port is masked are kept as one.
    assert_eq!(a.ask(&format!("flood {port} 1000")), "done");
    assert_eq!(channels.pending().unwrap(), None);
    channels.unmask(mine).unwrap();
    assert_eq!(channels.pending().unwrap(), Some(mine));
    assert_eq!(channels.pending().unwrap(), None);
    // Closed and bound anew: a notification by the old end wakes nobody.
    assert_eq!(a.ask(&format!("close {port}")), "done");
    let state = channels.status(mine).unwrap();
    assert_eq!(state, xen::evtchn::PortStatus::Unbound(of_a));
    assert_eq!(b.ask("control"), "10", "all are EPERM");
    assert_eq!(host.control().accounts(b.domid()).unwrap().refused, 15);
}

/// Each kind of request, sent without the library, and its answer.
#[test]
fn what_passes_the_library_by_is_refused_and_counted() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut other = Puppet::start(&host);
    let of_other = other.domid();
    assert_eq!(other.ask("alloc 0"), "3");
    let mut guest = Puppet::start(&host);
    let [perm, acces, inval, srch, noent] =
        [Errno::PERM, Errno::ACCESS, Errno::INVAL, Errno::SRCH, Errno::NOENT];
    let attempts = [
        ("1 4000", srch, "a port for nobody"),
        ("1 32753", srch, "a port for DOMID_IO"),
        ("2 1 3", inval, "a port that is for domain 0"),
        ("2 32754 1", srch, "a port of DOMID_XEN"),
        ("3 3", perm, "VIRQ_DOM_EXC"),
        ("4 3", inval, "closing a port that another has"),
        ("4 4294967295", inval, "closing none"),
        ("5 4096", inval, "the state of a port beyond the last"),
        ("6 1 0", acces, "an arena for domain 0"),
        ("6 1 9", noent, "no arena"),
        ("7 4000 1 0", srch, "an arena for nobody"),
        ("8", perm, "what became of domains"),
        ("9 0 0 0 0 0 0 0 0 0 0 0", perm, "creating a domain"),
        ("10 0", perm, "the list"),
        ("11 1", perm, "what there is to know of one"),
        ("12 1", perm, "pausing it"),
        ("13 1", perm, "running it"),
        ("14 1 0", perm, "shutting it down"),
        ("15 1", perm, "destroying it"),
        ("16 1 65536", perm, "its memory"),
        ("17 1", perm, "its weight"),
        ("18 1 1 1", perm, "setting that"),
        ("19 1", perm, "its account"),
        ("24 1", perm, "its process"),
        ("20 0 0", inval, "that a sandbox stands"),
        ("21 0 1", inval, "that it does not"),
        ("22 5", inval, "an arena that it has not made"),
        ("99", inval, "no request"),
    ];
    for (count, (words, errno, what)) in (1..).zip(attempts) {
        let said = guest.ask(&format!("raw {words}"));
        assert_eq!(said, errno.raw_os_error().to_string(), "{what}");
        assert_eq!(control.accounts(guest.domid()).unwrap().refused, count, "{what}");
    }
    assert_eq!(control.info(of_other).unwrap().state, RunState::Running);
    assert_eq!(control.accounts(of_other).unwrap().ports, 3, "nothing was done to it");
}

#[test]
fn who_does_not_read_is_not_bound_to_without_end() {
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    assert_eq!(guest.ask("alloc-all"), "4093 ENOSPC: no free port or grant entry");
    let mut channels = Platform::connect(&host.host(), Role::Backend).unwrap().channels().unwrap();
    let of = guest.domid();
    let mut bind = |at: u32| channels.bind_interdomain(of, Port(at)).map(drop);
    let full = (1..=1000).find_map(|at| bind(at).err().map(|error| (at, error)));
    let (at, error) = full.expect("there is a bound");
    assert!(error == Error::Busy && (64..=512).contains(&at), "{error} at {at}");
    assert!(guest.ask("alloc 0").starts_with("ENOSPC"), "it reads what it was told");
    assert_eq!(bind(at), Ok(()));
}

#[test]
fn a_hostile_granter_does_not_harm_who_maps() {
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let mut grants = Platform::connect(&host.host(), Role::Backend).unwrap().grants();
    let said = guest.ask("grant-and-abuse 0");
    let (grant, abuse) = said.split_once(' ').unwrap();
    assert_eq!(abuse, "map=done mprotect=done pwrite=done truncate=1 grow=1 punch=done seal=1");
    let grant = GrantRef(grant.parse().unwrap());
    let mapping = grants.map(guest.domid(), grant, PageAccess::ReadWrite).unwrap();
    mapping.page().copy_in(0, &[1; 4096]).unwrap();
    assert_eq!(guest.ask("punch 0"), "done");
    mapping.page().copy_in(0, &[2; 4096]).unwrap();
    // The granter may write the entries; their references are to pages of that arena only.
    assert!(grants.map(guest.domid(), GrantRef(grant.0 + 1), PageAccess::Read).is_err());
    // An arena that the broker cannot seal is handed to nobody.
    let said = guest.ask("seal-first 0");
    let (slot, rest) = said.split_once(' ').unwrap();
    assert_eq!(rest, "seal=done mapped=1");
    let grant = GrantRef(slot.parse::<u32>().unwrap() * xen_hosted::limits::ARENA_PAGES);
    let refused = grants.map(guest.domid(), grant, PageAccess::Read).unwrap_err();
    assert_eq!(refused.to_string(), "GNTST_general_error");
    // After its end, and that of its pages, a peer that has them mapped continues.
    guest.tell("end");
    host.control().destroy(guest.domid()).unwrap();
    mapping.page().copy_in(0, &[3; 4096]).unwrap();
}

/// Pages that a granter has emptied are allocated anew on the account of the process that touches
/// them: that must not kill it.
#[test]
fn pages_that_are_emptied_do_not_cost_their_user_its_memory() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut config = playing("puppet");
    config.memory_max_kib = 24 * 1024;
    let mut victim = Puppet::start_with(&mut control, &config);
    if victim.created.lacks.contains(&MissingFeature::MemoryLimit) {
        conformance::skip("memory of emptied pages", "no memory control group may be made here");
        return;
    }
    let mut granter = Puppet::start(&host);
    let (of, to) = (granter.domid(), victim.domid());
    assert_eq!(granter.ask(&format!("offer-batch {to} 1024")), "done");
    assert_eq!(victim.ask(&format!("map-all {of} 1024 1024")), "done");
    // All but a MiB or two of the memory that it may have beside its arena.
    let most = (24 - 4 - 2) * 1024;
    let arena = 4 * 1024 + 12;
    while control.accounts(to).unwrap().memory_kib - arena < most {
        assert_eq!(victim.ask("hold 1"), "done");
    }
    assert_eq!(granter.ask(&format!("punch {to}")), "done");
    assert_eq!(victim.ask("touch-all"), "1024");
}

#[test]
fn two_domains_share_no_namespace() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let guests = [(); 2].map(|()| Puppet::start(&host));
    let processes = guests.each_ref().map(|guest| control.process(guest.domid()).unwrap());
    let [a, b] = processes.map(|process| support::pid_of(&process));
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let (a, b, host) = (of(a), of(b), of(host.broker.id()));
        assert!(a != b && a != host && b != host, "{kind}: {a:?}, {b:?}, the host's {host:?}");
    }
}

#[test]
fn bounds_hold_and_neighbours_do_not_notice() {
    let mut host = BrokerHost::start();
    host.start_store();
    let mut control = host.control();
    let mut guest = Puppet::start(&host);
    let mut neighbour = Puppet::start(&host);
    // Two of them are there from the start, and port 0 is none.
    assert_eq!(guest.ask("alloc-all"), "4093 ENOSPC: no free port or grant entry");
    let said = guest.ask("offer-all 0");
    let (pages, end) = said.split_once(' ').unwrap();
    let text = "ENOSPC: 1 pages to grant were asked for, and 0 of";
    assert_eq!(end, format!("{text} {pages} are free"));
    let arenas = control.accounts(guest.domid()).unwrap().arenas;
    assert_eq!(pages.parse(), Ok(arenas * 1024 - 8), "whole arenas");
    assert!((2..=xen_hosted::limits::ARENAS_MAX as u64).contains(&arenas), "{arenas}");
    let broker_fds = format!("/proc/{}/fd", host.broker.id());
    let before = entries(std::path::Path::new(&broker_fds)).len();
    assert_eq!(guest.ask("attach 1000"), "done");
    let after = entries(std::path::Path::new(&broker_fds)).len();
    assert!(after <= before, "{before} descriptors before, {after} after");
    guest.tell("nonsense 100000");
    let begin = Instant::now();
    for _ in 0..100 {
        control.info(neighbour.domid()).unwrap();
    }
    let each = begin.elapsed() / 100;
    assert!(each.as_millis() < 100, "the broker answers others: {each:?}");
    assert_eq!(neighbour.ask("alloc 0"), "3");
    let forks = neighbour.ask("fork-all");
    let (count, error) = forks.split_once(' ').unwrap();
    assert!(count.parse::<u32>().unwrap() < 256 && error == "WouldBlock", "{forks}");
    control.destroy(neighbour.domid()).unwrap();
    until("all its processes are gone", || {
        control.info(neighbour.domid()).is_err_and(|error| error == Error::Srch)
    });
    // Using memory without end is the end of the domain.
    let mut greedy = Puppet::start(&host);
    greedy.tell("memory 512");
    assert_eq!(greedy.hear(), None);
    let info = ended(&mut control, greedy.domid());
    assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Crash));
    assert!(host.client().is_domain_introduced(0).unwrap());
}

#[test]
fn a_domain_sees_nobody_else() {
    let mut host = BrokerHost::start();
    host.start_store();
    let mut guest = Puppet::start(&host);
    let mut other = Puppet::start(&host);
    let who = guest.ask("who");
    assert_eq!(who, "pid=1 uid=1000 capabilities=0");
    let files = guest.ask("files");
    assert!(!files.contains("proc") && !files.contains("tmp") && files.contains("usr"), "{files}");
    assert!(files.ends_with("Err(ReadOnlyFilesystem)"), "{files}");
    for path in [host.socket(), host.host().socket(Role::Control)] {
        let connected = guest.ask(&format!("connect {}", path.display()));
        assert_eq!(connected, "Err(NotFound)");
    }
    assert_eq!(guest.ask("network"), "Err(Some(1))");
    for pid in [50, host.broker.id(), std::process::id()] {
        assert_eq!(guest.ask(&format!("kill {pid}")), "Err(3)");
    }
    assert_eq!(guest.ask("blocking"), "setfl=1 fionbio=1");
    assert_eq!(guest.ask("outlive"), "Err(1)");
    assert_eq!(other.ask("alloc 0"), "3");
}

/// There is no namespace to hide others in: calls that name them are refused instead.
#[test]
fn without_namespaces_others_are_out_of_reach_too() {
    let mut host = BrokerHost::start_without_namespaces();
    host.start_store();
    let mut guest = Puppet::start(&host);
    assert!(guest.created.lacks.contains(&MissingFeature::Namespaces));
    if guest.created.lacks.contains(&MissingFeature::Landlock) {
        conformance::skip("files without namespaces", "this kernel has no Landlock");
    } else {
        let files = guest.ask("files");
        assert_eq!(files, "; Err(PermissionDenied)", "Landlock");
    }
    for path in [host.socket(), host.host().socket(Role::Control)] {
        let connected = guest.ask(&format!("connect {}", path.display()));
        assert_eq!(connected, "Err(PermissionDenied)", "seccomp");
    }
    assert_eq!(guest.ask("network"), "Err(Some(1))");
    assert_eq!(guest.ask("fork-all"), "0 PermissionDenied");
    for pid in [host.broker.id(), std::process::id()] {
        assert_eq!(guest.ask(&format!("kill {pid}")), "Err(1)");
        let said = guest.ask(&format!("others {pid}"));
        assert_eq!(said, "setpriority=1 prlimit=1 affinity=1 setown=1 dgram=1");
    }
    assert_eq!(guest.ask("alloc 0"), "3", "what it may do it still can");
    guest.tell("memory 512");
    assert_eq!(guest.hear(), None, "RLIMIT_DATA");
}

#[test]
fn a_domain_has_no_descriptor_of_its_brokers_starter() {
    // As a careless shell leaves it open to all its children; here to no other test's processes.
    let leave_open = || {
        std::mem::forget(rustix::io::dup(std::io::stderr())?);
        Ok(())
    };
    let host = BrokerHost::start_with(|command| support::raw::before_exec(command, leave_open));
    let mut guest = Puppet::start(&host);
    assert_eq!(guest.ask("descriptors"), "0 1 2 3");
}

#[test]
fn nothing_of_a_dead_domain_is_kept() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut guest = Puppet::start(&host);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let mut offered = Vec::new();
    offers.offer_batch(guest.domid(), PageAccess::ReadWrite, 1016, &mut offered).unwrap();
    let grant = offered[0].grant();
    let arena_of = |grant: GrantRef| grant.0 / xen_hosted::limits::ARENA_PAGES;
    let to = guest.domid();
    let next = |offers: &mut xen_hosted::gnttab::Offers| {
        let next = offers.offer(to, PageAccess::ReadWrite).unwrap();
        arena_of(next.grant()) == arena_of(grant)
    };
    assert!(!next(&mut offers), "its arena is full");
    assert_eq!(guest.ask(&format!("map 0 {grant} rw")), "done");
    // A mapped page is not used for another grant; the hold ends with the life of its owner.
    drop(offered.remove(0));
    assert!(!next(&mut offers), "it is mapped");
    guest.tell("end");
    let info = ended(&mut control, guest.domid());
    assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Poweroff));
    until("the dead domain's hold is gone", || next(&mut offers));
    // A destroyed domain no longer exists.
    control.destroy(guest.domid()).unwrap();
    let gone = offers.offer(guest.domid(), PageAccess::ReadWrite).unwrap_err();
    assert_eq!(gone, Error::Srch);
}

#[test]
fn a_pause_stops_it_and_a_cap_slows_it() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut config = playing("puppet");
    config.cap = 20;
    let mut guest = Puppet::start_with(&mut control, &config);
    assert_eq!(guest.ask("alloc 0"), "3");
    guest.tell("spin");
    let used = |control: &mut Control| control.info(guest.domid()).unwrap().cpu_time_ns;
    let (begin, before) = (Instant::now(), used(&mut control));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let share = (used(&mut control) - before) as f64 / begin.elapsed().as_nanos() as f64;
    assert!(share < 0.35, "20 of 100, and it used {share:.2}");
    control.pause(guest.domid()).unwrap();
    assert_eq!(control.info(guest.domid()).unwrap().state, RunState::Paused);
    // It is frozen; the group may take a moment for that.
    until("it uses no processor time", || {
        let before = used(&mut control);
        std::thread::sleep(std::time::Duration::from_millis(200));
        used(&mut control) == before
    });
    control.unpause(guest.domid()).unwrap();
    assert_eq!(control.unpause(guest.domid()), Err(Error::Inval));
    assert_eq!(control.info(guest.domid()).unwrap().state, RunState::Running);
    control.destroy(guest.domid()).unwrap();
}
