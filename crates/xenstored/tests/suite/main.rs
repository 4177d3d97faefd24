//! Tests of the daemon as a program: its command line, its start and end, and its defence against
//! clients.

mod bad_peers;
mod command_line;
mod common;
mod control;
mod start_and_end;
mod system_calls;
