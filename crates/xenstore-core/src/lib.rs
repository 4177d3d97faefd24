//! XenStore as a state machine: every message and every rule of the protocol, with no I/O, no
//! clock, no `unsafe` and no dependency. Bytes and time go in, bytes and notices come out.
//!
//! The modules in order of dependence: no module uses one below it in this table.
//!
//! | module | contents |
//! |---|---|
//! | `bytes` | fast searches of bytes |
//! | [`limits`] | every limit, named |
//! | [`wire`] | message types, headers, error names |
//! | [`path`] | the rules for paths |
//! | `prefix` | names as numbers |
//! | `id` | the numbers of domains and connections |
//! | [`perms`] | the access of each domain to a node |
//! | [`quota`] | a domain's limits, usage and refusals |
//! | `digest` | digests of the answers that a transaction got |
//! | `host` | the store's interface to the machine around it |
//! | `notice` | notices for the daemon: lines to log, actions to take |
//! | `domain` | the domains that the store knows |
//! | `churn` | the bytes that a change copies, makes and removes |
//! | `ledger` | the amounts that a change has to book |
//! | [`tree`] | the nodes, and the operations on them |
//! | `watch` | the watches, in an index by path |
//! | `transaction` | snapshots, logs, and the judgement of a commit |
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

/// The examples of the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
