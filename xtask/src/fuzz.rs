//! Builds the fuzz targets on the stable toolchain and runs each for a while, or minimises the
//! inputs that they have found into the saved corpus. `fuzz/README.md` is the user's view.

use crate::Result;
use crate::workspace::{Workspace, cargo};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::ScopedJoinHandle;

/// The targets, in the order in which they run.
const TARGETS: [&str; 8] =
    ["wire", "engine", "stream", "client", "state", "blkif", "console", "image"];
/// The default time of each target, in seconds.
const SECONDS: u32 = 15;
/// Longest input. Longer ones find little more and slow everything down.
const INPUT_MAX: &str = "-max_len=4096";
/// Most files of a target in the saved corpus, and the bytes of all of them.
const SAVED_FILES_MAX: usize = 200;
const SAVED_BYTES_MAX: u64 = 200 * 1024;

/// The instrumentation that libFuzzer reads: the stable part of the flags of `cargo fuzz
/// --sanitizer none`. With `--target` it does not reach build scripts.
const INSTRUMENTED: &str = "\
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Clink-dead-code \
    --cfg fuzzing";

const HELP: &str = "\
cargo xtask fuzz [TARGET] [--seconds N]   runs one target, or each, for N seconds (15)
cargo xtask fuzz TARGET FILE...           runs a target on these inputs once
cargo xtask fuzz [TARGET] --save          minimises all inputs found so far into fuzz/corpus
";

/// The job for each target.
enum Job {
    Search { seconds: u32 },
    Repeat(Vec<PathBuf>),
    Save,
}

/// The targets, built.
struct Fuzz {
    folder: PathBuf,
    programs: PathBuf,
}

