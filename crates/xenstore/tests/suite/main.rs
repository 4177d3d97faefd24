//! The client and the tools against real daemons, ours and both of Debian's.

mod daemons;
mod like_debian;
mod support;
mod tools;
