//! A thing that is done or left out.

/// A choice of the command line, or of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    /// It is done.
    On,
    /// It is left out.
    Off,
}
