//! The store's end of its ring beside a guest that signals as seldom as it may: requests only where all before
//! them were taken, room only where the ring was full. That is what Linux does (`xenbus_comms.c`).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicBool, fence};
use std::time::{Duration, Instant};
use xen::DomId;
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::shared::SharedPage;
use xen_io::xs_ring::{RING_SIZE, ServerRing, offset};

/// Bytes that go to the store and back, where the processors are free: a second or two.
const TOTAL: u64 = 60_000_000;
/// The length of the test where other work keeps the processors busy: each of some 200,000 turns
/// then waits for that work.
const LONG_ENOUGH: Duration = Duration::from_secs(20);
/// The time after which a wait counts as stalled: the signal it waits for is never sent.
const STALLED: Duration = Duration::from_secs(10);

/// An event channel, one way.
#[derive(Default)]
struct Signal(AtomicBool);

impl Signal {
    fn send(&self) {
        self.0.store(true, Release);
    }

    /// Waits for the next; false where the test is over.
    fn wait(&self, over: &AtomicBool, who: &str, page: &SharedPage) -> bool {
        let end = Instant::now() + STALLED;
        while !self.0.swap(false, AcqRel) {
            if over.load(Acquire) {
                return false;
            }
            assert!(Instant::now() < end, "{who} waits for ever: {:?}", words(page));
            std::thread::yield_now();
        }
        true
    }
}

fn words(page: &SharedPage) -> [u32; 4] {
    [offset::REQ_CONS, offset::REQ_PROD, offset::RSP_CONS, offset::RSP_PROD]
        .map(|at| page.load_u32(at).unwrap())
}

/// Answers each byte with itself; looks at the ring when it is signalled, and never else.
fn store(page: SharedPage, look: &SharedPage, woken: &Signal, wake: &Signal, over: &AtomicBool) {
    let ring = ServerRing::new(page);
    let mut kept = Vec::new();
    let mut input = [0; RING_SIZE];
    while woken.wait(over, "the store", look) {
        loop {
            let count = ring.read(&mut input).unwrap();
            kept.extend_from_slice(&input[..count]);
            let sent = ring.write(&kept).unwrap();
            kept.drain(..sent);
            if count > 0 || sent > 0 {
                wake.send();
            }
            if count < RING_SIZE {
                break;
            }
        }
    }
}

/// Sends `length` bytes at most; returns the number sent.
fn put(page: &SharedPage, next: u64, length: usize, wake: &Signal) -> usize {
    let [cons, prod, ..] = words(page);
    let count = length.min(RING_SIZE - (prod - cons) as usize);
    for step in 0..count {
        let at = (prod as usize + step) % RING_SIZE;
        page.copy_in(offset::REQ + at, &[(next + step as u64) as u8]).unwrap();
    }
    page.store_u32(offset::REQ_PROD, prod + count as u32).unwrap();
    fence(SeqCst);
    if count > 0 && page.load_u32(offset::REQ_CONS).unwrap() == prod {
        wake.send();
    }
    count
}

/// Takes the bytes that have come; returns their number.
fn take(page: &SharedPage, next: u64, wake: &Signal) -> usize {
    let [.., cons, prod] = words(page);
    let count = (prod - cons) as usize;
    let mut byte = [0];
    for step in 0..count {
        let at = (cons as usize + step) % RING_SIZE;
        page.copy_out(offset::RSP + at, &mut byte).unwrap();
        assert_eq!(byte[0], (next + step as u64) as u8, "byte {}", next + step as u64);
    }
    page.store_u32(offset::RSP_CONS, cons + count as u32).unwrap();
    fence(SeqCst);
    if count > 0 && page.load_u32(offset::RSP_PROD).unwrap() - cons >= RING_SIZE as u32 {
        wake.send();
    }
    count
}

#[test]
fn a_guest_that_signals_as_seldom_as_linux_is_served() {
    let host = loopback::Host::new();
    let offer = host.gnttab(DomId(1)).offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
    let view =
        || host.gnttab(DomId::DOM0).map(DomId(1), offer.grant(), PageAccess::ReadWrite).unwrap();
    let views = (view().into_page(), view().into_page());
    let page = offer.page();
    let (to_store, to_guest, over) = (Signal::default(), Signal::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (to_store, to_guest, over) = (&to_store, &to_guest, &over);
        scope.spawn(move || store(views.0, &views.1, to_store, to_guest, over));
        let (mut sent, mut got, mut length) = (0, 0, 1);
        let began = Instant::now();
        while got < TOTAL && began.elapsed() < LONG_ENOUGH {
            // Lengths of all kinds; sometimes the ring is full, mostly it is not.
            length = (length * 7 + 5) % 300;
            let left = usize::try_from(TOTAL - sent).unwrap();
            let moved = (put(page, sent, length.min(left), to_store), take(page, got, to_store));
            sent += moved.0 as u64;
            got += moved.1 as u64;
            if moved == (0, 0) && !to_guest.wait(over, "the guest", page) {
                break;
            }
        }
        over.store(true, Release);
    });
}
