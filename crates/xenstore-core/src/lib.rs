//! XenStore as a machine: every message and every rule of the protocol, with no I/O, no clock, no
//! `unsafe` and no dependency. Bytes and time go in, bytes and notices come out.
//!
//! | module | what it is |
//! |---|---|
//! | [`wire`] | message types, headers, error names |
//! | [`limits`] | every bound, named |
//! | [`client`] | the other end: requests out, replies and watch events in |
//! | [`server`] | the store: requests in, replies and events out |
#![no_std]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod client;
pub mod limits;
pub mod server;
pub mod wire;
