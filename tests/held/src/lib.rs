//! Memory that a guest makes the store hold, beside what the store charges it for.
//!
//! The promise: whatever a guest asks for, the store holds at most [`ALLOWED_RATIO`] times what it charges, and
//! [`ALLOWED_BYTES`]. A seeded search looks for the worst: programs of all message types are changed at random, and
//! those are kept for which the store holds the most beside what it charges.
//!
//! | module | what it is |
//! |---|---|
//! | [`allocator`] | the allocator, which counts what the store has; the only `unsafe` |
//! | [`program`] | what a guest does |
//! | [`run`](mod@run) | one program against one store |
//! | [`search`] | many programs, the worst of them changed again |

pub mod allocator;
pub mod program;
pub mod run;
pub mod search;

/// The store may hold so many times what it charges,
pub const ALLOWED_RATIO: i64 = 2;
/// and so many bytes more, for one guest.
pub const ALLOWED_BYTES: i64 = 64 * 1024;
