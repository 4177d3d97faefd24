//! The broker: the table of domains, their ports and arenas, and the rights to requests.
//!
//! It has one thread and one epoll, and waits for a peer, a domain or the clock nowhere else: an
//! answer that a socket has no room for is kept, and its peer is not read until it is sent. Each
//! request costs as much as it touches, and never depends on the number of domains (except the list
//! of them, in pieces of [`LISTED_AT_ONCE`](crate::limits::LISTED_AT_ONCE)).
//!
//! | type | what it owns |
//! |---|---|
//! | [`Broker`] | all of the following; it reads requests, and creates and ends domains |
//! | `Listeners` | the sockets at which processes of domain 0 connect |
//! | `PeerConnections` | connections: what they are still to be told, who watches domains, who rests |
//! | `Domains` | domains: stage, process and group of each; numbers and identities, and who is named by others |
//! | `Bindings` | the ports of all domains, what they are bound to, VIRQ_DOM_EXC |
//! | `Arenas` | the arenas of all domains, who has looked them up, what they take of their memory |
//! | `Sandboxes` | the means of this machine, the filter, control groups, what domains lack |
//! | `Record` | the host's directory, and the note in it of what the broker holds |
//!
//! `Parties` are `Domains` and `PeerConnections`, which own ports and arenas.

#![deny(clippy::unwrap_used, clippy::indexing_slicing)]

mod answer;
mod arena;
mod arenas;
mod bindings;
mod broker;
mod budget;
mod connections;
mod control;
mod create;
mod directory;
mod domain;
mod domains;
mod facilities;
mod life;
mod listeners;
mod namespaces;
mod parties;
mod peer;
mod peers;
mod poll;
mod port_table;
mod process;
mod record;
mod remains;
mod requests;
mod sandboxes;
mod say;
mod stop;
mod users;

pub use broker::Broker;
pub use remains::{Remainder, clear};
pub use stop::stop_signals;
