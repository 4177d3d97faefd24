//! Transactions of many clients: on separate subtrees, in one directory, and on the same keys.

use super::context::Context;
use crate::Result;
use crate::client::{Conn, VALUE, put, write};
use crate::daemon::{Daemon, MeasuredDaemon};
use crate::swarm::{SendMode, StopCondition, Swarm, TransactionScript, total};
use std::time::Instant;
use xenstore_core::wire::MsgType;

/// Clients at the same time.
const CLIENTS: usize = 16;
/// Reads, and writes, of one transaction.
const KEYS: usize = 5;

/// Returns the five reads and five writes of a transaction below `base`. The values are unique to
/// this client and this transaction, so a node that others have read does change.
fn reads_and_writes(base: &str, client: usize, number: u64, tx_id: u32) -> Vec<Vec<u8>> {
    let value = format!("{client:08}{number:024}");
    let mut requests = Vec::with_capacity(2 * KEYS + 1);
    for key in 0..KEYS {
        let path = format!("{base}/key{key}\0");
        let mut bytes = Vec::new();
        put(&mut bytes, MsgType::Read, tx_id, &[path.as_bytes()]);
        requests.push(bytes);
    }
    for key in 0..KEYS {
        let path = format!("{base}/key{key}\0");
        let mut bytes = Vec::new();
        put(&mut bytes, MsgType::Write, tx_id, &[path.as_bytes(), value.as_bytes()]);
        requests.push(bytes);
    }
    requests
}

/// Returns the transaction that makes one device, as a toolstack does it: a check that it is
/// absent, then its nodes.
fn device(client: usize, number: u64, tx_id: u32) -> Vec<Vec<u8>> {
    let base = format!("/bench/device/vbd/{}", client as u64 * 1_000_000 + number);
    let mut requests = Vec::new();
    let mut add = |kind, key: &str, value: &[u8]| {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, tx_id, &[base.as_bytes(), key.as_bytes(), b"\0", value]);
        requests.push(bytes);
    };
    add(MsgType::Mkdir, "", b"");
    add(MsgType::SetPerms, "", b"n0\0");
    for (key, value) in [
        ("/backend", "/local/domain/0/backend/vbd/7/51712"),
        ("/backend-id", "0"),
        ("/state", "1"),
        ("/virtual-device", "51712"),
        ("/device-type", "disk"),
    ] {
        add(MsgType::Write, key, value.as_bytes());
    }
    requests
}

/// Runs `clients` clients; records `NAME.rate` (commits/s), `.cpu` (s a commit), `.again` (share
/// of the commits refused) and `.tries` (the most for one transaction).
fn measure<F: FnMut(u64, u32) -> Vec<Vec<u8>>>(
    context: &mut Context<'_>,
    daemon: &Daemon,
    name: &str,
    mut scripts: Vec<TransactionScript<F>>,
) -> Result<()> {
    let mut swarm = Swarm::connect(&daemon.socket, scripts.len())?;
    let (cpu, start) = (daemon.cpu_time()?, Instant::now());
    swarm.run(&mut scripts)?;
    let time = start.elapsed().as_secs_f64();
    let cpu = (daemon.cpu_time()? - cpu).as_secs_f64();
    let counts = total(scripts.iter().map(|script| script.counts));
    let commits = counts.commits as f64;
    context.record(&format!("{name}.rate"), commits / time);
    context.record(&format!("{name}.cpu"), cpu / commits);
    let tried = commits + counts.again as f64;
    context.record(&format!("{name}.again"), counts.again as f64 / tried);
    context.record(&format!("{name}.tries"), counts.tries_max as f64);
    Ok(())
}

/// Runs clients that each have a subtree of their own.
pub(super) fn disjoint(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = Conn::open(&daemon.socket)?;
    let base = |client: usize| format!("/bench/client/{client}");
    for client in 0..CLIENTS {
        for key in 0..KEYS {
            conn.call(&write(&format!("{}/key{key}", base(client)), VALUE))?;
        }
    }
    let modes = [
        ("tx1", 1, SendMode::OneByOne),
        ("tx16", CLIENTS, SendMode::OneByOne),
        ("together", CLIENTS, SendMode::Together),
    ];
    for (name, clients, mode) in modes {
        let end = StopCondition::Time(Instant::now() + context.span());
        let scripts = (0..clients)
            .map(|client| {
                let base = base(client);
                let steps = move |n, tx_id| reads_and_writes(&base, client, n, tx_id);
                TransactionScript::new(steps, end).with_mode(mode)
            })
            .collect();
        measure(context, &daemon, name, scripts)?;
    }
    Ok(())
}

/// Runs clients that make devices in one directory; the number is the same for every daemon, as the
/// directory grows.
pub(super) fn devices(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = Conn::open(&daemon.socket)?;
    conn.call(&write("/bench/device/vbd", b""))?;
    let each = StopCondition::Commits(context.size(50, 3) as u64);
    let scripts = (0..CLIENTS)
        .map(|client| {
            TransactionScript::new(move |number, tx_id| device(client, number, tx_id), each)
        })
        .collect();
    measure(context, &daemon, "devices", scripts)
}

/// Runs clients that read and write the same five keys.
pub(super) fn contended(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = Conn::open(&daemon.socket)?;
    for key in 0..KEYS {
        conn.call(&write(&format!("/bench/same/key{key}"), VALUE))?;
    }
    // The time is long enough that a starved client shows among the tries.
    let end = StopCondition::Time(Instant::now() + 2 * context.span());
    let scripts = (0..CLIENTS)
        .map(|client| {
            let steps = move |n, tx_id| reads_and_writes("/bench/same", client, n, tx_id);
            TransactionScript::new(steps, end)
        })
        .collect();
    measure(context, &daemon, "same", scripts)
}
