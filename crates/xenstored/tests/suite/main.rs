//! The daemon as a program: its command line, how it starts and ends, what its clients may do to it.

mod bad_peers;
mod command_line;
mod common;
mod control;
mod start_and_end;
mod system_calls;
