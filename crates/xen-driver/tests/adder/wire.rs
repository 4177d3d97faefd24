//! The adder's wire: a request is an id and two numbers, its answer that id and their sum, 16 bytes each.

use xen_driver::backend::rings::EntryFormat;

pub(crate) const KIND: &str = "adder";
pub(crate) const ENTRY: EntryFormat = EntryFormat { bytes: 16, format: 1 };

pub(crate) fn encode(id: u64, value: u64) -> [u8; 16] {
    (u128::from(value) << 64 | u128::from(id)).to_le_bytes()
}

pub(crate) fn decode(entry: [u8; 16]) -> (u64, u64) {
    let entry = u128::from_le_bytes(entry);
    (entry as u64, (entry >> 64) as u64)
}
