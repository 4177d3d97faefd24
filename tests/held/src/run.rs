//! Runs one program against one store.

use crate::allocator::{held, within_store};
use crate::program::{GUEST, PathPattern, PathRequest, ProgramStep, SLOTS, SearchProgram};
use crate::{ALLOWED_BYTES, ALLOWED_RATIO};
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::time::Duration;
use xenstore_core::quota::Quota;
use xenstore_core::server::{AttachRequest, Config, ConnId, DomId, Notice, Server, StoreHost};
use xenstore_core::wire::{Error, Header, MsgType};

/// The number of steps after which a program is cut off, because a search runs many.
const STEPS_MAX: usize = 40_000;
/// The time that the clock advances with each step, in microseconds.
const STEP_US: u64 = 5;

/// The bytes that the store held and charged at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    /// Bytes that the store held for the guest.
    pub held: i64,
    /// Bytes that the store charged the guest for: its use of `memory`, and its unread output.
    pub charged: i64,
    /// The number of steps before that moment.
    pub steps: usize,
    /// The longest time that one call of the program has taken in the store until then, in the
    /// thread's processor time.
    pub longest: Duration,
}

impl Measure {
    /// Returns the bytes held as a share of those that may be held, in thousandths.
    #[must_use]
    pub fn permille(&self) -> i64 {
        self.held * 1000 / (self.charged * ALLOWED_RATIO + ALLOWED_BYTES)
    }

    /// True if no more is held than may be.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.held <= self.charged * ALLOWED_RATIO + ALLOWED_BYTES
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { held, charged, steps, longest } = self;
        let allowed = charged * ALLOWED_RATIO + ALLOWED_BYTES;
        write!(
            f,
            "{held} bytes held, {charged} charged, {allowed} allowed, after {steps} steps; the longest took {longest:?}"
        )
    }
}

/// Runs a program. Returns the measure at the moment when the store held the largest share of what
/// it may.
#[must_use]
pub fn run(program: &SearchProgram) -> Measure {
    let mut machine = ProgramRun::new();
    machine.measure();
    let mut steps = 0;
    for part in &program.0 {
        for round in 0..usize::from(part.count) {
            for step in &part.body {
                steps += 1;
                if steps > STEPS_MAX || !machine.step(step, round) {
                    return machine.worst;
                }
                machine.steps = steps;
                machine.measure();
            }
        }
    }
    machine.worst
}

/// A hypervisor with domain 0 and the guest.
struct SearchHypervisor;

impl StoreHost for SearchHypervisor {
    fn domain_identity(&mut self, domid: DomId) -> Option<u64> {
        [0, GUEST].contains(&domid.0).then_some(1)
    }
    fn attach(&mut self, _at: AttachRequest) -> Result<(), Error> {
        Ok(())
    }
    fn reattach(&mut self, _at: AttachRequest) -> Result<(), Error> {
        Ok(())
    }
    fn detach(&mut self, _domid: DomId, _conn: ConnId) {}
    fn control(&mut self, _command: &[u8], _args: &[&[u8]]) -> Option<Result<Vec<u8>, Error>> {
        None
    }
}

struct ProgramRun {
    server: Server,
    dom0: ConnId,
    guest: ConnId,
    now: u64,
    /// The numbers of the guest's open transactions, as far as it remembers them.
    slots: [u32; SLOTS],
    /// The number of its next transaction.
    next: u32,
    /// Domain 0's transaction that has the turn.
    holder: Option<u32>,
    /// Bytes that were held before the guest did anything.
    before: i64,
    steps: usize,
    worst: Measure,
    longest: Duration,
}

/// Returns the processor time that this thread has used.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

impl ProgramRun {
    fn new() -> Self {
        let (server, dom0, guest) = within_store(|| {
            let mut server = Server::new(Config::default());
            let dom0 = server.connect_socket();
            let guest = server.introduce(DomId(GUEST), 0, 1, 0, &mut SearchHypervisor);
            (server, dom0, guest.expect("the hypervisor lets it in"))
        });
        let mut machine = Self {
            server,
            dom0,
            guest,
            now: 0,
            slots: [0; SLOTS],
            next: 1,
            holder: None,
            before: 0,
            steps: 0,
            worst: Measure::default(),
            longest: Duration::ZERO,
        };
        let home = format!("/local/domain/{GUEST}");
        for (kind, payload) in [
            (MsgType::Write, format!("{home}\0")),
            (MsgType::SetPerms, format!("{home}\0n{GUEST}\0")),
            (MsgType::Write, "/public\0some value".to_owned()),
            (MsgType::SetPerms, "/public\0r0\0".to_owned()),
            (MsgType::Write, "/hot\x000".to_owned()),
        ] {
            machine.dom0(kind, 0, payload.as_bytes());
        }
        machine.before = held();
        machine
    }

