//! The result of a chore.

/// An error is told to a person, once, in a sentence.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
