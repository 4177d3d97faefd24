//! The durations of `xb`: creating guests with a disk until it is connected, one after the other, and listing them.
//! Prints a table with each figure beside its aim.
//!
//! `cargo xtask bench xb` makes 200 guests; with `--quick` it makes 20. `--into FILE` puts the table between the two
//! lines `<!-- xb table -->` of FILE.

#[path = "../../../benches/store/src/machine.rs"]
#[expect(dead_code, reason = "the other benches use more of it")]
mod machine;

use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The line before and behind the table.
const MARK: &str = "<!-- xb table -->";

/// A host in a folder of its own, gone at the end.
struct BenchHost(TempDir);

impl BenchHost {
    fn xb(&self, args: &[&str]) -> Duration {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xb"));
        command.arg("--host").arg(self.0.path().join("h")).args(args).env_remove("XB_HOST");
        let begin = Instant::now();
        let output = command.output().expect("xb runs");
        assert!(output.status.success(), "xb {args:?}: {output:?}");
        begin.elapsed()
    }

    /// Creates guest `number` with a raw disk of 1 MiB.
    fn create(&self, number: usize) -> Duration {
        let image = self.0.path().join(format!("{number}.img"));
        let made = std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20));
        made.expect("an image is made");
        let config = self.0.path().join(format!("{number}.cfg"));
        let disk = format!("{},,xvda", image.display());
        let text = format!("name = \"g{number}\"\nmemory = 32\ndisk = [\"{disk}\"]\n");
        std::fs::write(&config, text).expect("a configuration is written");
        self.xb(&["create", config.to_str().expect("a path in UTF-8")])
    }
}

impl Drop for BenchHost {
    fn drop(&mut self) {
        let _ = Command::new(env!("CARGO_BIN_EXE_xb"))
            .arg("--host")
            .arg(self.0.path().join("h"))
            .args(["host", "down"])
            .output();
    }
}

/// The median, in ms.
fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// One line of the table.
fn row(work: &str, measured: f64, aim: f64, unit: &str) -> String {
    let verdict = if measured <= aim { "met" } else { "**missed**" };
    format!("| {work} | at most {aim} {unit} | {measured:.1} {unit} | {verdict} |\n")
}

/// Makes the guests and lists them; the table.
fn measure(guests: usize) -> String {
    let host = BenchHost(tempfile::tempdir().expect("a folder is made"));
    host.xb(&["host", "up"]);
    // The first pages of programs and images in, and the host's first arena.
    host.create(guests);
    host.xb(&["destroy", &format!("g{guests}")]);
    let times: Vec<Duration> = (0..guests).map(|number| host.create(number)).collect();
    let few = (guests / 10).max(3);
    let (first, last) = (median(&times[..few]), median(&times[guests - few..]));
    let lists: Vec<Duration> = (0..11).map(|_| host.xb(&["list"])).collect();
    let mut table = format!("{}; {}; {guests} guests\n\n", machine::today(), machine::facts());
    table += "| work | must reach | measured | verdict |\n|---|---|---|---|\n";
    let create = "`xb create` of a guest with a disk, to Connected, median";
    table += &row(create, median(&times), 30.0, "ms");
    let growth = format!("the last {few} against the first {few}, medians");
    table += &row(&growth, last / first, 1.3, "x");
    table += &row("`xb list` with all guests, median of 11", median(&lists), 50.0, "ms");
    table
}

/// Puts the table between the two marks of `file`.
fn insert(file: &str, table: &str) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let parts: Vec<_> = text.split(MARK).collect();
    let [before, _, after] = parts.as_slice() else {
        return Err(format!("{file} has not two lines {MARK}").into());
    };
    Ok(std::fs::write(file, format!("{before}{MARK}\n\n{table}\n{MARK}{after}"))?)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|argument| argument == "--quick");
    let table = measure(if quick { 20 } else { 200 });
    println!("{table}");
    let into = args.iter().position(|argument| argument == "--into");
    match into.map(|at| args.get(at + 1)) {
        Some(Some(file)) => insert(file, &table),
        Some(None) => Err("--into needs a file".into()),
        None => Ok(()),
    }
}
