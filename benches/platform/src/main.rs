//! What the hosted platform costs, beside what the machine itself costs, in one run.

mod bounce;
mod guest;
mod host;
mod life;
mod speed;
mod table;

use std::process::ExitCode;
use table::{Extent, Row};

/// Whatever goes wrong ends the run.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A part of the bench.
type Part = fn(&Extent) -> Result<Vec<Row>>;

fn measure(extent: &Extent, parts: &[Part]) -> Result<()> {
    for part in parts {
        for row in part(extent)? {
            println!("{row}");
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match args.as_slice() {
        ["store", dir] => host::play_store(std::path::Path::new(dir)),
        ["first", then] => guest::first(then),
        ["requests", count, depth] => guest::requests(count, depth),
        ["pong", peer] => guest::pong(peer),
        ["ping", peer, count] => guest::ping(peer, count),
        ["offer", count] => guest::offer(count),
        ["answer"] => bounce::answer(),
        ["answer", waiting, _] => {
            bounce::Waiting::named(waiting).and_then(bounce::answer_in_domain)
        }
        ["bounce", waiting, trips] => {
            bounce::Waiting::named(waiting).and_then(|waiting| bounce::bounce(waiting, trips))
        }
        [] => measure(&Extent::FULL, &[speed::all, life::many]),
        ["--quick"] => measure(&Extent::QUICK, &[speed::all, life::many]),
        ["channels"] => measure(&Extent::FULL, &[bounce::alone]),
        ["speed"] => measure(&Extent::FULL, &[speed::all]),
        ["create"] => measure(&Extent::FULL, &[life::many]),
        _ => Err("usage: platform-bench [--quick | channels | speed | create]".into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("platform-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
