//! Arithmetic of the indices of rings of requests, all of it, beside a model that counts in 64 bits and never wraps.
//!
//! Complete in this sense: rings have 1, 2, 4 and 8 entries. A backend is brought to every state that it can be in,
//! which is every number of requests that it has taken and not answered and of those that it knows of besides; each at
//! every start from two sizes and one before 0, 2^31 and 2^32 to two sizes and one behind, so at every place in the
//! ring, with every distance to where an index wraps or changes its sign. To each the peer says every index from two
//! sizes and two before the last answer to two sizes and two behind it, and the eight of [`FAR`]. Each test
//! says how many cases that is, and counts them. The frontend, whose start no peer decides, is tested in the same
//! way beside its code.

use loopback::Host;
use xen::DomId;
use xen::gnttab::{GrantMap, GrantOffer, Mapping, OfferedPage, PageAccess};
use xen::shared::SharedPage;
use xen_io::ring::{BackRing, Position, RingError, offset};

const GUEST: DomId = DomId(3);
/// Entries of the rings.
const COUNTS: [u64; 4] = [1, 2, 4, 8];
/// The first number that 32 bits do not hold.
const ALL: u64 = 1 << 32;
/// Distances that are far from any in the ring.
const FAR: [u64; 8] = [
    100,
    (1 << 31) - 1,
    1 << 31,
    (1 << 31) + 1,
    (1 << 31) + 8,
    ALL - (1 << 30),
    ALL - 1000,
    ALL - 100,
];

/// An index as the page has it.
fn low(index: u64) -> u32 {
    u32::try_from(index % ALL).unwrap()
}

/// The places at which a test begins to count: far enough above 0 that nothing below it is negative.
fn starts(count: u64) -> impl Iterator<Item = u64> {
    let around = move |at: u64| at - 2 * count - 1..=at + 2 * count + 1;
    [ALL, ALL + (1 << 31), 2 * ALL].into_iter().flat_map(around)
}

/// Distances that a peer's index may have, none of which is 2^32 or more.
fn distances(count: u64) -> impl Iterator<Item = u64> + Clone {
    let near = 2 * count + 2;
    (0..=near).chain(ALL - near..ALL).chain(FAR)
}

/// The numbers of those starts and distances.
fn numbers(count: u64) -> (u64, u64) {
    (3 * (4 * count + 3), 2 * (2 * count + 2) + 1 + 8)
}

/// Sums of a number for each size of ring.
fn of_all(cases: impl Fn(u64) -> u64) -> u64 {
    COUNTS.into_iter().map(cases).sum()
}

/// A page in which the first byte of each entry is its number.
struct NumberedPage {
    host: Host,
    offer: OfferedPage,
    entry_bytes: usize,
    count: u64,
}

impl NumberedPage {
    fn new(count: u64) -> Self {
        let host = Host::new();
        let offer = host.gnttab(GUEST).offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
        let entry_bytes = 4032 / usize::try_from(count).unwrap();
        let page = Self { host, offer, entry_bytes, count };
        page.number();
        page
    }

    fn page(&self) -> &SharedPage {
        self.offer.page()
    }

    fn at(&self, slot: u64) -> usize {
        offset::ENTRIES + usize::try_from(slot).unwrap() * self.entry_bytes
    }

    fn number(&self) {
        for slot in 0..self.count {
            self.page().copy_in(self.at(slot), &[u8::try_from(slot).unwrap()]).unwrap();
        }
    }

    /// The first byte of each entry.
    fn slots(&self) -> Vec<u8> {
        let mut byte = [0];
        let slots = 0..self.count;
        slots
            .map(|slot| {
                self.page().copy_out(self.at(slot), &mut byte).unwrap();
                byte[0]
            })
            .collect()
    }

    fn map(&self) -> Mapping {
        let mut dom0 = self.host.gnttab(DomId::DOM0);
        dom0.map(GUEST, self.offer.grant(), PageAccess::ReadWrite).unwrap()
    }

    /// A backend that has answered up to `start`, has taken `taken` behind it and knows of `known` more.
    fn back(&self, start: u64, taken: u64, known: u64) -> BackRing {
        let at = Position { req_cons: low(start + taken), rsp_prod: low(start) };
        let mut ring = BackRing::attach(vec![self.map()], self.entry_bytes, at).unwrap();
        assert_eq!(u64::from(ring.count()), self.count);
        if known > 0 {
            self.page().store_u32(offset::REQ_PROD, low(start + taken + known)).unwrap();
            assert_eq!(ring.final_check(), Ok(true));
        }
        ring
    }
}

/// Runs `case` with each state of a backend and each index of its peer: start, taken, known, distance of that index
/// from the start.
fn every_back(count: u64, mut case: impl FnMut(u64, u64, u64, u64)) {
    for start in starts(count) {
        for taken in 0..=count {
            for known in 0..=count - taken {
                for distance in distances(count) {
                    case(start, taken, known, distance);
                }
            }
        }
    }
}

/// The number of cases of [`every_back`]: as many as there are pairs of numbers whose sum is not above `count`, for each
/// start and distance.
fn number_of_every_back(count: u64) -> u64 {
    let (starts, distances) = numbers(count);
    starts * distances * (count + 1) * (count + 2) / 2
}

/// The model's answer to a look at the peer's index: how many requests there are behind the start.
fn looked(count: u64, start: u64, taken: u64, distance: u64) -> Result<u64, RingError> {
    if (taken..=count).contains(&distance) {
        return Ok(distance);
    }
    let ahead_max = u32::try_from(count).unwrap();
    Err(RingError::Index { own: low(start), peer: low(start + distance), ahead_max })
}

