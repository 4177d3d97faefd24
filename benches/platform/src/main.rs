//! What the hosted platform costs, beside what the machine itself costs, in one run.

mod guest;
mod host;
mod life;
mod speed;

use std::process::ExitCode;

/// Whatever goes wrong ends the run.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

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
        ["bounce"] => speed::bounce(),
        ["bounced"] => speed::bounced(),
        ["speed"] => speed::all(),
        ["create", rest @ ..] => {
            let count = rest.first().and_then(|count| count.parse().ok()).unwrap_or(1000);
            life::many(count)
        }
        _ => Err("usage: platform-bench speed | create [COUNT]".into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("platform-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
