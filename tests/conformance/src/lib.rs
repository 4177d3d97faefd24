//! One suite for every XenStore daemon: Debian's C `xenstored`, Debian's `oxenstored`, and ours,
//! unmodified, as processes, over the socket and over rings of guests: without Xen, where a guest is
//! a file, and on Xen, where it is a domain (`conformance-dom0`).
//!
//! The promise: a line of a table in `tables/` states the behaviour of every daemon. If a peer
//! differs, the difference is written next to the line and explained in `docs/compatibility.md`, by
//! the peer's version if its versions differ. An unexpected difference fails, and so does a listed
//! difference that is gone. A peer of an unknown version is not compared.
//!
//! | module | what it is |
//! |---|---|
//! | [`peers`] | Debian's packages, unpacked, and the stand-in library that they run on |
//! | [`version`] | the versions of these packages that are known |
//! | [`daemon`] | a running daemon in its own folder |
//! | [`xen_host`] | the daemon that serves a Xen host, and domains made there |
//! | [`host`] | the common interface of the two |
//! | [`peer`] | a raw client: any bytes, over the socket or over a ring |
//! | [`ring`] | a guest: its ring page and its event channel |
//! | [`hostile`] | attacks of hostile guests on their rings, on every host |
//! | [`notation`] | payloads as `docs/misc/xenstore.txt` writes them |
//! | [`table`] | the tables' format |
//! | [`run`] | running a table against a daemon |
//! | [`skip`](mod@skip) | parts of tests that are left out, and the consequence |
//! | [`platform`] | event channels, grants, life of domains, on any provider |
//! | [`snapshot`] | the whole store, saved and restored |

pub mod daemon;
pub mod host;
pub mod hostile;
pub mod notation;
pub mod peer;
pub mod peers;
pub mod platform;
pub mod ring;
pub mod run;
pub mod skip;
pub mod snapshot;
pub mod table;
pub mod version;
pub mod xen_host;

pub use daemon::{Daemon, DaemonKind, Options};
pub use host::{Host, Mark};
pub use peer::{Message, Peer, ReceiveFailure};
pub use peers::{Peers, PeersPurpose};
pub use skip::skip;
pub use version::Version;

macro_rules! tables {
    ($($file:ident)*) => {
        /// The tables: a name and a text each.
        pub const TABLES: &[(&str, &str)] =
            &[$((stringify!($file), include_str!(concat!("../tables/", stringify!($file), ".txt")))),*];
    };
}

tables!(basics payloads types paths permissions watches special_watches transactions quotas domains
    control settings);
