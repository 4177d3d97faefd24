//! The results of the boots: every step must pass, and the daemons must do the same, side by side.
//!
//! dom0 leaves in a boot's folder: `steps`, a line for each step; `facts`, a line for each figure;
//! `tree-NAME`, a listing of the store.

use super::lab::{Lab, StoreDaemon};
use super::outcome::{BootExtent, FirstTry, Outcome};
use super::speed;
use super::trees::differences;
use crate::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// The format of the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportFormat {
    /// Text for a person.
    Text,
    /// JSON for a program.
    Json,
}

/// A row of the table.
struct ComparedFact {
    /// The boot whose steps write the fact.
    boot: &'static str,
    /// The fact's name.
    fact: &'static str,
    /// The description of the fact.
    description: &'static str,
}

const fn row(boot: &'static str, fact: &'static str, description: &'static str) -> ComparedFact {
    ComparedFact { boot, fact, description }
}

/// The rows of the table. Facts that are not here are in the JSON.
const ROWS: &[ComparedFact] = &[
    row("sysv", "start_ms", "the init script, ms"),
    row("sysv", "create_pv_ms", "xl create of a PV guest, ms"),
    row("sysv", "ready_pv_ms", "until it has used disk and network, ms"),
    row("sysv", "create_pvh_ms", "xl create of a PVH guest, ms"),
    row("sysv", "ready_pvh_ms", "until it has used disk and network, ms"),
    row("sysv", "save_pv_ms", "xl save, ms"),
    row("sysv", "restore_pv_ms", "xl restore, ms"),
    row("block", "block_ready_pv_ms", "xl create until a PV guest is up from our disk, ms"),
    row("block", "block_ready_pvh_ms", "... a PVH guest, from qcow2 on qcow2, ms"),
    row("block", "block_lone_calls_percent", "system calls of xen-blockd for 100 lone reads"),
    row("driver", "driver_ready_web_ms", "... a PV guest, from a driver domain's disk, ms"),
    row("console", "console_kib_s", "a guest's output to its log, over three kills, KiB/s"),
    row("console", "console_lost_bytes", "... what the log lacks, bytes"),
    row("console", "console_echo_ms", "a line to a guest's console until its answer, ms"),
    row("console", "console_echo_flood_ms", "... beside a guest that writes without end, ms"),
    row("console", "console_stop_ms", "the init script's stop of xenconsoled, ms"),
    row("many", "create_many_ms", "xl create, mean of 20 with up to 8 at once, ms"),
    row("many", "many_ms", "all 20 created, 16 of them started, all destroyed, ms"),
    row("sysv", "messages", "messages: a PV guest created, started, crashed"),
    row("sysv", "cpu_pv_ms", "daemon's processor time: one guest until ready, ms"),
    row("many", "cpu_many_ms", "daemon's processor time: the 20, ms"),
    row("sysv", "cpu_ms", "daemon's processor time: all steps of sysv, ms"),
    row("many", "peak_rss_kib", "daemon's resident memory with 8 guests, KiB"),
    row("many", "before_many_anon_kib", "what it has allocated of that, before the 20, KiB"),
    row("many", "at_12_anon_kib", "... with 8 guests, after 4 have died, KiB"),
    row("many", "at_20_anon_kib", "... with 8 guests, after 12 have died, KiB"),
    row("many", "after_many_anon_kib", "... after all 20 have died, KiB"),
    row("many", "steady_5_anon_kib", "... after 5 more, one after the other, KiB"),
    row("many", "steady_20_anon_kib", "... after 15 more, KiB"),
];

/// The number of trees of a whole boot `sysv`: before the guests, of a PV and of a PVH guest, and
/// after all.
const TREES: usize = 4;
/// The most lines of a difference, or of a log's end, that are printed.
const SHOWN: usize = 50;
/// The most flaky boots of one run that are no fault.
const FLAKY_MAX: usize = 2;

