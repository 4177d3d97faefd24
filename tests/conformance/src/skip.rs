//! Parts of tests that are left out: one line says so, or the test fails.

use crate::version::Unknown;
use std::io::Write;
use std::sync::Once;

/// A reason to leave something out.
#[derive(Clone, Copy, Debug)]
pub enum Reason<'a> {
    /// Something that is needed is not here.
    Missing(&'a str),
    /// The peer is here, in a version whose answers are not known.
    Unknown(&'a Unknown),
}

/// The consequence of leaving something out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// One line says so.
    Line,
    /// The test fails.
    Failure,
}

impl Reason<'_> {
    /// The consequence where the variable `CI` has this value. An unknown version is the archive's doing, and
    /// no machine can mend it; what is missing can be had.
    fn outcome(self, ci: Option<&str>) -> Outcome {
        match (self, ci) {
            (Reason::Missing(_), Some("true")) => Outcome::Failure,
            _ => Outcome::Line,
        }
    }
}

/// Says in one line why something was left out; where `CI` is `true` that is a failure instead.
pub fn skip(what: &str, why: &str) {
    leave_out(what, Reason::Missing(why));
}

/// As [`skip`], for any reason. An unknown version is told once by each process, and is no failure.
///
/// # Panics
/// If the reason is a failure where `CI` is `true`, and it is.
pub fn leave_out(what: &str, reason: Reason<'_>) {
    static UNKNOWN: Once = Once::new();
    let line = match reason {
        Reason::Missing(why) => format!("skipped: {what}: {why}"),
        Reason::Unknown(unknown) => format!("skipped: what Debian's programs answer: {unknown}"),
    };
    let outcome = reason.outcome(std::env::var("CI").ok().as_deref());
    assert!(outcome == Outcome::Line, "{line} (and CI=true forbids to skip)");
    match reason {
        Reason::Missing(_) => say(&line),
        Reason::Unknown(_) => UNKNOWN.call_once(|| say(&line)),
    }
}

fn say(line: &str) {
    // Not eprintln: the test harness keeps that to itself where the test passes.
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
            assert_eq!(Reason::Unknown(&unknown).outcome(ci), Outcome::Line, "{ci:?}");
            let fails = Reason::Missing("cc cannot be run").outcome(ci) == Outcome::Failure;
            assert_eq!(fails, ci == Some("true"), "{ci:?}");
        }
    }
}
