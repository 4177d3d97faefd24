//! The choice between reads that wait and reads that do not.

/// The time that a read may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Waits until there is something to read.
    Block,
    /// Does not wait: EAGAIN if there is nothing to read.
    Poll,
}