/// Runs `cargo xtask fuzz`.
pub(crate) fn run(options: &[&str]) -> Result<ExitCode> {
    if options.iter().any(|option| ["--help", "-h"].contains(option)) {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let (targets, job) = parse(options)?;
    let fuzz = Fuzz::build(&targets)?;
    let crashed = match &job {
        Job::Search { seconds } => fuzz.search_all(&targets, *seconds)?,
        Job::Repeat(inputs) => {
            let mut crashed = false;
            for target in targets {
                crashed |= !fuzz.command(target).args(inputs).status()?.success();
            }
            crashed
        }
        Job::Save => {
            targets.iter().try_for_each(|target| fuzz.save(target))?;
            false
        }
    };
    Ok(ExitCode::from(u8::from(crashed)))
}

fn parse(options: &[&str]) -> Result<(Vec<&'static str>, Job)> {
    let named = options.first().and_then(|name| TARGETS.iter().find(|known| *known == name));
    let rest = if named.is_some() { &options[1..] } else { options };
    let job = match rest {
        [] => Job::Search { seconds: SECONDS },
        ["--seconds", seconds] => match seconds.parse() {
            Ok(seconds) if seconds > 0 => Job::Search { seconds },
            _ => return Err(format!("--seconds takes a number above 0, not {seconds:?}").into()),
        },
        ["--save"] => Job::Save,
        inputs if named.is_some() && !inputs.iter().any(|input| input.starts_with('-')) => {
            let inputs = inputs.iter().map(std::path::absolute);
            Job::Repeat(inputs.collect::<std::io::Result<_>>()?)
        }
        _ => {
            let targets = TARGETS.join(", ");
            return Err(format!("fuzz: no such option or target ({targets})\n{HELP}").into());
        }
    };
    Ok((named.map_or_else(|| TARGETS.to_vec(), |target| vec![*target]), job))
}

impl Fuzz {
    fn build(targets: &[&str]) -> Result<Self> {
        let folder = Workspace::load()?.root.join("fuzz");
        let built = folder.join("target");
        let host = host()?;
        let mut build = cargo();
        build.args(["build", "--quiet", "--locked", "--release", "--target", &host]);
        build.arg("--target-dir").arg(&built);
        for target in targets {
            build.args(["--bin", target]);
        }
        // An environment that sets flags of its own would override these.
        build.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", INSTRUMENTED);
        if !build.current_dir(&folder).status()?.success() {
            return Err("the fuzz targets do not build (they need a C++ compiler: g++)".into());
        }
        Ok(Self { folder, programs: built.join(host).join("release") })
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.programs.join(target));
        command.args([INPUT_MAX, "-timeout=20"]);
        command.args(match target {
            // An image of some KiB has no claim to more memory, least of all in one allocation.
            "image" => ["-rss_limit_mb=768", "-malloc_limit_mb=64"],
            _ => ["-rss_limit_mb=2048", "-malloc_limit_mb=2048"],
        });
        command
    }

    fn saved(&self, target: &str) -> PathBuf {
        self.folder.join("corpus").join(target)
    }

    /// Returns the folder of the inputs that are found. The next run starts from them, too.
    fn found(&self, target: &str) -> Result<PathBuf> {
        let found = self.folder.join("target").join("corpus").join(target);
        fs::create_dir_all(&found)?;
        Ok(found)
    }

    /// Runs each target for a while, as many at once as there are processors; returns true if one
    /// has failed.
    fn search_all(&self, targets: &[&'static str], seconds: u32) -> Result<bool> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut failed = false;
        for some in targets.chunks(processors) {
            let ended: Vec<Result<bool>> = std::thread::scope(|scope| {
                let run = |target: &&'static str| {
                    let target = *target;
                    scope.spawn(move || self.search(target, seconds))
                };
                let threads: Vec<_> = some.iter().map(run).collect();
                let joined = threads.into_iter().map(ScopedJoinHandle::join);
                joined.map(|end| end.map_err(|_| "a thread has panicked")?).collect()
            });
            for went_well in ended {
                failed |= !went_well?;
            }
        }
        Ok(failed)
    }

    /// Runs a target for a while; returns true if it has not failed.
    fn search(&self, target: &str, seconds: u32) -> Result<bool> {
        let artifacts = self.folder.join("artifacts").join(target);
        fs::create_dir_all(&artifacts)?;
        let mut command = self.command(target);
        command.arg(format!("-max_total_time={seconds}"));
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg("-print_final_stats=1");
        command.arg(self.found(target)?).arg(self.saved(target));
        let output = command.output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        let runs = word_after(&log, "stat::number_of_executed_units:").unwrap_or("no");
        let first = log.lines().find(|line| line.contains("INITED")).unwrap_or_default();
        let last = log.lines().rfind(|line| line.contains(" cov: ")).unwrap_or_default();
        let edges = |line| word_after(line, " cov:").and_then(|edges| edges.parse::<u64>().ok());
        let (before, now) = (edges(first).unwrap_or(0), edges(last).unwrap_or(0));
        println!(
            "{target:8} {runs} runs in {seconds} s, {now} edges, {} of them new, {} new inputs",
            now.saturating_sub(before),
            word_after(&log, "stat::new_units_added:").unwrap_or("no"),
        );
        if output.status.success() {
            return Ok(true);
        }
        println!("{target:8} FAILED ({})", output.status);
        for line in failure_lines(&log) {
            println!("         {line}");
        }
        if let Some(file) = word_after(&log, "Test unit written to ") {
            println!("         again: cargo xtask fuzz {target} {file}");
        }
        Ok(false)
    }

    /// Minimises the inputs: keeps the few that reach all that the whole set reaches.
    fn save(&self, target: &str) -> Result<()> {
        let saved = self.saved(target);
        let merged = self.folder.join("target").join("merged").join(target);
        if merged.exists() {
            fs::remove_dir_all(&merged)?;
        }
        fs::create_dir_all(&merged)?;
        fs::create_dir_all(&saved)?;
        let mut command = self.command(target);
        // Only edges count, not the number of times that each is passed: that would keep thousands.
        command.args(["-set_cover_merge=1", "-use_counters=0"]);
        command.arg(&merged).arg(&saved).arg(self.found(target)?);
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("{target}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let mut inputs = files(&merged)?;
        inputs.sort();
        let (mut count, mut bytes) = (0, 0);
        for (len, file) in files(&saved)? {
            if is_found(&file) {
                fs::remove_file(&file)?;
            } else {
                (count, bytes) = (count + 1, bytes + len);
            }
        }
        for (len, file) in inputs {
            if count == SAVED_FILES_MAX || bytes + len > SAVED_BYTES_MAX {
                break;
            }
            fs::copy(&file, saved.join(file.file_name().unwrap_or_default()))?;
            (count, bytes) = (count + 1, bytes + len);
        }
        println!("{target:8} {count} files of {bytes} bytes in {}", saved.display());
        Ok(())
    }
}

/// True if libFuzzer named this input, by its SHA-1. An input that a person named stays in the
/// saved corpus.
fn is_found(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the lengths and paths of the files in a folder.
fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    Ok(files)
}

/// Returns the word behind this mark.
fn word_after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(mark)?;
    rest.split_whitespace().next()
}

/// Returns the lines of a log that explain the failure.
fn failure_lines(log: &str) -> Vec<&str> {
    let panic = log.lines().skip_while(|line| !line.contains("panicked at"));
    let lines: Vec<&str> = panic.take_while(|line| !line.starts_with("stack backtrace")).collect();
    if lines.is_empty() {
        log.lines().filter(|line| line.contains("ERROR") || line.contains("SUMMARY")).collect()
    } else {
        lines
    }
}

/// Returns the target triple of this machine.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output()?;
    let version = String::from_utf8(output.stdout)?;
    let host = word_after(&version, "host:").ok_or("rustc -vV names no host")?;
    Ok(host.to_owned())
}
