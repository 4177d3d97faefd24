//! Reading with or without waiting.

/// The time that a read may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Until there is something.
    Block,
    /// Not at all: EAGAIN where there is nothing.
    Poll,
}
