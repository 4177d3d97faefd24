//! A guest that writes anything into its page at any time.

use crate::hypervisor::{Hypervisor, NewDomain};
use crate::link::clear;
use crate::rng::Rng;
use xen::evtchn::{EventChannels, PortStatus};
use xen::shared::{PAGE_SIZE, SharedPage};
use xen::{DomId, GrantRef, Port};
use xen_io::xs_ring::{ClientRing, RING_SIZE, offset};
use xenstore_core::wire::{Header, MsgType, TYPES};

/// Values that break careless arithmetic.
const NASTY: [u32; 8] = [0, 1, 1023, 1024, 1025, 0x7fff_ffff, 0x8000_0000, u32::MAX];
const WORDS: [usize; 8] = [
    offset::REQ_CONS,
    offset::REQ_PROD,
    offset::RSP_CONS,
    offset::RSP_PROD,
    offset::SERVER_FEATURES,
    offset::CONNECTION,
    offset::ERROR,
    offset::EVTCHN_PORT,
];

/// The use of transactions by hostile guests, which may delay others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TransactionUse {
    Used,
    Left,
}

/// A probe of how a hostile guest is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Probe {
    /// It asks for a reset of its ring.
    Reconnect,
    /// It notifies.
    Event,
    /// It announces more bytes than a ring holds.
    Index,
    /// It announces a message that is too long.
    Length,
    /// It sends a valid request.
    Request,
}

/// One hostile guest.
pub(crate) struct HostileGuest {
    domid: DomId,
    hypervisor: Hypervisor,
    evtchn: Box<dyn EventChannels>,
    port: Port,
    page: SharedPage,
    ring: ClientRing,
    transactions: TransactionUse,
    rng: Rng,
    /// An index that is being written byte by byte: its offset, its value, and the number of bytes
    /// written.
    torn: Option<(usize, [u8; 4], usize)>,
    next_id: u32,
    /// The chance that it reads its responses, in thousandths.
    reads: u32,
    pub(crate) pieces: u64,
    /// The number of times that the daemon was notified while an index was half written.
    pub(crate) torn_seen: u64,
}

impl HostileGuest {
    pub(crate) fn new(
        hypervisor: &Hypervisor,
        built: NewDomain,
        transactions: TransactionUse,
        mut rng: Rng,
    ) -> Result<Self, String> {
        let domid = built.domid;
        let mut evtchn = hypervisor.event_channels(domid).map_err(|error| error.to_string())?;
        let reads = *rng.pick(&[0, 300, 1000]);
        let port = evtchn.alloc_unbound(DomId::DOM0).map_err(|error| error.to_string())?;
        let page = hypervisor.own_page(domid, GrantRef::XENSTORE).ok_or("no XenStore page")?;
        Ok(Self {
            domid,
            hypervisor: hypervisor.clone(),
            evtchn,
            port,
            page,
            ring: ClientRing::new(built.ring),
            transactions,
            rng,
            torn: None,
            next_id: 0,
            reads,
            pieces: 0,
            torn_seen: 0,
        })
    }

    /// Returns the port that its toolstack introduces it with.
    pub(crate) fn port(&self) -> Port {
        self.port
    }

    /// Prepares the page and the port as a domain builder does before a new introduction. The page
    /// is not always cleared.
    pub(crate) fn prepare(&mut self) {
        if self.rng.chance(700) {
            clear(&self.page);
            let _ = self.page.store_u32(offset::EVTCHN_PORT, 0);
        }
        // It may have closed its old port.
        if self.evtchn.unmask(self.port).is_err()
            && let Ok(port) = self.evtchn.alloc_unbound(DomId::DOM0)
        {
            self.port = port;
        }
    }

    /// True if the daemon is bound to its port.
    pub(crate) fn is_bound(&mut self) -> bool {
        matches!(self.evtchn.status(self.port), Ok(PortStatus::Interdomain { .. }))
    }

    /// Makes one probe and notifies the daemon.
    pub(crate) fn probe(&mut self, what: Probe) {
        self.torn = None;
        match what {
            Probe::Reconnect => {
                let _ = self.page.store_u32(offset::CONNECTION, 1);
            }
            Probe::Event => {}
            Probe::Index => {
                let consumed = self.page.load_u32(offset::REQ_CONS).unwrap_or_default();
                // One byte too many, or up to a distance that looks like a step back.
                let beyond = match self.rng.below(3) {
                    0 => 1025,
                    1 => 1025 + self.rng.number() as u32 % 2048,
                    _ => 1025 + self.rng.number() as u32 % (u32::MAX - 1024),
                };
                let _ = self.page.store_u32(offset::REQ_PROD, consumed.wrapping_add(beyond));
            }
            Probe::Length => {
                let bytes = self.message(MsgType::Read.code(), 0, 4097, "");
                let _ = self.ring.write(&bytes);
            }
            Probe::Request => {
                let bytes = self.message(MsgType::Read.code(), 0, 2, "x\0");
                let _ = self.ring.write(&bytes);
            }
        }
        self.notify();
    }

    /// Returns the connection word, the error word, and the number of bytes that it was sent.
    pub(crate) fn served(&mut self) -> (u32, u32, usize) {
        self.take_events();
        let word = |at| self.page.load_u32(at).unwrap_or(u32::MAX);
        let words = (word(offset::CONNECTION), word(offset::ERROR));
        let read = self.ring.read(&mut [0; RING_SIZE]).unwrap_or_default();
        (words.0, words.1, read)
    }

