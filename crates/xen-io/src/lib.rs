//! Every byte in a shared page: the layouts of Xen's `public/io/` headers and the rules for using them.
//!
//! The promise: no `unsafe`, and nothing that a peer writes into a page makes this crate panic, read
//! outside the page or trust a number before it was checked. Each field is read once and only the
//! copy is used.
//!
//! | module | what it is |
//! |---|---|
//! | [`xs_ring`] | the XenStore ring: `struct xenstore_domain_interface`, both ends |
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod xs_ring;
