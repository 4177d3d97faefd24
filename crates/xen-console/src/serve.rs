//! The daemon's work: consoles found in the store, and each served.
//!
//! | module | contents |
//! |---|---|
//! | [`console`] | one console: its ring, its FIFO, its log, its terminal |
//! | [`devices`] | all that the loop serves |
//! | [`first`] | the first consoles of all domains |
//! | [`nodes`] | the nodes of a first console |
//! | `outputs` | the FIFOs that guests print into, and whose they are |
//! | `ring` | the ring of a first console: its page, its port |
//! | [`settings`] | the limits and places that all consoles share |
//! | `slot` | a domain, and how far its console has come |

pub mod console;
pub mod devices;
pub mod first;
pub mod nodes;
mod outputs;
mod ring;
pub mod settings;
mod slot;

pub use console::ServedConsole;
pub use first::FirstConsoles;
pub use settings::ConsoleSettings;
