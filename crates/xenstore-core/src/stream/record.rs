//! The records of a stream, and the contents of each kind.

/// The magic: `xenstore` in ASCII.
pub(super) const IDENT: &[u8; 8] = b"xenstore";
/// The version that is written. All versions up to it are read.
pub(super) const VERSION: u32 = 2;
/// Bit 0 of the flags: the byte order of all bytes after the header, 1 for big-endian.
pub(super) const FLAGS: u32 = if cfg!(target_endian = "big") { 1 } else { 0 };

/// The flag for a `unique_id` in CONNECTION_DATA.
pub(super) const HAS_UNIQUE_ID: u16 = 1;
/// The `tdomid` of a domain without a target (`DOMID_INVALID`, `xen.h`).
pub(super) const NO_TARGET: u16 = 0x7ff4;
/// The `depth` of a watch on everything below its path.
pub(super) const DEPTH_ALL: u16 = u16::MAX;
/// The flag of [`DomainMore`] for a domain with an identity.
pub(super) const HAS_IDENTITY: u16 = 1;
/// The flag of [`DomainMore`] for a domain that has been shut down.
pub(super) const IS_SHUT_DOWN: u16 = 2;

/// GLOBAL_DATA: the daemon's own descriptors. The numbers are valid in the process only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DaemonHandles {
    /// The descriptor of the listening socket, -1 for none.
    pub socket_fd: i32,
    /// The descriptor of the event channel driver, -1 for none.
    pub evtchn_fd: i32,
}

/// The daemon's part of one connection, which the core does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransportState<'a> {
    /// The descriptor of a socket, or the event channel port of a ring.
    pub handle: u32,
    /// The bytes that were read and not processed yet: whole messages, then a part of one.
    pub input: &'a [u8],
}

/// CONNECTION_DATA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ConnectionRecord<'a> {
    /// The connection's number, never 0.
    pub(crate) id: u32,
    pub(crate) peer: ConnectionPeer,
    /// The requests that have not been answered: whole ones, then a part of one.
    pub(crate) input: &'a [u8],
    /// The number of bytes to be sent that belong to a partly sent message. Whole messages follow
    /// them.
    pub(crate) partial: u16,
    pub(crate) output: &'a [u8],
}

/// The other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConnectionPeer {
    Ring { domid: u16, target: Option<u16>, port: u32, identity: Option<u64> },
    Socket { fd: u32 },
}

/// WATCH_DATA, or WATCH_DATA_EXTENDED if the watch has a depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WatchDataRecord<'a> {
    pub(crate) conn: u32,
    /// The path as the client gave it, without its NUL.
    pub(crate) path: &'a [u8],
    pub(crate) token: &'a [u8],
    pub(crate) depth: Option<u16>,
}

/// NODE_DATA of a node outside transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeRecord<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) value: &'a [u8],
    /// The entries: letter, flags and domid, the owner's first.
    pub(crate) entries: &'a [[u8; 4]],
}

/// Values and names of quotas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quotas<'a> {
    pub(super) values: &'a [[u8; 4]],
    /// The names, as many as there are values, each with its NUL.
    pub(super) names: &'a [u8],
}

impl<'a> Quotas<'a> {
    pub(crate) fn new(values: &'a [[u8; 4]], names: &'a [u8]) -> Self {
        Self { values, names }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a [u8], u32)> {
        let values = self.values.iter().map(|value| u32::from_ne_bytes(*value));
        crate::wire::Strings::new(self.names).zip(values)
    }
}

/// DOMAIN_DATA, or this project's record for a domain without a connection, which C's daemon would
/// not accept as DOMAIN_DATA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DomainRecord<'a> {
    pub(crate) domid: u16,
    /// The features; `None` in streams of version 1.
    pub(crate) features: Option<u32>,
    pub(crate) quotas: Quotas<'a>,
}

/// The data on a domain beyond DOMAIN_DATA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DomainMore {
    pub(crate) domid: u16,
    pub(crate) shutdown: bool,
    pub(crate) weight: u32,
    pub(crate) identity: Option<u64>,
}

/// One record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamRecord<'a> {
    Global(DaemonHandles),
    Connection(ConnectionRecord<'a>),
    Watch(WatchDataRecord<'a>),
    Transaction {
        conn: u32,
        id: u32,
    },
    Node(NodeRecord<'a>),
    GlobalQuota(Quotas<'a>),
    Domain(DomainRecord<'a>),
    /// A number above all generations of lists of children.
    Generation(u64),
    Unconnected(DomainRecord<'a>),
    DomainMore(DomainMore),
    /// A connection's fields beyond CONNECTION_DATA: the number of its next transaction, and the
    /// reason why it is no longer served, if it is not.
    ConnectionMore {
        conn: u32,
        next_transaction: u32,
        ended: u32,
    },
    /// Input that does not fit into the 65535 bytes of CONNECTION_DATA.
    Input {
        conn: u32,
        bytes: &'a [u8],
    },
    /// A record of an unknown type, or of a transaction's own nodes.
    Other,
    End,
}
