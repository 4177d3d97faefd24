//! Shared pages: layouts of block requests, rings with both ends, and peers that lie in them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

mod blkif;
mod indices;
mod rings;
mod streams;
mod xs_ring;
