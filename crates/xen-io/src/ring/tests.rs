//! Arithmetic of a frontend's indices, all of it, beside a model that counts in 64 bits and never wraps. It is here as a
//! frontend begins at 0, and the indices of interest are 2^31 and 2^32 requests away.
//!
//! Complete in this sense: rings have 1, 2, 4 and 8 entries. A frontend is in every state that it can be in, which is
//! every number of requests that the backend was shown and has not answered, of those put besides, and of
//! responses that it knows of; each at every start from two sizes and one before 0, 2^31 and 2^32 to two sizes
//! and one behind, so at every place in the ring, with every distance to where an index wraps or changes its sign. To
//! each the peer says every index from two sizes and two before the last response taken to two sizes and two
//! behind it, and the eight of [`FAR`]. The backend is tested in the same way in `tests/suite/indices.rs`.

use super::{ENTRIES, FrontRing, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingError, RingPages};
use loopback::Host;
use xen::DomId;
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::shared::SharedPage;

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

/// The state of a frontend: it has taken all responses before `start`, and has put `put` requests from there on, of
/// which it has shown `shown`; it knows of `known` responses, all of them to requests that it has shown.
#[derive(Clone, Copy, Debug)]
struct FrontendState {
    count: u64,
    start: u64,
    put: u64,
    shown: u64,
    known: u64,
    /// The peer's index, from the start.
    distance: u64,
}

/// A ring whose indices can be set, and a view of its page.
struct IndexedRing {
    front: FrontRing,
    page: SharedPage,
    count: u64,
}

impl IndexedRing {
    fn new(count: u64) -> Self {
        let host = Host::new();
        let offer = host.gnttab(GUEST).offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
        let mut dom0 = host.gnttab(DomId::DOM0);
        let page = dom0.map(GUEST, offer.grant(), PageAccess::ReadWrite).unwrap().into_page();
        let entry_bytes = 4032 / usize::try_from(count).unwrap();
        let front = FrontRing::new(vec![offer], entry_bytes).unwrap();
        assert_eq!(u64::from(front.count()), count);
        Self { front, page, count }
    }

    fn set(&mut self, state: &FrontendState) {
        let FrontendState { start, put, shown, known, .. } = *state;
        self.front.req_prod = low(start + put);
        self.front.pushed = low(start + shown);
        self.front.rsp_cons = low(start);
        self.front.rsp_prod = low(start + known);
    }

    /// Offset of the entry of an index.
    fn entry(shared: &RingPages<xen::gnttab::OfferedPage>, index: u64) -> usize {
        ENTRIES + usize::try_from(index % u64::from(shared.count)).unwrap() * shared.entry_bytes
    }

    /// Writes the number of each entry into its first byte.
    fn number(&self) {
        for slot in 0..self.count {
            let at = Self::entry(&self.front.shared, slot);
            self.page.copy_in(at, &[u8::try_from(slot).unwrap()]).unwrap();
        }
    }

    fn first_byte(&self, index: u64) -> u8 {
        let mut byte = [0];
        self.page.copy_out(Self::entry(&self.front.shared, index), &mut byte).unwrap();
        byte[0]
    }
}

/// Runs `case` with each state and each index of the peer; how many those are.
fn every(mut case: impl FnMut(&mut IndexedRing, FrontendState)) -> u64 {
    let mut cases = 0;
    for count in COUNTS {
        let mut ring = IndexedRing::new(count);
        let near = 2 * count + 2;
        let around = |at: u64| at + 1 - near..at + near;
        for start in [ALL, ALL + (1 << 31), 2 * ALL].into_iter().flat_map(around) {
            for put in 0..=count {
                for shown in 0..=put {
                    for known in 0..=shown {
                        for distance in (0..=near).chain(ALL - near..ALL).chain(FAR) {
                            cases += 1;
                            let state = FrontendState { count, start, put, shown, known, distance };
                            ring.set(&state);
                            case(&mut ring, state);
                        }
                    }
                }
            }
        }
    }
    cases
}

