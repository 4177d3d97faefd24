//! Domain 0's latency beside guests that repeat the most expensive known request of each message
//! type.

use super::context::Context;
use super::guest::IntroducedGuest;
use crate::Result;
use crate::client::{Conn, VALUE, put, request, write, writes};
use crate::daemon::{Daemon, Guests, MeasuredDaemon};
use crate::machine;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use xenstore_core::wire::MsgType;

/// Requests of one transaction before it is committed.
const LONG: u32 = 800;
/// Levels of a deep path: as many as fit a ring with the rest of a request.
const DEEP: usize = 400;
/// Domain 0's p99 may grow by this factor,
const TIMES: f64 = 1.5;
/// or to this many seconds, if that is more.
const SECONDS: f64 = 0.002;

/// An attack on the latency of the daemon.
struct LatencyAttack {
    name: &'static str,
    /// Appends the next request of a guest, in this round; `tx` is its open transaction.
    next: fn(round: u32, tx: u32, to: &mut Vec<u8>),
}

/// The most expensive known request of each message type.
const ATTACKS: &[LatencyAttack] = &[
    LatencyAttack {
        name: "write",
        next: |_, _, to| put(to, MsgType::Write, 0, &[&deep(), b"\0v"]),
    },
    LatencyAttack { name: "read", next: |_, _, to| put(to, MsgType::Read, 0, &[&deep(), b"\0"]) },
    LatencyAttack {
        name: "permissions",
        next: |_, _, to| {
            let entries = b"\0n0\0r1\0r2\0r3\0r4\0";
            put(to, MsgType::SetPerms, 0, &[&deep(), entries]);
        },
    },
    LatencyAttack { name: "list", next: |_, _, to| put(to, MsgType::Directory, 0, &[b"wide\0"]) },
    LatencyAttack {
        name: "part",
        next: |_, _, to| put(to, MsgType::DirectoryPart, 0, &[b"wide\x000\0"]),
    },
    LatencyAttack {
        name: "make and remove",
        next: |round, _, to| match round % 2 {
            0 => put(to, MsgType::Mkdir, 0, &[&deep(), b"/b\0"]),
            _ => put(to, MsgType::Rm, 0, &[b"a\0"]),
        },
    },
    LatencyAttack {
        name: "watch",
        next: |round, _, to| {
            let kind = if round % 2 == 0 { MsgType::Watch } else { MsgType::Unwatch };
            put(to, kind, 0, &[b"/", &deep(), b"\0t\0"]);
        },
    },
    LatencyAttack {
        name: "reset",
        next: |round, _, to| match round % 64 {
            0 => put(to, MsgType::ResetWatches, 0, &[b"\0"]),
            token => put(to, MsgType::Watch, 0, &[b"/\0", token.to_string().as_bytes(), b"\0"]),
        },
    },
    LatencyAttack {
        name: "short transactions",
        next: |round, tx, to| match round % 4 {
            0 => put(to, MsgType::TransactionStart, 0, &[b"\0"]),
            1 => put(to, MsgType::Read, tx, &[SHARED.as_bytes(), b"\0"]),
            2 => put(to, MsgType::Write, tx, &[SHARED.as_bytes(), b"\0v"]),
            _ => put(to, MsgType::TransactionEnd, tx, &[b"T\0"]),
        },
    },
    LatencyAttack {
        name: "long transactions",
        next: |round, tx, to| match round % LONG {
            0 => put(to, MsgType::TransactionStart, 0, &[b"\0"]),
            last if last == LONG - 2 => put(to, MsgType::Write, 0, &[b"other\0v"]),
            last if last == LONG - 1 => put(to, MsgType::TransactionEnd, tx, &[b"T\0"]),
            at => {
                let path = format!("wide/{}", at % 100);
                let kind = if at < LONG / 2 { MsgType::Read } else { MsgType::Write };
                let value: &[u8] = if kind == MsgType::Write { b"\0v" } else { b"\0" };
                put(to, kind, tx, &[path.as_bytes(), value]);
            }
        },
    },
];

/// A node that all guests may read and write.
const SHARED: &str = "/bench/shared";

