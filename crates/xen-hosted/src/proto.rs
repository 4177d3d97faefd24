//! Messages between the broker and its peers: 64-bit words in packets of a SOCK_SEQPACKET socket,
//! descriptors beside them (SCM_RIGHTS).
//!
//! Both ends run on one machine and are of one build, so numbers have its byte order. A peer is
//! identified by its socket, never by its messages. A peer's messages are hostile:
//! [`BrokerRequest::decode`] accepts or rejects each, and no size is taken from them.

use crate::limits::PACKET_FDS;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use xen::{DomId, Port};

/// A request of a peer; each needs one of its socket's [`Rights`](crate::Rights).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BrokerRequest {
    /// A request for the peer's own state. Answer: domid, identity, console port, store port, ports
    /// at most; descriptors: counters, and with DomainWatch the table of identities.
    Hello,
    AllocUnbound {
        remote: DomId,
    },
    BindInterdomain {
        remote: DomId,
        port: Port,
    },
    BindVirq {
        virq: u32,
    },
    Close {
        port: Port,
    },
    Status {
        port: Port,
    },
    /// The arena number `slot` of `granter`, if it is for this domain.
    FindArena {
        granter: DomId,
        slot: u32,
    },
    /// This domain's arena for `peer`: the one with this index of those that exist, or else a
    /// further one.
    OfferArena {
        peer: DomId,
        writable: u32,
        at: u32,
    },
    /// The granter has mapped its arena `slot`, which nobody else can write from now on.
    ArenaMapped {
        slot: u32,
    },
    /// An arena that was looked up is no longer used; not answered.
    Release {
        granter: DomId,
        slot: u32,
        /// The number of the arena among those that have had that slot, as the answer to
        /// [`BrokerRequest::FindArena`] said.
        number: u64,
    },
    /// The changes of domains since the last such request.
    Changes,
    /// A further connection of the guest, for one of its processes. Descriptor: its socket.
    Connect,
    /// The memory that the guest's successor gets after it. Descriptor: a memfd.
    Keepsake,
    /// The configuration of a new domain, encoded by [`crate::domain::DomainConfig`].
    Create(Vec<u8>),
    List {
        from: DomId,
    },
    Info {
        domid: DomId,
    },
    Pause {
        domid: DomId,
    },
    Unpause {
        domid: DomId,
    },
    Shutdown {
        domid: DomId,
        reason: u8,
    },
    Destroy {
        domid: DomId,
    },
    /// As `Destroy`, and the number waits for a successor that this connection creates.
    Vacate {
        domid: DomId,
    },
    SetMemoryMax {
        domid: DomId,
        kib: u64,
    },
    Scheduling {
        domid: DomId,
    },
    SetScheduling {
        domid: DomId,
        weight: u16,
        cap: u16,
    },
    Accounts {
        domid: DomId,
    },
    /// A descriptor of the domain's first process.
    Process {
        domid: DomId,
    },
    /// The connection that a domain ends with, in a word; 0 where there is none.
    Holder {
        domid: DomId,
    },
    /// The domain ends with the connection in this word from now on, not with this one; at once
    /// where that is gone.
    HandOver {
        domid: DomId,
        holder: u64,
    },
    /// The domain no longer ends with this connection.
    Keep {
        domid: DomId,
    },
    /// The report of a domain's process before its program runs: its sandbox is complete, without
    /// these parts. If it has a mount of FUSE: the number of that connection, and
    /// [`Names`](crate::domain::devices::Names).
    SandboxDone {
        lacks: u64,
        connection: u32,
    },
    /// The report of a domain's process that its sandbox failed at this step.
    SandboxFailed {
        step: u32,
        errno: i32,
    },
}

/// Converts a word to the type of a field; `None` where it does not fit.
fn cut<T: TryFrom<u64>>(word: u64) -> Option<T> {
    T::try_from(word).ok()
}

fn domid(word: u64) -> Option<DomId> {
    cut(word).map(DomId)
}

fn port(word: u64) -> Option<Port> {
    cut(word).map(Port)
}

