//! The plan of a run.

use crate::faults::Rates;
use crate::hypervisor::Reuse;
use crate::rng::Rng;

/// The plan of a run, which its seed determines.
#[derive(Clone, Copy, Debug)]
pub(super) struct DevicePlan {
    pub(super) rates: Rates,
    pub(super) reuse: Reuse,
    /// Deaths of backends and of guests, in thousandths of the steps.
    pub(super) backend_deaths: u32,
    pub(super) guest_deaths: u32,
    /// Indices that are shown half written, in thousandths of the steps.
    pub(super) torn: u32,
    /// Devices that are removed and made anew, in thousandths of the steps.
    pub(super) changes: u32,
    pub(super) steps: u64,
}

impl DevicePlan {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let mut rate = |most: u64| if rng.chance(500) { rng.below(most) as u32 } else { 0 };
        let rates =
            Rates { lost: rate(150), late: rate(300), spurious: rate(80), ..Rates::default() };
        Self {
            rates,
            backend_deaths: rate(60),
            guest_deaths: rate(40),
            torn: rate(10),
            changes: rate(10),
            reuse: if rng.chance(500) { Reuse::AtOnce } else { Reuse::WhenUnmapped },
            steps: 300 + rng.below(2000),
        }
    }
}
