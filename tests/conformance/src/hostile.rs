//! Attacks of a hostile guest on its ring, after XSA-38 and its kind: on every host, without Xen
//! and on Xen, the only effect must be that this guest is no longer served.
//!
//! Each case checks the same promise: the daemon writes the reason to the guest's page, if it knows
//! the error word; it does not count the guest as dead; it serves others; and once the guest is
//! introduced again, it serves that guest.

use crate::daemon::DaemonKind;
use crate::host::Host;
use crate::peer::{Peer, ReceiveFailure};
use crate::ring::{CONNECTION, GUEST_INDICES, RING_SIZE};
use std::time::{Duration, Instant};
use xenstore_core::wire::{Header, MsgType};

/// The longest time until the daemon must react.
const SOON: Duration = Duration::from_secs(5);
/// `XENSTORE_SERVER_FEATURE_RECONNECTION` and `_ERROR`.
const FEATURES: u32 = 1 | 2;
/// The time for which a guest that must not be answered waits.
const A_WHILE: Duration = Duration::from_millis(100);
const RING_INDEX: u32 = 2;
const PROTOCOL: u32 = 3;

/// A case: its name, the daemons that promise it, and its actions.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// The advisory, and the action of the guest.
    pub name: &'static str,
    /// The daemons that it runs against.
    pub on: &'static [DaemonKind],
    run: fn(&mut AttackScene<'_>),
}

const C_AND_OURS: &[DaemonKind] = &[DaemonKind::C, DaemonKind::Ours];
const OURS: &[DaemonKind] = &[DaemonKind::Ours];

/// All cases.
pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "xsa_038_producer_beyond_the_ring",
        on: C_AND_OURS,
        run: producer_beyond_the_ring,
    },
    Attack {
        name: "xsa_038_producer_runs_backwards",
        on: C_AND_OURS,
        run: producer_runs_backwards,
    },
    Attack {
        name: "xsa_038_consumer_of_responses_out_of_range",
        on: C_AND_OURS,
        run: consumer_of_responses_out_of_range,
    },
    Attack {
        name: "xsa_038_message_longer_than_allowed",
        on: C_AND_OURS,
        run: message_longer_than_allowed,
    },
    Attack {
        name: "xsa_038_reset_while_a_request_is_half_read",
        on: OURS,
        run: reset_while_a_request_is_half_read,
    },
    Attack {
        name: "xsa_038_introduced_again_while_a_request_is_half_read",
        // The C daemon keeps the half that it has read, and waits for the rest.
        on: OURS,
        run: introduced_again_while_a_request_is_half_read,
    },
    Attack {
        name: "xsa_038_header_that_changes_under_the_reader",
        on: C_AND_OURS,
        run: header_that_changes_under_the_reader,
    },
    Attack {
        name: "xsa_038_indices_that_change_under_the_reader",
        on: C_AND_OURS,
        run: indices_that_change_under_the_reader,
    },
    Attack {
        name: "xsa_038_events_without_end_and_without_bytes",
        on: C_AND_OURS,
        run: events_without_end_and_without_bytes,
    },
];

/// The attacker, a guest beside it, and domain 0.
struct AttackScene<'a> {
    host: &'a mut dyn Host,
    dom0: Peer,
    /// A second connection of domain 0, which watches for deaths. C's daemon gets none: if it has
    /// one connection more, a response that cannot be delivered ends it (`conn->in == NULL`).
    death_watch: Option<Peer>,
    guest: Peer,
    other: Peer,
}

const GUEST: u16 = 7;
const OTHER: u16 = 8;

/// Runs an attack, and checks the daemon's promises after it.
///
/// # Panics
/// If the daemon does not keep a promise.
pub fn attack(host: &mut dyn Host, attack: &Attack) {
    let dom0 = host.connect();
    let death_watch = (host.kind() == DaemonKind::Ours).then(|| host.connect());
    let (guest, other) = (host.guest(GUEST), host.guest(OTHER));
    let mut world = AttackScene { host, dom0, death_watch, guest, other };
    world.introduce();
    world.home(OTHER);
    if let Some(death_watch) = &mut world.death_watch {
        death_watch.expect_ok("WATCH", "@releaseDomain|death|");
    }
    world.deaths();
    (attack.run)(&mut world);
    world.others_are_served();
    world.served_again();
}

