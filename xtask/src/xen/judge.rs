//! What the boots have shown: every step passed, and the daemons do the same, side by side.
//!
//! dom0 leaves in a boot's folder: `steps`, a line for each step; `facts`, a line for each figure; `tree-NAME`, what the store showed.

use super::boot::Outcome;
use super::trees::differences;
use super::{Lab, Store, speed};
use crate::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How the result is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// To a person.
    Text,
    /// To a program.
    Json,
}

/// The rows of the table: a fact's name, and what it is. Facts that are not here are in the JSON.
const ROWS: &[(&str, &str)] = &[
    ("start_ms", "the init script, ms"),
    ("create_pv_ms", "xl create of a PV guest, ms"),
    ("ready_pv_ms", "until it has used disk and network, ms"),
    ("create_pvh_ms", "xl create of a PVH guest, ms"),
    ("ready_pvh_ms", "until it has used disk and network, ms"),
    ("save_pv_ms", "xl save, ms"),
    ("restore_pv_ms", "xl restore, ms"),
    ("block_ready_pv_ms", "xl create until a PV guest is up from our disk, ms"),
    ("block_ready_pvh_ms", "... a PVH guest, from qcow2 on qcow2, ms"),
    ("create_many_ms", "xl create, mean of 20 with up to 8 at once, ms"),
    ("many_ms", "all 20 created, 8 of them started, all destroyed, ms"),
    ("messages", "messages: a PV guest created, started, crashed"),
    ("cpu_pv_ms", "daemon's processor time: one guest until ready, ms"),
    ("cpu_many_ms", "daemon's processor time: the 20, ms"),
    ("cpu_ms", "daemon's processor time: all steps, ms"),
    ("peak_rss_kib", "daemon's resident memory with 8 guests, KiB"),
    ("before_many_anon_kib", "what it has allocated of that, before the 20, KiB"),
    ("at_12_anon_kib", "... with 8 guests, after 4 have died, KiB"),
    ("at_20_anon_kib", "... with 8 guests, after 12 have died, KiB"),
    ("after_many_anon_kib", "... after all 20 have died, KiB"),
    ("steady_5_anon_kib", "... after 5 more, one after the other, KiB"),
    ("steady_20_anon_kib", "... after 15 more, KiB"),
];

/// So many lines of a difference, or of a log's end, are told.
const SHOWN: usize = 10;

/// Prints what was found; the exit status is 1 where something is wrong.
pub(crate) fn judge(
    lab: &Lab,
    outcomes: &[Outcome],
    versions: &[String],
    took: Duration,
    report: Report,
) -> Result<ExitCode> {
    let mut faults: Vec<String> = outcomes.iter().flat_map(faults_of).collect();
    let compared = compare(outcomes, &mut faults)?;
    let facts: BTreeMap<String, Map<String, Value>> =
        outcomes.iter().map(|outcome| (name_of(outcome), facts_of(outcome))).collect();
    let speed = speed::rows(&facts);
    let whole = json!({
        "passed": faults.is_empty(),
        "faults": faults,
        "trees_compared": compared,
        "seconds": took.as_secs_f64(),
        "dom0_vcpus": 1,
        "facts": facts,
        "block_speed": speed::json(&speed),
        "packages": versions,
    });
    let text = serde_json::to_string_pretty(&whole)?;
    fs::write(lab.dir.join("results/result.json"), &text)?;
    if report == Report::Json {
        println!("{text}");
    } else {
        table(&facts);
        speed::print(&speed);
        for (name, lines) in &compared {
            println!("tree-{name}: {lines} lines, the same under both daemons");
        }
        for fault in &faults {
            println!("FAIL {fault}");
        }
        let (seconds, faults) = (took.as_secs(), faults.len());
        println!("xen: {seconds} s, {faults} faults; {}", lab.dir.join("results").display());
    }
    Ok(ExitCode::from(u8::from(!faults.is_empty())))
}

fn name_of(outcome: &Outcome) -> String {
    format!("{}-{}", outcome.store.name(), outcome.boot)
}

/// What is wrong with one boot.
fn faults_of(outcome: &Outcome) -> Vec<String> {
    let text = fs::read_to_string(outcome.results.join("steps")).unwrap_or_default();
    let said: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("STEP ")?.split_once(' ')).collect();
    let name = name_of(outcome);
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

/// The end of a log, each line on its own.
fn last_lines(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
    shown.iter().map(|line| format!("\n    {line}")).collect()
}

/// Numbers, and what is none as text.
fn facts_of(outcome: &Outcome) -> Map<String, Value> {
    let text = fs::read_to_string(outcome.results.join("facts")).unwrap_or_default();
    let mut facts = Map::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let value = value.parse::<i64>().map_or_else(|_| value.into(), Value::from);
        facts.insert(name.to_owned(), value);
    }
    facts.insert("boot_seconds".into(), outcome.took.as_secs_f64().into());
    facts
}

/// Compares the trees of a running guest, of the same boot under both daemons: the name and the lines of each.
fn compare(outcomes: &[Outcome], faults: &mut Vec<String>) -> Result<BTreeMap<String, usize>> {
    let mut compared = BTreeMap::new();
    for theirs in outcomes.iter().filter(|one| one.store == Store::C) {
        let same = |one: &&Outcome| one.store == Store::Ours && one.boot == theirs.boot;
        let Some(ours) = outcomes.iter().find(same) else { continue };
        for entry in fs::read_dir(&theirs.results)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(short) = name.strip_prefix("tree-") else { continue };
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
    }
    Ok(compared)
}

fn table(facts: &BTreeMap<String, Map<String, Value>>) {
    println!(
        "dom0 has one virtual processor; QEMU emulates, so compare columns, and read no figure alone.\n"
    );
    print!("{:58}", "");
    for name in facts.keys() {
        print!("{name:>14}");
    }
    println!();
    for (fact, what) in ROWS {
        if facts.values().any(|facts| facts.contains_key(*fact)) {
            print!("{what:58}");
            for facts in facts.values() {
                let value = facts.get(*fact).map_or_else(|| "-".to_owned(), Value::to_string);
                print!("{value:>14}");
            }
            println!();
        }
    }
    println!();
}
