//! Many domains: each is introduced and given the 61 nodes of a guest with one disk, one network
//! interface and a console, with their owners, by one client with one request in flight.

use super::context::Context;
use crate::Result;
use crate::client::{Conn, put, write};
use crate::daemon::{Daemon, Guests, MeasuredDaemon};
use std::time::Instant;
use xenstore_core::wire::MsgType;

/// The permissions of a node, as a toolstack sets them.
#[derive(Clone, Copy)]
enum PresetPerms {
    /// As inherited.
    Same,
    /// Domain 0's; the guest may read.
    GuestReads,
    /// The guest's own; no other domain has access.
    Guest,
    /// The guest's own; domain 0 as the backend may read.
    Frontend,
}

/// A node: its path below a root, its value (`None`: a directory), and its permissions.
type PresetNode = (&'static str, Option<&'static str>, PresetPerms);

/// The domain's own nodes, which come first. Each list is one transaction; `@` stands for the
/// domid.
const DOMAIN: &[PresetNode] = &[
    ("/local/domain/@", None, PresetPerms::GuestReads),
    ("/local/domain/@/vm", Some("/vm/6a6fae5f-0a0f-4f43-93c8-b8f5d2a0@"), PresetPerms::GuestReads),
    ("/local/domain/@/name", Some("guest-@"), PresetPerms::GuestReads),
    ("/local/domain/@/domid", Some("@"), PresetPerms::GuestReads),
    ("/local/domain/@/cpu", None, PresetPerms::GuestReads),
    ("/local/domain/@/cpu/0", None, PresetPerms::Same),
    ("/local/domain/@/cpu/0/availability", Some("online"), PresetPerms::Same),
    ("/local/domain/@/memory", None, PresetPerms::GuestReads),
    ("/local/domain/@/memory/static-max", Some("1048576"), PresetPerms::Same),
    ("/local/domain/@/memory/target", Some("1048577"), PresetPerms::Same),
    ("/local/domain/@/memory/videoram", Some("-1"), PresetPerms::Same),
    ("/local/domain/@/device", None, PresetPerms::GuestReads),
    ("/local/domain/@/device/suspend", None, PresetPerms::GuestReads),
    ("/local/domain/@/device/suspend/event-channel", Some(""), PresetPerms::Guest),
    ("/local/domain/@/control", None, PresetPerms::GuestReads),
    ("/local/domain/@/control/shutdown", Some(""), PresetPerms::Guest),
    ("/local/domain/@/data", None, PresetPerms::Guest),
    ("/local/domain/@/drivers", None, PresetPerms::Guest),
    ("/local/domain/@/store", None, PresetPerms::GuestReads),
    ("/local/domain/@/store/port", Some("1"), PresetPerms::Same),
    ("/local/domain/@/store/ring-ref", Some("1044476"), PresetPerms::Same),
    ("/vm/bench-@", None, PresetPerms::GuestReads),
    ("/vm/bench-@/name", Some("guest-@"), PresetPerms::Same),
    ("/vm/bench-@/uuid", Some("6a6fae5f-0a0f-4f43-93c8-b8f5d2a0@"), PresetPerms::Same),
    ("/libxl/@", None, PresetPerms::Same),
    ("/libxl/@/type", Some("pvh"), PresetPerms::Same),
];

/// The console's nodes.
const CONSOLE: &[PresetNode] = &[
    ("/local/domain/@/console", None, PresetPerms::GuestReads),
    (
        "/local/domain/@/console/backend",
        Some("/local/domain/0/backend/console/@/0"),
        PresetPerms::Same,
    ),
    ("/local/domain/@/console/type", Some("xenconsoled"), PresetPerms::Same),
    ("/local/domain/@/console/tty", Some(""), PresetPerms::Same),
    ("/local/domain/@/console/ring-ref", Some("1044479"), PresetPerms::Same),
];

/// A disk: the backend's side, then the frontend's.
const DISK: &[PresetNode] = &[
    ("/local/domain/0/backend/vbd/@", None, PresetPerms::Same),
    ("/local/domain/0/backend/vbd/@/51712", None, PresetPerms::GuestReads),
    (
        "/local/domain/0/backend/vbd/@/51712/frontend",
        Some("/local/domain/@/device/vbd/51712"),
        PresetPerms::Same,
    ),
    ("/local/domain/0/backend/vbd/@/51712/frontend-id", Some("@"), PresetPerms::Same),
    ("/local/domain/0/backend/vbd/@/51712/params", Some("/dev/vg0/guest-@"), PresetPerms::Same),
    ("/local/domain/0/backend/vbd/@/51712/online", Some("1"), PresetPerms::Same),
    ("/local/domain/0/backend/vbd/@/51712/mode", Some("w"), PresetPerms::Same),
    ("/local/domain/0/backend/vbd/@/51712/state", Some("1"), PresetPerms::Same),
    ("/local/domain/@/device/vbd", None, PresetPerms::Same),
    ("/local/domain/@/device/vbd/51712", None, PresetPerms::Frontend),
    (
        "/local/domain/@/device/vbd/51712/backend",
        Some("/local/domain/0/backend/vbd/@/51712"),
        PresetPerms::Same,
    ),
    ("/local/domain/@/device/vbd/51712/backend-id", Some("0"), PresetPerms::Same),
    ("/local/domain/@/device/vbd/51712/virtual-device", Some("51712"), PresetPerms::Same),
    ("/local/domain/@/device/vbd/51712/device-type", Some("disk"), PresetPerms::Same),
    ("/local/domain/@/device/vbd/51712/state", Some("1"), PresetPerms::Same),
];

