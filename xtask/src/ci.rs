//! Everything that a change must pass. Each step prints its name first and its duration after.

use crate::Result;
use crate::workspace::cargo;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// A step: its name, its environment, and what cargo is told; `+nightly` first for that toolchain's.
struct Step {
    name: &'static str,
    environment: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
}

/// A test that is skipped fails.
const NO_SKIPS: &[(&str, &str)] = &[("CI", "true")];

/// The steps, cheapest first.
const STEPS: &[Step] = &[
    Step { name: "fmt", environment: &[], arguments: &["fmt", "--all", "--check"] },
    Step {
        name: "fmt-fuzz",
        environment: &[],
        arguments: &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"],
    },
    Step {
        name: "fmt-guest",
        environment: &[],
        arguments: &["fmt", "--manifest-path", "tests/xen/guest/Cargo.toml", "--check"],
    },
    Step { name: "tidy", environment: &[], arguments: &["xtask", "tidy"] },
    Step {
        name: "clippy",
        environment: &[],
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--warn=clippy::too_many_lines",
            "--deny=warnings",
        ],
    },
    // A workspace of its own, which the step before does not reach.
    Step {
        name: "clippy-fuzz",
        environment: &[],
        arguments: &[
            "clippy",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--locked",
            "--",
            "--warn=clippy::too_many_lines",
            "--deny=warnings",
        ],
    },
    Step {
        name: "clippy-guest",
        environment: &[],
        arguments: &[
            "clippy",
            "--manifest-path",
            "tests/xen/guest/Cargo.toml",
            "--release",
            "--target-dir",
            "target/xen-lab/guest-build",
            "--locked",
            "--",
            "--warn=clippy::too_many_lines",
            "--deny=warnings",
        ],
    },
    Step {
        name: "doc",
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        arguments: &["doc", "--workspace", "--no-deps"],
    },
    Step { name: "test", environment: NO_SKIPS, arguments: &["test", "--workspace"] },
    // Shared memory, by the rules of Rust's memory model.
    Step {
        name: "miri",
        environment: &[],
        arguments: &[
            "+nightly",
            "miri",
            "test",
            "--package",
            "xen",
            "--package",
            "xen-io",
            "--lib",
        ],
    },
    // A minute of fio, while the backend is killed.
    Step {
        name: "test-long",
        environment: NO_SKIPS,
        arguments: &["test", "--package", "xen-block", "--test", "hosted", "--", "--ignored"],
    },
    Step { name: "fuzz", environment: &[], arguments: &["xtask", "fuzz", "--seconds", "15"] },
    Step { name: "sim", environment: &[], arguments: &["xtask", "sim", "--seeds", "1000"] },
    Step {
        name: "demo-xb",
        environment: &[],
        arguments: &["run", "--release", "--bin", "xb", "--", "demo", "--within", "15"],
    },
    Step {
        name: "bench",
        environment: &[],
        arguments: &["xtask", "bench", "store", "--quick", "--daemons", "ours,echo"],
    },
    Step {
        name: "bench-platform",
        environment: &[],
        arguments: &["xtask", "bench", "platform", "--quick"],
    },
    Step {
        name: "bench-block",
        environment: &[],
        arguments: &["xtask", "bench", "block", "--quick"],
    },
    Step {
        name: "bench-xb",
        environment: &[],
        arguments: &["xtask", "bench", "xb", "--quick"],
    },
    Step { name: "xen", environment: &[], arguments: &["xtask", "xen"] },
];

impl Step {
    fn command(&self) -> Command {
        // `cargo +nightly` is rustup's word; this cargo does not know it.
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
}

/// Prints the steps.
pub(crate) fn list() -> ExitCode {
    for step in STEPS {
        println!("{:12} cargo {}", step.name, step.arguments.join(" "));
    }
    ExitCode::SUCCESS
}

/// Runs the named steps, or all; all of them even where one fails, so that one run tells all.
pub(crate) fn run(names: &[&str]) -> Result<ExitCode> {
    if let Some(name) = names.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        return Err(format!("there is no step {name:?}; `ci --list` lists them").into());
    }
    let mut outcomes = Vec::new();
    for step in STEPS.iter().filter(|step| names.is_empty() || names.contains(&step.name)) {
        println!("==> {}: cargo {}", step.name, step.arguments.join(" "));
        let start = Instant::now();
        let passed = step.command().status()?.success();
        let line = format!(
            "{:12} {} in {:.1} s",
            step.name,
            if passed { "passed" } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
        println!("==> {line}");
        outcomes.push((passed, line));
    }
    println!();
    for (_, line) in &outcomes {
        println!("{line}");
    }
    Ok(ExitCode::from(u8::from(outcomes.iter().any(|(passed, _)| !passed))))
}
