//! The nodes of a domain's first console, `/local/domain/N/console`.
//!
//! Source: `docs/misc/console.txt`, libxl's `libxl_console.c`. The toolstack writes all of them in one
//! transaction, and the guest can write none but `backend-id` (XSA-57).

use std::collections::BTreeSet;
use xen::{DomId, Port};
use xenbus::Error;
use xenstore::{Client, MsgType, NodeAccess, Store, TransactionId};

/// The value of `type` that leaves a console to this daemon; absent, it is the same.
pub(super) const OWN_TYPE: &[u8] = b"xenconsoled";

/// The nodes of a first console that is to be served here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsoleNodes {
    /// The guest's port.
    pub port: Port,
    /// The frame of the ring: another one is another ring, even at the same port.
    pub frame: u64,
    /// The most bytes that wait for a reader of the terminal, as the toolstack says.
    pub limit: Option<u64>,
}

/// The nodes of a domain that its console depends on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DomainNodes {
    /// The console; none where its nodes are not there yet, or it is another program's.
    pub console: Option<ConsoleNodes>,
    /// The domain's name.
    pub name: Option<Vec<u8>>,
    /// The path of its virtual machine, which has its UUID.
    pub machine: Option<Vec<u8>>,
}

impl DomainNodes {
    /// Reads them, all at once.
    ///
    /// # Errors
    /// The store is gone.
    pub fn read(store: &mut Client, domid: DomId) -> Result<Self, Error> {
        let (console, home) = (folder(domid), xenbus::path::home(domid));
        let paths = [
            format!("{console}/type"),
            format!("{console}/ring-ref"),
            format!("{console}/port"),
            format!("{console}/limit"),
            format!("{home}/name"),
            format!("{home}/vm"),
        ];
        let [kind, frame, port, limit, name, machine] = read_all(store, &paths)?;
        let (frame, port) = (frame.as_deref().and_then(number), port.as_deref().and_then(number));
        let ours = kind.is_none_or(|kind| kind == OWN_TYPE);
        let console = match (frame, port) {
            (Some(frame), Some(port)) if ours => Some(ConsoleNodes {
                port: Port(port),
                frame,
                limit: limit.as_deref().and_then(number),
            }),
            _ => None,
        };
        Ok(Self { console, name, machine })
    }

    /// Returns the identity of the console in a domain's life; none without a console. A domain that is
    /// reset has another port.
    #[must_use]
    pub fn life(&self, domid: DomId) -> Option<u64> {
        let nodes = self.console.as_ref()?;
        let numbers = [u64::from(domid.0), nodes.port.0.into(), nodes.frame];
        Some(identity(&numbers, self.machine.as_deref()))
    }
}

/// Returns the identity (FNV-1a) of what these numbers name in the life of a domain. Numbers of domains
/// are used again; the path of the virtual machine has its UUID.
#[must_use]
pub fn identity(numbers: &[u64], machine: Option<&[u8]>) -> u64 {
    let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
    let bytes = numbers.chain(machine.unwrap_or_default().iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Those who may write a domain's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Naming {
    /// The toolstack alone: the name may lead to a file.
    ByToolstack,
    /// The domain itself, or others.
    ByOthers,
}

/// Returns who may write a domain's name.
///
/// # Errors
/// The store is gone.
pub fn naming(store: &mut Client, domid: DomId) -> Result<Naming, Error> {
    let perms = unless_gone(store.get_perms(format!("{}/name", xenbus::path::home(domid))))?;
    // The first entry names the owner, who may do all, and says what those may do that no entry names.
    let is_owner = perms.first().is_none_or(|owner| owner.domid == i32::from(domid.0));
    let is_written =
        perms.iter().any(|perm| matches!(perm.access, NodeAccess::Write | NodeAccess::Both));
    Ok(if is_owner || is_written { Naming::ByOthers } else { Naming::ByToolstack })
}

/// Returns those of the domains that the store serves.
///
/// # Errors
/// The store is gone.
pub fn introduced(
    store: &mut Client,
    domids: impl Iterator<Item = DomId>,
) -> Result<BTreeSet<DomId>, Error> {
    let ask = |domid: DomId| {
        let kind = MsgType::IsDomainIntroduced;
        let ticket = store.submit(TransactionId::NONE, kind, &[format!("{domid}\0").as_bytes()]);
        ticket.map(|ticket| (domid, ticket))
    };
    let asked = domids.map(ask).collect::<Result<Vec<_>, _>>()?;
    let mut found = BTreeSet::new();
    for (domid, ticket) in asked {
        if let Some(reply) = unless_gone(store.wait(ticket).map(Some))?
            && reply.first() == Some(&b'T')
        {
            found.insert(domid);
        }
    }
    Ok(found)
}

/// Reads nodes, all at once; none where one is not there, or may not be read.
fn read_all<const N: usize>(
    store: &mut Client,
    paths: &[String; N],
) -> Result<[Option<Vec<u8>>; N], Error> {
    let mut tickets = Vec::with_capacity(N);
    for path in paths {
        let parts = [path.as_bytes(), b"\0"];
        tickets.push(store.submit(TransactionId::NONE, MsgType::Read, &parts)?);
    }
    let mut values = [const { None }; N];
    for (value, ticket) in values.iter_mut().zip(tickets) {
        *value = unless_gone(store.wait(ticket).map(Some))?;
    }
    Ok(values)
}

/// Nothing, where one node or one domain is not there; an error where the store is gone.
///
/// # Errors
/// The store is gone.
pub fn unless_gone<T: Default>(outcome: Result<T, xenstore::Error>) -> Result<T, Error> {
    outcome
        .map_err(Error::from)
        .or_else(|error| if error.is_store_gone() { Err(error) } else { Ok(T::default()) })
}

/// The folder of the nodes.
#[must_use]
pub fn folder(domid: DomId) -> String {
    format!("/local/domain/{domid}/console")
}

/// The node, below a domain's home, that becomes `1` when the console is served, with a terminal or
/// without. It is written only where the toolstack has made it.
pub const SERVED: &str = "console/served";

/// Tells the toolstack that a console is served: the path of its terminal, if it has one, is written
/// over the one that an earlier daemon has left. Nothing is written where the console is gone, as that
/// would leave a node of a dead domain.
///
/// # Errors
/// The store refuses, or is gone.
pub fn announce(
    store: &mut Client,
    domid: DomId,
    terminal: Option<&[u8]>,
) -> Result<(), xenstore::Error> {
    let (folder, served) = (folder(domid), format!("{}/{SERVED}", xenbus::path::home(domid)));
    store.transaction(|tx| {
        if !tx.exists(format!("{folder}/port"))? {
            return Ok(());
        }
        if tx.exists(&served)? {
            tx.write(&served, "1")?;
        }
        tx.write(format!("{folder}/tty"), terminal.unwrap_or_default())
    })
}

/// Writes the size of the window of a console's clients, in columns and rows, where the toolstack has
/// made a node for it. Its permissions stay.
///
/// # Errors
/// The store refuses, or is gone.
pub fn write_window(
    store: &mut Client,
    domid: DomId,
    (columns, rows): (u16, u16),
) -> Result<(), xenstore::Error> {
    let path = format!("{}/window", folder(domid));
    store.transaction(|tx| {
        if !tx.exists(&path)? {
            return Ok(());
        }
        tx.write(&path, format!("{columns}x{rows}"))
    })
}

/// A decimal number, as libxl writes it.
fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}
