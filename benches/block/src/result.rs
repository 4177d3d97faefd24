//! The result of a fallible function.

/// A result whose error is a sentence that is printed once, for a person.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
