//! A hundred guests that each leave ten transactions open, beside domain 0's own work.

use super::context::Context;
use super::guest::IntroducedGuest;
use crate::Result;
use crate::client::{Conn, VALUE, put, request, write, writes};
use crate::daemon::{Daemon, Guests, MeasuredDaemon};
use std::fs;
use xenstore_core::wire::MsgType;

/// Transactions that a guest may have open by default.
const OPEN: usize = 10;
/// Measures domain 0's latency before the guests open their transactions, and with them open.
pub(super) fn run(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let folder = context.places.scratch.join("guests");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let guests_max = context.size(100, 5) as u32;
    // The stand-in accepts the folder as it is at the daemon's start; the pages are added one by
    // one.
    let daemon = Daemon::start(context.places, kind, context.cpu, Guests::In(&folder))?;
    let mut conn = Conn::open(&daemon.socket)?;
    const SHARED: &str = "/bench/shared";
    conn.call(&write(SHARED, VALUE))?;
    conn.call(&request(MsgType::SetPerms, &[SHARED.as_bytes(), b"\0b0\0"]))?;
    let mut guests = Vec::new();
    for domid in 1..=guests_max {
        guests.push(IntroducedGuest::introduce(&mut conn, &folder, domid)?);
    }
    let one = writes(SHARED);
    context.one_at_a_time(&daemon, &mut conn, "before", &one)?;
    for guest in &guests {
        for _ in 0..OPEN {
            let reply = guest.call(&request(MsgType::TransactionStart, &[b"\0"]))?;
            let text = std::str::from_utf8(reply.strip_suffix(b"\0").unwrap_or(&reply))?;
            let tx_id = text.parse()?;
            // Each transaction reads and writes the node that domain 0 goes on to write.
            for (kind, value) in [(MsgType::Read, &b""[..]), (MsgType::Write, b"guest")] {
                let mut bytes = Vec::new();
                put(&mut bytes, kind, tx_id, &[SHARED.as_bytes(), b"\0", value]);
                guest.call(&bytes)?;
            }
        }
    }
    context.one_at_a_time(&daemon, &mut conn, "open", &one)
}
