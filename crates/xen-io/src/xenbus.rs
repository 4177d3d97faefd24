//! The states of the two ends of a device, as their `state` nodes carry them.
//!
//! Source: `enum xenbus_state` in `xen/include/public/io/xenbus.h`.

use std::fmt;
use std::str::FromStr;

/// The state of one end of a device.
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

/// The decimal number in a node's value, read as Linux's `%u` and `%d` read it: blanks before it and whatever follows
/// its digits do not count. `None` where there is no digit, or where the number is too large for `T`: Linux would cut
/// it off.
#[must_use]
pub fn number<T: FromStr>(value: &[u8]) -> Option<T> {
    // As the kernel's `isspace`, which has the vertical tab.
    let is_blank = |byte: &u8| matches!(byte, b'\t'..=b'\r' | b' ');
    let start = value.iter().position(|byte| !is_blank(byte))?;
    let rest = value.get(start..)?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
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

    /// The state that a node's value names, a [`number`]. Everything else is [`State::Unknown`].
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let number: Option<usize> = number(value);
        number.and_then(|number| Self::ALL.get(number).copied()).unwrap_or(Self::Unknown)
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
        for four in [" 4", "4 ", "4\n", "04", "\t\n4x", "4\0"] {
            assert_eq!(State::parse(four.as_bytes()), State::Connected, "{four:?}");
        }
        for garbage in ["", "9", "44", "-1", "+4", "x", "x4", " ", "0x4"] {
            assert_eq!(State::parse(garbage.as_bytes()), State::Unknown, "{garbage:?}");
        }
    }

    #[test]
    fn numbers_are_read_as_linux_reads_them() {
        let cases: [(&str, Option<u32>); 14] = [
            ("0", Some(0)),
            ("51712", Some(51712)),
            ("007", Some(7)),
            (" \t\n\x0b\x0c\r8", Some(8)),
            ("8 9", Some(8)),
            ("8,5", Some(8)),
            ("4294967295", Some(u32::MAX)),
            ("00000000000000000000000000000001", Some(1)),
            ("4294967296", None),
            ("99999999999999999999999999", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("x1", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(number::<u32>(text.as_bytes()), wanted, "{text:?}");
        }
        assert_eq!(number::<i32>(b" -5 "), None, "no node has a number below 0");
    }
}
