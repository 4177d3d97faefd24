//! Tests of the store without I/O: its rules, transactions, turns, its state as a stream, and a
//! model of it.

mod common;
mod fairness;
mod model;
mod rules;
mod slices;
mod stream;
mod time;
mod transactions;
mod xsa;
