//! Rings with both ends: order, wrap, sizes, notifications, and peers that lie.

use loopback::Host;
use std::time::{Duration, Instant};
use xen::DomId;
use xen::gnttab::{GrantMap, GrantOffer, Mapping, PageAccess};
use xen_io::ring::{BackRing, FrontRing, Position, RingError, entry_count};

const GUEST: DomId = DomId(3);

/// Both ends of a ring, and a page through which its indices can be forged.
fn ring(pages: usize, entry_bytes: usize) -> (FrontRing, BackRing, Mapping) {
    let host = Host::new();
    let mut offers = Vec::new();
    let mut guest = host.gnttab(GUEST);
    guest.offer_batch(DomId::DOM0, PageAccess::ReadWrite, pages, &mut offers).unwrap();
    let mut dom0 = host.gnttab(DomId::DOM0);
    let mut map = |at: usize| dom0.map(GUEST, offers[at].grant(), PageAccess::ReadWrite).unwrap();
    let forged = map(0);
    let mapped = (0..pages).map(&mut map).collect();
    let front = FrontRing::new(offers, entry_bytes).unwrap();
    (front, BackRing::new(mapped, entry_bytes).unwrap(), forged)
}

#[test]
fn as_many_entries_as_the_header_says() {
    for (pages, entry_bytes, count) in
        [(1, 112, 32), (1, 108, 32), (2, 112, 64), (4, 112, 128), (16, 112, 512), (1, 12, 256)]
    {
        assert_eq!(entry_count(pages, entry_bytes), Ok(count), "{pages} x {entry_bytes}");
    }
    for (pages, entry_bytes) in [(0, 112), (3, 112), (32, 112), (1, 0), (1, 4096)] {
        assert_eq!(entry_count(pages, entry_bytes), Err(RingError::Size { pages, entry_bytes }));
    }
}

#[test]
fn entries_arrive_whole_and_in_order_across_pages() {
    for (pages, bytes) in [(1, 112), (4, 112), (16, 108), (2, 24)] {
        let (mut front, mut back, _) = ring(pages, bytes);
        let count = front.count();
        let entry = |number: u32| -> Vec<u8> {
            (0..bytes).map(|at| (number as usize * 7 + at) as u8).collect()
        };
        let mut copy = vec![0; bytes];
        for lap in 0..3 {
            for at in 0..count {
                front.put(&entry(lap * count + at)).unwrap();
            }
            assert_eq!(front.put(&entry(0)), Err(RingError::Full));
            assert_eq!(back.take(&mut copy), Ok(None), "not shown yet");
            front.push().unwrap();
            for at in 0..count {
                let index = lap * count + at;
                assert_eq!(back.take(&mut copy), Ok(Some(index)));
                assert_eq!(copy, entry(index));
            }
            assert_eq!(back.take(&mut copy), Ok(None));
            for at in 0..count {
                assert_eq!(back.put(&entry(at + 1)), Ok(lap * count + at));
            }
            assert_eq!(back.put(&copy), Err(RingError::Full));
            back.push().unwrap();
            for at in 0..count {
                assert_eq!(front.take(&mut copy), Ok(true));
                assert_eq!(copy, entry(at + 1));
            }
            assert_eq!(front.take(&mut copy), Ok(false));
        }
    }
}

/// Checks that an end that sleeps is notified once, and one that is awake not at all.
#[test]
fn notifications_are_held_off() {
    let (mut front, mut back, _) = ring(1, 112);
    let mut copy = [0; 112];
    front.put(&copy).unwrap();
    assert_eq!(front.push(), Ok(true), "a fresh backend sleeps");
    front.put(&copy).unwrap();
    assert_eq!(front.push(), Ok(false), "it has been told");
    assert_eq!(front.push(), Ok(false), "nothing new");
    assert_eq!(back.final_check(), Ok(true), "there is something");
    while back.take(&mut copy).unwrap().is_some() {}
    assert_eq!(back.final_check(), Ok(false));
    front.put(&copy).unwrap();
    assert_eq!(front.push(), Ok(true), "it sleeps");
    assert_eq!(back.final_check(), Ok(true));

    back.put(&copy).unwrap();
    assert_eq!(back.push(), Ok(true));
    assert_eq!(front.final_check(), Ok(true));
    assert_eq!(front.take(&mut copy), Ok(true));
    back.put(&copy).unwrap();
    assert_eq!(back.push(), Ok(false), "the frontend has not slept since");
    assert_eq!(front.final_check(), Ok(true));
    assert_eq!(front.take(&mut copy), Ok(true));
    assert_eq!(front.final_check(), Ok(false));
    back.take(&mut copy).unwrap();
    back.put(&copy).unwrap();
    assert_eq!(back.push(), Ok(true));
}

