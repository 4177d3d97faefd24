//! A device's nodes in the store, as a bus reads and writes them.

use crate::error::Error;
use crate::path;
use crate::side::Side;
use crate::state::PeerState;
use xen::DomId;
use xen_io::xenbus::{State, number};
use xenstore::{Client, Store};

/// Most bytes of an error in the store; of a backend's, that a frontend repeats.
const ERROR_MAX: usize = 512;
/// The number that no errno(3) number reaches (`MAX_ERRNO`, `linux/err.h`).
const ERRNO_MAX: i32 = 4096;

/// The nodes of one end that the toolstack has written, and its state.
pub(super) struct EndNodes {
    pub(super) peer: DomId,
    pub(super) peer_path: String,
    pub(super) state: State,
    pub(super) online: bool,
}

impl EndNodes {
    /// Reads them; `None` where there is no such device.
    pub(super) fn read(store: &mut Client, side: Side, path: &str) -> Result<Option<Self>, Error> {
        let (peer_name, id_name) = match side {
            Side::Frontend => ("backend", "backend-id"),
            Side::Backend => ("frontend", "frontend-id"),
        };
        let peer_path = store.try_read(format!("{path}/{peer_name}"))?;
        let peer = store.try_read(format!("{path}/{id_name}"))?;
        let (Some(peer_path), Some(peer)) = (peer_path, peer) else { return Ok(None) };
        let (Ok(peer_path), Some(peer)) = (String::from_utf8(peer_path), number(&peer)) else {
            return Ok(None);
        };
        let state = store.try_read(format!("{path}/state"))?.unwrap_or_default();
        let online = match side {
            Side::Frontend => true,
            Side::Backend => is_online(store, path)?,
        };
        let (peer, state) = (DomId(peer), State::parse(&state));
        Ok(Some(Self { peer, peer_path, state, online }))
    }
}

/// False if the toolstack wants a backend's device no more: its `online` is 0. A missing node means
/// that the device is wanted.
fn is_online(store: &mut Client, path: &str) -> Result<bool, Error> {
    let online = store.try_read(format!("{path}/online"))?;
    Ok(online.is_none_or(|value| number(&value) != Some(0_u32)))
}

/// Reads the state of the other end.
pub(super) fn peer_state(store: &mut Client, peer_path: &str) -> Result<PeerState, Error> {
    let value = match store.try_read(format!("{peer_path}/state")) {
        // The domain's nodes belong to another one by now.
        Err(error) if error.refusal().is_some() => None,
        value => value?,
    };
    Ok(value.map_or(PeerState::Gone, |value| PeerState::Is(State::parse(&value))))
}

/// Reads the reason that a backend gives a device up. There is none if it was asked to close
/// (`online` is 0).
pub(super) fn peer_error(store: &mut Client, peer_path: &str) -> Result<Option<Error>, Error> {
    let mut theirs =
        |name: &str| match store.try_read(format!("{peer_path}/{name}")).map_err(Error::from) {
            Err(gone) if gone.is_store_gone() => Err(gone),
            value => Ok(value.ok().flatten()),
        };
    if theirs("online")?.is_some_and(|value| number(&value) == Some(0_u32)) {
        return Ok(None);
    }
    Ok(theirs("error")?.map(|why| parse_error(&why)))
}

/// The error of the other end, as its `error` node has it: an errno(3) number and a text.
fn parse_error(why: &[u8]) -> Error {
    // Not more of it than an error has.
    let why = String::from_utf8_lossy(&why[..why.len().min(ERROR_MAX)]);
    let (errno, text) = match why.split_once(' ') {
        Some((errno, text)) => (number(errno.as_bytes()), text),
        None => (None, &*why),
    };
    let errno = errno.filter(|errno| (1..ERRNO_MAX).contains(errno));
    let errno = errno.unwrap_or(xen::Error::Inval.errno());
    Error::Theirs { errno, text: text.escape_debug().to_string() }
}

/// Writes nodes below a device, in a transaction where there are several. A device that is gone stays
/// gone.
pub(super) fn write(
    store: &mut Client,
    path: &str,
    puts: &[(String, Vec<u8>)],
    state: Option<State>,
) -> Result<(), Error> {
    store.transaction(|tx| {
        if !tx.exists(path)? {
            return Ok(());
        }
        for (name, value) in puts {
            tx.write(format!("{path}/{name}"), value)?;
        }
        match state {
            Some(state) => tx.write(format!("{path}/state"), [state.digit()]),
            None => Ok(()),
        }
    })?;
    Ok(())
}

/// Writes an error where the toolstack, the other end and Linux's tools look for it.
pub(super) fn write_error(
    store: &mut Client,
    domid: DomId,
    path: &str,
    error: &Error,
) -> Result<(), Error> {
    let mut text = format!("{} {error}", error.errno());
    // Some of it may be a server's own words.
    text.truncate(text.floor_char_boundary(ERROR_MAX));
    // Each by itself: a guest's quota may be used up for one; the news say it all the same.
    for node in [format!("{path}/error"), path::error(domid, path)] {
        let written = store.transaction(|tx| {
            // A device that was taken away meanwhile does not come back as an error.
            if tx.exists(path)? { tx.write(&node, &text) } else { Ok(()) }
        });
        match written.map_err(Error::from) {
            Err(gone) if gone.is_store_gone() => return Err(gone),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_other_end_is_a_number_and_a_text() {
        let parsed = |why: &[u8]| match parse_error(why) {
            Error::Theirs { errno, text } => (errno, text),
            other => panic!("{other:?}"),
        };
        assert_eq!(parsed(b"16 in use"), (16, "in use".into()));
        let inval = xen::Error::Inval.errno();
        for no_number in ["0 x", "4096 x", "-5 x", "five x"] {
            assert_eq!(parsed(no_number.as_bytes()), (inval, "x".into()), "{no_number}");
        }
        assert_eq!(parsed(b"alone"), (inval, "alone".into()));
        assert_eq!(parsed(b"5 a\nb"), (5, "a\\nb".into()));
        let long = [&b"5 "[..], &[b'x'; 2 * ERROR_MAX]].concat();
        assert_eq!(parsed(&long).1.len(), ERROR_MAX - 2);
    }
}
