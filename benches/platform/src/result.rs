//! The result of a fallible function.

/// A result whose error ends the run.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
