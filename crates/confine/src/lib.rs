//! Confinement: the system calls and the capabilities that a process is left with.
//!
//! The guarantee: everything that is on no list is refused, for good, also to the threads and
//! programs that the process starts. This crate compiles filters and removes capabilities; its
//! users make the lists. Nothing else in the workspace uses the compiler of filters.
//!
//! | module | what it is |
//! |---|---|
//! | [`filter`] | system calls: those of a list, with which arguments, and the answer to all others |
//! | [`capabilities`] | capabilities: some are kept, or none |

pub mod capabilities;
pub mod filter;

pub use filter::{Arg, Calls, Error, Filter, Refusals};
