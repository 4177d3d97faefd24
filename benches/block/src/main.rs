//! Our block devices beside io_uring with nothing in between, and beside `qemu-nbd`, in alternation, in one
//! run: `cargo xtask bench block`.
//!
//! | module | what it is |
//! |---|---|
//! | `table` | the rows, the readers of each, and the goals of the figures |
//! | `load` | the load, and its duration |
//! | `direct` | the limit: io_uring and nothing else |
//! | `ring` | our frontend and our backend |
//! | `memory` | the memory of a backend with many disks |
//! | `nbd` | the NBD client, and `qemu-nbd` |
//! | `report` | medians, verdicts, the table |
//! | `result` | the result of a fallible function |
//! | `machine` | CPUs, and the facts that go with the table |

mod direct;
mod load;
#[path = "../../store/src/machine.rs"]
#[expect(dead_code, reason = "the store's bench uses more of it")]
mod machine;
mod memory;
mod nbd;
mod report;
mod result;
mod ring;
#[path = "../../../crates/xen-block/tests/suite/support.rs"]
mod support;
mod table;

use load::{Load, Throughput};
use report::{Results, Round};
pub(crate) use result::Result;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use table::{FilePlace, Format, Quantity, ROWS, ReadMethod, Row};
use tempfile::TempDir;
use xen_block::disk::target::DiskTarget;

const HELP: &str = "\
cargo xtask bench block [OPTION...]

  --only PATTERN   rows whose name contains PATTERN; may be repeated
  --tmpfs FOLDER   where the files in memory are (/dev/shm)
  --disk FOLDER    where the files on disk are (the temporary folder)
  --rounds N       how often everything is measured (5)
  --quick          one short round, to see that everything runs
  --json FILE      write every sample
  --into FILE      put the table into FILE, between its two <!-- block table --> lines
  --check          end with status 1 where a row is missed
  --list           print the rows and end

qemu-nbd and qemu-img are Debian's qemu-utils. A row whose peer is missing is reported as not measured.
";

/// Bytes of the file that is read.
const FILE_BYTES: usize = 256 << 20;
/// Bytes of each disk of a backend with many.
const DISK_BYTES: usize = 64 << 20;
/// The magic number of tmpfs (`TMPFS_MAGIC`, `linux/magic.h`).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The command line.
struct BlockBenchOptions {
    only: Vec<String>,
    tmpfs: PathBuf,
    disk: PathBuf,
    rounds: Option<usize>,
    extent: RunExtent,
    json: Option<PathBuf>,
    into: Option<PathBuf>,
    miss_policy: MissPolicy,
    command: BenchCommand,
}

/// The extent of a run: the number of rounds and the time of each measurement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunExtent {
    Full,
    Quick,
}

/// The effect of a missed row: printed only, or a failure of the run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissPolicy {
    Report,
    Fail,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BenchCommand {
    Run,
    List,
    Help,
}

impl BlockBenchOptions {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            only: Vec::new(),
            tmpfs: "/dev/shm".into(),
            disk: std::env::temp_dir(),
            rounds: None,
            extent: RunExtent::Full,
            json: None,
            into: None,
            miss_policy: MissPolicy::Report,
            command: BenchCommand::Run,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--only" => options.only.push(value()?),
                "--tmpfs" => options.tmpfs = value()?.into(),
                "--disk" => options.disk = value()?.into(),
                "--rounds" => options.rounds = Some(value()?.parse()?),
                "--quick" => options.extent = RunExtent::Quick,
                "--json" => options.json = Some(value()?.into()),
                "--into" => options.into = Some(value()?.into()),
                "--check" => options.miss_policy = MissPolicy::Fail,
                "--list" => options.command = BenchCommand::List,
                "--help" | "-h" => options.command = BenchCommand::Help,
                _ => return Err(format!("unknown option {arg}\n{HELP}").into()),
            }
        }
        Ok(options)
    }

    fn rows(&self) -> impl Iterator<Item = &'static Row> {
        let chosen =
            |row: &&Row| self.only.is_empty() || self.only.iter().any(|part| row.id.contains(part));
        ROWS.iter().filter(chosen)
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.extent == RunExtent::Quick { 1 } else { 5 })
    }

    fn time(&self) -> Duration {
        Duration::from_millis(if self.extent == RunExtent::Quick { 100 } else { 1000 })
    }
}

/// The folders with the files, removed when dropped.
struct DiskFiles {
    tmpfs: TempDir,
    disk: TempDir,
}

impl DiskFiles {
    fn make(options: &BlockBenchOptions) -> Result<Self> {
        for (folder, tmpfs) in [(&options.tmpfs, true), (&options.disk, false)] {
            std::fs::create_dir_all(folder)?;
            if (rustix::fs::statfs(folder)?.f_type == TMPFS_MAGIC) != tmpfs {
                let is = if tmpfs { "no tmpfs" } else { "a tmpfs" };
                return Err(format!("{} is {is}; name another folder", folder.display()).into());
            }
        }
        let [tmpfs, disk] = [&options.tmpfs, &options.disk].map(tempfile::tempdir_in);
        Ok(Self { tmpfs: tmpfs?, disk: disk? })
    }

    fn folder(&self, place: FilePlace) -> &Path {
        if place == FilePlace::Disk { self.disk.path() } else { self.tmpfs.path() }
    }

    /// Returns the file of this format. The first call makes it.
    fn image(&self, place: FilePlace, format: Format) -> Result<PathBuf> {
        let path = self.folder(place).join(format.name());
        if path.exists() {
            return Ok(path);
        }
        match format {
            Format::Raw => {
                let file = std::fs::File::create(&path)?;
                std::io::Write::write_all(&mut &file, &vec![1; FILE_BYTES])?;
                file.sync_all()?;
            }
            Format::Qcow2 => {
                convert(&self.image(place, Format::Raw)?, format, &path)?;
            }
        }
        Ok(path)
    }

