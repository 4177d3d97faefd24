//! Several connections, sockets and guests, send arbitrary data to the store, while domains are
//! made and die, rings are reset, readers are slow and time passes.
//!
//! | module | what it is |
//! |---|---|
//! | `messages` | the messages of the clients |
//! | `run` | the clients, and the conditions on their output |
//! | `end` | the conditions at the end: the store is consistent, every account is at 0 |
#![no_main]

mod end;
mod messages;
mod run;

use libfuzzer_sys::fuzz_target;
use messages::Bytes;
use run::Run;

fuzz_target!(|data: &[u8]| {
    let mut run = Run::new();
    let mut bytes = Bytes(data);
    while run.step(&mut bytes).is_some() {}
    run.finish();
});
