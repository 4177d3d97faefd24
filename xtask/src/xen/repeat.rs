//! One step many times in one boot: the number of lost guests, and of other faults.

use super::boot::{self, Selection};
use super::lab::{Lab, say};
use super::options::{LabOptions, Repeat};
use crate::Result;
use std::fs;
use std::process::ExitCode;

/// The counts of the ends of the repetitions.
#[derive(Default, PartialEq, Eq, Debug)]
struct Tally {
    held: u32,
    lost: u32,
    failed: u32,
}

impl Tally {
    /// Counts the lines of the steps that have this in their name.
    fn count(steps: &str, name: &str) -> Self {
        let mut tally = Self::default();
        for line in steps.lines().filter_map(|line| line.strip_prefix("STEP ")) {
            let Some((step, words)) = line.split_once(' ') else { continue };
            if !step.contains(name) {
                continue;
            }
            match words.split(' ').next() {
                Some("ok") => tally.held += 1,
                Some("LOST") => tally.lost += 1,
                _ => tally.failed += 1,
            }
        }
        tally
    }
}

/// Boots each wanted daemon and counts. The exit status is 1 if there was a fault other than a lost
/// guest.
pub(super) fn run(lab: &Lab, repeat: &Repeat, options: &LabOptions) -> Result<ExitCode> {
    let selection = Selection { only: Some(&repeat.step), times: repeat.times, form: options.form };
    let mut failed = false;
    for boot in boot::ALL.iter().filter(|boot| options.selects(boot)) {
        if boot.selected(lab, selection)?.is_empty() {
            continue;
        }
        for store in options.stores.iter().filter(|store| boot.supports(**store)) {
            let outcome = boot.run(lab, *store, selection)?;
            let steps = fs::read_to_string(outcome.results.join("steps")).unwrap_or_default();
            let Tally { held, lost, failed: wrong } = Tally::count(&steps, &repeat.step);
            failed |= wrong > 0 || outcome.fault.is_some() || held + lost == 0;
            println!(
                "{}: {} of {} held, {lost} lost a guest, {wrong} failed{}",
                outcome.name(),
                held,
                held + lost + wrong,
                outcome.fault.map_or_else(String::new, |fault| format!("; {fault}"))
            );
            say(&format!("what each time has left is in {}", outcome.results.display()));
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_by_kind() {
        let steps = "STEP 10-start ok 1.0 s\nSTEP 40-pvh ok 2.0 s\nSTEP 40-pvh LOST pvh: silent\n\
                     STEP 40-pvh FAIL wrong sum\nSTEP 40-pvh ok 1.0 s\n";
        assert_eq!(Tally::count(steps, "pvh"), Tally { held: 2, lost: 1, failed: 1 });
    }
}
