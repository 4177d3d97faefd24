//! The toolstack.
pub mod config;
pub mod text;
