//! The search: programs are changed at random, and those are kept for which the store holds the most.

use crate::program::Program;
use crate::run::{Measure, run};
use sim::rng::Rng;

/// Programs that are kept.
const KEPT: usize = 24;
/// In so many of 1000 cases a program is a new one.
const FRESH: u32 = 150;

/// The goal of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Much that is held beside what is charged.
    Held,
    /// A call that takes long.
    Time,
}

impl Goal {
    /// The score of a measure: the more, the worse.
    fn score(self, measure: &Measure) -> u128 {
        match self {
            Self::Held => measure.permille().max(0).unsigned_abs().into(),
            Self::Time => measure.longest.as_nanos(),
        }
    }
}

/// A search, from its seed.
pub struct Search {
    goal: Goal,
    rng: Rng,
    /// The worst first.
    kept: Vec<(Measure, Program)>,
    /// Programs that have been run.
    pub runs: u64,
}

impl Search {
    /// The search of `seed`.
    #[must_use]
    pub fn new(goal: Goal, seed: u64) -> Self {
        Self { goal, rng: Rng::new(seed), kept: Vec::new(), runs: 0 }
    }

    /// Runs one more program. What was held at its worst moment.
    pub fn step(&mut self) -> Measure {
        let program = match self.kept.len() {
            0 => Program::random(&mut self.rng),
            _ if self.rng.chance(FRESH) => Program::random(&mut self.rng),
            len => {
                // The worst more often than the others.
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

    /// The worst program so far.
    #[must_use]
    pub fn worst(&self) -> Option<&(Measure, Program)> {
        self.kept.first()
    }
}
