//! Parts of tests that are left out, with one line, or with a failure of the test.

use crate::version::UnknownVersion;
use std::io::Write;
use std::sync::Once;

/// A reason to leave a part out.
#[derive(Clone, Copy, Debug)]
pub enum Reason<'a> {
    /// A requirement is missing here.
    Missing(&'a str),
    /// The peer is here, in a version whose answers are unknown.
    Unknown(&'a UnknownVersion),
}

/// The consequence of leaving a part out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SkipOutcome {
    /// One line is printed.
    Line,
    /// The test fails.
    Failure,
}

impl Reason<'_> {
    /// Returns the consequence for this value of the variable `CI`. An unknown version comes from
    /// the archive, and no machine can change that; a missing requirement can be installed.
    fn outcome(self, ci: Option<&str>) -> SkipOutcome {
        match (self, ci) {
            (Reason::Missing(_), Some("true")) => SkipOutcome::Failure,
            _ => SkipOutcome::Line,
        }
    }
}

/// Prints one line with the reason why a part is left out; if `CI` is `true` it fails instead.
pub fn skip(what: &str, why: &str) {
    leave_out(what, Reason::Missing(why));
}

/// Leaves a part out, as [`skip`] does, for any reason. An unknown version is printed once in each
/// process, and is no failure.
///
/// # Panics
/// If `CI` is `true` and the reason is a failure there.
pub fn leave_out(what: &str, reason: Reason<'_>) {
    static UNKNOWN: Once = Once::new();
    let line = match reason {
        Reason::Missing(why) => format!("skipped: {what}: {why}"),
        Reason::Unknown(unknown) => format!("skipped: what Debian's programs answer: {unknown}"),
    };
    let outcome = reason.outcome(std::env::var("CI").ok().as_deref());
    assert!(outcome == SkipOutcome::Line, "{line} (and CI=true forbids to skip)");
    match reason {
        Reason::Missing(_) => say(&line),
        Reason::Unknown(_) => UNKNOWN.call_once(|| say(&line)),
    }
}

fn say(line: &str) {
    // Not eprintln: the test harness hides that output if the test passes.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    #[test]
    fn an_unknown_version_is_no_failure_anywhere_and_all_else_is_one_in_ci() {
        let unknown = Version::of_debian("4.17.9-1").unwrap_err();
        for ci in [Some("true"), Some("false"), Some(""), None] {
            assert_eq!(Reason::Unknown(&unknown).outcome(ci), SkipOutcome::Line, "{ci:?}");
            let fails = Reason::Missing("cc cannot be run").outcome(ci) == SkipOutcome::Failure;
            assert_eq!(fails, ci == Some("true"), "{ci:?}");
        }
    }
}
