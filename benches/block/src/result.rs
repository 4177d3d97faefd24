//! The result of whatever may fail.

/// An error is told to a person, once, in a sentence.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
