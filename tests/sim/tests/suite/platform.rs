//! The platform's part of the conformance suite, on the simulated hypervisor.

use conformance::platform::{self, Party, life};
use sim::faults::Rates;
use sim::hypervisor::{Hypervisor, Limits, Reuse};
use sim::rng::Rng;
use xen::DomId;

fn host(reuse: Reuse) -> Hypervisor {
    Hypervisor::new(Limits::default(), reuse, Rng::new(0), Rates::default())
}

fn party(hypervisor: &Hypervisor, domid: DomId) -> Party {
    Party {
        domid,
        evtchn: hypervisor.event_channels(domid).unwrap(),
        maps: hypervisor.grant_map(domid).unwrap(),
        offers: hypervisor.grant_offer(domid).unwrap(),
    }
}

/// Runs each case on a host of its own, with two processes of these domains.
fn all_cases(a: u16, b: u16) {
    for (name, case) in platform::cases() {
        let hypervisor = host(Reuse::WhenUnmapped);
        for domid in 1..=3 {
            hypervisor.create(DomId(domid)).unwrap();
        }
        let ports = hypervisor.ports(DomId(a)) + hypervisor.ports(DomId(b));
        let (mut a, mut b) = (party(&hypervisor, DomId(a)), party(&hypervisor, DomId(b)));
        if let Err(why) = case(&mut a, &mut b) {
            panic!("{name} between {} and {}: {why}", a.domid, b.domid);
        }
        let left = hypervisor.ports(a.domid) + hypervisor.ports(b.domid);
        assert_eq!((left, hypervisor.mappings()), (ports, 0), "{name} has left something");
    }
}

#[test]
fn a_domain_with_itself() {
    all_cases(0, 0);
    all_cases(2, 2);
}

#[test]
fn domain_0_with_a_guest() {
    all_cases(0, 1);
    all_cases(1, 0);
}

#[test]
fn two_guests() {
    all_cases(1, 2);
    all_cases(3, 1);
}

#[test]
fn the_life_of_domains() {
    for reuse in [Reuse::WhenUnmapped, Reuse::AtOnce] {
        for (name, case) in life::CASES {
            let hypervisor = host(reuse);
            let mut control = hypervisor.domain_control(DomId::DOM0);
            let mut watch = hypervisor.domain_watch(None);
            // The lowest number that is free, so that numbers are reused.
            let create = || {
                let built = (1..).map(DomId).find_map(|domid| hypervisor.create(domid).ok());
                built.map(|built| built.domid).ok_or_else(|| "no number is free".to_owned())
            };
            let mut left = 3;
            let mut host = life::LifeHost {
                control: &mut *control,
                watch: &mut *watch,
                create: &mut { create },
                wait: &mut || {
                    left -= 1;
                    left > 0
                },
            };
            if let Err(why) = case(&mut host) {
                panic!("{name}: {why}");
            }
        }
    }
}

/// Every domain but domain 0 is refused all of it.
#[test]
fn control_is_domain_0s() {
    let hypervisor = host(Reuse::WhenUnmapped);
    hypervisor.create(DomId(1)).unwrap();
    let mut control = hypervisor.domain_control(DomId(1));
    assert_eq!(control.list(), Err(xen::Error::Perm));
    assert_eq!(control.pause(DomId(1)), Err(xen::Error::Perm));
    assert_eq!(control.destroy(DomId::DOM0), Err(xen::Error::Perm));
}

/// A mapped page keeps a dead domain's number in use, unless the run wants it otherwise.
#[test]
fn a_held_page_keeps_the_number() {
    for (reuse, free) in [(Reuse::WhenUnmapped, false), (Reuse::AtOnce, true)] {
        let hypervisor = host(reuse);
        hypervisor.create(DomId(1)).unwrap();
        let mut maps = hypervisor.grant_map(DomId::DOM0).unwrap();
        let access = xen::gnttab::PageAccess::ReadWrite;
        let mapping = maps.map(DomId(1), xen::GrantRef::XENSTORE, access).unwrap();
        hypervisor.destroy(DomId(1));
        assert_eq!(hypervisor.create(DomId(1)).is_ok(), free);
        drop(mapping);
        assert_eq!(hypervisor.create(DomId(1)).is_ok(), !free);
    }
}
