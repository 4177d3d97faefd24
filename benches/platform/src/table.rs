//! The extent of a run, and the table of its results.

use crate::result::Result;
use std::fmt;
use std::time::Duration;

/// The numbers of rounds, requests and domains, and the times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Rounds, all contenders in each.
    pub(crate) rounds: usize,
    /// Round trips or requests in one round.
    pub(crate) per_round: usize,
    /// Rounds of the event bounce. They are short, so that other work of the machine falls on few.
    pub(crate) bounces: usize,
    /// Domains at once.
    pub(crate) domains: usize,
    /// The time for which the domains are idle.
    pub(crate) idle: Duration,
    /// The longest time that a part may take.
    pub(crate) limit: Duration,
}

impl Extent {
    /// The extent that the goals are about.
    pub(crate) const FULL: Self = Self {
        rounds: 11,
        per_round: 20_000,
        bounces: 400,
        domains: 1000,
        idle: Duration::from_secs(60),
        limit: Duration::from_secs(600),
    };
    /// The extent that only shows that all parts run.
    pub(crate) const QUICK: Self = Self {
        rounds: 3,
        per_round: 2000,
        bounces: 50,
        domains: 30,
        idle: Duration::from_secs(2),
        limit: Duration::from_secs(60),
    };
}

/// The goal of a measured number.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// No goal: the number explains another.
    None,
}

/// One line of the table.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Row {
    work: String,
    measured: String,
    value: f64,
    goal: Goal,
}

impl Row {
    /// Makes a row. The goal applies to `value`; `measured` explains its origin.
    pub(crate) fn new(work: &str, measured: String, value: f64, goal: Goal) -> Self {
        Self { work: work.to_owned(), measured, value, goal }
    }
}

impl Row {
    fn verdict(&self) -> String {
        match self.goal {
            _ if self.value.is_nan() => "not measured".to_owned(),
            Goal::AtMost(most) if self.value <= most => format!("at most {most}: met"),
            Goal::AtMost(most) => format!("at most {most}: MISSED"),
            Goal::AtLeast(least) if self.value >= least => format!("at least {least}: met"),
            Goal::AtLeast(least) => format!("at least {least}: MISSED"),
            Goal::None => String::new(),
        }
    }

    fn markdown(&self) -> String {
        let work = self.work.trim_start();
        format!("| {work} | {:.2} | {} | {} |\n", self.value, self.verdict(), self.measured)
    }
}

/// Puts the table in place of the one between its two marks in a page.
///
/// # Errors
/// Where a mark is missing.
pub(crate) fn into_page(page: &str, rows: &[Row]) -> Result<String> {
    const MARKS: [&str; 2] = ["<!-- platform-bench -->\n", "<!-- end of platform-bench -->"];
    let missing = "the page has no marks of this bench";
    let (before, rest) = page.split_once(MARKS[0]).ok_or(missing)?;
    let (_, after) = rest.split_once(MARKS[1]).ok_or(missing)?;
    let head = "| work | measured | goal | from |\n|---|---|---|---|\n";
    let table: String = rows.iter().map(Row::markdown).collect();
    Ok([before, MARKS[0], head, &table, MARKS[1], after].concat())
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict();
        write!(f, "{:<38} {:>8.2}  {:<20} {}", self.work, self.value, verdict, self.measured)
    }
}

/// Returns the median.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the time that the fastest tenth of the rounds does not exceed. Other work of the machine
/// makes a round slower, never faster.
pub(crate) fn fastest_tenth(rounds: &mut [f64]) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds.get(rounds.len() / 10).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let said = |value, goal| Row::new("w", String::new(), value, goal).to_string();
        assert!(said(1.1, Goal::AtMost(1.1)).contains("met"));
        assert!(said(1.2, Goal::AtMost(1.1)).contains("MISSED"));
        assert!(said(0.9, Goal::AtLeast(1.0)).contains("MISSED"));
        let row = Row::new("w", "m".to_owned(), 1.0, Goal::None);
        let page = "a\n<!-- platform-bench -->\nold\n<!-- end of platform-bench -->\nb";
        let written = into_page(page, std::slice::from_ref(&row)).unwrap();
        assert!(written.contains("| w | 1.00 |  | m |\n<!--") && !written.contains("old"));
        assert_eq!(into_page(&written, &[row]).unwrap(), written);
        assert!(said(f64::NAN, Goal::AtMost(1.0)).contains("not measured"));
    }
}
