//! A setting that is on or off.

/// A setting of the command line, or of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    /// The action is done.
    On,
    /// The action is left out.
    Off,
}
