//! The device model: the tables of legal moves, and both ends of devices over a real store.

mod devices;
mod greeter;
mod moves;
mod negotiate;
mod reconfigure;
