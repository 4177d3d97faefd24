//! The simulator: its first seeds, the conformance of its hypervisor, and what weights of domains do.

mod devices;
mod platform;
mod seeds;
mod weights;
