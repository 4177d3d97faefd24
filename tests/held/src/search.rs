//! The search, which changes programs at random and keeps those for which the store holds the most.

use crate::program::SearchProgram;
use crate::run::{Measure, run};
use sim::rng::Rng;

/// The number of programs that are kept.
const KEPT: usize = 24;
/// The share of steps that run a new random program, in thousandths.
const FRESH: u32 = 150;

/// The goal of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SearchGoal {
    /// The most memory held beyond the charge.
    Held,
    /// The longest call.
    Time,
}

impl SearchGoal {
    /// Returns the score of a measure: a higher score is worse.
    fn score(self, measure: &Measure) -> u128 {
        match self {
            Self::Held => measure.permille().max(0).unsigned_abs().into(),
            Self::Time => measure.longest.as_nanos(),
        }
    }
}

/// A search that a seed determines.
pub struct Search {
    goal: SearchGoal,
    rng: Rng,
    /// The programs that are kept, the worst first.
    kept: Vec<(Measure, SearchProgram)>,
    /// The number of programs that have been run.
    pub runs: u64,
}

impl Search {
    /// Starts the search of `seed`.
    #[must_use]
    pub fn new(goal: SearchGoal, seed: u64) -> Self {
        Self { goal, rng: Rng::new(seed), kept: Vec::new(), runs: 0 }
    }

    /// Runs one more program. Returns its measure at the worst moment.
    pub fn step(&mut self) -> Measure {
        let program = match self.kept.len() {
            0 => SearchProgram::random(&mut self.rng),
            _ if self.rng.chance(FRESH) => SearchProgram::random(&mut self.rng),
            len => {
                // Worse programs are picked more often than better ones.
                let (one, two) = (self.rng.index(len), self.rng.index(len));
                let (program, other) = (&self.kept[one.min(two)].1, &self.kept[two].1);
                program.changed(other, &mut self.rng)
            }
        };
        let measure = run(&program);
        self.runs += 1;
        let score = self.goal.score(&measure);
        let at = self.kept.partition_point(|(known, _)| self.goal.score(known) > score);
        let known = self.kept.iter().any(|(_, known)| *known == program);
        if at < KEPT && !known {
            self.kept.insert(at, (measure, program));
            self.kept.truncate(KEPT);
        }
        measure
    }

    /// Returns the worst program so far.
    #[must_use]
    pub fn worst(&self) -> Option<&(Measure, SearchProgram)> {
        self.kept.first()
    }
}
