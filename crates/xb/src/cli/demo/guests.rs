//! The guests of the demo: two configurations as anybody would write them.

use std::fs::File;
use std::path::Path;

/// How a guest gets at what is on its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// The host's kernel mounts it (`kernel_block=1`).
    Kernel,
    /// With debugfs, which needs no right to mount.
    Debugfs,
    /// Not at all: there is no FUSE, so there is no file for it.
    NoFile,
}

impl Way {
    /// The best that this user may have on this machine, and why not more.
    pub(super) fn of_this_user() -> (Self, &'static str) {
        let opens = |path| File::options().read(true).write(true).open(path).is_ok();
        if !opens("/dev/fuse") {
            let why = "/dev/fuse cannot be opened by this user (modprobe fuse; Debian's mode of it is 0666), so guests get \
                       no file for a disk: disks connect and move here, and nothing is read or written";
            (Self::NoFile, why)
        } else if !rustix::process::geteuid().is_root() {
            (
                Self::Debugfs,
                "this is an ordinary user, so nothing is mounted: the guests use debugfs instead",
            )
        } else if !opens("/dev/loop-control") {
            (
                Self::Debugfs,
                "there is no loop device (modprobe loop), so nothing is mounted: the guests use debugfs",
            )
        } else {
            (
                Self::Kernel,
                "the guests have kernel_block=1: the kernel of this machine mounts their disks, so they are trusted with it",
            )
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
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1000; done\n";

/// A string of xl.cfg.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}

/// What a guest says that has no file for its disk.
const NO_FILE: &str = "echo demo: written nothing; echo demo: read nothing\n";

/// Waits until the host has mounted the disk, or, elsewhere, until it is there.
const MOUNTED: &str = "until [ -d /mnt/lost+found ]; do sleep 0.02; done\n";

/// The guest that writes.
pub(super) fn first(way: Way, image: &Path) -> String {
    let write = match way {
        Way::Kernel => format!("{MOUNTED}cp -r /tmp/tree /mnt/tree && sync || fail cp\n"),
        Way::Debugfs => "\
for d in a b c d; do echo mkdir $d; for n in 0 1 2 3 4 5 6 7 8 9; do echo write $d/$n $d/$n; done; done > /tmp/commands\n\
(echo mkdir tree; echo cd tree; cat /tmp/commands) > /tmp/all\n\
debugfs -w -f /tmp/all /dev/xvda > /tmp/said 2>&1 || fail debugfs\n\
e2fsck -fn /dev/xvda > /tmp/said 2>&1 || fail \"e2fsck: $(tail -n 1 /tmp/said)\"\n"
            .into(),
        Way::NoFile => return config("one", way, Some(image), &format!("{NO_FILE}{IDLE}")),
    };
    let program = format!("{FAIL}{TREE}{SUM}{write}echo demo: written $sum\n{IDLE}");
    config("one", way, Some(image), &program)
}

/// The guest that reads, and then writes while its backend dies.
pub(super) fn second(way: Way) -> String {
    let read = match way {
        Way::Kernel => format!("{MOUNTED}cp -r /mnt/tree /tmp/back || fail cp\ncd /tmp/back || exit 9\n"),
        Way::Debugfs => "\
until [ -e /dev/xvda ]; do sleep 0.02; done\n\
mkdir /tmp/back; cd /tmp/back || exit 9\n\
debugfs -R 'rdump tree/a tree/b tree/c tree/d /tmp/back' /dev/xvda > /tmp/said 2>&1 || fail debugfs\n"
            .into(),
        Way::NoFile => return config("two", way, None, &format!("{NO_FILE}echo demo: writing\necho demo: compared\n{IDLE}")),
    };
    let write = "\
until [ -e /dev/xvdb ]; do sleep 0.02; done\n\
{ date +%N; seq 1000000; } | head -c 2097152 > /tmp/source\n\
[ \"$(wc -c < /tmp/source)\" = 2097152 ] || fail no data to write\n\
echo demo: writing\n\
n=0; while [ $n -lt 128 ]; do \
dd if=/tmp/source of=/dev/xvdb bs=16384 skip=$n seek=$n count=1 conv=notrunc,fsync 2> /tmp/said || fail \"dd: $(cat /tmp/said)\"; \
n=$((n + 1)); done\n\
cmp -n 2097152 /tmp/source /dev/xvdb || fail it reads something else\n\
echo demo: compared\n";
    let program = format!("{FAIL}{read}{SUM}echo demo: read $sum\n{write}{IDLE}");
    config("two", way, None, &program)
}

fn config(name: &str, way: Way, image: Option<&Path>, program: &str) -> String {
    let mut config = format!("name = \"{name}\"\nmemory = 64\n");
    if way == Way::Kernel {
        config.push_str("kernel_block = 1\n");
    }
    if let Some(image) = image {
        let image = image.display();
        config.push_str(&format!("disk = [\"format=raw,vdev=xvda,access=w,target={image}\"]\n"));
    }
    config + &format!("extra = {}\n", quoted(program))
}
