//! The end of a try of a boot, and the decision on another try.
//!
//! Under emulation a guest falls silent or is lost once in some hundred starts, under any daemon.
//! Only this case is tried again, from a fresh boot: a guest that did not start, crashed or fell
//! silent, where all checks before held and no process of ours, nor domain 0's kernel, complains.
//! dom0 reports it with a line `STEP name LOST guest why`.

use super::outcome::{LostGuest, Outcome};
use std::fs;
use std::path::Path;

/// The end of a try.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum TryVerdict {
    /// Every step came to its end.
    Held,
    /// A guest was lost, and nothing else is wrong.
    LostGuest(LostGuest),
    /// Something is wrong.
    Failed,
}

/// Files of a boot's results in which a line is a complaint, and the words that make it one.
const COMPLAINTS: &[(&str, &[&str])] = &[
    ("syslog", &["level=error", "panicked", "segfault"]),
    ("xenstored.log", &["level=error", "panicked"]),
    ("xen-blockd.log", &["panicked", "EIO", "I/O error"]),
    (
        "dmesg",
        &[
            "Bad page",
            "BUG: ",
            "WARNING: CPU",
            "Oops",
            "Call Trace",
            "blocked for more",
            "segfault",
        ],
    ),
    // Names of our processes that have ended, which dom0 checks after a guest was lost.
    ("ended", &[""]),
];

/// Judges a try by the files that dom0 has left.
pub(super) fn judge_try(outcome: &Outcome) -> TryVerdict {
    let text = fs::read_to_string(outcome.results.join("steps")).unwrap_or_default();
    let mut ended = text.lines().filter_map(|line| line.strip_prefix("STEP ")?.split_once(' '));
    let sound = outcome.fault.is_none() && outcome.disk_faults.is_empty();
    for step in &outcome.expected {
        match ended.next() {
            Some((name, words)) if name == step && words.starts_with("ok") => {}
            Some((name, words)) if name == step && sound => {
                // The boot ends with this step.
                let why = words.strip_prefix("LOST ").filter(|_| ended.next().is_none());
                return match why {
                    Some(why) if complaints(&outcome.results).is_empty() => {
                        TryVerdict::LostGuest(LostGuest {
                            step: name.to_owned(),
                            why: why.to_owned(),
                        })
                    }
                    _ => TryVerdict::Failed,
                };
            }
            _ => return TryVerdict::Failed,
        }
    }
    if sound { TryVerdict::Held } else { TryVerdict::Failed }
}

/// Returns the lines in which a process of ours or domain 0's kernel complains, each with its file.
pub(super) fn complaints(results: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (file, words) in COMPLAINTS {
        let bytes = fs::read(results.join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| words.iter().any(|word| line.contains(word)));
        found.extend(lines.map(|line| format!("{file}: {line}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xen::lab::StoreDaemon;
    use crate::xen::outcome::BootExtent;
    use std::time::Duration;

    const LOST: &str = "STEP 10-start ok 1.0 s\nSTEP 20-pv LOST pv: silent for 60 s\n";

    fn judged(fault: Option<&str>, files: &[(&str, &str)]) -> TryVerdict {
        let results = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(results.path().join(file), text).unwrap();
        }
        let outcome = Outcome {
            store: StoreDaemon::Ours,
            boot: "sysv",
            expected: vec!["10-start".to_owned(), "20-pv".to_owned()],
            extent: BootExtent::Part,
            results: results.path().to_owned(),
            took: Some(Duration::ZERO),
            fault: fault.map(str::to_owned),
            disk_faults: Vec::new(),
            first: None,
        };
        judge_try(&outcome)
    }

    #[test]
    fn a_lost_guest_alone_is_tried_again() {
        let quiet =
            [("steps", LOST), ("dmesg", "all is well\n"), ("syslog", "xenstored: level=info\n")];
        let lost = LostGuest { step: "20-pv".to_owned(), why: "pv: silent for 60 s".to_owned() };
        assert_eq!(judged(None, &quiet), TryVerdict::LostGuest(lost));
    }

    #[test]
    fn what_else_is_wrong_is_never_tried_again() {
        let steps = ("steps", LOST);
        for (name, fault, files) in [
            ("qemu", Some("QEMU ended"), vec![steps]),
            ("kernel", None, vec![steps, ("dmesg", "[1.0] BUG: Bad page map\n")]),
            ("log", None, vec![steps, ("xen-blockd.log", "xen-blockd: 1/51712: EIO: /dev/vda\n")]),
            ("store", None, vec![steps, ("syslog", "xenstored: thread 'main' panicked\n")]),
            ("ended", None, vec![steps, ("ended", "xenstored\n")]),
            (
                "wrong",
                None,
                vec![("steps", "STEP 10-start ok 1.0 s\nSTEP 20-pv FAIL 1 is not 2\n")],
            ),
            (
                "later",
                None,
                vec![("steps", "STEP 10-start FAIL why\nSTEP 20-pv LOST pv: silent\n")],
            ),
            ("missing", None, vec![("steps", "STEP 10-start ok 1.0 s\n")]),
            ("went on", None, vec![("steps", &format!("{LOST}STEP 30-block ok 1.0 s\n"))]),
        ] {
            assert_eq!(judged(fault, &files), TryVerdict::Failed, "{name}");
        }
    }

    #[test]
    fn a_boot_whose_steps_are_all_ok_has_held() {
        let steps = [("steps", "STEP 10-start ok 1.0 s\nSTEP 20-pv ok 2.0 s\n")];
        assert_eq!(judged(None, &steps), TryVerdict::Held);
        assert_eq!(judged(Some("QEMU ended"), &steps), TryVerdict::Failed);
    }
}
