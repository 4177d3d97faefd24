//! Measures the memory that a guest makes the store hold beyond what the store charges it for.
//!
//! The promise: for every request of a guest, the store holds at most [`ALLOWED_RATIO`] times what
//! it charges, plus
//! [`ALLOWED_BYTES`]. A seeded search looks for the worst: it changes programs of all message types
//! at random, and keeps those for which the store holds the most beyond its charge.
//!
//! | module | contents |
//! |---|---|
//! | [`allocator`] | the allocator, which counts the bytes that the store holds; the only `unsafe`
//! |
//! | [`program`] | the program of a guest |
//! | [`run`](mod@run) | one program against one store |
//! | [`search`] | many programs, of which the worst are changed again |

pub mod allocator;
pub mod program;
pub mod run;
pub mod search;

/// The number of bytes that the store may hold for one guest, as a multiple of what it charges.
pub const ALLOWED_RATIO: i64 = 2;
/// The number of bytes that the store may hold for one guest in addition to the multiple.
pub const ALLOWED_BYTES: i64 = 64 * 1024;
