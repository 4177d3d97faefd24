//! A domain that takes the number of one that has ended, with what others have granted to that number.

use crate::platform::SocketGuest;
use crate::support::{self, BrokerHost, playing};
use rustix::process::{Signal, pidfd_send_signal};
use xen::domctl::{DomainControl, RunState};
use xen::evtchn::{EventChannels, PortStatus};
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::shared::PAGE_SIZE;
use xen::{DomId, Error};
use xen_hosted::domctl::Control;
use xen_hosted::limits::KEEPSAKE_PAGES;
use xen_hosted::{Platform, Role};

/// Creates a domain as the successor of `domid`, once that is gone.
fn succeed(control: &mut Control, domid: DomId) -> Result<SocketGuest, Error> {
    let mut config = playing("lender");
    config.succeeds = Some(domid);
    let mut made = Err(Error::Busy);
    support::until("the domain before is gone", || {
        made = SocketGuest::try_start(control, &config);
        !matches!(made, Err(Error::Busy))
    });
    made
}

fn kill(control: &mut Control, domid: DomId) {
    let process = control.process(domid).unwrap();
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    support::ended(control, domid);
}

/// Pages that were granted to a domain that was killed, and ports at which it was waited for, are its
/// successor's.
#[test]
fn a_successor_has_its_predecessors_number_grants_ports_and_memory() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut guest = SocketGuest::try_start(&mut control, &playing("lender")).unwrap();
    let (domid, first) = (guest.domid(), guest.created.identity);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let (mut channels, mut offers) = (frontend.channels().unwrap(), frontend.offers());
    let page = offers.offer(domid, PageAccess::ReadWrite).unwrap();
    let lent = offers.offer(domid, PageAccess::Read).unwrap();
    let port = channels.alloc_unbound(domid).unwrap();
    assert_eq!(frontend.keepsake().map(drop), Err(Error::Perm), "domain 0 has no successor");
    for life in 0..3_u8 {
        let platform = Platform::over(guest.lent(&mut control)).unwrap();
        assert_eq!((platform.domid(), guest.domid()), (domid, domid));
        let process = Platform::over(platform.connect_process().unwrap()).unwrap();
        let keepsake = process.keepsake().unwrap();
        let size = u64::from(KEEPSAKE_PAGES) * PAGE_SIZE as u64;
        assert_eq!(u64::try_from(rustix::fs::fstat(&keepsake).unwrap().st_size), Ok(size));
        assert!(rustix::fs::ftruncate(&keepsake, 0).is_err(), "its size is sealed");
        let (mut own, mut grants) = (process.channels().unwrap(), process.grants());
        let mapped = grants.map(DomId::DOM0, page.grant(), PageAccess::ReadWrite).unwrap();
        let read = grants.map(DomId::DOM0, lent.grant(), PageAccess::Read).unwrap();
        let bound = own.bind_interdomain(DomId::DOM0, port).unwrap();
        own.notify(bound).unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::pread(&keepsake, &mut byte, 0), Ok(1));
        assert_eq!(byte, [life], "what the one before has left");
        mapped.page().copy_out(8, &mut byte).unwrap();
        assert_eq!(byte, [life]);
        mapped.page().copy_in(8, &[life + 1]).unwrap();
        assert_eq!(rustix::io::pwrite(&keepsake, &[life + 1], 0), Ok(1));
        kill(&mut control, domid);
        drop((mapped, read, own, grants));
        control.vacate(domid).unwrap();
        assert_eq!(control.vacate(domid), Err(Error::Srch), "it is destroyed");
        assert_eq!(channels.status(port), Ok(PortStatus::Unbound(domid)));
        assert_eq!(control.info(domid).unwrap().state, RunState::Dying);
        // Another connection does not get the number, by its name or by chance.
        let mut other = host.control();
        assert_eq!(succeed(&mut other, domid).map(drop), Err(Error::Perm));
        let another = SocketGuest::try_start(&mut other, &playing("lender")).unwrap();
        assert_ne!(another.domid(), domid);
        other.destroy(another.domid()).unwrap();
        guest = succeed(&mut control, domid).unwrap();
        assert_ne!(guest.created.identity, first, "it is another domain");
    }
    // One that is destroyed leaves nothing to its number.
    let platform = Platform::over(guest.lent(&mut control)).unwrap();
    drop(platform.keepsake().unwrap());
    control.destroy(domid).unwrap();
    assert_eq!(succeed(&mut control, domid).map(drop), Err(Error::Srch));
    assert_eq!(offers.offer(domid, PageAccess::ReadWrite).map(drop), Err(Error::Srch));
}

/// The number, and what others have granted to it, wait as long as the connection that is to create
/// the successor, and until the domain is destroyed.
#[test]
fn nothing_waits_for_a_successor_that_nobody_creates() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let (mut channels, mut offers) = (frontend.channels().unwrap(), frontend.offers());
    for by_destroy in [true, false] {
        let guest = SocketGuest::try_start(&mut control, &playing("lender")).unwrap();
        let domid = guest.domid();
        let page = offers.offer(domid, PageAccess::ReadWrite).unwrap();
        let port = channels.alloc_unbound(domid).unwrap();
        let mut keeper = host.control();
        keeper.vacate(domid).unwrap();
        drop(offers.offer(domid, PageAccess::ReadWrite).unwrap());
        if by_destroy {
            control.destroy(domid).unwrap();
        } else {
            drop(keeper);
        }
        support::until("it is gone", || control.info(domid).map(drop) == Err(Error::Srch));
        assert_eq!(succeed(&mut control, domid).map(drop), Err(Error::Srch));
        assert_eq!(offers.offer(domid, PageAccess::ReadWrite).map(drop), Err(Error::Srch));
        drop(page);
        channels.close(port).unwrap();
    }
    // A successor that cannot be made ends it, too.
    let guest = SocketGuest::try_start(&mut control, &playing("lender")).unwrap();
    let domid = guest.domid();
    let page = offers.offer(domid, PageAccess::ReadWrite).unwrap();
    control.vacate(domid).unwrap();
    let guest = succeed(&mut control, domid).unwrap();
    assert_eq!(guest.domid(), domid);
    control.destroy(domid).unwrap();
    assert_eq!(offers.offer(domid, PageAccess::ReadWrite).map(drop), Err(Error::Srch));
    drop(page);
}
