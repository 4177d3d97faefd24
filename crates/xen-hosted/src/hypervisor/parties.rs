//! The parties to all requests: domains, and their connections.

use super::domains::Domains;
use super::peers::PeerConnections;

/// All domains, and their connections.
pub(super) struct Parties {
    pub(super) domains: Domains,
    pub(super) peers: PeerConnections,
}
