//! The life of a guest: creation with its devices, following it over its restarts, destruction.

pub mod check;
pub mod create;
pub mod destroy;
pub mod follow;
mod program;
pub mod succession;
