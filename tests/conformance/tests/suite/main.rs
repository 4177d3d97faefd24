//! The conformance suite: tables, rings, real clients, advisories and bad input, against every daemon.

mod bad_input;
mod documented;
mod hostile;
mod real_clients;
mod rings;
mod tables;
mod xsa;
