//! The toolstack: configurations in both syntaxes, and `xb` on hosted hosts.

mod config;
mod hosted;