impl AttackScene<'_> {
    fn introduce(&mut self) {
        self.home(GUEST);
        self.guest.forget();
        self.guest.ring().adopt_indices().expect("the page");
        self.guest.expect_ok("WRITE", "x|v");
        if self.host.kind() == DaemonKind::Ours {
            let features = self.guest.ring().features().expect("the page");
            assert_eq!(features & FEATURES, FEATURES, "ring error and reconnection are advertised");
        }
    }

    /// Returns the number of times that `@releaseDomain` has fired since the last call, if it is
    /// watched.
    fn deaths(&mut self) -> Option<usize> {
        let events = self.death_watch.as_mut()?.events();
        Some(events.expect("domain 0's second connection").len())
    }

    fn home(&mut self, domid: u16) {
        self.dom0.expect_ok("INTRODUCE", self.host.introduction(domid));
        self.dom0.expect_ok("MKDIR", format!("/local/domain/{domid}|"));
        self.dom0.expect_ok("SET_PERMS", format!("/local/domain/{domid}|n{domid}|"));
    }

    fn others_are_served(&mut self) {
        assert_eq!(self.host.ended(), None, "the daemon is gone");
        self.dom0.expect_ok("WRITE", "/local/domain/7/x|w");
        self.other.expect_ok("WRITE", "y|v");
        let introduced = self.dom0.ask("IS_DOMAIN_INTRODUCED", "7|");
        assert_eq!(introduced, "T|", "the guest is taken for dead");
        assert!(
            self.deaths().is_none_or(|fired| fired == 0),
            "@releaseDomain, and nobody has died"
        );
    }

    /// Checks that the guest is served as before, once it is released and introduced again with a
    /// cleared page.
    fn served_again(&mut self) {
        self.dom0.expect_ok("RELEASE", "7|");
        assert!(self.deaths().is_none_or(|fired| fired > 0), "RELEASE fires no @releaseDomain");
        self.guest = self.host.guest(GUEST);
        self.introduce();
        assert_eq!(self.guest.ask("READ", "x|"), "v");
    }

    /// Lets the guest break its ring once for each of `ways`, and checks the error word in its page
    /// each time.
    fn each_is_told<T: Copy + std::fmt::Debug>(
        &mut self,
        ways: &[T],
        word: u32,
        mut broken: impl FnMut(&mut Peer, T),
    ) {
        for way in ways {
            broken(&mut self.guest, *way);
            let end = Instant::now() + SOON;
            while self.guest.ring().error().expect("the page") != word {
                assert!(Instant::now() < end, "{way:x?}: the error word does not become {word}");
                let _ = self.guest.ring().wait(Instant::now() + A_WHILE);
            }
            self.others_are_served();
            self.served_again();
        }
    }
}

/// Returns `req_prod` and `rsp_cons` of an idle ring: the indices of requests are equal, those of
/// responses are equal.
fn rest(guest: &mut Peer) -> (u32, u32) {
    let [_, req_prod, rsp_cons, _] = guest.ring().indices().expect("the page");
    (req_prod, rsp_cons)
}

fn set(guest: &mut Peer, req_prod: u32, rsp_cons: u32) {
    guest.ring().set_indices(req_prod, rsp_cons).expect("the page");
    guest.ring().notify().expect("the event channel");
}

fn header(kind: u32, len: u32) -> [u8; 16] {
    Header { kind, req_id: 1, tx_id: 0, len }.to_bytes()
}

fn producer_beyond_the_ring(world: &mut AttackScene<'_>) {
    let ways = [RING_SIZE + 1, 2000, 4096, 0x7fff_ffff, 0x8000_0000];
    world.each_is_told(&ways, RING_INDEX, |guest, further| {
        let (req_prod, rsp_cons) = rest(guest);
        set(guest, req_prod.wrapping_add(further), rsp_cons);
    });
}

fn producer_runs_backwards(world: &mut AttackScene<'_>) {
    world.each_is_told(&[1, 16, 1024, 0x1000_0000], RING_INDEX, |guest, back| {
        let (req_prod, rsp_cons) = rest(guest);
        set(guest, req_prod.wrapping_sub(back), rsp_cons);
    });
}

/// The fault shows when there is a response: the guest asks for one in the same moment.
fn consumer_of_responses_out_of_range(world: &mut AttackScene<'_>) {
    world.each_is_told(&[1, 1024, 5000, 0x8000_0000, u32::MAX - 2000], RING_INDEX, |guest, by| {
        let (req_prod, rsp_cons) = rest(guest);
        let request = [header(MsgType::Read.code(), 2), [0; 16]].concat();
        let request = request.get(..18).unwrap_or_default();
        for (at, byte) in request.iter().enumerate() {
            let at = req_prod.wrapping_add(u32::try_from(at).unwrap_or(0)) % RING_SIZE;
            guest.ring().write(u64::from(at), &[*byte]).expect("the page");
        }
        set(guest, req_prod.wrapping_add(18), rsp_cons.wrapping_add(by));
    });
}

fn message_longer_than_allowed(world: &mut AttackScene<'_>) {
    let lengths = [4097, 65_536, 0x7fff_ffff, 0x8000_0000, u32::MAX - 15, u32::MAX];
    world.each_is_told(&lengths, PROTOCOL, |guest, len| {
        guest.send(&header(MsgType::Read.code(), len)).expect("the ring takes a header");
    });
}