    fn measure(&mut self) {
        let usage = self.server.usage(DomId(GUEST)).map_or(0, |usage| usage.now(Quota::Memory));
        let unread = i64::try_from(self.server.unread(self.guest)).unwrap_or(i64::MAX);
        let (held, charged) = (held() - self.before, usage + unread);
        let (steps, longest) = (self.steps, self.longest);
        let measure = Measure { held, charged, steps, longest };
        if measure.permille() > self.worst.permille() {
            self.worst = measure;
        }
        self.worst.longest = longest;
    }

    /// Hands in one request of `conn` and does the daemon's work at the end of a round, and notes
    /// its cost.
    fn request(&mut self, conn: ConnId, kind: u32, tx_id: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { kind, req_id: 1, tx_id, len };
        let begin = thread_time();
        within_store(|| {
            self.server.request(conn, &header, payload, self.now, &mut SearchHypervisor);
        });
        if conn == self.guest {
            self.longest = self.longest.max(thread_time() - begin);
        }
        self.end_round();
    }

    fn end_round(&mut self) {
        let begin = thread_time();
        within_store(|| {
            if self.server.deadline().is_some_and(|deadline| deadline <= self.now) {
                self.server.tick(self.now, &mut SearchHypervisor);
            }
            while self.server.poll_ready().is_some() {}
        });
        self.longest = self.longest.max(thread_time() - begin);
    }

    /// Makes a request of domain 0's, which reads its answer at once.
    fn dom0(&mut self, kind: MsgType, tx: u32, payload: &[u8]) -> Vec<u8> {
        self.request(self.dom0, kind.code(), tx, payload);
        let (server, dom0, now) = (&mut self.server, self.dom0, self.now);
        let answer = within_store(|| server.output(dom0)).to_vec();
        within_store(|| server.consume_output(dom0, answer.len(), now));
        answer
    }

    /// Starts a transaction of domain 0's. Returns its number.
    fn dom0_start(&mut self) -> u32 {
        let answer = self.dom0(MsgType::TransactionStart, 0, b"\0");
        let digits = answer.get(16..).unwrap_or_default();
        let text = String::from_utf8_lossy(digits);
        text.trim_end_matches('\0').parse().unwrap_or(0)
    }

    /// Makes domain 0 be refused on `/hot`, take the turn there, and read all of the guest's nodes.
    fn hold(&mut self) {
        self.release();
        let refused = self.dom0_start();
        self.dom0(MsgType::Read, refused, b"/hot\0");
        self.dom0(MsgType::Write, 0, format!("/hot\0{}", self.now).as_bytes());
        self.dom0(MsgType::Write, refused, b"/hot\0x");
        self.dom0(MsgType::TransactionEnd, refused, b"T\0");
        let holder = self.dom0_start();
        self.dom0(MsgType::Read, holder, b"/hot\0");
        let subtree = format!("subtree\0/local/domain/{GUEST}\0\0");
        self.dom0(MsgType::Control, holder, subtree.as_bytes());
        self.holder = Some(holder);
    }

    fn release(&mut self) {
        if let Some(holder) = self.holder.take() {
            self.dom0(MsgType::TransactionEnd, holder, b"F\0");
        }
    }

    /// Hands in a request of the guest's, if the daemon would take one.
    fn send(&mut self, kind: MsgType, slot: Option<u8>, payload: &[u8]) {
        let tx = slot.and_then(|slot| self.slots.get(usize::from(slot)).copied()).unwrap_or(0);
        self.send_code(kind.code(), tx, payload);
    }

    fn send_code(&mut self, kind: u32, tx: u32, payload: &[u8]) {
        let payload = payload.get(..payload.len().min(4096)).unwrap_or_default();
        if self.server.wants_input(self.guest) {
            self.request(self.guest, kind, tx, payload);
        }
    }

