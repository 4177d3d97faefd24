//! The nodes of a domain's first console, `/local/domain/N/console`.
//!
//! Source: `docs/misc/console.txt`, libxl's `libxl_console.c`. The toolstack writes all of them in one
//! transaction, and the guest can write none but `backend-id` (XSA-57).

use xen::{DomId, Port};
use xenstore::{Client, Store};

/// The value of `type` that leaves a console to this daemon; absent, it is the same.
const OWN_TYPE: &[u8] = b"xenconsoled";

/// The nodes of a first console that is to be served here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsoleNodes {
    /// The frame of the ring, for a domain that has not granted it.
    pub frame: u64,
    /// The guest's port.
    pub port: Port,
    /// The most bytes that wait for a reader of the terminal, as the toolstack says.
    pub limit: Option<u64>,
}

impl ConsoleNodes {
    /// Reads them; none where they are not there yet, or the console is another program's.
    ///
    /// # Errors
    /// The store is gone.
    pub fn read(store: &mut Client, domid: DomId) -> Result<Option<Self>, xenbus::Error> {
        let kind = read(store, domid, "type")?;
        if kind.is_some_and(|kind| kind != OWN_TYPE) {
            return Ok(None);
        }
        let frame = read(store, domid, "ring-ref")?.and_then(|value| number(&value));
        let port = read(store, domid, "port")?.and_then(|value| number(&value));
        let (Some(frame), Some(port)) = (frame, port) else { return Ok(None) };
        let limit = read(store, domid, "limit")?.and_then(|value| number(&value));
        Ok(Some(Self { frame, port: Port(port), limit }))
    }
}

/// The folder of the nodes.
#[must_use]
pub fn folder(domid: DomId) -> String {
    format!("/local/domain/{domid}/console")
}

/// Writes the path of the terminal over the one that an earlier daemon has left. Nothing is written
/// where the console is gone, as that would leave a node of a dead domain.
///
/// # Errors
/// The store refuses, or is gone.
pub fn write_terminal(
    store: &mut Client,
    domid: DomId,
    path: &[u8],
) -> Result<(), xenstore::Error> {
    let folder = folder(domid);
    store.transaction(|tx| {
        if !tx.exists(format!("{folder}/port"))? {
            return Ok(());
        }
        tx.write(format!("{folder}/tty"), path)
    })
}

/// Reads a node below `/local/domain/N/console`; none where it is not there.
fn read(store: &mut Client, domid: DomId, node: &str) -> Result<Option<Vec<u8>>, xenbus::Error> {
    read_node(store, &format!("{}/{node}", folder(domid)))
}

/// Reads a node; none where it is not there, or may not be read.
///
/// # Errors
/// The store is gone.
pub fn read_node(store: &mut Client, path: &str) -> Result<Option<Vec<u8>>, xenbus::Error> {
    match store.read(path).map_err(xenbus::Error::from) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_store_gone() => Err(error),
        Err(_) => Ok(None),
    }
}

/// A decimal number, as libxl writes it.
fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}
