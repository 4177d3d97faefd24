//! The steps that every change must pass. Each step prints its name first and its duration after;
//! all durations are in `target/ci.json`.

use crate::workspace::{Workspace, cargo};
use crate::{Result, xen};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// One step that a change must pass.
struct CiStep {
    name: &'static str,
    environment: &'static [(&'static str, &'static str)],
    /// The arguments of cargo; a first `+nightly` selects that toolchain.
    arguments: &'static [&'static str],
}

/// Makes a skipped test fail, except a comparison with peers of an unknown version.
const NO_SKIPS: &[(&str, &str)] = &[("CI", "true")];

/// The guest of the conformance suite, a workspace of its own.
const GUEST: &str = "tests/xen/guest/Cargo.toml";
/// The lint of functions that are too long.
const TOO_LONG: &str = "--warn=clippy::too_many_lines";

/// The steps, cheapest first. Those of one stage run side by side: at most one of them needs more
/// than one processor.
const STAGES: &[&[CiStep]] = &[
    &[step("fmt", &["fmt", "--all", "--check"])],
    &[step("fmt-fuzz", &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])],
    &[step("fmt-guest", &["fmt", "--manifest-path", GUEST, "--check"])],
    &[step("tidy", &["xtask", "tidy"])],
    &[step("deny", &["deny", "check", "bans", "licenses", "sources"])],
    &[step(
        "clippy",
        &["clippy", "--workspace", "--all-targets", "--", TOO_LONG, "--deny=warnings"],
    )],
    // A workspace of its own, which the step before does not cover.
    &[step(
        "clippy-fuzz",
        &[
            "clippy",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--locked",
            "--",
            TOO_LONG,
            "--deny=warnings",
        ],
    )],
    &[step(
        "clippy-guest",
        &[
            "clippy",
            "--manifest-path",
            GUEST,
            "--release",
            "--target-dir",
            "target/xen-lab/guest-build",
            "--locked",
            "--",
            TOO_LONG,
            "--deny=warnings",
        ],
    )],
    &[step("rust-version", &["xtask", "rust-version"])],
    &[CiStep {
        name: "doc",
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        arguments: &["doc", "--workspace", "--no-deps"],
    }],
    &[step("package", &["xtask", "package"])],
    &[step("test-build", &["test", "--workspace", "--no-run"])],
    &[
        // It waits more than it computes.
        CiStep { name: "test", environment: NO_SKIPS, arguments: &["test", "--workspace"] },
        // All programs that later steps run.
        step("build", &["build", "--release", "--workspace", "--bins", "--exclude", "xtask"]),
    ],
    &[
        // The code on shared memory, by the rules of Rust's memory model.
        step("miri", &["+nightly", "miri", "test", "-p", "xen-platform", "-p", "xen-io", "--lib"]),
        // It builds for a minute first, while the others run.
        step("fuzz", &["xtask", "fuzz", "--seconds", "15"]),
        step("fuzz-image", &["xtask", "fuzz", "image", "--seconds", "60"]),
        // A minute of fio, while the backend is killed.
        CiStep {
            name: "test-long",
            environment: NO_SKIPS,
            arguments: &[
                "test",
                "--package",
                "xen-block",
                "--test",
                "suite",
                "hosted::",
                "--",
                "--ignored",
            ],
        },
        step("sim", &["xtask", "sim", "--seeds", "1000"]),
        step("held", &["xtask", "held", "--seconds", "60"]),
    ],
    &[step("deb", &["xtask", "deb", "--check"])],
    &[step("demo", &["run", "--release", "--bin", "xb", "--", "demo", "--within", "15"])],
    &[step("bench-store", &["xtask", "bench", "store", "--quick", "--daemons", "ours,echo"])],
    &[step("bench-platform", &["xtask", "bench", "platform", "--quick"])],
    &[step("bench-block", &["xtask", "bench", "block", "--quick"])],
    &[step("bench-xb", &["xtask", "bench", "xb", "--quick"])],
    &[step("bench-console", &["xtask", "bench", "console", "--quick"])],
    &[step("xen", &["xtask", "xen"])],
];

