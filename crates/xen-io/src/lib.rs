//! Every byte in a shared page: the layouts of Xen's `public/io/` headers and the rules for using them.
//!
//! The promise: no `unsafe`, and nothing that a peer writes into a page makes this crate panic, read
//! outside the page or trust a number before it was checked. Each field is read once and only the
//! copy is used.
//!
//! | module | what it is |
//! |---|---|
//! | [`xenbus`] | the states of a device's two ends |
//! | [`ring`] | rings of requests and responses, in one or several pages, both ends |
//! | [`blkif`] | block devices: requests and responses, 32-bit and 64-bit layouts |
//! | [`console`] | the console ring: `struct xencons_interface`, both ends |
//! | [`xs_ring`] | the XenStore ring: `struct xenstore_domain_interface`, both ends |
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod blkif;
mod byte_stream;
pub mod console;
pub mod ring;
pub mod xenbus;
pub mod xs_ring;

/// The examples of the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
