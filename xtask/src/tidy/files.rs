//! Lengths, words, first lines, and where `unsafe` may be.

use super::findings::Findings;
use super::source::{File, is_test, shipped};
use std::path::Path;

/// Lines of a source file, its test module not counted, above which it is a fault.
const LINES_MAX: usize = 800;
/// Lines above which it is worth a thought.
const LINES_GOOD: usize = 400;

/// The forbidden words, with the reasons.
const BANNED: &str = include_str!("banned.txt");
/// The file of [`BANNED`], which is not checked.
const BANNED_FILE: &str = "xtask/src/tidy/banned.txt";

/// The modules that may allow `unsafe`, one line of reason each.
const UNSAFE_ALLOWED: &[&str] = &[
    // Memory that another domain writes at the same time: volatile and atomic copies.
    "crates/xen/src/shared.rs",
    // Real Xen: ioctls, hypercalls, mappings.
    "crates/xen-linux/src/sys.rs",
    "crates/xen-linux/src/abi.rs",
    "crates/xen-linux/src/evtchn.rs",
    "crates/xen-linux/src/gntdev.rs",
    "crates/xen-linux/src/gntalloc.rs",
    "crates/xen-linux/src/privcmd.rs",
    "crates/xen-linux/src/manage.rs",
    // Hosted: mappings of arenas, namespaces, capabilities; a hostile guest.
    "crates/xen-hosted/src/map.rs",
    "crates/xen-hosted/src/sys.rs",
    "crates/xen-hosted/tests/suite/support/raw.rs",
    "crates/xen-hosted/tests/suite/support/calls.rs",
    // io_uring: what is submitted must stay in place.
    "crates/xenstored/src/sends.rs",
    // The test bed maps a file as a domain's ring page.
    "tests/testbed/src/page.rs",
    // A guest without a kernel: hypercalls, pages shared with domain 0, what the compiler calls.
    "tests/xen/guest/src/xen.rs",
    "tests/xen/guest/src/memory.rs",
    // The platform within one process gives two domains views of one page.
    "tests/loopback/src/frame.rs",
    // What lasts longer than a process is mapped; a page that several requests name; what is submitted stays in place.
    "crates/xen-driver/src/backend/record/memory.rs",
    "crates/xen-driver/src/backend/pages/page.rs",
    "crates/xen-driver/src/backend/waiter.rs",
    // System calls that read or write granted pages where they are: io_uring, preadv.
    "crates/xen-block/src/sys.rs",
    "crates/xen-block/src/vectors.rs",
    // Traits of imago have unsafe methods, whose callers' promises are passed on.
    "crates/xen-block/src/disk/qcow2/storage.rs",
    "crates/xen-block/src/disk/qcow2/zstd.rs",
    // What enters a guest's namespaces is a process with one thread: clone(2), and ioctl(2) of loop devices.
    "crates/xen-hosted/src/mount.rs",
    // An allocator that counts.
    "tests/held/src/allocator.rs",
    // The simulator maps a page of its own several times.
    "tests/sim/src/page.rs",
];

/// Checks every file.
pub(super) fn check(root: &Path, files: &[File], findings: &mut Findings) {
    let here = format!("{}/", root.display());
    let words_of = BANNED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let banned: Vec<&str> = words_of.chain([here.as_str()]).collect();
    for file in files {
        if file.name != BANNED_FILE {
            words(file, &banned, findings);
        }
        if file.name.ends_with(".rs") {
            length(file, findings);
            first_line(file, findings);
            unsafety(file, findings);
        }
    }
}

fn length(file: &File, findings: &mut Findings) {
    let lines = shipped(&file.text).lines().count();
    if lines > LINES_MAX && !is_test(&file.name) {
        findings.fault(&file.name, format!("{lines} lines without tests; at most {LINES_MAX}"));
    } else if lines > LINES_GOOD {
        findings.remark(&file.name, format!("{lines} lines without tests"));
    }
}

/// Every root of a crate, and every module, says first what it is.
fn first_line(file: &File, findings: &mut Findings) {
    let root = ["/lib.rs", "/main.rs"].iter().any(|end| file.name.ends_with(end));
    if root && !file.text.starts_with("//!") {
        findings.fault(&file.name, "a crate's root opens with //! and its promise");
    }
}

fn unsafety(file: &File, findings: &mut Findings) {
    // In two parts, so that this line is not found itself.
    let word = concat!("unsafe", "_code");
    for (number, line) in file.text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let loosened =
            ["allow(", "expect(", "warn("].iter().any(|how| code.contains(&format!("{how}{word}")));
        if loosened && !UNSAFE_ALLOWED.contains(&file.name.as_str()) {
            let place = format!("{}:{}", file.name, number + 1);
            findings.fault(&place, "unsafe code is for the modules named in xtask's tidy only");
        }
    }
}

fn words(file: &File, banned: &[&str], findings: &mut Findings) {
    for (number, line) in file.text.lines().enumerate() {
        for word in banned.iter().filter(|word| holds(line, word)) {
            findings.fault(&format!("{}:{}", file.name, number + 1), format!("holds {word:?}"));
        }
    }
}

/// True if `line` has `word`, and not as a part of a longer word or path.
fn holds(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let part_of_word = |other: Option<char>| other.is_some_and(char::is_alphanumeric);
        let path = word.starts_with('/');
        let longer_path = before.is_some_and(|c| c.is_alphanumeric() || "._-}".contains(c));
        let starts_alone = if path {
            !longer_path
        } else {
            !word.starts_with(char::is_alphanumeric) || !part_of_word(before)
        };
        starts_alone && (!word.ends_with(char::is_alphanumeric) || !part_of_word(after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str, text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        check(
            Path::new("/somewhere"),
            &[File { name: name.into(), text: text.into() }],
            &mut findings,
        );
        findings.faults
    }

    #[test]
    fn words_stand_alone() {
        let word = ["XX", "X"].concat();
        assert!(holds(&format!("// {word}: why?"), &word));
        assert!(!holds(&format!("{word}L"), &word));
        let home = ["/ho", "me/"].concat();
        assert!(holds(&format!("see {home}me/x"), &home));
        assert!(!holds(&format!("target{home}x"), &home));
    }

    #[test]
    fn long_files_are_faults_and_their_tests_do_not_count() {
        let code = "fn f() {}\n".repeat(LINES_MAX);
        assert_eq!(faults("a.rs", &code).len(), 0);
        let tests = format!("{code}\n#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(faults("a.rs", &tests).len(), 0);
        assert_eq!(faults("a.rs", &format!("{code}{code}")).len(), 1);
        assert_eq!(faults("a/tests/b.rs", &format!("{code}{code}")).len(), 0);
    }

    #[test]
    fn crate_roots_say_what_they_are() {
        assert_eq!(faults("crates/a/src/lib.rs", "pub mod x;\n").len(), 1);
        assert_eq!(faults("crates/a/src/lib.rs", "//! A promise.\n").len(), 0);
    }

    #[test]
    fn unsafe_has_its_place() {
        let line = ["#![allow(", "unsafe", "_code)]\n"].concat();
        assert_eq!(faults("crates/xenstored/src/socket.rs", &line).len(), 1);
        assert_eq!(faults("crates/xen/src/shared.rs", &line).len(), 0);
    }

    #[test]
    fn whole_files_of_tests_are_known() {
        assert!(is_test("crates/xenstore-core/src/server/tests.rs"));
        assert!(is_test("crates/xenstore-core/tests/xsa.rs"));
        assert!(!is_test("crates/xenstore-core/src/server.rs"));
    }
}