/// Prints the results; the exit status is 1 if something is wrong.
pub(crate) fn judge(
    lab: &Lab,
    outcomes: &[Outcome],
    versions: &[String],
    took: Duration,
    report: ReportFormat,
) -> Result<ExitCode> {
    let mut faults: Vec<String> = outcomes.iter().flat_map(faults_of).collect();
    let compared = compare(outcomes, &mut faults)?;
    let facts: BTreeMap<String, Map<String, Value>> =
        outcomes.iter().map(|outcome| (outcome.name(), facts_of(outcome))).collect();
    for outcome in outcomes {
        faults.extend(missing_rows(outcome, &facts[&outcome.name()]));
    }
    let flaky = flaky_of(outcomes, &mut faults);
    let speed = speed::rows(&facts);
    let whole = json!({
        "passed": faults.is_empty(),
        "faults": faults,
        "flaky": flaky,
        "trees_compared": compared,
        "seconds": took.as_secs_f64(),
        "dom0_vcpus": 1,
        "facts": facts,
        "block_speed": speed::json(&speed),
        "packages": versions,
        "packages_fetched": fetched(lab),
    });
    let text = serde_json::to_string_pretty(&whole)?;
    fs::write(lab.dir.join("results/result.json"), &text)?;
    if report == ReportFormat::Json {
        println!("{text}");
    } else {
        table(outcomes, &facts);
        speed::print(&speed);
        for (name, lines) in &compared {
            println!("tree-{name}: {lines} lines, the same under both daemons");
        }
        for fault in &faults {
            println!("FAIL {fault}");
        }
        print_flaky(&flaky);
        let (seconds, faults) = (took.as_secs(), faults.len());
        println!("xen: {seconds} s, {faults} faults; {}", lab.dir.join("results").display());
    }
    Ok(ExitCode::from(u8::from(!faults.is_empty())))
}

/// Returns the time at which the packages were fetched, in seconds since 1970.
fn fetched(lab: &Lab) -> Option<u64> {
    let record = fs::metadata(lab.dir.join(super::fetch::RECORD)).ok()?.modified().ok()?;
    record.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Returns the rows that a whole boot should have filled and has not.
fn missing_rows(outcome: &Outcome, facts: &Map<String, Value>) -> Vec<String> {
    let rows = ROWS.iter().filter(|_| outcome.extent == BootExtent::Whole);
    rows.filter(|row| row.boot == outcome.boot && !facts.contains_key(row.fact))
        .map(|row| format!("{}: no step has told {}", outcome.name(), row.fact))
        .collect()
}

/// Returns the boots that lost a guest in their first try, for the result; more than [`FLAKY_MAX`]
/// are a fault.
fn flaky_of(outcomes: &[Outcome], faults: &mut Vec<String>) -> Vec<Value> {
    let mut flaky = Vec::new();
    for outcome in outcomes {
        let Some(FirstTry { lost, results }) = outcome.first.as_deref() else { continue };
        let log = results.join(format!("{}.log", lost.step));
        flaky.push(json!({
            "boot": outcome.name(),
            "step": lost.step,
            "why": lost.why,
            "evidence": lines_at_end(&log),
            "results": results,
        }));
    }
    if flaky.len() > FLAKY_MAX {
        let count = flaky.len();
        faults.push(format!("{count} boots lost a guest in their first try; {FLAKY_MAX} may"));
    }
    flaky
}

/// Prints the flaky boots, with the remains of the first try.
pub(crate) fn print_flaky(flaky: &[Value]) {
    for one in flaky {
        let text = |key: &str| one[key].as_str().unwrap_or_default();
        println!("FLAKY {}: {}: {}; its log ends:", text("boot"), text("step"), text("why"));
        for line in one["evidence"].as_array().into_iter().flatten() {
            println!("    {}", line.as_str().unwrap_or_default());
        }
    }
}

/// Returns the flaky boots of the last run of the lab that began after `since`.
pub(crate) fn flaky(target: &Path, since: SystemTime) -> Vec<Value> {
    let file = target.join("xen-lab/results/result.json");
    let fresh = fs::metadata(&file).and_then(|about| about.modified()).is_ok_and(|at| at >= since);
    let text = fs::read(&file).ok().filter(|_| fresh).unwrap_or_default();
    let result: Value = serde_json::from_slice(&text).unwrap_or_default();
    result["flaky"].as_array().cloned().unwrap_or_default()
}

/// Returns the faults of one boot.
fn faults_of(outcome: &Outcome) -> Vec<String> {
    let text = fs::read_to_string(outcome.results.join("steps")).unwrap_or_default();
    let said: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("STEP ")?.split_once(' ')).collect();
    let name = outcome.name();
    let mut faults = Vec::new();
    let last_of = |step: &str| last_lines(&outcome.results.join(format!("{step}.log")));
    for step in &outcome.expected {
        match said.get(step.as_str()) {
            Some(words) if words.starts_with("ok") => {}
            Some(words) => faults.push(format!("{name}: {step}: {words}{}", last_of(step))),
            None => faults.push(format!("{name}: {step}: did not end{}", last_of(step))),
        }
    }
    let more = outcome.fault.iter().chain(&outcome.disk_faults);
    faults.extend(more.map(|fault| format!("{name}: {fault}")));
    if text.is_empty() {
        let last = last_lines(&outcome.results.join("console"));
        faults.push(format!("{name}: dom0 ran no step; the console's end:{last}"));
    }
    faults
}

