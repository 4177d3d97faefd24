//! Several connections, sockets and guests, send whatever they like into the store, while domains come
//! and die, rings are reset, readers are slow and time passes.
//!
//! | module | what it is |
//! |---|---|
//! | `messages` | what the clients say |
//! | `run` | the clients, and what must hold of what they are told |
//! | `end` | what must hold when all is over: the store in order, every account at 0 |
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