/// The view of the model of the peer's index, when `taken` have been taken: how many responses there are from the
/// start on.
fn looked(state: &FrontendState, taken: u64) -> Result<u64, RingError> {
    let FrontendState { start, shown, distance, .. } = *state;
    if (taken..=shown).contains(&distance) {
        return Ok(distance);
    }
    let ahead_max = u32::try_from(shown - taken).unwrap();
    Err(RingError::Index { own: low(start + taken), peer: low(start + distance), ahead_max })
}

/// Takes until there is nothing or an index is refused, then fills the ring: 845,838 cases.
#[test]
#[cfg_attr(miri, ignore = "takes long, and is about numbers")]
fn a_frontend_takes_what_there_is_and_puts_what_fits() {
    let cases = every(|ring, state| {
        let FrontendState { count, start, put, known, distance, .. } = state;
        ring.number();
        ring.page.store_u32(RSP_PROD, low(start + distance)).unwrap();
        assert_eq!(u64::from(ring.front.in_flight()), put, "{state:?}");
        assert_eq!(u64::from(ring.front.free()), count - put, "{state:?}");
        // It looks again only once it has taken what it knows of.
        let found = looked(&state, known);
        let last = found.unwrap_or(known);
        let mut byte = [0xff];
        for index in start..start + last {
            assert_eq!(ring.front.take(&mut byte), Ok(true), "{state:?}");
            assert_eq!(u64::from(byte[0]), index % count, "{state:?}");
        }
        assert_eq!(ring.front.take(&mut byte), found.map(|_| false), "{state:?}");
        assert_eq!(u64::from(ring.front.in_flight()), put - last, "{state:?}");
        ring.number();
        for index in start + put..start + last + count {
            assert_eq!(u64::from(ring.front.free()), start + last + count - index, "{state:?}");
            assert_eq!(u64::from(ring.first_byte(index)), index % count, "{state:?}");
            assert_eq!(ring.front.put(&[0x80]), Ok(()), "{state:?}");
            assert_eq!(ring.first_byte(index), 0x80, "{state:?}");
        }
        assert_eq!(ring.front.put(&[0x81]), Err(RingError::Full), "{state:?}");
        for index in start + last..start + put {
            assert_eq!(u64::from(ring.first_byte(index)), index % count, "{state:?}");
        }
    });
    assert_eq!(cases, 845_838);
}

/// Looks once more before it sleeps, and says for which response it is to be woken: 845,838 cases.
#[test]
#[cfg_attr(miri, ignore = "takes long, and is about numbers")]
fn a_frontend_sleeps_only_where_there_is_nothing() {
    const UNTOUCHED: u32 = 0x1234_5678;
    let cases = every(|ring, state| {
        ring.page.store_u32(RSP_PROD, low(state.start + state.distance)).unwrap();
        ring.page.store_u32(RSP_EVENT, UNTOUCHED).unwrap();
        let found = looked(&state, 0).map(|found| found > 0);
        let there = if state.known > 0 { Ok(true) } else { found };
        assert_eq!(ring.front.final_check(), there, "{state:?}");
        let event = if there == Ok(false) { low(state.start + 1) } else { UNTOUCHED };
        assert_eq!(ring.page.load_u32(RSP_EVENT), Ok(event), "{state:?}");
    });
    assert_eq!(cases, 845_838);
}

/// Shows requests: 845,838 cases.
///
/// The rule of `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`: the peer is notified where the request for which it wants to be is
/// among those that are new.
#[test]
#[cfg_attr(miri, ignore = "takes long, and is about numbers")]
fn a_frontend_notifies_for_the_request_that_was_asked_for() {
    let cases = every(|ring, state| {
        let FrontendState { start, put, shown, distance, .. } = state;
        ring.page.store_u32(REQ_PROD, low(start + shown)).unwrap();
        ring.page.store_u32(REQ_EVENT, low(start + distance)).unwrap();
        let due = (shown + 1..=put).contains(&distance);
        assert_eq!(ring.front.push(), Ok(due), "{state:?}");
        assert_eq!(ring.page.load_u32(REQ_PROD), Ok(low(start + put)), "{state:?}");
        assert_eq!(ring.front.push(), Ok(false), "nothing is new: {state:?}");
    });
    assert_eq!(cases, 845_838);
}
