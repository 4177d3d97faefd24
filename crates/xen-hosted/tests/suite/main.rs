//! The hosted platform: what domains can do to each other and to the broker, their bounds, faults, and the whole host.

mod arenas;
#[cfg(target_arch = "x86_64")]
mod calls;
mod exhaustion;
mod faults;
mod host;
mod hostile;
mod killed;
mod limits;
mod platform;
mod roles;
mod successor;
mod support;
mod terminal;
