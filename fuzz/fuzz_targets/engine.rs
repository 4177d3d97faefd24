//! Sequences of operations by several domains, transactions and deaths included, on the store and
//! on a naive map of paths. The bytes are the choices of the run in the core's own model test.
#![no_main]

#[path = "../../crates/xenstore-core/tests/suite/common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    common::model::run(data.iter());
});
