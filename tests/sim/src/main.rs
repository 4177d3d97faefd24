//! `sim [--devices TYPE] [--seeds N] [--from SEED]`: runs N seeds, prints the progress, and ends at
//! the first that fails.

use sim::devices::{self, DeviceType};
use sim::run::{self, FailedRun};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(RunOptions { from, seeds, devices }) = parse(&args) else {
        let types = DeviceType::ALL.map(DeviceType::name).join(" or ");
        eprintln!("usage: sim [--devices TYPE] [--seeds N] [--from SEED]; TYPE is {types}");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let rows = match devices {
        None => {
            let mut all = run::RunSummary::default();
            let ran = simulate(from, seeds, |seed| run::run(seed).map(|summary| all.add(&summary)));
            ran.map(|()| {
                all.rows().into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
            })
        }
        Some(device_type) => {
            let mut all = devices::DeviceSummary::default();
            let run = |seed| devices::run(device_type, seed).map(|summary| all.add(&summary));
            simulate(from, seeds, run).map(|()| all.rows())
        }
    };
    let rows: Vec<(String, u64)> = match rows {
        Ok(rows) => rows,
        Err(failure) => {
            println!("{failure}");
            return ExitCode::FAILURE;
        }
    };
    for (name, count) in rows {
        println!("{count:>12} {name}");
    }
    println!("{seeds} seeds from {from} on hold, in {:.1} s", began.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

/// The command line.
struct RunOptions {
    from: u64,
    seeds: u64,
    /// The device type to simulate; `None` for the store with guests of all sorts.
    devices: Option<DeviceType>,
}

fn parse(args: &[String]) -> Option<RunOptions> {
    let mut asked = RunOptions { from: 0, seeds: 200, devices: None };
    for option in args.chunks(2) {
        let [name, value] = option else { return None };
        match name.as_str() {
            "--seeds" => asked.seeds = value.parse().ok()?,
            "--from" => asked.from = value.parse().ok()?,
            "--devices" => asked.devices = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(asked)
}

/// Runs the seeds up to the first that fails.
fn simulate(
    from: u64,
    seeds: u64,
    mut run: impl FnMut(u64) -> Result<(), FailedRun>,
) -> Result<(), FailedRun> {
    let mut told = Instant::now();
    for at in 0..seeds {
        run(from.wrapping_add(at))?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            println!("{} of {seeds} seeds hold", at + 1);
        }
    }
    Ok(())
}
