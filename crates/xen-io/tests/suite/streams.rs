//! Arithmetic of the indices of the store's ring, all of it, beside a model that counts in 64 bits, byte by byte.
//!
//! Complete in this sense: the ring has one size, 1024 bytes. Each of the four directions (the store reads and writes, a
//! guest reads and writes) is tried with each of the 1024 consumer indices below 2^32, so with every place in the
//! ring and every distance to where the index wraps, and with every distance of the producer's index from 0 to
//! 1024. The same with every consumer index below 2^31 and from 0 on, where the distances are those within 2
//! of 0, 512 and 1024, and every 37th. Distances of 1025 to 1088, of 1 to 64 backwards, and the six of [`FAR`] are
//! refused, at each of the 3072 consumer indices. Each test says how many cases that is, and counts them.
//! Pieces shorter than what there is, or longer, are a test of their own.
//!
//! An end that has moved a byte notifies, and no other does (`xs_wire.h`): so each case compares the number of bytes moved.

use loopback::Host;
use xen::DomId;
use xen::gnttab::{GrantMap, GrantOffer, OfferedPage, PageAccess};
use xen::shared::SharedPage;
use xen_io::xs_ring::{ClientRing, RingError, ServerRing, offset};

const GUEST: DomId = DomId(3);
/// Bytes of a stream.
const SIZE: u64 = 1024;
/// The first number that 32 bits do not hold.
const ALL: u64 = 1 << 32;
/// Distances that are far from any in the ring.
const FAR: [u64; 6] =
    [2048, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 31) + 1024, ALL - (1 << 30)];

/// An index as the page has it.
fn low(index: u64) -> u32 {
    u32::try_from(index % ALL).unwrap()
}

fn place(index: u64) -> usize {
    usize::try_from(index % SIZE).unwrap()
}

/// One of the two streams, and a view of it.
struct StreamView {
    page: SharedPage,
    data: usize,
    cons: usize,
    prod: usize,
}

impl StreamView {
    fn set(&self, cons: u64, prod: u64) {
        self.page.store_u32(self.cons, low(cons)).unwrap();
        self.page.store_u32(self.prod, low(prod)).unwrap();
    }

    fn indices(&self) -> (u32, u32) {
        (self.page.load_u32(self.cons).unwrap(), self.page.load_u32(self.prod).unwrap())
    }

    fn bytes(&self) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        self.page.copy_out(self.data, &mut bytes).unwrap();
        bytes
    }
}

/// Both ends of a ring, and its streams.
struct StreamRing {
    _offer: OfferedPage,
    server: ServerRing,
    front: ClientRing,
    requests: StreamView,
    responses: StreamView,
}

/// The operation under test: a read or a write of a stream.
type Read<'a> = &'a dyn Fn(&mut [u8]) -> Result<usize, RingError>;
type Write<'a> = &'a dyn Fn(&[u8]) -> Result<usize, RingError>;

impl StreamRing {
    fn new() -> Self {
        let host = Host::new();
        let offer = host.gnttab(GUEST).offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
        let mut dom0 = host.gnttab(DomId::DOM0);
        let mut view =
            || dom0.map(GUEST, offer.grant(), PageAccess::ReadWrite).unwrap().into_page();
        let (cons, prod) = (offset::REQ_CONS, offset::REQ_PROD);
        let requests = StreamView { page: view(), data: offset::REQ, cons, prod };
        let (cons, prod) = (offset::RSP_CONS, offset::RSP_PROD);
        let responses = StreamView { page: view(), data: offset::RSP, cons, prod };
        let (server, front) = (ServerRing::new(view()), ClientRing::new(view()));
        Self { _offer: offer, server, front, requests, responses }
    }

