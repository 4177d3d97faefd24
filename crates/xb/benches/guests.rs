//! How long `xb` takes: creating guests with a disk up to Connected, one after the other, and listing them. Prints
//! each figure beside its aim.
//!
//! `cargo xtask bench xb` makes 200 guests; with `--quick` it makes 20.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A host in a folder of its own, gone at the end.
struct Host(PathBuf);

impl Host {
    fn xb(&self, args: &[&str]) -> Duration {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xb"));
        command.arg("--host").arg(self.0.join("h")).args(args).env_remove("XB_HOST");
        let begin = Instant::now();
        let output = command.output().expect("xb runs");
        assert!(output.status.success(), "xb {args:?}: {output:?}");
        begin.elapsed()
    }

    /// Creates guest `number` with a raw disk of 1 MiB.
    fn create(&self, number: usize) -> Duration {
        let image = self.0.join(format!("{number}.img"));
        let made = std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20));
        made.expect("an image is made");
        let config = self.0.join(format!("{number}.cfg"));
        let disk = format!("{},,xvda", image.display());
        let text = format!("name = \"g{number}\"\nmemory = 32\ndisk = [\"{disk}\"]\n");
        std::fs::write(&config, text).expect("a configuration is written");
        self.xb(&["create", config.to_str().expect("a path in UTF-8")])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new(env!("CARGO_BIN_EXE_xb"))
            .arg("--host")
            .arg(self.0.join("h"))
            .args(["host", "down"])
            .output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The middle one, in ms.
fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn row(what: &str, measured: f64, aim: f64, unit: &str) {
    let verdict = if measured <= aim { "met" } else { "MISSED" };
    println!("{what:<58} {measured:>7.1} {unit:<3} aim {aim:>5.1}  {verdict}");
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let guests = if quick { 20 } else { 200 };
    let folder: &Path = &std::env::temp_dir();
    let host = Host(folder.join(format!("xb-bench-{}", std::process::id())));
    std::fs::create_dir_all(&host.0).expect("a folder is made");
    host.xb(&["host", "up"]);
    // The first pages of programs and images in, and the host's first arena.
    host.create(guests);
    host.xb(&["destroy", &format!("g{guests}")]);
    let times: Vec<Duration> = (0..guests).map(|number| host.create(number)).collect();
    let few = (guests / 10).max(3);
    let (first, last) = (median(&times[..few]), median(&times[guests - few..]));
    let lists: Vec<Duration> = (0..11).map(|_| host.xb(&["list"])).collect();
    row("xb create of a guest with a disk, to Connected, median", median(&times), 30.0, "ms");
    row(&format!("the last {few} of {guests} against the first {few}"), last / first, 1.3, "x");
    row(&format!("xb list with {guests} guests, median"), median(&lists), 50.0, "ms");
}
