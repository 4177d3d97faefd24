//! The toolstack: configurations in both syntaxes, and `xb` on hosted hosts.

mod config;
mod driver_domain;
mod hosted;
