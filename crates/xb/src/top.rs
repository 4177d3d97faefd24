//! The doings of the domains of a host, turn after turn: `xb top`.
//!
//! A reader takes samples of all counters that the host tells. Pure functions make rates of two
//! samples. Three printers show them: a live screen, the columns of `xentop -b`, and JSON.
//!
//! | module | what it is |
//! |---|---|
//! | [`sample`] | the counters of a host at one moment |
//! | [`rates`] | two samples made into rows with rates |
//! | [`read`] | takes samples |
//! | `counters` | the counters of backends |
//! | `qemu` | the counters of QEMU, over its monitor |
//! | [`devices`] | the devices and rings of one domain |
//! | [`xentop`] | the columns of `xentop -b` |
//! | [`json`] | a turn as a JSON object |
//! | `columns` | the columns of the screen |
//! | `view` | what is shown of the samples, and what keys do to that |
//! | `screen` | draws a view |
//! | `live` | the terminal, and the thread that reads |

mod columns;
mod counters;
pub mod devices;
pub mod json;
pub(crate) mod live;
mod qemu;
pub mod rates;
pub mod read;
pub mod sample;
mod screen;
mod view;
pub mod xentop;
