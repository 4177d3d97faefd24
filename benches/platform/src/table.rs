//! What is measured how long, and the table of what came of it.

use std::fmt;
use std::time::Duration;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Rounds, all contenders in each.
    pub(crate) rounds: usize,
    /// Round trips or requests in one round.
    pub(crate) per_round: usize,
    /// Rounds of bouncing an event, short ones: what else the machine does falls on few of them.
    pub(crate) bounces: usize,
    /// Domains at once.
    pub(crate) domains: usize,
    /// How long they are idle.
    pub(crate) idle: Duration,
}

impl Extent {
    /// What the goals are about.
    pub(crate) const FULL: Self = Self {
        rounds: 11,
        per_round: 20_000,
        bounces: 400,
        domains: 1000,
        idle: Duration::from_secs(60),
    };
    /// Enough to see that all of it runs.
    pub(crate) const QUICK: Self =
        Self { rounds: 3, per_round: 2000, bounces: 50, domains: 30, idle: Duration::from_secs(2) };
}

/// What a measured number must be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// It is there to explain another.
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
    /// `value` is what the goal is about; `measured` says where it is from.
    pub(crate) fn new(work: &str, measured: String, value: f64, goal: Goal) -> Self {
        Self { work: work.to_owned(), measured, value, goal }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.goal {
            _ if self.value.is_nan() => "not measured".to_owned(),
            Goal::AtMost(most) if self.value <= most => format!("at most {most}: met"),
            Goal::AtMost(most) => format!("at most {most}: MISSED"),
            Goal::AtLeast(least) if self.value >= least => format!("at least {least}: met"),
            Goal::AtLeast(least) => format!("at least {least}: MISSED"),
            Goal::None => String::new(),
        };
        write!(f, "{:<38} {:>8.2}  {:<20} {}", self.work, self.value, verdict, self.measured)
    }
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
        assert!(said(f64::NAN, Goal::AtMost(1.0)).contains("not measured"));
    }
}