/// Returns the end of a log, each line on its own.
fn last_lines(log: &Path) -> String {
    lines_at_end(log).iter().map(|line| format!("\n    {line}")).collect()
}

/// Returns the last lines of a log.
fn lines_at_end(log: &Path) -> Vec<String> {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
    shown.iter().map(|line| (*line).to_owned()).collect()
}

/// Returns the facts, as numbers where they are numbers, else as text.
fn facts_of(outcome: &Outcome) -> Map<String, Value> {
    let text = fs::read_to_string(outcome.results.join("facts")).unwrap_or_default();
    let mut facts = Map::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let value = value.parse::<i64>().map_or_else(|_| value.into(), Value::from);
        facts.insert(name.to_owned(), value);
    }
    if let Some(took) = outcome.took {
        facts.insert("boot_seconds".into(), took.as_secs_f64().into());
    }
    facts
}

/// Compares the trees of a running guest, of the same boot under both daemons; returns the name and
/// the number of lines of each.
fn compare(outcomes: &[Outcome], faults: &mut Vec<String>) -> Result<BTreeMap<String, usize>> {
    let mut compared = BTreeMap::new();
    for theirs in outcomes.iter().filter(|one| one.store == StoreDaemon::C) {
        let same = |one: &&Outcome| one.store == StoreDaemon::Ours && one.boot == theirs.boot;
        let Some(ours) = outcomes.iter().find(same) else { continue };
        let mut trees = 0;
        for entry in fs::read_dir(&theirs.results)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(short) = name.strip_prefix("tree-") else { continue };
            trees += 1;
            let read = |outcome: &Outcome| fs::read_to_string(outcome.results.join(&name));
            let (Ok(theirs), Ok(ours)) = (read(theirs), read(ours)) else {
                faults.push(format!("{name} is there under one daemon only"));
                continue;
            };
            let differ = differences(&theirs, &ours);
            if differ.is_empty() {
                compared.insert(short.to_owned(), theirs.lines().count());
            }
            let all = differ.len();
            faults.extend(differ.into_iter().take(SHOWN).map(|line| format!("{name}: {line}")));
            if all > SHOWN {
                faults.push(format!("{name}: {} more lines differ", all - SHOWN));
            }
        }
        if theirs.extent == BootExtent::Whole && theirs.boot == "sysv" && trees < TREES {
            faults.push(format!("{}: {trees} trees of {TREES}", theirs.name()));
        }
    }
    Ok(compared)
}

