//! Medians, verdicts, the Markdown table and the JSON file.

use crate::daemon::MeasuredDaemon;
use crate::table::{ROWS, Reference, Row, RowComparison, Unit};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Every number of the run: by daemon and metric, one for each round.
#[derive(Default)]
pub(crate) struct Results {
    samples: BTreeMap<(MeasuredDaemon, String), Vec<f64>>,
    /// The reason why a daemon has no numbers in a scenario.
    troubles: BTreeMap<(MeasuredDaemon, &'static str), String>,
}

/// The verdict on a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Every comparison holds.
    Met,
    /// At least one comparison does not hold.
    Missed,
    /// A number is missing.
    NotMeasured,
    /// The row has no bound.
    Informs,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::NotMeasured => "not measured",
            Self::Informs => "",
        }
    }
}

impl Results {
    /// Adds one number.
    pub(crate) fn add(&mut self, kind: MeasuredDaemon, metric: String, value: f64) {
        self.samples.entry((kind, metric)).or_default().push(value);
    }

    /// Records why `kind` has no numbers in `scenario`.
    pub(crate) fn trouble(&mut self, kind: MeasuredDaemon, scenario: &'static str, why: String) {
        self.troubles.insert((kind, scenario), why);
    }

    /// Returns the median over the rounds.
    pub(crate) fn median(&self, kind: MeasuredDaemon, metric: &str) -> Option<f64> {
        median(self.samples.get(&(kind, metric.to_owned()))?.clone())
    }

    /// Returns the ratio of ours to another. It is taken within each round, where other work of the
    /// machine affects both, and the median over the rounds counts. A daemon that failed in some
    /// rounds has its median compared.
    fn ratio(&self, metric: &str, kind: MeasuredDaemon, other: &str) -> Option<f64> {
        let ours = self.samples.get(&(MeasuredDaemon::Ours, metric.to_owned()))?;
        let others = self.samples.get(&(kind, other.to_owned()))?;
        if ours.len() == others.len() {
            return median(ours.iter().zip(others).map(|(ours, other)| ours / other).collect());
        }
        Some(self.median(MeasuredDaemon::Ours, metric)? / self.median(kind, other)?)
    }

    /// Returns the verdict on a row, with each ratio in words.
    pub(crate) fn judge(&self, row: &Row) -> (Verdict, String) {
        if row.comparisons.is_empty() {
            return (Verdict::Informs, String::new());
        }
        let mut verdict = Verdict::Met;
        let mut words = Vec::new();
        for comparison in row.comparisons {
            match self.compare(comparison) {
                Some((holds, text)) => {
                    words.push(text);
                    if !holds && verdict == Verdict::Met {
                        verdict = Verdict::Missed;
                    }
                }
                None => verdict = Verdict::NotMeasured,
            }
        }
        // Only `xenstore ls` has bounds on other daemons' numbers.
        let others = [(MeasuredDaemon::C, "C", 2.0), (MeasuredDaemon::O, "oxenstored", 3.0)];
        for (kind, name, most) in others.into_iter().filter(|_| row.id == "ls") {
            match self.median(kind, "store.ls.ours") {
                Some(time) => {
                    let time_text = number(time, Unit::Time);
                    words.push(format!("ours on {name} {time_text} (at most {most} s)"));
                    if time > most && verdict == Verdict::Met {
                        verdict = Verdict::Missed;
                    }
                }
                None => verdict = Verdict::NotMeasured,
            }
        }
        (verdict, words.join("; "))
    }

    fn compare(&self, comparison: &RowComparison) -> Option<(bool, String)> {
        let ours = self.median(MeasuredDaemon::Ours, comparison.metric)?;
        let side = if comparison.at_most { "at most" } else { "at least" };
        let (value, text) = match comparison.reference {
            Reference::Fixed => {
                let (now, most) =
                    (number(ours, comparison.unit), number(comparison.factor, comparison.unit));
                (ours, format!("{} {now} ({side} {most})", comparison.label))
            }
            Reference::Metric(kind, metric) => {
                let ratio = self.ratio(comparison.metric, kind, metric)?;
                (
                    ratio,
                    format!("{ratio:.3} {} ({side} {:.3})", comparison.label, comparison.factor),
                )
            }
        };
        Some((
            if comparison.at_most {
                value <= comparison.factor
            } else {
                value >= comparison.factor
            },
            text,
        ))
    }

    fn cell(&self, row: &Row, kind: MeasuredDaemon) -> String {
        let values: Vec<_> =
            row.numbers.iter().map(|show| self.median(kind, show.metric)).collect();
        if values.iter().all(Option::is_none) {
            return match self.troubles.get(&(kind, row.scenario)) {
                Some(why) if why.ends_with("is missing") => "missing".into(),
                Some(_) => "failed".into(),
                None => "–".into(),
            };
        }
        let mut text = String::new();
        for (show, value) in row.numbers.iter().zip(values) {
            if !text.is_empty() {
                text.push_str(if show.label.starts_with('/') { " " } else { ", " });
            }
            text.push_str(show.label);
            text.push_str(&value.map_or_else(|| "–".into(), |value| number(value, show.unit)));
        }
        text
    }

