//! The states of the two ends of a device, as their `state` nodes carry them.
//!
//! Source: `enum xenbus_state` in `xen/include/public/io/xenbus.h`.

use std::fmt;

/// How far one end of a device has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// 0: there is no such node, or nothing that makes sense in it.
    Unknown = 0,
    /// 1: the toolstack has made the device; nobody has looked at it yet.
    Initialising = 1,
    /// 2: has said what it offers and waits for the peer, or for a hotplug script.
    InitWait = 2,
    /// 3: has said where its rings are and waits to be connected.
    Initialised = 3,
    /// 4: in use.
    Connected = 4,
    /// 5: on its way down, after an unplug or an error.
    Closing = 5,
    /// 6: holds nothing of the peer's any more.
    Closed = 6,
    /// 7: changes while connected (PCI).
    Reconfiguring = 7,
    /// 8: the change is done (PCI).
    Reconfigured = 8,
}

impl State {
    /// All of them, by number.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// The state that a node's value names: a decimal number without anything around it, as
    /// every implementation writes it. Everything else is [`State::Unknown`].
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let [digit] = value else { return Self::Unknown };
        Self::ALL.into_iter().find(|state| state.digit() == *digit).unwrap_or(Self::Unknown)
    }

    /// The value to write.
    #[must_use]
    pub fn digit(self) -> u8 {
        b'0'.wrapping_add(self as u8)
    }

    /// Its name in the header, without `XenbusState`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Initialising => "Initialising",
            Self::InitWait => "InitWait",
            Self::Initialised => "Initialised",
            Self::Connected => "Connected",
            Self::Closing => "Closing",
            Self::Closed => "Closed",
            Self::Reconfiguring => "Reconfiguring",
            Self::Reconfigured => "Reconfigured",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), *self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_and_garbage_is_unknown() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(State::parse(number.to_string().as_bytes()), state);
            assert_eq!(state.to_string(), format!("{} ({number})", state.name()));
        }
        for garbage in ["", "9", "44", " 4", "4 ", "4\0", "-1", "x"] {
            assert_eq!(State::parse(garbage.as_bytes()), State::Unknown, "{garbage:?}");
        }
    }
}