/// Takes until there is nothing or an index is refused, then answers all that was taken: 242,649 cases.
#[test]
fn a_backend_takes_and_answers_what_there_is() {
    let mut cases = 0;
    for count in COUNTS {
        let page = NumberedPage::new(count);
        every_back(count, |start, taken, known, distance| {
            cases += 1;
            page.number();
            let mut ring = page.back(start, taken, known);
            page.page().store_u32(offset::REQ_PROD, low(start + distance)).unwrap();
            // It looks again only once it has taken what it knows of.
            let found = looked(count, start, taken + known, distance);
            let last = found.unwrap_or(taken + known);
            let state = (count, start, taken, known, distance);
            let mut byte = [0xff];
            for index in start + taken..start + last {
                assert_eq!(ring.take(&mut byte), Ok(Some(low(index))), "{state:?}");
                assert_eq!(u64::from(byte[0]), index % count, "{state:?}");
            }
            assert_eq!(ring.take(&mut byte), found.map(|_| None), "{state:?}");
            let position = Position { req_cons: low(start + last), rsp_prod: low(start) };
            assert_eq!(ring.position(), position, "{state:?}");
            assert_eq!(u64::from(ring.unanswered()), last, "{state:?}");
            let mut slots: Vec<u8> = page.slots();
            for index in start..start + last {
                assert_eq!(ring.put(&[0x80]), Ok(low(index)), "{state:?}");
                slots[usize::try_from(index % count).unwrap()] = 0x80;
            }
            assert_eq!(ring.put(&[0x81]), Err(RingError::Full), "{state:?}");
            assert_eq!(page.slots(), slots, "{state:?}");
            assert_eq!(ring.unanswered(), 0, "{state:?}");
        });
    }
    assert_eq!(cases, of_all(number_of_every_back));
    assert_eq!(cases, 242_649);
}

/// Looks once more before it sleeps, and says for which request it is to be woken: 242,649 cases.
#[test]
fn a_backend_sleeps_only_where_there_is_nothing() {
    const UNTOUCHED: u32 = 0x1234_5678;
    let mut cases = 0;
    for count in COUNTS {
        let page = NumberedPage::new(count);
        every_back(count, |start, taken, known, distance| {
            cases += 1;
            let mut ring = page.back(start, taken, known);
            page.page().store_u32(offset::REQ_PROD, low(start + distance)).unwrap();
            page.page().store_u32(offset::REQ_EVENT, UNTOUCHED).unwrap();
            let found = looked(count, start, taken, distance);
            let there = if known > 0 { Ok(true) } else { found.map(|found| found > taken) };
            let state = (count, start, taken, known, distance);
            assert_eq!(ring.final_check(), there, "{state:?}");
            let event = if there == Ok(false) { low(start + taken + 1) } else { UNTOUCHED };
            assert_eq!(page.page().load_u32(offset::REQ_EVENT), Ok(event), "{state:?}");
        });
    }
    assert_eq!(cases, of_all(number_of_every_back));
    assert_eq!(cases, 242_649);
}

/// Goes on at a position, unless more answers are to come than there are entries: 7,428 cases.
#[test]
fn a_backend_goes_on_at_possible_positions_alone() {
    let mut cases = 0;
    for count in COUNTS {
        let page = NumberedPage::new(count);
        for start in starts(count) {
            for distance in distances(count) {
                cases += 1;
                let (rsp_prod, req_cons) = (low(start), low(start + distance));
                let at = Position { req_cons, rsp_prod };
                let ring = BackRing::attach(vec![page.map()], page.entry_bytes, at);
                let unanswered = ring.map(|ring| u64::from(ring.unanswered()));
                let ahead_max = u32::try_from(count).unwrap();
                let wrong = RingError::Index { own: rsp_prod, peer: req_cons, ahead_max };
                let right = if distance <= count { Ok(distance) } else { Err(wrong) };
                assert_eq!(unanswered, right, "{count} {start} {distance}");
            }
        }
    }
    assert_eq!(cases, of_all(|count| numbers(count).0 * numbers(count).1));
    assert_eq!(cases, 7_428);
}

/// Shows answers, of which there are `old` shown before and `new` in all: 242,649 cases.
///
/// The rule of `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`: the peer is notified where the answer for which it wants to be
/// is among those that are new.
#[test]
fn a_backend_notifies_for_the_answer_that_was_asked_for() {
    let mut cases = 0;
    for count in COUNTS {
        let page = NumberedPage::new(count);
        for start in starts(count) {
            for old in 0..=count {
                for new in old..=count {
                    for distance in distances(count) {
                        cases += 1;
                        let mut ring = page.back(start, count, 0);
                        let put = |ring: &mut BackRing, number: u64| {
                            for _ in 0..number {
                                ring.put(&[0]).unwrap();
                            }
                        };
                        put(&mut ring, old);
                        let _ = ring.push().unwrap();
                        put(&mut ring, new - old);
                        page.page().store_u32(offset::RSP_EVENT, low(start + distance)).unwrap();
                        let due = (old + 1..=new).contains(&distance);
                        let state = (count, start, old, new, distance);
                        assert_eq!(ring.push(), Ok(due), "{state:?}");
                        if new > 0 {
                            let shown = page.page().load_u32(offset::RSP_PROD);
                            assert_eq!(shown, Ok(low(start + new)), "{state:?}");
                        }
                        assert_eq!(ring.push(), Ok(false), "nothing is new: {state:?}");
                    }
                }
            }
        }
    }
    // As many pairs of `old` and `new` as of taken and known.
    assert_eq!(cases, of_all(number_of_every_back));
    assert_eq!(cases, 242_649);
}
