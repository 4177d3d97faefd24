//! The daemon's work: consoles found in the store, and each served.
//!
//! | module | contents |
//! |---|---|
//! | [`console`] | one console: its ring, its log, its terminal |
//! | [`devices`] | all that the loop serves |
//! | [`first`] | the first consoles of all domains |
//! | [`nodes`] | the nodes of a first console |
//! | [`settings`] | the limits and places that all consoles share |

pub mod console;
pub mod devices;
pub mod first;
pub mod nodes;
pub mod settings;

pub use console::ServedConsole;
pub use first::FirstConsoles;
pub use settings::ConsoleSettings;