    /// Takes one step, which may break the rules or keep them.
    pub(crate) fn step(&mut self) {
        self.pieces += 1;
        if let Some((at, bytes, done)) = self.torn {
            let _ = self.page.copy_in(at + done, &bytes[done..=done]);
            self.torn = (done < 3).then_some((at, bytes, done + 1));
            self.torn_seen += u64::from(self.torn.is_some());
            self.notify();
            return;
        }
        if self.reads == 0 && self.rng.chance(850) {
            self.hoard();
            return;
        }
        match self.rng.below(24) {
            0 => self.write_word(),
            1 => {
                let at = *self.rng.pick(&WORDS[..4]);
                let value = self.nasty();
                self.torn = Some((at, value.to_ne_bytes(), 0));
            }
            2 => self.garbage(),
            3 => (0..self.rng.below(40)).for_each(|_| self.notify()),
            4 if self.rng.chance(60) => drop(self.evtchn.close(self.port)),
            5 if self.rng.chance(40) => {
                self.hypervisor.end_grant(self.domid, GrantRef::XENSTORE);
            }
            6 => {
                let _ = self.page.store_u32(offset::CONNECTION, 1);
                self.notify();
            }
            7..=9 => self.take_events(),
            10..=13 if self.rng.chance(self.reads) => self.read(),
            14 if self.rng.chance(self.reads) => clear(&self.page),
            _ => self.request(),
        }
    }

    fn nasty(&mut self) -> u32 {
        let other = *self.rng.pick(&WORDS[..4]);
        let base = self.page.load_u32(other).unwrap_or_default();
        match self.rng.below(3) {
            0 => *self.rng.pick(&NASTY),
            1 => base.wrapping_add(*self.rng.pick(&NASTY)),
            _ => self.rng.number() as u32,
        }
    }

    fn notify(&self) {
        let _ = self.evtchn.notify(self.port);
    }

    fn write_word(&mut self) {
        let (at, value) = (*self.rng.pick(&WORDS), self.nasty());
        let _ = self.page.store_u32(at, value);
        self.notify();
    }

    /// Writes random bytes anywhere in the request ring, and an index that covers them.
    fn garbage(&mut self) {
        let len = 1 + self.rng.index(200);
        let bytes: Vec<u8> = (0..len).map(|_| self.rng.number() as u8).collect();
        if self.rng.chance(500) {
            let _ = self.ring.write(&bytes);
        } else {
            let at = self.rng.index(PAGE_SIZE - len);
            let _ = self.page.copy_in(at, &bytes);
        }
        self.notify();
    }

    fn take_events(&mut self) {
        while let Ok(Some(port)) = self.evtchn.pending() {
            let _ = self.evtchn.unmask(port);
        }
    }

    fn read(&mut self) {
        let mut bytes = vec![0; 1 + self.rng.index(RING_SIZE)];
        if self.ring.read(&mut bytes).is_ok_and(|count| count > 0) && self.rng.chance(700) {
            self.notify();
        }
    }

    /// Writes a request that is well formed, nearly so, or cut off.
    fn request(&mut self) {
        let own = format!("/local/domain/{}", self.domid);
        let places = [
            own.clone(),
            format!("{own}/a"),
            format!("{own}/a/b/c/d/e/f"),
            "/local/domain/1/data".to_owned(),
            "/shared/0".to_owned(),
            "@releaseDomain".to_owned(),
            "/".to_owned(),
            "//".to_owned(),
            "x".repeat(3000),
        ];
        let path = self.rng.pick(&places).clone();
        let kind = if self.rng.chance(100) {
            self.rng.number() as u32
        } else {
            let transactions = self.transactions == TransactionUse::Used;
            let wanted: Vec<u32> = (TYPES.iter().map(|row| row.0.code()))
                .filter(|code| transactions || *code != MsgType::TransactionStart.code())
                .collect();
            *self.rng.pick(&wanted)
        };
        let value = "v".repeat(self.rng.index(600));
        let payload = match MsgType::from_code(kind) {
            Some(MsgType::Watch | MsgType::Unwatch) => {
                format!("{path}\0{}\0", self.rng.below(200))
            }
            Some(MsgType::TransactionEnd) => ["T\0", "F\0", "X"][self.rng.index(3)].to_owned(),
            Some(MsgType::TransactionStart) => "\0".to_owned(),
            Some(MsgType::SetPerms) => format!("{path}\0n{}\0w{}\0", self.domid, self.rng.below(6)),
            Some(MsgType::Write) => format!("{path}\0{value}"),
            _ => format!("{path}\0"),
        };
        let len = payload.len() as u32;
        let len = match self.rng.below(30) {
            0 => *self.rng.pick(&[4097, u32::MAX, 0, len + 1]),
            _ => len,
        };
        let transactions = if self.transactions == TransactionUse::Used { 4 } else { 1 };
        let tx_id = self.rng.below(transactions) as u32;
        let mut bytes = self.message(kind, tx_id, len, &payload);
        if self.rng.chance(100) {
            bytes.truncate(1 + self.rng.index(bytes.len()));
        }
        let _ = self.ring.write(&bytes);
        self.notify();
    }

    fn message(&mut self, kind: u32, tx_id: u32, len: u32, payload: &str) -> Vec<u8> {
        self.next_id += 1;
        let header = Header { kind, req_id: self.next_id, tx_id, len };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload.as_bytes());
        bytes
    }

    /// Makes many valid requests and reads no reply, which fills its ring and then the daemon's
    /// memory.
    fn hoard(&mut self) {
        let path = format!("/local/domain/{}/a", self.domid);
        let (kind, payload) = match self.rng.below(4) {
            0 => (MsgType::Write, format!("{path}\0{}", "v".repeat(600))),
            1 => (MsgType::Watch, format!("{path}\0{}\0", self.rng.below(50))),
            _ => (MsgType::Read, format!("{path}\0")),
        };
        let bytes = self.message(kind.code(), 0, payload.len() as u32, &payload);
        let _ = self.ring.write(&bytes);
        self.notify();
    }
}