impl BrokerRequest {
    /// The packet.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let words: Vec<u64> = match self {
            Self::Hello => vec![0],
            Self::AllocUnbound { remote } => vec![1, remote.0.into()],
            Self::BindInterdomain { remote, port } => vec![2, remote.0.into(), port.0.into()],
            Self::BindVirq { virq } => vec![3, (*virq).into()],
            Self::Close { port } => vec![4, port.0.into()],
            Self::Status { port } => vec![5, port.0.into()],
            Self::FindArena { granter, slot } => vec![6, granter.0.into(), (*slot).into()],
            Self::OfferArena { peer, writable, at } => {
                vec![7, peer.0.into(), (*writable).into(), (*at).into()]
            }
            Self::Changes => vec![8],
            Self::Connect => vec![28],
            Self::Keepsake => vec![30],
            Self::Create(config) => {
                let mut bytes = 9_u64.to_ne_bytes().to_vec();
                bytes.extend_from_slice(config);
                return bytes;
            }
            Self::List { from } => vec![10, from.0.into()],
            Self::Info { domid } => vec![11, domid.0.into()],
            Self::Pause { domid } => vec![12, domid.0.into()],
            Self::Unpause { domid } => vec![13, domid.0.into()],
            Self::Shutdown { domid, reason } => vec![14, domid.0.into(), (*reason).into()],
            Self::Destroy { domid } => vec![15, domid.0.into()],
            Self::Vacate { domid } => vec![29, domid.0.into()],
            Self::SetMemoryMax { domid, kib } => vec![16, domid.0.into(), *kib],
            Self::Scheduling { domid } => vec![17, domid.0.into()],
            Self::SetScheduling { domid, weight, cap } => {
                vec![18, domid.0.into(), (*weight).into(), (*cap).into()]
            }
            Self::Accounts { domid } => vec![19, domid.0.into()],
            Self::Process { domid } => vec![24, domid.0.into()],
            Self::Holder { domid } => vec![25, domid.0.into()],
            Self::HandOver { domid, holder } => vec![27, domid.0.into(), *holder],
            Self::Keep { domid } => vec![26, domid.0.into()],
            Self::ArenaMapped { slot } => vec![22, (*slot).into()],
            Self::Release { granter, slot, number } => {
                vec![23, granter.0.into(), (*slot).into(), *number]
            }
            Self::SandboxDone { lacks, connection } => vec![20, *lacks, (*connection).into()],
            Self::SandboxFailed { step, errno } => {
                vec![21, (*step).into(), u64::from(errno.unsigned_abs())]
            }
        };
        to_bytes(&words)
    }

    /// Decodes the request in a packet; `None` where it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some((op, config)) = bytes.split_first_chunk::<8>()
            && u64::from_ne_bytes(*op) == 9
        {
            return Some(Self::Create(config.to_vec()));
        }
        let words = from_bytes(bytes)?;
        Some(match words.as_slice() {
            [0] => Self::Hello,
            [1, remote] => Self::AllocUnbound { remote: domid(*remote)? },
            [2, remote, at] => Self::BindInterdomain { remote: domid(*remote)?, port: port(*at)? },
            [3, virq] => Self::BindVirq { virq: cut(*virq)? },
            [4, at] => Self::Close { port: port(*at)? },
            [5, at] => Self::Status { port: port(*at)? },
            [6, granter, slot] => Self::FindArena { granter: domid(*granter)?, slot: cut(*slot)? },
            [7, peer, writable, at] => {
                Self::OfferArena { peer: domid(*peer)?, writable: cut(*writable)?, at: cut(*at)? }
            }
            [8] => Self::Changes,
            [28] => Self::Connect,
            [30] => Self::Keepsake,
            [10, from] => Self::List { from: domid(*from)? },
            [11, of] => Self::Info { domid: domid(*of)? },
            [12, of] => Self::Pause { domid: domid(*of)? },
            [13, of] => Self::Unpause { domid: domid(*of)? },
            [14, of, reason] => Self::Shutdown { domid: domid(*of)?, reason: cut(*reason)? },
            [15, of] => Self::Destroy { domid: domid(*of)? },
            [29, of] => Self::Vacate { domid: domid(*of)? },
            [16, of, kib] => Self::SetMemoryMax { domid: domid(*of)?, kib: *kib },
            [17, of] => Self::Scheduling { domid: domid(*of)? },
            [18, of, weight, cap] => {
                Self::SetScheduling { domid: domid(*of)?, weight: cut(*weight)?, cap: cut(*cap)? }
            }
            [19, of] => Self::Accounts { domid: domid(*of)? },
            [24, of] => Self::Process { domid: domid(*of)? },
            [25, of] => Self::Holder { domid: domid(*of)? },
            [27, of, holder] => Self::HandOver { domid: domid(*of)?, holder: *holder },
            [26, of] => Self::Keep { domid: domid(*of)? },
            [22, slot] => Self::ArenaMapped { slot: cut(*slot)? },
            [23, granter, slot, number] => {
                Self::Release { granter: domid(*granter)?, slot: cut(*slot)?, number: *number }
            }
            [20, lacks, connection] => {
                Self::SandboxDone { lacks: *lacks, connection: cut(*connection)? }
            }
            [21, step, errno] => Self::SandboxFailed { step: cut(*step)?, errno: cut(*errno)? },
            _ => return None,
        })
    }
}

/// A message of the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BrokerMessage {
    /// The answer to the oldest request: an error's number or 0, and what was asked for.
    Reply { errno: i32, words: Vec<u64> },
    /// A port of this peer was bound; descriptors: to wait at, to notify by.
    Bound { port: Port },
    /// The other end of a port is closed.
    Unbound { port: Port },
    /// An arena that this peer has looked up is no longer its granter's.
    ArenaEnded { granter: DomId, slot: u32 },
    /// To a domain's process: its user ids are mapped, go on.
    Mapped,
    /// To a domain's process: run the program.
    Run,
}