    /// Both readers, each with its stream.
    fn readers(&self, mut test: impl FnMut(&StreamView, Read<'_>)) {
        test(&self.requests, &|into| self.server.read(into));
        test(&self.responses, &|into| self.front.read(into));
    }

    /// Both writers, each with its stream.
    fn writers(&self, mut test: impl FnMut(&StreamView, Write<'_>)) {
        test(&self.responses, &|from| self.server.write(from));
        test(&self.requests, &|from| self.front.write(from));
    }
}

/// Each consumer index with each legal distance; how many those are.
fn every(mut case: impl FnMut(u64, u64)) -> u64 {
    let mut cases = 0;
    let few = |used: &u64| {
        used.is_multiple_of(37) || [0, 512, 1024].iter().any(|at| used.abs_diff(*at) <= 2)
    };
    for (first, all) in [(ALL - SIZE, true), (ALL + (1 << 31) - SIZE, false), (ALL, false)] {
        for cons in first..first + SIZE {
            for used in (0..=SIZE).filter(|used| all || few(used)) {
                cases += 1;
                case(cons, used);
            }
        }
    }
    cases
}

/// Bytes that tell their place, and number from `seed` on.
fn pattern(seed: u64) -> [u8; 1024] {
    std::array::from_fn(|at| ((seed + at as u64).wrapping_mul(0x9e37_79b9) >> 16) as u8)
}

/// All that there is arrives, in order: 2,254,848 cases.
#[test]
fn what_there_is_is_read() {
    let ring = StreamRing::new();
    let mut cases = 0;
    ring.readers(|stream, read| {
        let data = pattern(0);
        stream.page.copy_in(stream.data, &data).unwrap();
        let mut into = [0; 1100];
        cases += every(|cons, used| {
            stream.set(cons, cons + used);
            assert_eq!(read(&mut into), Ok(usize::try_from(used).unwrap()), "{cons} {used}");
            for (index, byte) in (cons..cons + used).zip(&into) {
                assert_eq!(*byte, data[place(index)], "byte {index} of {cons} {used}");
            }
            assert_eq!(stream.indices(), (low(cons + used), low(cons + used)));
        });
        assert_eq!(stream.bytes(), data, "a reader writes nothing");
    });
    assert_eq!(cases, 2_254_848);
}

/// Bytes that fit are written, and nothing else changes: 2,254,848 cases.
#[test]
fn what_fits_is_written() {
    let ring = StreamRing::new();
    let mut cases = 0;
    ring.writers(|stream, write| {
        let mut data = stream.bytes();
        let froms = [pattern(1 << 20), pattern(1 << 40)].map(|one| [one, one].concat());
        cases += every(|cons, used| {
            // Other bytes each time.
            let from = &froms[usize::try_from(used % 2).unwrap()][..1100];
            let free = SIZE - used;
            stream.set(cons, cons + used);
            assert_eq!(write(from), Ok(usize::try_from(free).unwrap()), "{cons} {used}");
            for (index, byte) in (cons + used..cons + SIZE).zip(from) {
                data[place(index)] = *byte;
            }
            assert_eq!(stream.indices(), (low(cons), low(cons + SIZE)), "{cons} {used}");
            assert!(stream.bytes() == data, "{cons} {used}");
        });
    });
    assert_eq!(cases, 2_254_848);
}

/// Pieces of every length around what there is: 3,170,304 cases.
#[test]
fn a_piece_is_as_long_as_it_may_be() {
    let ring = StreamRing::new();
    let mut cases = 0;
    let lengths = |most: u64| {
        [0, 1, most.saturating_sub(1), most, most + 1, 1100]
            .map(|len| usize::try_from(len).unwrap())
    };
    let expected = |most: u64, len: usize| most.min(len as u64);
    let wraps =
        (ALL - SIZE..ALL).flat_map(|cons| (0..=SIZE).step_by(8).map(move |used| (cons, used)));
    ring.readers(|stream, read| {
        let mut into = [0; 1100];
        for (cons, used) in wraps.clone() {
            for len in lengths(used) {
                cases += 1;
                stream.set(cons, cons + used);
                let moved = expected(used, len);
                assert_eq!(read(&mut into[..len]).map(|count| count as u64), Ok(moved));
                assert_eq!(stream.indices(), (low(cons + moved), low(cons + used)));
            }
        }
    });
    ring.writers(|stream, write| {
        let from = [1; 1100];
        for (cons, used) in wraps.clone() {
            for len in lengths(SIZE - used) {
                cases += 1;
                stream.set(cons, cons + used);
                let moved = expected(SIZE - used, len);
                assert_eq!(write(&from[..len]).map(|count| count as u64), Ok(moved));
                assert_eq!(stream.indices(), (low(cons), low(cons + used + moved)));
            }
        }
    });
    assert_eq!(cases, 4 * 1024 * 129 * 6);
}

/// Indices that cannot be are refused, in each direction, and nothing moves: 1,646,592 cases.
#[test]
fn impossible_indices_are_refused() {
    let ring = StreamRing::new();
    let mut cases = 0;
    let starts = [ALL - SIZE, ALL + (1 << 31) - SIZE, ALL];
    let starts = starts.into_iter().flat_map(|first| first..first + SIZE);
    let wrong = (SIZE + 1..=SIZE + 64).chain(ALL - 64..ALL).chain(FAR);
    let mut refused = |stream: &StreamView, ask: &mut dyn FnMut() -> Result<usize, RingError>| {
        let before = stream.bytes();
        for cons in starts.clone() {
            for distance in wrong.clone() {
                cases += 1;
                let prod = cons + distance;
                stream.set(cons, prod);
                let error = RingError::Index { cons: low(cons), prod: low(prod) };
                assert_eq!(ask(), Err(error), "{cons} {distance}");
                assert_eq!(stream.indices(), (low(cons), low(prod)));
            }
        }
        assert_eq!(stream.bytes(), before);
    };
    ring.readers(|stream, read| refused(stream, &mut || read(&mut [0; 8])));
    ring.writers(|stream, write| refused(stream, &mut || write(&[1; 8])));
    assert_eq!(cases, 1_646_592);
}