/// A network interface, in the same way.
const NETWORK: &[PresetNode] = &[
    ("/local/domain/0/backend/vif/@", None, PresetPerms::Same),
    ("/local/domain/0/backend/vif/@/0", None, PresetPerms::GuestReads),
    (
        "/local/domain/0/backend/vif/@/0/frontend",
        Some("/local/domain/@/device/vif/0"),
        PresetPerms::Same,
    ),
    ("/local/domain/0/backend/vif/@/0/frontend-id", Some("@"), PresetPerms::Same),
    ("/local/domain/0/backend/vif/@/0/online", Some("1"), PresetPerms::Same),
    ("/local/domain/0/backend/vif/@/0/bridge", Some("xenbr0"), PresetPerms::Same),
    ("/local/domain/0/backend/vif/@/0/mac", Some("00:16:3e:5e:6f:70"), PresetPerms::Same),
    ("/local/domain/0/backend/vif/@/0/state", Some("1"), PresetPerms::Same),
    ("/local/domain/@/device/vif", None, PresetPerms::Same),
    ("/local/domain/@/device/vif/0", None, PresetPerms::Frontend),
    (
        "/local/domain/@/device/vif/0/backend",
        Some("/local/domain/0/backend/vif/@/0"),
        PresetPerms::Same,
    ),
    ("/local/domain/@/device/vif/0/backend-id", Some("0"), PresetPerms::Same),
    ("/local/domain/@/device/vif/0/handle", Some("0"), PresetPerms::Same),
    ("/local/domain/@/device/vif/0/mac", Some("00:16:3e:5e:6f:70"), PresetPerms::Same),
    ("/local/domain/@/device/vif/0/state", Some("1"), PresetPerms::Same),
];

/// Nodes of one domain, as the table of targets has it.
const NODES: usize = DOMAIN.len() + CONSOLE.len() + DISK.len() + NETWORK.len();
const _: () = assert!(NODES == 61);

/// Makes `nodes` for `domid` in one transaction.
fn make(conn: &mut Conn, domid: usize, nodes: &[PresetNode]) -> Result<()> {
    let id = domid.to_string();
    let mut bytes = Vec::new();
    put(&mut bytes, MsgType::TransactionStart, 0, &[b"\0"]);
    let reply = conn.call(&bytes)?;
    let tx_id = std::str::from_utf8(reply.strip_suffix(b"\0").unwrap_or(&reply))?.parse()?;
    let mut call = |kind, path: &str, rest: &[u8]| -> Result<()> {
        bytes.clear();
        put(&mut bytes, kind, tx_id, &[path.as_bytes(), b"\0", rest]);
        conn.call(&bytes).map(drop)
    };
    for (path, value, perms) in nodes {
        let path = path.replace('@', &id);
        match value {
            Some(value) => call(MsgType::Write, &path, value.replace('@', &id).as_bytes())?,
            None => call(MsgType::Mkdir, &path, b"")?,
        }
        match perms {
            PresetPerms::Same => {}
            PresetPerms::GuestReads => {
                call(MsgType::SetPerms, &path, format!("n0\0r{id}\0").as_bytes())?;
            }
            PresetPerms::Guest => call(MsgType::SetPerms, &path, format!("n{id}\0").as_bytes())?,
            PresetPerms::Frontend => {
                call(MsgType::SetPerms, &path, format!("n{id}\0r0\0").as_bytes())?;
            }
        }
    }
    bytes.clear();
    put(&mut bytes, MsgType::TransactionEnd, tx_id, &[b"T\0"]);
    conn.call(&bytes).map(drop)
}

/// Introduces a domain: its domid, a frame number and a port, which the stand-in ignores.
pub(super) fn introduce(conn: &mut Conn, domid: usize) -> Result<()> {
    let mut bytes = Vec::new();
    put(&mut bytes, MsgType::Introduce, 0, &[format!("{domid}\x001\x001\0").as_bytes()]);
    conn.call(&bytes).map(drop)
}

/// Makes 1000 domains, 10,000 on ours; records the first and the last hundred and the first
/// thousand.
pub(super) fn run(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let count = match kind {
        MeasuredDaemon::Ours => context.size(10_000, 30),
        _ => context.size(1000, 30),
    };
    let part = context.size(100, 10);
    let daemon = Daemon::start(context.places, kind, context.cpu, Guests::Any)?;
    let mut conn = Conn::open(&daemon.socket)?;
    for parent in ["/vm", "/libxl", "/local/domain/0/backend/vbd", "/local/domain/0/backend/vif"] {
        conn.call(&write(parent, b""))?;
    }
    let mut marks = vec![Instant::now()];
    for domid in 1..=count {
        make(&mut conn, domid, DOMAIN)?;
        introduce(&mut conn, domid)?;
        make(&mut conn, domid, CONSOLE)?;
        make(&mut conn, domid, DISK)?;
        make(&mut conn, domid, NETWORK)?;
        marks.push(Instant::now());
    }
    let took = |from: usize, to: usize| (marks[to] - marks[from]).as_secs_f64();
    context.record("domains.first", took(0, part));
    context.record("domains.last", took(count - part, count));
    context.record("domains.thousand", took(0, count.min(1000)));
    Ok(())
}
