//! `sim [--seeds N] [--from SEED]`: runs so many seeds, tells how it goes, ends at the first that fails.

use sim::run::{Summary, run};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often it is told how it goes.
const PROGRESS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match parse(&args) {
        Some((from, seeds)) => simulate(from, seeds),
        None => {
            eprintln!("usage: sim [--seeds N] [--from SEED]");
            ExitCode::from(2)
        }
    }
}

/// The first seed, and how many.
fn parse(args: &[String]) -> Option<(u64, u64)> {
    let (mut from, mut seeds) = (0, 200);
    for option in args.chunks(2) {
        let [name, value] = option else { return None };
        let value = value.parse().ok()?;
        match name.as_str() {
            "--seeds" => seeds = value,
            "--from" => from = value,
            _ => return None,
        }
    }
    Some((from, seeds))
}

fn simulate(from: u64, seeds: u64) -> ExitCode {
    let mut all = Summary::default();
    let (began, mut told) = (Instant::now(), Instant::now());
    for at in 0..seeds {
        match run(from.wrapping_add(at)) {
            Ok(summary) => all.add(&summary),
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            println!("{} of {seeds} seeds hold", at + 1);
        }
    }
    for (name, count) in all.rows() {
        println!("{count:>12} {name}");
    }
    println!("{seeds} seeds from {from} on hold, in {:.1} s", began.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}
