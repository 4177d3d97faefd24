//! Reads records. Nothing is copied, and every field is checked here.

use super::kind;
use super::record::{
    ConnectionPeer, ConnectionRecord, DEPTH_ALL, DaemonHandles, DomainMore, DomainRecord, FLAGS,
    HAS_IDENTITY, HAS_UNIQUE_ID, IDENT, IS_SHUT_DOWN, NO_TARGET, NodeRecord, Quotas, StreamRecord,
    VERSION, WatchDataRecord,
};
use core::fmt;

/// The reason why a stream could not be read, and the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Error {
    /// The number of records before the faulty one.
    pub record: u32,
    /// The record's type; `None` if the stream ends before it, and for the stream's header.
    pub kind: Option<u32>,
    /// The offset of the record in bytes from the start of the stream.
    pub offset: usize,
    /// The fault.
    pub what: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state cannot be read: record {} ", self.record)?;
        if let Some(kind) = self.kind {
            write!(f, "({}, type {kind:#x}) ", kind::name(kind))?;
        }
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

impl core::error::Error for Error {}

/// A fault of a record.
type FieldFault = &'static str;

/// A reader of the records of a stream, one after the other.
pub(crate) struct RecordReader<'a> {
    stream: &'a [u8],
    /// The offset of the next record.
    next: usize,
    version: u32,
    /// The position of the current record.
    at: Error,
}

/// A reader of the fields of a record's body, one after the other.
struct FieldReader<'a> {
    body: &'a [u8],
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    fn new(body: &'a [u8]) -> Self {
        Self { body, rest: body }
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], FieldFault> {
        let (bytes, rest) =
            self.rest.split_at_checked(len).ok_or("its fields are longer than it is")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FieldFault> {
        let (array, rest) = self.rest.split_first_chunk().ok_or("it is too short")?;
        self.rest = rest;
        Ok(*array)
    }

    fn u16(&mut self) -> Result<u16, FieldFault> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, FieldFault> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, FieldFault> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Reads some groups of four bytes.
    fn groups_of_four(&mut self, count: u16) -> Result<&'a [[u8; 4]], FieldFault> {
        Ok(self.bytes(usize::from(count).saturating_mul(4))?.as_chunks().0)
    }

    /// Reads text of this length, whose last byte is its only NUL.
    fn text(&mut self, len: u16) -> Result<&'a [u8], FieldFault> {
        match self.bytes(usize::from(len))?.split_last() {
            Some((0, text)) if !text.contains(&0) => Ok(text),
            _ => Err("a text in it does not end with its only NUL"),
        }
    }

    /// Skips to the next multiple of 8 from the body's start.
    fn skip_padding(&mut self) -> Result<(), FieldFault> {
        let odd = self.body.len().saturating_sub(self.rest.len()) % 8;
        let padding = if odd == 0 { 0 } else { 8usize.saturating_sub(odd) };
        self.bytes(padding).map(drop)
    }
}

impl<'a> RecordReader<'a> {
    /// Checks the stream's header, and returns a reader of its records.
    ///
    /// # Errors
    /// An error if this is no stream of a known version, written on a machine of this byte order.
    pub(crate) fn new(stream: &'a [u8]) -> Result<Self, Error> {
        let at = Error { record: 0, kind: None, offset: 0, what: "" };
        let header = |what| Error { what, ..at };
        let mut fields = FieldReader::new(stream);
        let mut word = || fields.array().map_err(|_| header("there is no whole header"));
        if [word()?, word()?].as_flattened() != IDENT {
            return Err(header("this is no stream of a XenStore"));
        }
        let (version, flags) = (u32::from_be_bytes(word()?), u32::from_be_bytes(word()?));
        if !(1..=VERSION).contains(&version) {
            return Err(header("its version is not known"));
        }
        if flags != FLAGS {
            return Err(header("it is of a machine of another byte order"));
        }
        Ok(Self { stream, next: 16, version, at })
    }

    /// Returns an error in the current record.
    pub(crate) fn error(&self, what: FieldFault) -> Error {
        Error { what, ..self.at }
    }

