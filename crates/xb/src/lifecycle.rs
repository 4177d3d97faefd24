//! The life of a guest: created with its devices, followed over its restarts, taken down.

pub mod create;
pub mod destroy;
pub mod follow;
mod program;
