//! Medians, verdicts, and the table.

use crate::Result;
use crate::load::Throughput;
use crate::table::{Goal, Quantity, ReadMethod, Row};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;

/// One measurement of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Round {
    /// The rates of ours and, where there is one, of the other.
    Reads { ours: Throughput, other: Option<Throughput> },
    /// The memory, in bytes.
    Memory(f64),
}

impl Round {
    fn ours(&self) -> Option<Throughput> {
        if let Self::Reads { ours, .. } = self { Some(*ours) } else { None }
    }

    fn other(&self) -> Option<Throughput> {
        if let Self::Reads { other, .. } = self { *other } else { None }
    }

    fn bytes(&self) -> Option<f64> {
        if let Self::Memory(bytes) = self { Some(*bytes) } else { None }
    }

    /// Returns our rate divided by the other's.
    fn ratio(&self) -> Option<f64> {
        Some(self.ours()?.rate / self.other()?.rate)
    }

    /// Returns our requests for each second of processor time, divided by the other's.
    fn ratio_per_cpu(&self) -> Option<f64> {
        Some(self.other()?.cpu / self.ours()?.cpu)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, other) = match self {
            Self::Reads { ours, other } => (ours, other),
            Self::Memory(bytes) => return write!(f, "{}", mebibytes(*bytes)),
        };
        write!(f, "{}", throughput_text(*ours))?;
        let Some(other) = other else { return Ok(()) };
        write!(f, "; the other {}", throughput_text(*other))?;
        let (ratio, per_cpu) = (self.ratio(), self.ratio_per_cpu());
        let [ratio, per_cpu] = [ratio, per_cpu].map(|ratio| ratio.unwrap_or(f64::NAN));
        write!(f, ": ratio {ratio:.2}, per processor time {per_cpu:.2}")
    }
}

/// All samples of the run.
#[derive(Default)]
pub(crate) struct Results {
    rounds: BTreeMap<&'static str, Vec<Round>>,
    failed: BTreeMap<&'static str, String>,
}

impl Results {
    pub(crate) fn add(&mut self, row: &'static str, round: Round) {
        self.rounds.entry(row).or_default().push(round);
    }

    pub(crate) fn fail(&mut self, row: &'static str, why: String) {
        self.failed.insert(row, why);
    }

    /// Returns the median of `figure` over the rounds.
    fn median(&self, row: &Row, figure: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        if self.failed.contains_key(row.id) {
            return None;
        }
        median(self.rounds.get(row.id)?.iter().filter_map(figure).collect())
    }

    /// Returns the figure that a goal is about. A ratio is computed in each round, because both
    /// sides of it are measured side by side.
    fn figure(&self, row: &Row, goal: Goal) -> Option<f64> {
        match goal {
            Goal::Rate(_) => self.median(row, Round::ratio),
            Goal::PerCpu(_) => self.median(row, Round::ratio_per_cpu),
            Goal::PerSecond(_) => self.median(row, |round| Some(round.ours()?.rate)),
            Goal::Bytes(_) => self.median(row, Round::bytes),
        }
    }

    fn is_met(&self, row: &Row, goal: Goal) -> Option<bool> {
        let figure = self.figure(row, goal)?;
        Some(match goal {
            Goal::Rate(least) | Goal::PerCpu(least) | Goal::PerSecond(least) => figure >= least,
            Goal::Bytes(most) => figure <= most,
        })
    }

    pub(crate) fn is_missed(&self, row: &Row) -> bool {
        row.goals.iter().any(|goal| self.is_met(row, *goal) == Some(false))
    }

    fn throughput(&self, row: &Row, of: impl Fn(&Round) -> Option<Throughput>) -> String {
        let rate = self.median(row, |round| Some(of(round)?.rate));
        let cpu = self.median(row, |round| Some(of(round)?.cpu));
        match (rate, cpu) {
            (Some(rate), Some(cpu)) => throughput_text(Throughput { rate, cpu }),
            _ => "–".to_owned(),
        }
    }

    /// Returns the table in Markdown, and the reasons for the rows that were not measured.
    pub(crate) fn markdown(&self, rows: impl Iterator<Item = &'static Row>) -> String {
        let mut text = "| work | on | must reach | ours | the other | verdict |\n\
                        |---|---|---|---|---|---|\n"
            .to_owned();
        let mut notes = String::new();
        for row in rows {
            let judge = |goal: &Goal| match (self.figure(row, *goal), self.is_met(row, *goal)) {
                (Some(figure), Some(true)) => format!("{}: met", short(*goal, figure)),
                (Some(figure), _) => format!("{}: **missed**", short(*goal, figure)),
                _ => "not measured".to_owned(),
            };
            let verdicts: Vec<String> = row.goals.iter().map(judge).collect();
            let goals: Vec<String> = row.goals.iter().map(goal_text).collect();
            let (ours, other) = match row.quantity {
                Quantity::Memory { .. } => {
                    let bytes = self.median(row, Round::bytes);
                    (bytes.map_or("–".to_owned(), mebibytes), "–".to_owned())
                }
                Quantity::Reads { other, .. } => {
                    let name = other.map_or("", name);
                    let throughput = self.throughput(row, Round::other);
                    (self.throughput(row, Round::ours), format!("{name} {throughput}"))
                }
            };
            let (work, place) = (row.work, row.place.name());
            let (goals, verdicts) = (goals.join("; "), verdicts.join("; "));
            let _ = writeln!(
                text,
                "| {work} | {place} | {goals} | {ours} | {} | {verdicts} |",
                other.trim()
            );
            if let Some(why) = self.failed.get(row.id) {
                let _ = write!(notes, "\n{}: {why}\n", row.id);
            }
        }
        text + &notes
    }

