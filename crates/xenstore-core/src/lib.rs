//! XenStore as a machine: every message and every rule of the protocol, with no I/O, no clock, no
//! `unsafe` and no dependency. Bytes and time go in, bytes and notices come out.
//!
//! From the ground up: no module takes anything from one below it in this table.
//!
//! | module | what it is |
//! |---|---|
//! | `bytes` | bytes found fast |
//! | [`limits`] | every bound, named |
//! | [`wire`] | message types, headers, error names |
//! | [`path`] | what a path may be |
//! | `prefix` | names as numbers |
//! | `id` | the numbers of domains and connections |
//! | [`perms`] | who may read and write a node |
//! | [`quota`] | what a domain may use, uses and was refused |
//! | `digest` | digests of what a transaction has seen |
//! | `host` | what the store asks of the machine around it |
//! | `notice` | what the daemon is to log or to do |
//! | `domain` | the domains that the store knows |
//! | `churn` | bytes that a change copies, makes and removes |
//! | `ledger` | what a change is to book |
//! | [`tree`] | the nodes, and what requests do to them |
//! | `watch` | watches in an index by path |
//! | `transaction` | snapshot, log, and how a commit is judged |
//! | [`stream`] | the whole state as records, for live update |
//! | [`client`] | the other end: requests in flight, replies, events |
//! | [`server`] | the store: requests in, replies and events out |
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::std_instead_of_core,
        clippy::std_instead_of_alloc,
        clippy::alloc_instead_of_core
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod churn;
pub mod client;
mod digest;
mod domain;
mod host;
mod id;
mod ledger;
pub mod limits;
mod notice;
pub mod path;
pub mod perms;
mod prefix;
pub mod quota;
pub mod server;
pub mod stream;
mod transaction;
pub mod tree;
mod watch;
pub mod wire;