/// The guest requests the reset after each part of a request that the daemon can have read.
fn reset_while_a_request_is_half_read(world: &mut AttackScene<'_>) {
    let request = [header(MsgType::Read.code(), 2).as_slice(), b"x\0"].concat();
    for read in 1..request.len() {
        let guest = &mut world.guest;
        guest.send(request.get(..read).unwrap_or_default()).expect("a part of a request");
        guest.ring().reconnect(SOON).expect("the connection word back at 0");
        guest.forget();
        assert_eq!(guest.ask("READ", "x|"), "v", "after {read} bytes");
    }
    // The reset is requested and withdrawn, over and over.
    let (one, zero) = (1_u32.to_ne_bytes(), 0_u32.to_ne_bytes());
    world.guest.ring().flip(CONNECTION, &one, &zero, 100).expect("the page");
}

fn introduced_again_while_a_request_is_half_read(world: &mut AttackScene<'_>) {
    let request = [header(MsgType::Read.code(), 2).as_slice(), b"x\0"].concat();
    for read in [1, 15, 16, 17] {
        world.guest.send(request.get(..read).unwrap_or_default()).expect("a part of a request");
        // A guest on Xen puts the bytes on a command. Its next answer shows that it has put them.
        rest(&mut world.guest);
        world.dom0.expect_ok("INTRODUCE", world.host.introduction(GUEST));
        world.guest.forget();
        world.guest.ring().adopt_indices().expect("the page");
        assert_eq!(world.guest.ask("READ", "x|"), "v", "after {read} bytes");
    }
}

/// The header's length changes between 2 and far too long. The daemon must read it once, and either
/// answer or report that it is too long. Which of the two happens is chance; both must have
/// happened.
fn header_that_changes_under_the_reader(world: &mut AttackScene<'_>) {
    const ROUNDS_MAX: usize = 40;
    let (mut answered, mut told) = (0, 0);
    for round in 0..ROUNDS_MAX {
        let start = aligned_rest(&mut world.guest);
        let (_, rsp_cons) = rest(&mut world.guest);
        let good = header(MsgType::Read.code(), 2);
        let long = header(MsgType::Read.code(), u32::MAX);
        // A fast reader sees the first, a slow one the last.
        let (first, last) = if round % 2 == 0 { (good, long) } else { (long, good) };
        let ring = world.guest.ring();
        ring.write(u64::from(start % RING_SIZE), &[first.as_slice(), b"x\0"].concat())
            .expect("the page");
        ring.set_indices(start.wrapping_add(18), rsp_cons).expect("the page");
        ring.flip(u64::from(start % RING_SIZE), &first, &last, 100).expect("the page");
        if is_answered(&mut world.guest) {
            answered += 1;
        } else {
            told += 1;
        }
        world.others_are_served();
        world.served_again();
        if answered > 0 && told > 0 && round >= 3 {
            return;
        }
    }
    panic!("{answered} times answered, {told} times told: the header did not change in time");
}

/// Returns the index of the next request, once that is a multiple of 4 with room for it before the
/// ring's end.
fn aligned_rest(guest: &mut Peer) -> u32 {
    loop {
        let (req_prod, _) = rest(guest);
        let at = req_prod % RING_SIZE;
        if at.is_multiple_of(4) && at + 18 <= RING_SIZE {
            return req_prod;
        }
        // A header has 16 bytes, so the path, with its NUL, fills up the difference.
        let path = "n".repeat(3 + (4 - at as usize % 4) % 4);
        assert_eq!(guest.ask("READ", format!("{path}|")), "ENOENT");
    }
}

/// True if the request is answered; false if the error word says that the message is too long.
fn is_answered(guest: &mut Peer) -> bool {
    let end = Instant::now() + SOON;
    loop {
        match guest.reply(Instant::now() + A_WHILE) {
            Ok(reply) => {
                assert_eq!(reply.payload, b"v", "the answer to READ");
                return true;
            }
            Err(_) if guest.ring().error().expect("the page") == PROTOCOL => return false,
            Err(lost) => assert!(Instant::now() < end, "neither answered nor told: {lost:?}"),
        }
    }
}

/// The guest's two indices change between right and impossible values.
fn indices_that_change_under_the_reader(world: &mut AttackScene<'_>) {
    for by in [1, 1024, 1025, 0x8000_0000] {
        let (req_prod, rsp_cons) = rest(&mut world.guest);
        let right = [req_prod.to_ne_bytes(), rsp_cons.to_ne_bytes()].concat();
        let wrong =
            [req_prod.wrapping_add(by).to_ne_bytes(), rsp_cons.wrapping_sub(by).to_ne_bytes()]
                .concat();
        world.guest.ring().flip(GUEST_INDICES, &right, &wrong, 200).expect("the page");
        world.others_are_served();
        world.served_again();
    }
}

/// The guest signals without a request: the daemon must go on serving the others.
fn events_without_end_and_without_bytes(world: &mut AttackScene<'_>) {
    let nothing = 0_u32.to_ne_bytes();
    world.guest.ring().flip(CONNECTION, &nothing, &nothing, 1000).expect("the page");
    assert_eq!(world.guest.reply(Instant::now() + A_WHILE), Err(ReceiveFailure::Silent));
    assert_eq!(world.guest.ask("READ", "x|"), "v");
}
