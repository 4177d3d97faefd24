//! `held [--seconds N] [--seed N]`: searches for the program for which the store holds the most beside what it charges;
//! ends at the first for which it holds more than it may.

use held::search::Search;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often it is told how it goes.
const PROGRESS: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match parse(&args) {
        Some((seconds, seed)) => search(Duration::from_secs(seconds), seed),
        None => {
            eprintln!("usage: held [--seconds N] [--seed N]");
            ExitCode::from(2)
        }
    }
}

/// For how long, and from which seed.
fn parse(args: &[String]) -> Option<(u64, u64)> {
    let (mut seconds, mut seed) = (60, 1);
    for option in args.chunks(2) {
        let [name, value] = option else { return None };
        let value = value.parse().ok()?;
        match name.as_str() {
            "--seconds" => seconds = value,
            "--seed" => seed = value,
            _ => return None,
        }
    }
    Some((seconds, seed))
}

fn search(time: Duration, seed: u64) -> ExitCode {
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut search = Search::new(seed);
    while began.elapsed() < time {
        let measure = search.step();
        if !measure.is_allowed() {
            break;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            let worst = search.worst().map(|(measure, _)| *measure).unwrap_or_default();
            println!("{} programs; the worst: {worst}", search.runs);
        }
    }
    let Some((measure, program)) = search.worst() else { return ExitCode::SUCCESS };
    for part in &program.0 {
        println!("{part:?}");
    }
    println!("seed {seed}, {} programs; this is the worst: {measure}", search.runs);
    ExitCode::from(u8::from(!measure.is_allowed()))
}