    /// Returns the bytes of memory of a backend with `disks` disks of this format, of 64 MiB each.
    fn memory(&self, place: FilePlace, format: Format, disks: usize) -> Result<f64> {
        let folder = self.folder(place).join("disks");
        std::fs::create_dir_all(&folder)?;
        let image = folder.join(format.name());
        let source = folder.join("source");
        let file = std::fs::File::create(&source)?;
        std::io::Write::write_all(&mut &file, &vec![1; DISK_BYTES / 16])?;
        file.set_len(DISK_BYTES as u64)?;
        convert(&source, format, &image)?;
        let bytes = memory::measure(&image, format, disks);
        std::fs::remove_dir_all(folder)?;
        bytes
    }

    fn target(&self, place: FilePlace, format: Format) -> Result<DiskTarget> {
        let path = self.image(place, format)?;
        Ok(match format {
            Format::Raw => DiskTarget::Raw(path),
            Format::Qcow2 => DiskTarget::Qcow2(path),
        })
    }

    /// Runs one measurement.
    fn measure(
        &self,
        place: FilePlace,
        reader: ReadMethod,
        load: Load,
        time: Duration,
    ) -> Result<Throughput> {
        let socket = || self.tmpfs.path().join("socket");
        match reader {
            ReadMethod::Direct => direct::read(&self.image(place, Format::Raw)?, load, time),
            ReadMethod::Ring(format) => ring::read(&self.target(place, format)?, load, time),
            ReadMethod::AtOnce => {
                let allowed = machine::allowed()?;
                machine::pin(None, machine::last_cpu(&allowed)?)?;
                let throughput = ring::at_once(time);
                rustix::thread::sched_setaffinity(None, &allowed)?;
                throughput
            }
            ReadMethod::Export(format) => {
                let client = move |socket: PathBuf| nbd::read(&socket, load, time);
                ring::export(&self.target(place, format)?, socket(), client)
            }
            ReadMethod::QemuNbd(format) => {
                let image = self.image(place, format)?;
                nbd::through_qemu(format, &image, socket(), load, time)
            }
        }
    }
}

/// Makes an image of another format from a raw one.
fn convert(raw: &Path, format: Format, path: &Path) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format.name()])
        .args([raw, path])
        .status()
        .map_err(|error| format!("qemu-img (Debian: qemu-utils): {error}"))?;
    if !status.success() {
        return Err(format!("qemu-img convert: {status}").into());
    }
    Ok(std::fs::File::open(path)?.sync_all()?)
}

/// Measures a row once, ours and the other in turn. The order changes with each round.
fn round(files: &DiskFiles, row: &'static Row, number: usize, time: Duration) -> Result<Round> {
    let (load, ours, other) = match row.quantity {
        Quantity::Reads { load, ours, other } => (load, ours, other),
        Quantity::Memory { disks, format } => {
            return files.memory(row.place, format, disks).map(Round::Memory);
        }
    };
    let measure = |reader| files.measure(row.place, reader, load, time);
    let Some(other) = other else {
        return Ok(Round::Reads { ours: measure(ours)?, other: None });
    };
    if number.is_multiple_of(2) {
        let ours = measure(ours)?;
        Ok(Round::Reads { ours, other: Some(measure(other)?) })
    } else {
        let other = measure(other)?;
        Ok(Round::Reads { ours: measure(ours)?, other: Some(other) })
    }
}

fn run(options: &BlockBenchOptions) -> Result<Results> {
    let files = DiskFiles::make(options)?;
    let (rounds, mut results) = (options.rounds(), Results::default());
    for row in options.rows() {
        for number in 0..rounds {
            match round(&files, row, number, options.time()) {
                Ok(round) => {
                    eprintln!("{} {}/{rounds}: {round}", row.id, number + 1);
                    results.add(row.id, round);
                }
                Err(error) => {
                    eprintln!("{}: not measured: {error}", row.id);
                    results.fail(row.id, error.to_string());
                    break;
                }
            }
        }
    }
    Ok(results)
}

fn bench(options: &BlockBenchOptions) -> Result<ExitCode> {
    match options.command {
        BenchCommand::Help => {
            print!("{HELP}");
            return Ok(ExitCode::SUCCESS);
        }
        BenchCommand::List => {
            for row in options.rows() {
                println!("{:18} {}", row.id, row.work);
            }
            return Ok(ExitCode::SUCCESS);
        }
        BenchCommand::Run => {}
    }
    let results = run(options)?;
    let facts = format!(
        "{}; {}; medians of {} rounds of {:?}{}",
        machine::today(),
        machine::facts(),
        options.rounds(),
        options.time(),
        if options.extent == RunExtent::Quick { "; QUICK: these figures mean nothing" } else { "" },
    );
    let table = format!("{facts}\n\n{}", results.markdown(options.rows()));
    println!("{table}");
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", results.json(&facts)))?;
    }
    if let Some(file) = &options.into {
        report::insert(file, &table)?;
    }
    let missed = options.rows().any(|row| results.is_missed(row));
    let failed = options.miss_policy == MissPolicy::Fail && missed;
    Ok(ExitCode::from(u8::from(failed)))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [memory::PROCESS, image, format, disks] => {
            memory::process(image, format, disks).map(|()| ExitCode::SUCCESS)
        }
        _ => BlockBenchOptions::parse(args.into_iter()).and_then(|options| bench(&options)),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("block-bench: {error}");
            ExitCode::from(2)
        }
    }
}