    /// Reads the next record; [`StreamRecord::End`] is the last.
    ///
    /// # Errors
    /// The fault, if the stream ends too early or too late, or the record is malformed.
    pub(crate) fn next(&mut self) -> Result<StreamRecord<'a>, Error> {
        let record = if self.next == 16 { 0 } else { self.at.record.saturating_add(1) };
        self.at = Error { record, kind: None, offset: self.next, what: "" };
        let rest = self.stream.get(self.next..).unwrap_or_default();
        let mut fields = FieldReader::new(rest);
        let early = |_| self.error("the stream ends here, and not with END");
        let (kind, len) = (fields.u32().map_err(early)?, fields.u32().map_err(early)?);
        self.at.kind = Some(kind);
        let len = len as usize;
        let body = fields.bytes(len).map_err(|_| self.error("it is longer than the stream"))?;
        // C counts the padding as a part of the record; the document does not.
        let padded = len.checked_next_multiple_of(8).unwrap_or(len);
        let next = self.next.saturating_add(8).saturating_add(padded);
        self.next = next.min(self.stream.len());
        let record = self.parse(kind, FieldReader::new(body)).map_err(|what| self.error(what))?;
        if matches!(record, StreamRecord::End) && self.next < self.stream.len() {
            return Err(self.error("something follows it"));
        }
        Ok(record)
    }

    fn parse(
        &self,
        kind: u32,
        mut fields: FieldReader<'a>,
    ) -> Result<StreamRecord<'a>, FieldFault> {
        let fields = &mut fields;
        Ok(match kind {
            kind::END => StreamRecord::End,
            kind::GLOBAL => StreamRecord::Global(DaemonHandles {
                socket_fd: fields.u32()?.cast_signed(),
                evtchn_fd: fields.u32()?.cast_signed(),
            }),
            kind::CONNECTION => StreamRecord::Connection(connection(fields)?),
            kind::WATCH => StreamRecord::Watch(watch(fields, false)?),
            kind::WATCH_EXTENDED if self.version > 1 => StreamRecord::Watch(watch(fields, true)?),
            kind::TRANSACTION => {
                StreamRecord::Transaction { conn: fields.u32()?, id: fields.u32()? }
            }
            kind::NODE => node(fields)?,
            kind::GLOBAL_QUOTA => {
                let counts = [fields.u16()?, fields.u16()?];
                let count = counts[0].checked_add(counts[1]).ok_or("it has too many quotas")?;
                StreamRecord::GlobalQuota(quotas(fields, count)?)
            }
            kind::DOMAIN => StreamRecord::Domain(self.domain(fields)?),
            kind::UNCONNECTED => StreamRecord::Unconnected(self.domain(fields)?),
            kind::GENERATION => StreamRecord::Generation(fields.u64()?),
            kind::DOMAIN_MORE => {
                let (domid, flags) = (fields.u16()?, fields.u16()?);
                let (weight, identity) = (fields.u32()?, fields.u64()?);
                StreamRecord::DomainMore(DomainMore {
                    domid,
                    shutdown: flags & IS_SHUT_DOWN != 0,
                    weight,
                    identity: (flags & HAS_IDENTITY != 0).then_some(identity),
                })
            }
            kind::CONNECTION_MORE => StreamRecord::ConnectionMore {
                conn: fields.u32()?,
                next_transaction: fields.u32()?,
                ended: fields.u32()?,
            },
            kind::INPUT => {
                let (conn, len) = (fields.u32()?, fields.u32()?);
                StreamRecord::Input { conn, bytes: fields.bytes(len as usize)? }
            }
            _ => StreamRecord::Other,
        })
    }

    fn domain(&self, fields: &mut FieldReader<'a>) -> Result<DomainRecord<'a>, FieldFault> {
        let (domid, count, features) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let features = (self.version > 1).then_some(features);
        Ok(DomainRecord { domid, features, quotas: quotas(fields, count)? })
    }
}

fn connection<'a>(fields: &mut FieldReader<'a>) -> Result<ConnectionRecord<'a>, FieldFault> {
    let (id, kind, present) = (fields.u32()?, fields.u16()?, fields.u16()?);
    let mut peer = match kind {
        0 => {
            let (domid, target, port) = (fields.u16()?, fields.u16()?, fields.u32()?);
            let target = (target != NO_TARGET).then_some(target);
            ConnectionPeer::Ring { domid, target, port, identity: None }
        }
        1 => {
            let (fd, _) = (fields.u32()?, fields.u32()?);
            ConnectionPeer::Socket { fd }
        }
        _ => return Err("it is neither a ring nor a socket"),
    };
    let (input, partial, output) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let input = fields.bytes(usize::from(input))?;
    let output = fields.bytes(output as usize)?;
    if let ConnectionPeer::Ring { identity, .. } = &mut peer
        && present & HAS_UNIQUE_ID != 0
    {
        fields.skip_padding()?;
        *identity = Some(fields.u64()?);
    }
    Ok(ConnectionRecord { id, peer, input, partial, output })
}

fn watch<'a>(
    fields: &mut FieldReader<'a>,
    extended: bool,
) -> Result<WatchDataRecord<'a>, FieldFault> {
    let (conn, path, token) = (fields.u32()?, fields.u16()?, fields.u16()?);
    let mut depth = None;
    if extended {
        depth = Some(fields.u16()?).filter(|depth| *depth != DEPTH_ALL);
        fields.u16()?;
    }
    Ok(WatchDataRecord { conn, path: fields.text(path)?, token: fields.text(token)?, depth })
}

fn node<'a>(fields: &mut FieldReader<'a>) -> Result<StreamRecord<'a>, FieldFault> {
    let (conn, _tx_id) = (fields.u32()?, fields.u32()?);
    let (path, value) = (fields.u16()?, fields.u16()?);
    let (_access, count) = (fields.u16()?, fields.u16()?);
    let entries = fields.groups_of_four(count)?;
    let (path, value) = (fields.text(path)?, fields.bytes(usize::from(value))?);
    // Nodes that a transaction has made are dropped with it.
    Ok(if conn == 0 {
        StreamRecord::Node(NodeRecord { path, value, entries })
    } else {
        StreamRecord::Other
    })
}

fn quotas<'a>(fields: &mut FieldReader<'a>, count: u16) -> Result<Quotas<'a>, FieldFault> {
    let quotas = Quotas { values: fields.groups_of_four(count)?, names: fields.rest };
    if quotas.iter().count() != usize::from(count) {
        return Err("it has fewer names of quotas than values");
    }
    Ok(quotas)
}
