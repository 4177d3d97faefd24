//! Compares our `xenstored` with Debian's C `xenstored`, with `oxenstored`, and with a bare echo,
//! in alternation, with the same client: `cargo xtask bench store`.
//!
//! | module | what it is |
//! |---|---|
//! | `daemon` | the daemons, and their start |
//! | `echo` | the limit |
//! | `client`, `swarm` | the load: one connection, many connections |
//! | `scenario` | the measurements |
//! | `table`, `report` | the rows and their verdicts |
//! | `run` | the rounds |
//! | `machine` | CPU, descriptors, facts |
//! | `result` | the result of a fallible function |

mod client;
mod daemon;
mod echo;
mod machine;
mod report;
mod result;
mod run;
mod scenario;
mod swarm;
mod table;

use daemon::{MeasuredDaemon, Places};
pub(crate) use result::Result;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::{ROWS, Row};

const HELP: &str = "\
cargo xtask bench store [OPTION...]

  --only PATTERN   rows or scenarios whose name contains PATTERN; may be repeated
  --daemons LIST   some of ours,c,o,on,echo
  --rounds N       how often each daemon is measured (default 5)
  --quick          one small round, to see that everything runs
  --json FILE      write every sample
  --into FILE      put the table into FILE, between its two <!-- table --> lines
  --check          end with status 1 where a row is missed
  --list           print the rows and end

Debian's daemons are those in $XENBUS_PEERS; without it their packages are fetched to target/peers.
";

/// The command line.
#[derive(Default)]
struct StoreBenchOptions {
    only: Vec<String>,
    daemons: Vec<MeasuredDaemon>,
    rounds: Option<usize>,
    quick: bool,
    json: Option<PathBuf>,
    into: Option<PathBuf>,
    check: bool,
    list: bool,
    help: bool,
    echo: Option<PathBuf>,
}

impl StoreBenchOptions {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--only" => options.only.push(value()?),
                "--daemons" => options.daemons = parse_kinds(&value()?)?,
                "--rounds" => options.rounds = Some(value()?.parse()?),
                "--quick" => options.quick = true,
                "--json" => options.json = Some(value()?.into()),
                "--into" => options.into = Some(value()?.into()),
                "--check" => options.check = true,
                "--list" => options.list = true,
                "--help" | "-h" => options.help = true,
                "--echo" => options.echo = Some(value()?.into()),
                _ => return Err(format!("unknown option {arg}\n{HELP}").into()),
            }
        }
        Ok(options)
    }

    fn chooses(&self, row: &Row) -> bool {
        let named = |pattern: &String| row.id.contains(pattern) || row.scenario.contains(pattern);
        self.only.is_empty() || self.only.iter().any(named)
    }
}

fn parse_kinds(list: &str) -> Result<Vec<MeasuredDaemon>> {
    list.split(',')
        .map(|name| {
            let known = MeasuredDaemon::ALL.into_iter().find(|kind| kind.short() == name);
            Ok(known.ok_or_else(|| format!("no daemon is called {name:?}"))?)
        })
        .collect()
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let outcome = if args.next_if(|arg| arg == daemon::EXEC).is_some() {
        daemon::become_program(args).map(|()| ExitCode::SUCCESS)
    } else {
        StoreBenchOptions::parse(args).and_then(|options| bench(&options))
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("store-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn bench(options: &StoreBenchOptions) -> Result<ExitCode> {
    if options.help {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(socket) = &options.echo {
        echo::serve(socket)?;
    }
    let rows = || ROWS.iter().filter(|row| options.chooses(row));
    if options.list {
        for row in rows() {
            println!("{:20} {:14} {}", row.id, row.scenario, row.work);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let release = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let wanted =
        |kind: &MeasuredDaemon| !matches!(kind, MeasuredDaemon::Ours | MeasuredDaemon::Echo);
    let peers = match options.daemons.is_empty() || options.daemons.iter().any(wanted) {
        true => Some(conformance::Peers::get()?),
        false => None,
    };
    // Removed at the end: then the logs of the daemons are no longer needed.
    let scratch = tempfile::tempdir()?;
    let places = Places { release, peers, scratch: scratch.path().to_owned() };
    let allowed = machine::allowed()?;
    let cpu = machine::last_cpu(&allowed)?;
    machine::pin(None, cpu)?;
    let plan = run::RunPlan {
        places: &places,
        cpu,
        allowed,
        descriptors: machine::raise_descriptors(20_000)?,
        rounds: options.rounds.unwrap_or(if options.quick { 1 } else { 5 }),
        quick: options.quick,
        scenarios: rows().map(|row| row.scenario).collect(),
        kinds: if options.daemons.is_empty() {
            MeasuredDaemon::ALL.to_vec()
        } else {
            options.daemons.clone()
        },
    };
    let facts = serde_json::json!({
        "machine": machine::facts(),
        "date": machine::today(),
        "rounds": plan.rounds,
        "quick": plan.quick,
        "debian": debian_version(&places),
    });
    let keep = |results: &report::Results| -> Result<()> {
        let Some(file) = &options.json else { return Ok(()) };
        Ok(std::fs::write(file, format!("{:#}\n", results.json(&facts)))?)
    };
    let results = run::run(&plan, keep)?;
    let table = format!(
        "{}; {}; medians of {} rounds;\nDebian's daemons: {}{}\n\n{}",
        machine::today(),
        machine::facts(),
        plan.rounds,
        debian_version(&places),
        if plan.quick { "; QUICK: these figures mean nothing" } else { "" },
        results.markdown(|row| options.chooses(row)),
    );
    println!("{table}");
    if let Some(file) = &options.into {
        insert(file, &table)?;
    }
    let missed = rows().any(|row| results.judge(row).0 == report::Verdict::Missed);
    Ok(ExitCode::from(u8::from(options.check && missed)))
}

/// Puts the table between the two lines of `file` that mark its place.
fn insert(file: &Path, table: &str) -> Result<()> {
    const MARK: &str = "<!-- table -->\n";
    let text = std::fs::read_to_string(file)?;
    let parts: Vec<_> = text.split(MARK).collect();
    let [before, _, after] = parts.as_slice() else {
        return Err(format!("{} has not two lines {}", file.display(), MARK.trim()).into());
    };
    Ok(std::fs::write(file, format!("{before}{MARK}\n{}\n\n{MARK}{after}", table.trim()))?)
}

/// Returns the version of Debian's package, from the name of its changelog in the unpacked tree.
fn debian_version(places: &Places) -> String {
    let folder = places.peers.and_then(|peers| peers.root().parent());
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok());
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix("xen-utils-4.17_")?.split('_').next()?.to_owned())
        })
        .next()
        .unwrap_or_else(|| "version unknown".into())
}
