//! The tables of legal moves: the action of an end for its state, its peer's, and the standing of
//! the device.
//!
//! Source: the diagrams in `xen/include/public/io/blkif.h` and `xenbus.h`; what Linux, QEMU and libxl do in
//! the cases that no document names. The tables are in letters, one row for each own state 0 to 8, one
//! column for each state of the peer:
//!
//! | letter | action |
//! |---|---|
//! | `.` | [`EndAction::Stay`] |
//! | `O` | [`EndAction::Open`] |
//! | `N` | [`EndAction::Connect`] |
//! | `F` | [`EndAction::Refresh`] |
//! | `G`, `H`, `B` | [`EndAction::Reconfigure`], to Reconfiguring, to Reconfigured, back to Connected |
//! | `C` | [`EndAction::Close`] |
//! | `D` | [`EndAction::Release`] |
//! | `A` | [`EndAction::Restart`] |
//! | `R` | [`EndAction::Remove`] |
//! | `X` | [`IllegalMove`] |
//!
//! Some cells say more than they show:
//! - A frontend may skip InitWait and wait in Initialised, so a backend opens whatever it sees, and
//!   looks again. It may be Connected when a backend starts; the backend connects then as well.
//! - A frontend that is Initialising while its backend is Connected has died and come back (a crash
//!   kernel): the backend lets go of the old rings and begins anew. One that is Initialised may only
//!   have been seen twice.
//! - A backend that is Closed is woken by Initialising, and by what comes behind it, too, as watches may have
//!   hidden that.
//! - A frontend whose state is no state is as good as gone: a toolstack may have taken its nodes away.
//! - A frontend that finds its backend Connected before it has made rings closes first: only so a
//!   stock backend gives up the rings of whoever was there before.
//! - Reconfiguring begins with the toolstack, which writes it as the backend's state. The frontend follows, the
//!   backend does its part and is Reconfigured, the frontend goes back to Connected and then the backend, as
//!   Linux's pcifront and pciback do. A frontend that comes while its backend is in either of these finds it in
//!   use, as if it were Connected.

use crate::side::Side;
use std::fmt;
use xen_io::xenbus::State;

/// The known state of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerState {
    /// Its node is not there: the device was taken away from it, or its domain is dead.
    Gone,
    /// The value of its `state` node; [`State::Unknown`] for garbage.
    Is(State),
}

impl PeerState {
    /// True if a frontend has rings that a backend may use.
    #[must_use]
    pub fn has_rings(self) -> bool {
        use State::{Connected, Initialised, Reconfigured, Reconfiguring};
        matches!(self, Self::Is(Initialised | Connected | Reconfiguring | Reconfigured))
    }
}

/// The standing of a device: to be used, or to be taken down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceUse {
    /// The device is to be used.
    Wanted,
    /// The device is to be taken down: `online` is 0, the toolstack has asked for Closing, or this
    /// end has failed.
    Leaving,
}

/// The next action of an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndAction {
    /// Do nothing until something changes.
    Stay,
    /// Write the nodes that the peer needs: a backend its features (then InitWait), a frontend its
    /// rings (then Initialised).
    Open,
    /// Connect to the peer by its nodes (then Connected).
    Connect,
    /// The backend has changed something while connected, such as its size.
    Refresh,
    /// Change while connected (then the state that is named).
    Reconfigure(State),
    /// Stop (then Closing).
    Close,
    /// Give back all that is the peer's (then Closed).
    Release,
    /// Give back all that is the peer's, and begin anew: a backend opens, a frontend goes to
    /// Initialising.
    Restart,
    /// Do nothing: the device is to be forgotten once its nodes are gone.
    Remove,
}

/// A move of the peer that the tables do not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IllegalMove {
    /// The side of this end.
    pub side: Side,
    /// Its state.
    pub own: State,
    /// The peer's.
    pub peer: State,
}

impl fmt::Display for IllegalMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, own, peer } = self;
        let other = side.other();
        write!(f, "{other} is {peer} while {side} is {own}, which is no legal move; ignored")
    }
}

impl std::error::Error for IllegalMove {}

