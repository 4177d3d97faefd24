//! The client and the tools against real daemons: this project's and both of Debian's.

mod daemons;
mod like_debian;
mod share;
mod support;
mod tools;