/// Returns a step without an environment of its own.
const fn step(name: &'static str, arguments: &'static [&'static str]) -> CiStep {
    CiStep { name, environment: &[], arguments }
}

/// The end of a step.
struct StepOutcome {
    name: &'static str,
    passed: bool,
    took: Duration,
}

impl StepOutcome {
    fn line(&self) -> String {
        let word = if self.passed { "passed" } else { "FAILED" };
        format!("{:14} {word} in {:6.1} s", self.name, self.took.as_secs_f64())
    }
}

impl CiStep {
    fn command(&self) -> Command {
        // `cargo +nightly` is an option of rustup's cargo; this cargo does not know it.
        let (mut command, arguments) = match self.arguments {
            ["+nightly", rest @ ..] => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "cargo"]);
                (rustup, rest)
            }
            all => (cargo(), all),
        };
        command.args(arguments).envs(self.environment.iter().copied());
        command
    }

    /// Runs the step. Its output goes to `log`, or straight to the terminal if there is none.
    fn run(&self, log: Option<&Path>) -> Result<StepOutcome> {
        println!("==> {}: cargo {}", self.name, self.arguments.join(" "));
        let mut command = self.command();
        if let Some(log) = log {
            let log = fs::File::create(log)?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        }
        let start = Instant::now();
        let passed = command.status()?.success();
        Ok(StepOutcome { name: self.name, passed, took: start.elapsed() })
    }
}

/// Prints the steps.
pub(crate) fn list() -> ExitCode {
    for step in STAGES.iter().copied().flatten() {
        println!("{:14} cargo {}", step.name, step.arguments.join(" "));
    }
    ExitCode::SUCCESS
}

/// Runs the named steps, or all. A step that fails does not stop the others, so one run shows every
/// failure.
pub(crate) fn run(names: &[&str]) -> Result<ExitCode> {
    let known = |name: &&&str| STAGES.iter().copied().flatten().all(|step| step.name != **name);
    if let Some(name) = names.iter().find(known) {
        return Err(format!("there is no step {name:?}; `ci --list` lists them").into());
    }
    let target = Workspace::load()?.target;
    let began = (Instant::now(), SystemTime::now());
    let mut outcomes = Vec::new();
    for stage in STAGES {
        let is_named = |step: &&CiStep| names.is_empty() || names.contains(&step.name);
        let stage: Vec<&CiStep> = stage.iter().filter(is_named).collect();
        match stage.as_slice() {
            [] => {}
            [step] => {
                let outcome = step.run(None)?;
                println!("==> {}", outcome.line());
                outcomes.push(outcome);
            }
            steps => outcomes.extend(side_by_side(steps, &target)?),
        }
    }
    let flaky = xen::flaky(&target, began.1);
    report(&target, &mut outcomes, &flaky, began.0.elapsed())?;
    Ok(ExitCode::from(u8::from(outcomes.iter().any(|outcome| !outcome.passed))))
}

/// Runs steps at once; the output of each is shown when it ends.
fn side_by_side(steps: &[&CiStep], target: &Path) -> Result<Vec<StepOutcome>> {
    let logs = target.join("ci");
    fs::create_dir_all(&logs)?;
    let printer = Mutex::new(());
    let run = |step: &CiStep| -> Result<StepOutcome> {
        let log = logs.join(format!("{}.log", step.name));
        let outcome = step.run(Some(&log))?;
        let said = fs::read(&log)?;
        let _alone = printer.lock().unwrap_or_else(PoisonError::into_inner);
        print!("{}", String::from_utf8_lossy(&said));
        println!("==> {}", outcome.line());
        Ok(outcome)
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = steps.iter().map(|step| scope.spawn(move || run(step))).collect();
        let ended = threads.into_iter().map(ScopedJoinHandle::join);
        ended.map(|end| end.map_err(|_| "a step's thread has panicked")?).collect()
    })
}

/// Prints all steps, the longest first and those that failed last, and the flaky boots; writes
/// `ci.json`.
fn report(
    target: &Path,
    outcomes: &mut [StepOutcome],
    flaky: &[Value],
    took: Duration,
) -> Result<()> {
    outcomes.sort_by_key(|outcome| (!outcome.passed, std::cmp::Reverse(outcome.took)));
    println!();
    for outcome in outcomes.iter() {
        println!("{}", outcome.line());
    }
    xen::print_flaky(flaky);
    let steps = outcomes.iter().map(|outcome| {
        let seconds = outcome.took.as_secs_f64();
        json!({"name": outcome.name, "passed": outcome.passed, "seconds": seconds})
    });
    let whole = json!({
        "passed": outcomes.iter().all(|outcome| outcome.passed),
        "seconds": took.as_secs_f64(),
        "steps": steps.collect::<Vec<_>>(),
        "flaky": flaky,
    });
    let file = target.join("ci.json");
    fs::write(&file, serde_json::to_string_pretty(&whole)? + "\n")?;
    println!("{:.0} s; {}", took.as_secs_f64(), file.display());
    Ok(())
}
