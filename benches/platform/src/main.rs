//! Measures the costs of the hosted platform beside those of the machine itself, in one run.

mod bounce;
mod guest;
mod host;
mod life;
mod neighbour;
mod result;
mod speed;
mod table;
mod talker;

use result::Result;
use std::process::ExitCode;
use table::{Extent, Row};

/// A part of the bench.
type BenchPart = fn(&Extent) -> Result<Vec<Row>>;

/// All parts.
const ALL: [BenchPart; 3] = [speed::all, neighbour::rows, life::many];

fn measure(extent: &Extent, parts: &[BenchPart]) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    for part in parts {
        for row in part(extent)? {
            println!("{row}");
            all.push(row);
        }
    }
    Ok(all)
}

/// Runs all measurements and puts the table into a page of the documentation.
fn write_page(path: &str) -> Result<()> {
    // The page is read first, as the measurements take minutes.
    let page = std::fs::read_to_string(path)?;
    table::into_page(&page, &[])?;
    let rows = measure(&Extent::FULL, &ALL)?;
    Ok(std::fs::write(path, table::into_page(&page, &rows)?)?)
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
        ["reader"] => neighbour::reader(),
        ["attack", what] => neighbour::attack(what),
        ["offer", count] => guest::offer(count),
        ["answer"] => bounce::answer(),
        ["answer", method, _] => {
            bounce::WaitMethod::named(method).and_then(bounce::answer_in_domain)
        }
        ["bounce", method, trips] => {
            bounce::WaitMethod::named(method).and_then(|method| bounce::bounce(method, trips))
        }
        [] => measure(&Extent::FULL, &ALL).map(drop),
        ["--quick"] => measure(&Extent::QUICK, &ALL).map(drop),
        ["--write", page] => write_page(page),
        ["channels"] => measure(&Extent::FULL, &[bounce::measure_alone]).map(drop),
        ["neighbour"] => measure(&Extent::FULL, &[neighbour::rows]).map(drop),
        ["speed"] => measure(&Extent::FULL, &[speed::all]).map(drop),
        ["create"] => measure(&Extent::FULL, &[life::many]).map(drop),
        _ => Err("usage: platform-bench [--quick | --write PAGE | channels | neighbour | speed | create]".into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("platform-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
