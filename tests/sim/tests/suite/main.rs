//! The tests of the simulator: its first seeds, the conformance of its hypervisor, and the effect
//! of domains' weights.

mod devices;
mod platform;
mod seeds;
mod weights;