/// Returns a deep path, relative.
fn deep() -> Vec<u8> {
    b"a/".repeat(DEEP).strip_suffix(b"/").map(<[u8]>::to_vec).unwrap_or_default()
}

/// A guest that attacks.
struct Attacker<'g> {
    guest: &'g IntroducedGuest,
    round: u32,
    tx: u32,
}

impl Attacker<'_> {
    fn send(&self, attack: &LatencyAttack) -> Result<()> {
        let mut bytes = Vec::new();
        (attack.next)(self.round, self.tx, &mut bytes);
        self.guest.send(&bytes)
    }

    /// Takes the answer, which may be a refusal.
    fn receive(&mut self, attack: &LatencyAttack) -> Result<()> {
        let (kind, payload) = self.guest.answer()?;
        let starts =
            attack.name.ends_with("transactions") && kind == MsgType::TransactionStart.code();
        if starts {
            let text = std::str::from_utf8(payload.strip_suffix(b"\0").unwrap_or(&payload))?;
            self.tx = text.parse()?;
        }
        self.round += 1;
        Ok(())
    }
}

/// Runs the attack in all guests until `stop` is set.
fn attack(guests: &[IntroducedGuest], attack: &LatencyAttack, stop: &AtomicBool) -> Result<()> {
    let mut hostile: Vec<_> =
        guests.iter().map(|guest| Attacker { guest, round: 0, tx: 0 }).collect();
    while !stop.load(Ordering::Relaxed) {
        for guest in &hostile {
            guest.send(attack)?;
        }
        for guest in &mut hostile {
            guest.receive(attack)?;
        }
    }
    for guest in guests {
        // Removes the watches and transactions that it has left open.
        guest.call(&request(MsgType::ResetWatches, &[b"\0"]))?;
    }
    Ok(())
}

/// Measures domain 0's p99 beside idle guests, and beside one and all of them in each attack.
pub(super) fn run(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let folder = context.places.scratch.join("hostile");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let guests_max = context.size(50, 3) as u32;
    let daemon = Daemon::start(context.places, kind, context.cpu, Guests::In(&folder))?;
    let mut conn = Conn::open(&daemon.socket)?;
    conn.call(&write(SHARED, VALUE))?;
    conn.call(&request(MsgType::SetPerms, &[SHARED.as_bytes(), b"\0b0\0"]))?;
    let mut guests = Vec::new();
    for domid in 1..=guests_max {
        let guest = IntroducedGuest::introduce(&mut conn, &folder, domid)?;
        let home = format!("/local/domain/{domid}");
        conn.call(&write(&home, b""))?;
        let owner = format!("\0n{domid}\0");
        conn.call(&request(MsgType::SetPerms, &[home.as_bytes(), owner.as_bytes()]))?;
        for at in 0..100 {
            guest.call(&write(&format!("wide/{at}"), b"v"))?;
        }
        guest.call(&request(MsgType::Mkdir, &[&deep(), b"\0"]))?;
        guests.push(guest);
    }
    let one = writes("/bench/own");
    conn.call(&write("/bench/own", VALUE))?;
    let idle = context.p99(&mut conn, "idle", &one)?;
    for (count, name) in [(1, "one"), (guests.len(), "all")] {
        let mut worst = (0.0, "");
        for way in ATTACKS {
            let stop = AtomicBool::new(false);
            let (guests, stop) = (guests.get(..count).unwrap_or_default(), &stop);
            let (cpu, allowed) = (context.cpu, context.allowed);
            let p99 = std::thread::scope(|scope| {
                let work = scope
                    .spawn(move || machine::beside(cpu, &allowed, || attack(guests, way, stop))?);
                let p99 = context.p99(&mut conn, &format!("{name}.{}", way.name), &one);
                stop.store(true, Ordering::Relaxed);
                work.join().map_err(|_| "the guests' thread has panicked")??;
                p99
            })?;
            if p99 > worst.0 {
                worst = (p99, way.name);
            }
        }
        context.record(&format!("{name}.p99"), worst.0);
        context.record(&format!("{name}.share"), worst.0 / SECONDS.max(TIMES * idle));
        eprintln!("{}: domain 0's p99 beside {name}: the worst is {}", kind.title(), worst.1);
    }
    Ok(())
}
