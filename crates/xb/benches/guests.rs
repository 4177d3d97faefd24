//! The durations of `xb`: creating guests with a disk until it is connected, one after the other, and listing them.
//! Prints a table with each figure beside its aim.
//!
//! `cargo xtask bench xb` makes 200 guests; with `--quick` it makes 20. `--into FILE` puts the table between the two
//! lines `<!-- xb table -->` of FILE.

mod support;

use std::time::Duration;
use support::{BenchHost, Result, head, publish, quantile, row};

/// The line before and behind the table.
const MARK: &str = "<!-- xb table -->";

/// Creates guest `number` with a raw disk of 1 MiB.
fn create(host: &BenchHost, number: usize) -> Duration {
    let image = host.path(&format!("{number}.img"));
    let made = std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20));
    made.expect("an image is made");
    let disk = format!("disk = [\"{},,xvda\"]", image.display());
    host.create(&format!("g{number}"), &disk)
}

/// Makes the guests and lists them; the table.
fn measure(guests: usize) -> String {
    let median = |times: &[Duration]| quantile(times, 0.5);
    let host = BenchHost::up();
    // The first pages of programs and images in, and the host's first arena.
    create(&host, guests);
    host.xb(&["destroy", &format!("g{guests}")]);
    let times: Vec<Duration> = (0..guests).map(|number| create(&host, number)).collect();
    let few = (guests / 10).max(3);
    let (first, last) = (median(&times[..few]), median(&times[guests - few..]));
    let lists: Vec<Duration> = (0..11).map(|_| host.xb(&["list"])).collect();
    let mut table = head(&format!("{guests} guests"));
    let create = "`xb create` of a guest with a disk, to Connected, median";
    table += &row(create, median(&times), 30.0, "ms");
    let growth = format!("the last {few} against the first {few}, medians");
    table += &row(&growth, last / first, 1.3, "x");
    table += &row("`xb list` with all guests, median of 11", median(&lists), 50.0, "ms");
    table
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    publish(MARK, &measure(if quick { 20 } else { 200 }))
}