/// Prints the rows, a column for each daemon.
fn table(outcomes: &[Outcome], facts: &BTreeMap<String, Map<String, Value>>) {
    println!(
        "dom0 has one virtual processor; QEMU emulates, so compare columns, and read no figure alone.\n"
    );
    let columns = [StoreDaemon::C, StoreDaemon::Ours].map(|store| {
        let of_store = |one: &&Outcome| one.store == store;
        let rows = outcomes.iter().filter(of_store).flat_map(|one| facts[&one.name()].iter());
        rows.collect::<BTreeMap<_, _>>()
    });
    println!("{:58}{:>14}{:>14}", "", "Debian's", "ours");
    for ComparedFact { fact, description, .. } in ROWS {
        let values = columns.each_ref().map(|column| column.get(&(*fact).to_owned()));
        if values.iter().any(Option::is_some) {
            print!("{description:58}");
            for value in values {
                let value = value.map_or_else(|| "-".to_owned(), ToString::to_string);
                print!("{value:>14}");
            }
            println!();
        }
    }
    println!();
    for kept in outcomes.iter().filter(|outcome| outcome.took.is_none()) {
        println!("{}: kept in the repository, not booted now", kept.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xen::outcome::LostGuest;
    use std::path::Path;

    /// Returns a boot that has left these files in `results`.
    fn outcome(results: &Path, store: StoreDaemon, files: &[(&str, &str)]) -> Outcome {
        for (file, text) in files {
            fs::write(results.join(file), text).unwrap();
        }
        let expected = vec!["10-start".to_owned(), "20-pv".to_owned()];
        Outcome {
            store,
            boot: "sysv",
            expected,
            extent: BootExtent::Part,
            results: results.to_owned(),
            took: Some(Duration::ZERO),
            fault: None,
            disk_faults: Vec::new(),
            first: None,
        }
    }

    fn judged(files: &[(&str, &str)]) -> Vec<String> {
        let results = tempfile::tempdir().unwrap();
        faults_of(&outcome(results.path(), StoreDaemon::Ours, files))
    }

    #[test]
    fn every_step_has_to_say_that_it_is_ok() {
        let good = "STEP 10-start ok 1.0 s\nSTEP 20-pv ok 2.0 s\n";
        assert_eq!(judged(&[("steps", good)]), Vec::<String>::new());
        let bad = "STEP 10-start ok 1.0 s\nSTEP 20-pv FAIL no guest\n";
        assert_eq!(judged(&[("steps", bad)]), ["ours-sysv: 20-pv: FAIL no guest"]);
        let files = [("steps", "STEP 10-start ok 1.0 s\n"), ("20-pv.log", "it hangs\n")];
        assert_eq!(judged(&files), ["ours-sysv: 20-pv: did not end\n    it hangs"]);
        assert_eq!(judged(&[("console", "panic\n")]).len(), 3);
    }

    #[test]
    fn trees_are_the_same_and_all_are_there() {
        let compared = |extent, theirs: &[(&str, &str)], ours: &[(&str, &str)]| {
            let results = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let mut both = [
                outcome(results[0].path(), StoreDaemon::C, theirs),
                outcome(results[1].path(), StoreDaemon::Ours, ours),
            ];
            both.iter_mut().for_each(|one| one.extent = extent);
            let mut faults = Vec::new();
            let same = compare(&both, &mut faults).unwrap();
            (same.len(), faults)
        };
        let (one, other) = (("tree-pv", "/a = \"1\""), ("tree-pv", "/a = \"2\""));
        assert_eq!(compared(BootExtent::Part, &[one], &[one]), (1, vec![]));
        assert_eq!(compared(BootExtent::Part, &[one], &[other]).1.len(), 2);
        assert_eq!(compared(BootExtent::Part, &[one], &[]).1.len(), 1);
        assert_eq!(compared(BootExtent::Whole, &[one], &[one]).1, ["c-sysv: 1 trees of 4"]);
    }

    #[test]
    fn a_whole_boot_fills_every_row() {
        let mut outcome = outcome(Path::new("not read"), StoreDaemon::Ours, &[]);
        let mut facts: Map<String, Value> =
            ROWS.iter().map(|row| (row.fact.to_owned(), 1.into())).collect();
        facts.remove("messages");
        assert_eq!(missing_rows(&outcome, &facts), Vec::<String>::new(), "a part of it need not");
        outcome.extent = BootExtent::Whole;
        assert_eq!(missing_rows(&outcome, &facts), ["ours-sysv: no step has told messages"]);
    }

    #[test]
    fn a_third_flaky_boot_is_a_fault() {
        let flaky = |count: usize| {
            let results = tempfile::tempdir().unwrap();
            let files = [("20-pv.log", "the guest's last words\n")];
            let one = |_| {
                let mut outcome = outcome(results.path(), StoreDaemon::Ours, &files);
                let results = outcome.results.clone();
                let lost = LostGuest { step: "20-pv".to_owned(), why: "pv: silent".to_owned() };
                outcome.first = Some(Box::new(FirstTry { lost, results }));
                outcome
            };
            let outcomes: Vec<Outcome> = (0..count).map(one).collect();
            let mut faults = Vec::new();
            let flaky = flaky_of(&outcomes, &mut faults);
            (flaky, faults.len())
        };
        let (told, faults) = flaky(2);
        assert_eq!((told.len(), faults), (2, 0));
        assert_eq!(told[0]["evidence"], json!(["the guest's last words"]));
        assert_eq!(flaky(3).1, 1);
    }
}