/// Two threads that sleep whenever they may: no notification gets lost.
#[test]
fn nobody_oversleeps() {
    const LAST: u32 = 200_000;
    let (mut front, mut back, _) = ring(1, 112);
    let (to_back, back_wakes) = std::sync::mpsc::channel();
    let (to_front, front_wakes) = std::sync::mpsc::channel();
    let patience = Duration::from_secs(30);
    let thread = std::thread::spawn(move || {
        let mut copy = [0; 112];
        let mut answered = 0;
        while answered < LAST {
            while let Some(index) = back.take(&mut copy).unwrap() {
                assert_eq!(copy[..4], index.to_ne_bytes());
                back.put(&copy[..16]).unwrap();
                answered += 1;
            }
            if back.push().unwrap() {
                to_front.send(()).unwrap();
            }
            if answered < LAST && !back.final_check().unwrap() {
                back_wakes.recv_timeout(patience).expect("the backend waits for a notification");
            }
        }
    });
    let (mut sent, mut got, mut copy) = (0_u32, 0_u32, [0; 112]);
    let end = Instant::now() + patience;
    while got < LAST {
        assert!(Instant::now() < end, "{got} of {LAST} answers in 30 s");
        while sent < LAST && front.free() > 0 {
            copy[..4].copy_from_slice(&sent.to_ne_bytes());
            front.put(&copy).unwrap();
            sent += 1;
        }
        if front.push().unwrap() {
            // It may have ended, with all it was asked for answered.
            let _ = to_back.send(());
        }
        while front.take(&mut copy[..16]).unwrap() {
            assert_eq!(copy[..4], got.to_ne_bytes());
            got += 1;
        }
        if front.in_flight() > 0 && !front.final_check().unwrap() {
            front_wakes.recv_timeout(patience).expect("the frontend waits for a notification");
        }
    }
    thread.join().unwrap();
}

#[test]
fn xsa_155_a_frontend_that_forges_its_index_ends_its_ring_and_nothing_else() {
    for forged in [33, 1000, u32::MAX, 0x8000_0000] {
        let (_front, mut back, page) = ring(1, 112);
        page.page().store_u32(0, forged).unwrap();
        let wrong = Err(RingError::Index { own: 0, peer: forged, ahead_max: 32 });
        assert_eq!(back.take(&mut [0; 112]), wrong);
        assert_eq!(back.final_check(), wrong.map(|_| true));
    }
    // Going back behind what was taken is as impossible.
    let (mut front, mut back, page) = ring(1, 112);
    front.put(&[0; 112]).unwrap();
    front.push().unwrap();
    back.take(&mut [0; 112]).unwrap();
    page.page().store_u32(0, 0).unwrap();
    assert!(matches!(back.take(&mut [0; 112]), Err(RingError::Index { peer: 0, .. })));
}

#[test]
fn xsa_391_a_backend_answers_no_more_than_it_was_asked() {
    let (mut front, _back, page) = ring(1, 112);
    front.put(&[0; 112]).unwrap();
    front.push().unwrap();
    for forged in [2, 32, 33, u32::MAX] {
        page.page().store_u32(8, forged).unwrap();
        let wrong = RingError::Index { own: 0, peer: forged, ahead_max: 1 };
        assert_eq!(front.take(&mut [0; 16]), Err(wrong));
    }
    page.page().store_u32(8, 1).unwrap();
    assert_eq!(front.take(&mut [0; 16]), Ok(true));
}

#[test]
fn a_backend_goes_on_where_another_ended() {
    let host = Host::new();
    let offer = host.gnttab(GUEST).offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
    let grant = offer.grant();
    let mut dom0 = host.gnttab(DomId::DOM0);
    let mut map = || dom0.map(GUEST, grant, PageAccess::ReadWrite).unwrap();
    let mut front = FrontRing::new(vec![offer], 112).unwrap();
    let mut first = BackRing::new(vec![map()], 112).unwrap();
    let mut copy = [0; 112];
    for _ in 0..5 {
        front.put(&copy).unwrap();
    }
    front.push().unwrap();
    for _ in 0..3 {
        first.take(&mut copy).unwrap();
    }
    first.put(&copy).unwrap();
    first.push().unwrap();
    let at = first.position();
    assert_eq!(at, Position { req_cons: 3, rsp_prod: 1 });
    drop(first);
    let page = map();
    assert_eq!(BackRing::responses_in(page.page()), Ok(1));
    let mut second = BackRing::attach(vec![page], 112, at).unwrap();
    assert_eq!(second.unanswered(), 2);
    assert_eq!(second.take(&mut copy), Ok(Some(3)));
    let impossible = Position { req_cons: 40, rsp_prod: 1 };
    assert!(BackRing::attach(vec![map()], 112, impossible).is_err());
}
