//! A request that is being processed.

use super::connections::Connections;
use super::waiting::WaitCause;
use crate::id::{ConnId, DomId};
use crate::limits::PAYLOAD_MAX;
use crate::path::push_decimal;
use crate::perms::Caller;
use crate::wire::{Error, Header, MsgType, Strings};
use alloc::vec::Vec;

/// A request that is being processed.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) conn: ConnId,
    pub(super) header: &'a Header,
    pub(super) kind: MsgType,
    pub(super) payload: &'a [u8],
    pub(super) caller: Caller,
}

/// The reason why a request has not been answered by its function.
pub(super) enum RequestError {
    Error(Error),
    Wait(WaitCause),
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

pub(super) type RequestResult = Result<(), RequestError>;

impl<'a> Request<'a> {
    /// Returns the only string of the payload, which must end with it.
    pub(super) fn only_string(&self) -> Result<&'a [u8], Error> {
        let mut strings = Strings::new(self.payload);
        strings.next().filter(|_| strings.rest().is_empty()).ok_or(Error::Inval)
    }

    /// Returns exactly so many strings. Bytes after the last NUL are ignored.
    pub(super) fn strings<const N: usize>(&self) -> Result<[&'a [u8]; N], Error> {
        let mut strings = Strings::new(self.payload);
        let mut all = [&[][..]; N];
        for to in &mut all {
            *to = strings.next().ok_or(Error::Inval)?;
        }
        if strings.next().is_some() { Err(Error::Inval) } else { Ok(all) }
    }

    /// Sends the reply.
    pub(super) fn answer(&self, payload: &[&[u8]], conns: &mut Connections) -> RequestResult {
        let len = payload.iter().map(|part| part.len()).fold(0, usize::saturating_add);
        if len > PAYLOAD_MAX {
            return Err(Error::TooBig.into());
        }
        if let Some(connection) = conns.get_mut(self.conn) {
            connection.reply(self.header, self.kind, payload);
        }
        Ok(())
    }

    /// Replies with a number.
    pub(super) fn answer_number(&self, number: u32, conns: &mut Connections) -> RequestResult {
        let mut body = Vec::new();
        push_decimal(u64::from(number), &mut body);
        self.answer(&[&body, b"\0"], conns)
    }

    /// Replies `OK`.
    pub(super) fn ok(&self, conns: &mut Connections) -> RequestResult {
        self.answer(&[b"OK\0"], conns)
    }
}

/// Parses a decimal number as `atoi` does.
pub(super) fn parse<T: core::str::FromStr>(text: &[u8]) -> Result<T, Error> {
    let text = core::str::from_utf8(text).map_err(|_| Error::Inval)?;
    text.parse().map_err(|_| Error::Inval)
}

pub(super) fn parse_domid(text: &[u8]) -> Result<DomId, Error> {
    parse(text).map(DomId)
}
