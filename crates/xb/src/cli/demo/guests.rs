//! The guests of the demo: two configurations as anybody would write them.

use std::path::Path;

/// How a guest gets a tree onto its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// With debugfs, which needs no right to mount.
    Debugfs,
}

impl Way {
    /// The best that this user may.
    pub(super) fn of_this_user() -> Self {
        Self::Debugfs
    }

    /// What it does, in words.
    pub(super) fn writes(self) -> &'static str {
        match self {
            Self::Debugfs => "writes (with debugfs, as nothing is mounted here)",
        }
    }
}

/// Makes a tree of 40 files in 4 folders below /tmp/tree, and its checksum `sum`.
const TREE: &str = "\
mkdir -p /tmp/tree; cd /tmp/tree || exit 9\n\
for d in a b c d; do mkdir $d; for n in 0 1 2 3 4 5 6 7 8 9; do \
{ date +%N; seq $((n * 2000)); } > $d/$n || exit 9; done; done\n";
/// The checksum of the tree below the current folder.
const SUM: &str = "[ \"$(ls [a-d]/[0-9] | wc -l)\" = 40 ] || fail not all 40 files are there\n\
sum=$(sha256sum [a-d]/[0-9] | sha256sum | cut -d' ' -f1)\n";
/// Ends the program with a word for the demo.
const FAIL: &str = "fail() { echo \"demo: failed: $*\"; exit 1; }\n";
/// Waits to be told to end.
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done\n";

/// A string of xl.cfg.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}

/// The guest that writes.
pub(super) fn first(way: Way, image: &Path) -> String {
    let write = match way {
        Way::Debugfs => {
            "\
for d in a b c d; do echo mkdir $d; for n in 0 1 2 3 4 5 6 7 8 9; do echo write $d/$n $d/$n; done; done > /tmp/commands\n\
debugfs -w -f /tmp/commands /dev/xvda > /tmp/said 2>&1 || fail debugfs\n\
e2fsck -fn /dev/xvda > /tmp/said 2>&1 || fail \"e2fsck: $(tail -n 1 /tmp/said)\"\n"
        }
    };
    let program = format!("{FAIL}{TREE}{SUM}{write}echo demo: written $sum\n{IDLE}");
    format!(
        "name = \"one\"\nmemory = 64\ndisk = [\"format=raw,vdev=xvda,access=w,target={}\"]\nextra = {}\n",
        image.display(),
        quoted(&program)
    )
}

/// The guest that reads, and then writes while its backend dies.
pub(super) fn second() -> String {
    let read = "\
until [ -e /dev/xvda ]; do sleep 0.02; done\n\
mkdir /tmp/back; cd /tmp/back || exit 9\n\
debugfs -R 'rdump a b c d /tmp/back' /dev/xvda > /tmp/said 2>&1 || fail debugfs\n";
    let write = "\
until [ -e /dev/xvdb ]; do sleep 0.02; done\n\
{ date +%N; seq 1000000; } | head -c 2097152 > /tmp/source\n[ \"$(wc -c < /tmp/source)\" = 2097152 ] || fail no data to write\n\
echo demo: writing\n\
n=0; while [ $n -lt 128 ]; do \
dd if=/tmp/source of=/dev/xvdb bs=16384 skip=$n seek=$n count=1 conv=notrunc,fsync 2> /tmp/said || fail \"dd: $(cat /tmp/said)\"; \
n=$((n + 1)); done\n\
cmp -n 2097152 /tmp/source /dev/xvdb || fail it reads something else\n\
echo demo: compared\n";
    let program = format!("{FAIL}{read}{SUM}echo demo: read $sum\n{write}{IDLE}");
    format!("name = \"two\"\nmemory = 64\nextra = {}\n", quoted(&program))
}