impl BrokerMessage {
    /// The packet.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Reply { errno, words } => {
                let mut all = vec![0, u64::from(errno.unsigned_abs())];
                all.extend_from_slice(words);
                to_bytes(&all)
            }
            Self::Bound { port } => to_bytes(&[1, port.0.into()]),
            Self::Unbound { port } => to_bytes(&[2, port.0.into()]),
            Self::ArenaEnded { granter, slot } => to_bytes(&[3, granter.0.into(), (*slot).into()]),
            Self::Mapped => to_bytes(&[4]),
            Self::Run => to_bytes(&[5]),
        }
    }

    /// Decodes the message in a packet; `None` where it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let words = from_bytes(bytes)?;
        Some(match words.as_slice() {
            [0, errno, rest @ ..] => Self::Reply { errno: cut(*errno)?, words: rest.to_vec() },
            [1, at] => Self::Bound { port: port(*at)? },
            [2, at] => Self::Unbound { port: port(*at)? },
            [3, granter, slot] => Self::ArenaEnded { granter: domid(*granter)?, slot: cut(*slot)? },
            [4] => Self::Mapped,
            [5] => Self::Run,
            _ => return None,
        })
    }
}

fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<u64>> {
    let (words, rest) = bytes.as_chunks::<8>();
    rest.is_empty().then(|| words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

/// Sends one packet. Never raises SIGPIPE.
///
/// # Errors
/// The error of sendmsg(2); `EAGAIN` where the peer does not read.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let flags = flags | SendFlags::NOSIGNAL;
    if fds.is_empty() {
        return rustix::net::send(socket, packet, flags).map(drop);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags).map(drop)
}

/// Receives one packet, and its descriptors into `fds`. Returns its length in bytes, 0 at the end.
///
/// # Errors
/// The error of recvmsg(2); `EMSGSIZE` for a packet that `into` does not hold.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    if received.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_messages_round_trip() {
        let of = DomId(7);
        let requests = [
            BrokerRequest::Hello,
            BrokerRequest::AllocUnbound { remote: of },
            BrokerRequest::BindInterdomain { remote: of, port: Port(4095) },
            BrokerRequest::BindVirq { virq: 3 },
            BrokerRequest::Close { port: Port(1) },
            BrokerRequest::Status { port: Port(1) },
            BrokerRequest::FindArena { granter: of, slot: 1 },
            BrokerRequest::OfferArena { peer: of, writable: 1, at: 2 },
            BrokerRequest::ArenaMapped { slot: 1 },
            BrokerRequest::Release { granter: of, slot: 1, number: u64::MAX },
            BrokerRequest::Changes,
            BrokerRequest::Connect,
            BrokerRequest::Keepsake,
            BrokerRequest::Create(b"any bytes".to_vec()),
            BrokerRequest::List { from: of },
            BrokerRequest::Info { domid: of },
            BrokerRequest::Pause { domid: of },
            BrokerRequest::Unpause { domid: of },
            BrokerRequest::Shutdown { domid: of, reason: 3 },
            BrokerRequest::Destroy { domid: of },
            BrokerRequest::Vacate { domid: of },
            BrokerRequest::SetMemoryMax { domid: of, kib: 1 << 40 },
            BrokerRequest::Scheduling { domid: of },
            BrokerRequest::SetScheduling { domid: of, weight: 1, cap: 2 },
            BrokerRequest::Accounts { domid: of },
            BrokerRequest::Process { domid: of },
            BrokerRequest::Holder { domid: of },
            BrokerRequest::HandOver { domid: of, holder: 1 << 56 },
            BrokerRequest::Keep { domid: of },
            BrokerRequest::SandboxDone { lacks: 5, connection: 9 },
            BrokerRequest::SandboxFailed { step: 2, errno: 13 },
        ];
        for request in requests {
            assert_eq!(BrokerRequest::decode(&request.encode()), Some(request));
        }
        let messages = [
            BrokerMessage::Reply { errno: 22, words: vec![1, 2] },
            BrokerMessage::Bound { port: Port(9) },
            BrokerMessage::Unbound { port: Port(9) },
            BrokerMessage::ArenaEnded { granter: of, slot: 3 },
            BrokerMessage::Mapped,
            BrokerMessage::Run,
        ];
        for message in messages {
            assert_eq!(BrokerMessage::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let bad: [&[u64]; 6] = [&[], &[1], &[1, 1 << 16], &[2, 1, 1 << 32], &[99], &[0, 0]];
        for words in bad {
            assert_eq!(BrokerRequest::decode(&to_bytes(words)), None, "{words:?}");
        }
        assert_eq!(BrokerRequest::decode(b"odd"), None);
    }
}
