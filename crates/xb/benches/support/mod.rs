//! A host for a bench, and the table that the bench prints.

#[path = "../../../../benches/store/src/machine.rs"]
#[expect(dead_code, reason = "the other benches use more of it")]
mod machine;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A host in a folder of its own, gone at the end.
pub(crate) struct BenchHost(TempDir);

impl BenchHost {
    /// Brings a host up.
    pub(crate) fn up() -> Self {
        let host = Self(tempfile::tempdir().expect("a folder is made"));
        host.xb(&["host", "up"]);
        host
    }

    /// Returns the path of a file beside the host's folder, `h`, or in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a command of `xb`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xb"));
        command.arg("--host").arg(self.path("h")).args(args).env_remove("XB_HOST");
        command
    }

    /// Returns the number of a daemon's process.
    pub(crate) fn pid(&self, daemon: &str) -> u32 {
        let path = self.path(&format!("h/run/{daemon}.pid"));
        let text = std::fs::read_to_string(path).expect("a pid file");
        let pid = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
        pid.expect("a number in it")
    }

    /// Runs a command to its end; its duration.
    pub(crate) fn xb(&self, args: &[&str]) -> Duration {
        let mut command = self.command(args);
        let begin = Instant::now();
        let output = command.output().expect("xb runs");
        assert!(output.status.success(), "xb {args:?}: {output:?}");
        begin.elapsed()
    }

    /// Creates a guest with this configuration besides its name; the duration.
    pub(crate) fn create(&self, name: &str, rest: &str) -> Duration {
        let config = self.path(&format!("{name}.cfg"));
        let text = format!("name = \"{name}\"\nmemory = 32\n{rest}\n");
        std::fs::write(&config, text).expect("a configuration is written");
        self.xb(&["create", config.to_str().expect("a path in UTF-8")])
    }
}

impl Drop for BenchHost {
    fn drop(&mut self) {
        let _ = self.command(&["host", "down"]).output();
    }
}

/// Returns the processor time of a process: the sum of its threads' in `schedstat`.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let times = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    times.sum()
}

/// Returns the part `share` of the sorted times, in ms: 0.5 is the median.
pub(crate) fn quantile(times: &[Duration], share: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = ((times.len() - 1) as f64 * share) as usize;
    times[at].as_secs_f64() * 1e3
}

/// Returns the first lines of a table: the day, the machine, and what was measured.
pub(crate) fn head(what: &str) -> String {
    let (today, facts) = (machine::today(), machine::facts());
    format!(
        "{today}; {facts}; {what}\n\n| work | must reach | measured | verdict |\n|---|---|---|---|\n"
    )
}

/// One line of the table.
pub(crate) fn row(work: &str, measured: f64, aim: f64, unit: &str) -> String {
    let verdict = if measured <= aim { "met" } else { "**missed**" };
    format!("| {work} | at most {aim} {unit} | {measured:.1} {unit} | {verdict} |\n")
}

/// Prints the table; with `--into FILE` it is put between the two lines `mark` of the file, too.
pub(crate) fn publish(mark: &str, table: &str) -> Result<()> {
    println!("{table}");
    let args: Vec<String> = std::env::args().collect();
    let Some(into) = args.iter().position(|argument| argument == "--into") else { return Ok(()) };
    let file = args.get(into + 1).ok_or("--into needs a file")?;
    let text = std::fs::read_to_string(file)?;
    let parts: Vec<_> = text.split(mark).collect();
    let [before, _, after] = parts.as_slice() else {
        return Err(format!("{file} has not two lines {mark}").into());
    };
    Ok(std::fs::write(file, format!("{before}{mark}\n\n{table}\n{mark}{after}"))?)
}
