//! The daemon's work: consoles found in the store, and each served.
//!
//! | module | contents |
//! |---|---|
//! | [`channel`] | the socket of a channel |
//! | [`console`] | one console: its ring, its FIFO, its log, its terminal |
//! | [`devices`] | all that the loop serves |
//! | `files` | the files of a console |
//! | [`first`] | the first consoles of all domains |
//! | [`further`] | further consoles and channels, which are devices of the bus |
//! | [`nodes`] | the nodes of a first console |
//! | `outputs` | the FIFOs that guests print into, and whose they are |
//! | [`rate`] | the rate of a guest, which all of its consoles share |
//! | `ring` | the ring of a console: its page, its port |
//! | [`settings`] | the limits and places that all consoles share |
//! | `slot` | a domain, and how far its console has come |
//! | [`terminal`] | where output is shown and input comes from |

pub mod channel;
pub mod console;
pub mod devices;
mod files;
pub mod first;
pub mod further;
pub mod nodes;
mod outputs;
pub mod rate;
mod ring;
pub mod settings;
mod slot;
pub mod terminal;

pub use console::ServedConsole;
pub use first::FirstConsoles;
pub use further::FurtherConsoles;
pub use settings::ConsoleSettings;