    /// Does a step; false if the guest is no longer served.
    fn step(&mut self, step: &ProgramStep, round: usize) -> bool {
        self.now += STEP_US;
        match step {
            ProgramStep::Ask(ask, place, slot) => self.path_request(*ask, place, *slot, round),
            ProgramStep::Watch(place, token, depth) => {
                let mut payload = first_string(place, round);
                payload.extend(std::iter::repeat_n(b't', usize::from(*token)));
                payload.push(0);
                if let Some(depth) = depth {
                    payload.extend_from_slice(format!("{depth}\0").as_bytes());
                }
                self.send(MsgType::Watch, None, &payload);
            }
            ProgramStep::Unwatch(place, token) => {
                let mut payload = first_string(place, round);
                payload.extend(std::iter::repeat_n(b't', usize::from(*token)));
                payload.push(0);
                self.send(MsgType::Unwatch, None, &payload);
            }
            ProgramStep::ResetWatches => self.send(MsgType::ResetWatches, None, b"\0"),
            ProgramStep::Start(slot) => self.start(*slot),
            ProgramStep::End(slot, commit) => {
                let how = if *commit { b"T\0" } else { b"F\0" };
                self.send(MsgType::TransactionEnd, Some(*slot), how);
            }
            ProgramStep::Other(code, len) => {
                let payload: Vec<u8> =
                    b"7\0".iter().copied().cycle().take(usize::from(*len)).collect();
                self.send_code(u32::from(*code), 0, &payload);
            }
            ProgramStep::Take(most) => self.take(usize::from(*most)),
            ProgramStep::Pass(ms) => {
                // Domain 0's transactions are short.
                self.release();
                self.now += u64::from(*ms) * 1000;
                self.end_round();
            }
            ProgramStep::Reconnect => {
                let begin = thread_time();
                within_store(|| self.server.reset(self.guest, self.now, &mut SearchHypervisor));
                self.longest = self.longest.max(thread_time() - begin);
                self.end_round();
            }
            ProgramStep::Hold => self.hold(),
            ProgramStep::Release => self.release(),
        }
        self.is_served()
    }

    fn path_request(
        &mut self,
        request: PathRequest,
        place: &PathPattern,
        slot: Option<u8>,
        round: usize,
    ) {
        let mut payload = first_string(place, round);
        let kind = match request {
            PathRequest::Read => MsgType::Read,
            PathRequest::Directory => MsgType::Directory,
            PathRequest::Part => {
                payload.extend_from_slice(b"0\0");
                MsgType::DirectoryPart
            }
            PathRequest::Perms => MsgType::GetPerms,
            PathRequest::Mkdir => MsgType::Mkdir,
            PathRequest::Rm => MsgType::Rm,
            PathRequest::Write(len) => {
                payload.extend(std::iter::repeat_n(b'v', usize::from(len)));
                MsgType::Write
            }
            PathRequest::SetPerms(entries) => {
                payload.extend_from_slice(format!("n{GUEST}\0").as_bytes());
                for at in 1..entries {
                    payload.extend_from_slice(format!("r{at}\0").as_bytes());
                }
                MsgType::SetPerms
            }
        };
        self.send(kind, slot, &payload);
    }

    fn start(&mut self, slot: u8) {
        let open = |server: &Server| {
            server.usage(DomId(GUEST)).map_or(0, |usage| usage.now(Quota::Transactions))
        };
        let before = open(&self.server);
        self.send(MsgType::TransactionStart, None, b"\0");
        if open(&self.server) > before {
            if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
                *slot = self.next;
            }
            self.next += 1;
        }
    }

    fn take(&mut self, most: usize) {
        let (server, guest, now) = (&mut self.server, self.guest, self.now);
        let len = within_store(|| server.output(guest).len()).min(most);
        within_store(|| server.consume_output(guest, len, now));
        self.end_round();
    }

    fn is_served(&mut self) -> bool {
        let mut served = true;
        while let Some(notice) = within_store(|| self.server.poll_notice()) {
            served &= !matches!(notice, Notice::Ended { .. });
            within_store(|| drop(notice));
        }
        served
    }
}

/// Returns the payload's first string.
fn first_string(place: &PathPattern, round: usize) -> Vec<u8> {
    let mut payload = place.path(round).into_bytes();
    payload.push(0);
    payload
}