type ActionTable = [&'static [u8; 9]; 9];

/// A backend whose device is wanted.
const BACKEND: ActionTable = [
    //012345678
    b".........", // 0 Unknown
    b"OOOOOOOOO", // 1 Initialising
    b"D..NNCDXX", // 2 InitWait
    b"D..NNCDXX", // 3 Initialised
    b"DAX..CD..", // 4 Connected
    b"DA.A..D..", // 5 Closing
    b".AAAA....", // 6 Closed
    b"DAX..CDHH", // 7 Reconfiguring
    b"DAX.BCD..", // 8 Reconfigured
];

/// A backend whose device goes.
const BACKEND_LEAVING: ActionTable = [
    //012345678
    b"RRRRRRRRR", // 0 Unknown
    b"DDDCCCDCC", // 1 Initialising
    b"DDDCCCDCC", // 2 InitWait
    b"DDDCCCDCC", // 3 Initialised
    b"DDCCCCDCC", // 4 Connected
    b"DD....D..", // 5 Closing
    b"RRRRRRRRR", // 6 Closed
    b"DDCCCCDCC", // 7 Reconfiguring
    b"DDCCCCDCC", // 8 Reconfigured
];

/// A frontend whose device is wanted.
const FRONTEND: ActionTable = [
    //012345678
    b".........", // 0 Unknown
    b"X.OOC..CC", // 1 Initialising
    b"X.OOCDDCC", // 2 InitWait
    b"X...NDDNN", // 3 Initialised
    b"X.A.FCDG.", // 4 Connected
    b"X.D..DD..", // 5 Closing
    b"X.AA..A..", // 6 Closed
    b"X.AABCD.B", // 7 Reconfiguring
    b"X.AABCDGB", // 8 Reconfigured
];

/// A frontend whose device goes.
const FRONTEND_LEAVING: ActionTable = [
    //012345678
    b"RRRRRRRRR", // 0 Unknown
    b"DDDDDDDDD", // 1 Initialising
    b"DDDDDDDDD", // 2 InitWait
    b"DDCCCDDCC", // 3 Initialised
    b"DDCCCCDCC", // 4 Connected
    b"DDDD.DD..", // 5 Closing
    b"RRRRRRRRR", // 6 Closed
    b"DDCCCCDCC", // 7 Reconfiguring
    b"DDCCCCDCC", // 8 Reconfigured
];

/// Returns the action of an end of the given side in state `own`, for the given peer.
///
/// # Errors
/// [`IllegalMove`]: the peer cannot have come to its state; the only thing to do is to report it.
pub fn react(
    side: Side,
    own: State,
    peer: PeerState,
    standing: DeviceUse,
) -> Result<EndAction, IllegalMove> {
    let PeerState::Is(peer) = peer else { return Ok(alone(own, standing)) };
    let table = match (side, standing) {
        (Side::Backend, DeviceUse::Wanted) => &BACKEND,
        (Side::Backend, DeviceUse::Leaving) => &BACKEND_LEAVING,
        (Side::Frontend, DeviceUse::Wanted) => &FRONTEND,
        (Side::Frontend, DeviceUse::Leaving) => &FRONTEND_LEAVING,
    };
    Ok(match table[own as usize][peer as usize] {
        b'O' => EndAction::Open,
        b'N' => EndAction::Connect,
        b'F' => EndAction::Refresh,
        b'G' => EndAction::Reconfigure(State::Reconfiguring),
        b'H' => EndAction::Reconfigure(State::Reconfigured),
        b'B' => EndAction::Reconfigure(State::Connected),
        b'C' => EndAction::Close,
        b'D' => EndAction::Release,
        b'A' => EndAction::Restart,
        b'R' => EndAction::Remove,
        b'.' => EndAction::Stay,
        _ => return Err(IllegalMove { side, own, peer }),
    })
}

/// Returns the action of an end without a peer.
fn alone(own: State, standing: DeviceUse) -> EndAction {
    match (own, standing) {
        (State::Unknown | State::Closed, DeviceUse::Wanted) => EndAction::Stay,
        (State::Unknown | State::Closed, DeviceUse::Leaving) => EndAction::Remove,
        _ => EndAction::Release,
    }
}