    /// Returns every sample as JSON.
    pub(crate) fn json(&self, facts: &str) -> Value {
        let throughput =
            |throughput: Throughput| json!({ "rate": throughput.rate, "cpu": throughput.cpu });
        let round = |round: &Round| match round {
            Round::Reads { ours, other } => {
                json!({ "ours": throughput(*ours), "other": other.map(throughput) })
            }
            Round::Memory(bytes) => json!({ "bytes": bytes }),
        };
        let rounds: BTreeMap<_, Vec<Value>> = self
            .rounds
            .iter()
            .map(|(row, rounds)| (row, rounds.iter().map(round).collect()))
            .collect();
        json!({ "facts": facts, "rounds": rounds, "failed": self.failed })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (middle, odd) = (values.len() / 2, !values.len().is_multiple_of(2));
    let upper = *values.get(middle)?;
    Some(if odd { upper } else { f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper) })
}

fn name(reader: ReadMethod) -> &'static str {
    match reader {
        ReadMethod::Direct => "io_uring",
        ReadMethod::Ring(_) | ReadMethod::AtOnce => "our frontend",
        ReadMethod::Export(_) => "our NBD server",
        ReadMethod::QemuNbd(_) => "qemu-nbd",
    }
}

fn goal_text(goal: &Goal) -> String {
    match goal {
        Goal::Rate(least) => format!("at least {least} x its rate"),
        Goal::PerCpu(least) => format!("at least {least} x per second of processor time"),
        Goal::PerSecond(least) => format!("at least {:.1} M/s", least / 1e6),
        Goal::Bytes(most) => format!("at most {}", mebibytes(*most)),
    }
}

fn short(goal: Goal, figure: f64) -> String {
    match goal {
        Goal::Rate(_) => format!("{figure:.2} x"),
        Goal::PerCpu(_) => format!("{figure:.2} x per processor time"),
        Goal::PerSecond(_) => format!("{:.2} M/s", figure / 1e6),
        Goal::Bytes(_) => mebibytes(figure),
    }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / 1024.0 / 1024.0)
}

fn throughput_text(throughput: Throughput) -> String {
    let cpu = throughput.cpu * 1e6;
    match throughput.rate {
        rate if rate >= 1e6 => format!("{:.2} M/s, cpu {cpu:.2} µs", rate / 1e6),
        rate => format!("{:.1} k/s, cpu {cpu:.2} µs", rate / 1e3),
    }
}

/// Puts the table between the two lines of `file` that mark its place.
pub(crate) fn insert(file: &Path, table: &str) -> Result<()> {
    const MARK: &str = "<!-- block table -->\n";
    let text = std::fs::read_to_string(file)?;
    let parts: Vec<_> = text.split(MARK).collect();
    let [before, _, after] = parts.as_slice() else {
        return Err(format!("{} has not two lines {}", file.display(), MARK.trim()).into());
    };
    Ok(std::fs::write(file, format!("{before}{MARK}\n{}\n\n{MARK}{after}", table.trim()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::ROWS;

    fn round(ours: f64, other: f64) -> Round {
        let throughput = |rate| Throughput { rate, cpu: 1.0 / rate };
        Round::Reads { ours: throughput(ours), other: Some(throughput(other)) }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_own() {
        let row = ROWS.iter().find(|row| row.id == "random-tmpfs").unwrap();
        let mut results = Results::default();
        assert_eq!(results.is_met(row, Goal::Rate(0.8)), None);
        for (ours, other) in [(90.0, 100.0), (1.0, 10.0), (900.0, 1000.0)] {
            results.add(row.id, round(ours, other));
        }
        assert_eq!(results.figure(row, Goal::Rate(0.8)), Some(0.9));
        assert!(!results.is_missed(row));
        results.add(row.id, round(1.0, 10.0));
        assert!(results.is_missed(row));
        results.fail(row.id, "gone".into());
        assert_eq!(results.is_met(row, Goal::Rate(0.8)), None);
    }

    #[test]
    fn rows_have_names_of_their_own() {
        for (at, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..at].iter().all(|other| other.id != row.id), "{}", row.id);
            assert!(!row.goals.is_empty(), "{}", row.id);
        }
    }
}
