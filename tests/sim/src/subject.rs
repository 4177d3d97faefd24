//! The kinds of runs.

use std::str::FromStr;

/// The device types that there are runs of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceType {
    /// The device type of `xen-driver`'s tests.
    Adder,
    /// Block devices.
    Block,
}

impl DeviceType {
    /// All device types.
    pub const ALL: [Self; 2] = [Self::Adder, Self::Block];

    /// Returns its name, as an option of the simulator has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Adder => "adder",
            Self::Block => "block",
        }
    }
}

impl FromStr for DeviceType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|device_type| device_type.name() == name);
        named.ok_or_else(|| format!("{name} is no device type of the simulator"))
    }
}

/// A kind of run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The store with guests of all sorts.
    Store,
    /// Devices of a type.
    Devices(DeviceType),
}

impl Subject {
    /// Returns the command that repeats the run of a seed.
    pub(crate) fn command(self, seed: u64) -> String {
        let devices = match self {
            Self::Store => String::new(),
            Self::Devices(device_type) => format!(" --devices {}", device_type.name()),
        };
        format!("cargo xtask sim{devices} --seeds 1 --from {seed}")
    }
}
