//! `held [--seconds N] [--seed N] [--goal held|time]`: searches for the program for which the store
//! holds the most beyond its charge. Ends at the first for which it holds more than it may. With
//! the goal `time` it searches for the program with the longest call.

use held::search::{Search, SearchGoal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match parse(&args) {
        Some((seconds, seed, goal)) => search(Duration::from_secs(seconds), seed, goal),
        None => {
            eprintln!("usage: held [--seconds N] [--seed N] [--goal held|time]");
            ExitCode::from(2)
        }
    }
}

/// Parses the command line into the number of seconds, the seed and the goal.
fn parse(args: &[String]) -> Option<(u64, u64, SearchGoal)> {
    let (mut seconds, mut seed, mut goal) = (60, 1, SearchGoal::Held);
    for option in args.chunks(2) {
        let [name, value] = option else { return None };
        match (name.as_str(), value.as_str()) {
            ("--seconds", number) => seconds = number.parse().ok()?,
            ("--seed", number) => seed = number.parse().ok()?,
            ("--goal", "held") => goal = SearchGoal::Held,
            ("--goal", "time") => goal = SearchGoal::Time,
            _ => return None,
        }
    }
    Some((seconds, seed, goal))
}

fn search(time: Duration, seed: u64, goal: SearchGoal) -> ExitCode {
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut search = Search::new(goal, seed);
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