    /// Returns the Markdown table of the rows that `chosen` accepts.
    pub(crate) fn markdown(&self, chosen: impl Fn(&Row) -> bool) -> String {
        let mut text = String::from("| work | must reach |");
        for kind in MeasuredDaemon::ALL {
            let _ = write!(text, " {} |", kind.title());
        }
        text.push_str(" verdict | ratios |\n|---|---|");
        text.push_str(&"---|".repeat(MeasuredDaemon::ALL.len() + 2));
        text.push('\n');
        for row in ROWS.iter().filter(|row| chosen(row)) {
            let (verdict, ratios) = self.judge(row);
            let _ = write!(text, "| {} | {} |", row.work, row.bound);
            for kind in MeasuredDaemon::ALL {
                let _ = write!(text, " {} |", self.cell(row, kind));
            }
            let _ = writeln!(text, " {} | {ratios} |", verdict.text());
        }
        let mut reasons: BTreeMap<(MeasuredDaemon, &str), Vec<&str>> = BTreeMap::new();
        for ((kind, scenario), why) in &self.troubles {
            reasons.entry((*kind, why)).or_default().push(scenario);
        }
        for ((kind, why), scenarios) in reasons {
            let _ = write!(text, "\n{} in {}: {why}\n", kind.title(), scenarios.join(", "));
        }
        text
    }

    /// Returns every median, every sample and every verdict.
    pub(crate) fn json(&self, facts: &Value) -> Value {
        let mut metrics = Map::new();
        for ((kind, metric), samples) in &self.samples {
            let entry = metrics.entry(metric.as_str()).or_insert_with(|| json!({}));
            entry[kind.short()] =
                json!({ "median": self.median(*kind, metric), "samples": samples });
        }
        let rows: Vec<_> = ROWS
            .iter()
            .map(|row| {
                let (verdict, ratios) = self.judge(row);
                let verdict = verdict.text().trim_matches('*');
                json!({ "row": row.id, "verdict": verdict, "ratios": ratios })
            })
            .collect();
        json!({ "facts": facts, "rows": rows, "metrics": metrics })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// Formats a number with its unit, three digits.
pub(crate) fn number(value: f64, unit: Unit) -> String {
    let (value, suffix) = match unit {
        Unit::PerSecond if value >= 999_500.0 => (value / 1e6, "M/s"),
        Unit::PerSecond if value >= 999.5 => (value / 1e3, "k/s"),
        Unit::PerSecond => (value, "/s"),
        Unit::Time if value >= 0.9995 => (value, " s"),
        Unit::Time if value >= 0.000_999_5 => (value * 1e3, " ms"),
        Unit::Time => (value * 1e6, " µs"),
        Unit::Bytes if value >= 10_000.0 => (value / 1024.0 / 1024.0, " MiB"),
        Unit::Bytes => (value, " B"),
        Unit::Share => (value * 100.0, " %"),
        Unit::Count => (value, ""),
    };
    let digits = if value == 0.0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let mut results = Results::default();
        for value in [3.0, 1.0, 2.0] {
            results.add(MeasuredDaemon::C, "x".into(), value);
        }
        assert_eq!(results.median(MeasuredDaemon::C, "x"), Some(2.0));
        results.add(MeasuredDaemon::C, "x".into(), 10.0);
        assert_eq!(results.median(MeasuredDaemon::C, "x"), Some(2.5));
        assert_eq!(results.median(MeasuredDaemon::Ours, "x"), None);
    }

    #[test]
    fn a_row_is_met_missed_or_not_measured() {
        let row = ROWS.iter().find(|row| row.id == "pipelined-write").unwrap();
        let mut results = Results::default();
        results.add(MeasuredDaemon::C, "rates.write32.cpu".into(), 6.0e-6);
        assert_eq!(results.judge(row).0, Verdict::NotMeasured);
        results.add(MeasuredDaemon::Ours, "rates.write32.cpu".into(), 0.5e-6);
        assert_eq!(results.judge(row).0, Verdict::Met);
        results.add(MeasuredDaemon::Ours, "rates.write32.cpu".into(), 3.0e-6);
        assert_eq!(results.judge(row).0, Verdict::Missed);
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let mut results = Results::default();
        // The machine was slow in the second round, and slower still between ours and C's of the
        // third.
        for (ours, c) in [(1.0, 2.0), (5.0, 10.0), (9.0, 1.0)] {
            results.add(MeasuredDaemon::Ours, "x".into(), ours);
            results.add(MeasuredDaemon::C, "x".into(), c);
        }
        assert_eq!(results.ratio("x", MeasuredDaemon::C, "x"), Some(0.5));
        results.add(MeasuredDaemon::Ours, "x".into(), 9.0);
        assert_eq!(results.ratio("x", MeasuredDaemon::C, "x"), Some(3.5));
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(number(83_512.0, Unit::PerSecond), "83.5k/s");
        assert_eq!(number(0.000_007_1, Unit::Time), "7.10 µs");
        assert_eq!(number(1.218, Unit::Time), "1.22 s");
        assert_eq!(number(0.92, Unit::Share), "92.0 %");
        assert_eq!(number(143.4, Unit::Bytes), "143 B");
    }
}
