//! The guests of the demo: two configurations as any user would write them.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// The number of pieces that guest two writes, one after the other and with a pause behind each,
/// while its backend dies.
pub(super) const PIECES: u32 = 128;

/// The access of a guest to the file system on its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FileSystemAccess {
    /// The host's kernel mounts it (`kernel_block=1`).
    Kernel,
    /// As a file, with debugfs, which needs no right to mount.
    Debugfs,
    /// As an NBD server: copied, changed with debugfs, and written back.
    Nbd,
    /// None: there is nothing in which it could have a file or a socket.
    Nothing,
}

impl FileSystemAccess {
    /// Returns the best access that this user may have on this machine, and the reason why there is
    /// no better one.
    pub(super) fn of_this_user() -> (Self, &'static str) {
        let opens = |path| File::options().read(true).write(true).open(path).is_ok();
        if !opens("/dev/fuse") {
            return Self::without_fuse();
        }
        if !rustix::process::geteuid().is_root() {
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

    fn without_fuse() -> (Self, &'static str) {
        let apart = ["--user", "--map-root-user", "--mount", "true"];
        let apart = Command::new("unshare").args(apart).stderr(Stdio::null()).status();
        if !apart.is_ok_and(|status| status.success()) {
            let why = "/dev/fuse cannot be opened by this user, and no namespaces are to be had (user namespaces are \
                       forbidden?), so guests get neither file nor socket for a disk: disks connect and move here, and \
                       nothing is read or written";
            return (Self::Nothing, why);
        }
        if !Path::new("/usr/bin/perl").exists() {
            let why = "/dev/fuse cannot be opened by this user, and there is no perl to speak NBD with: disks connect and \
                       move here, and nothing is read or written";
            return (Self::Nothing, why);
        }
        let why = "/dev/fuse cannot be opened by this user (modprobe fuse; Debian's mode of it is 0666), so guests get no \
                   file for a disk, and nothing is mounted: they use NBD and debugfs instead";
        (Self::Nbd, why)
    }
}

/// Returns the program with which guests speak NBD, without its comments.
fn nbd() -> String {
    let lines = include_str!("nbd.pl").lines().filter(|line| !line.starts_with('#'));
    let script: Vec<&str> = lines.map(str::trim_start).collect();
    format!(
        "cat > /tmp/nbd.pl <<'NBD'\n{}\nNBD\nnbd() {{ perl /tmp/nbd.pl \"$@\" || exit 1; }}\n",
        script.join("\n")
    )
}

/// Makes a tree of 40 files in 4 folders below /tmp/tree, and its checksum `sum`.
const TREE: &str = "\
mkdir -p /tmp/tree; cd /tmp/tree || exit 9\n\
for d in a b c d; do mkdir $d; for n in 0 1 2 3 4 5 6 7 8 9; do \
{ date +%N; seq $((n * 2000)); } > $d/$n || exit 9; done; done\n";
/// The checksum of the tree below the current folder.
const SUM: &str = "[ \"$(ls [a-d]/[0-9] | wc -l)\" = 40 ] || fail not all 40 files are there\n\
sum=$(sha256sum [a-d]/[0-9] | sha256sum | cut -d' ' -f1)\n";
/// Writes the tree into the file system in `$image`, and has it checked.
const WRITE: &str = "\
for d in a b c d; do echo mkdir $d; for n in 0 1 2 3 4 5 6 7 8 9; do echo write $d/$n $d/$n; done; done > /tmp/commands\n\
(echo mkdir tree; echo cd tree; cat /tmp/commands) > /tmp/all\n\
debugfs -w -f /tmp/all $image > /tmp/said 2>&1 || fail debugfs\n\
e2fsck -fn $image > /tmp/said 2>&1 || fail \"e2fsck: $(tail -n 1 /tmp/said)\"\n";
/// Reads the tree out of the file system in `$image`.
const READ: &str = "\
mkdir /tmp/back; cd /tmp/back || exit 9\n\
debugfs -R 'rdump tree/a tree/b tree/c tree/d /tmp/back' $image > /tmp/said 2>&1 || fail debugfs\n";
/// Makes what is written while the backend dies.
const SOURCE: &str = "\
{ date +%N; seq 1000000; } | head -c 2097152 > /tmp/source\n\
[ \"$(wc -c < /tmp/source)\" = 2097152 ] || fail no data to write\n";
/// Ends the program with a word for the demo.
const FAIL: &str = "fail() { echo \"demo: failed: $*\"; exit 1; }\n";
/// Waits for the signal to end.
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1000; done\n";

/// A string of xl.cfg.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}

/// Waits until the host has mounted the disk.
const MOUNTED: &str = "until [ -d /mnt/lost+found ]; do sleep 0.02; done\n";

/// The guest that writes.
pub(super) fn first(access: FileSystemAccess, image: &Path) -> String {
    let write = match access {
        FileSystemAccess::Kernel => {
            format!("{MOUNTED}cp -r /tmp/tree /mnt/tree && sync || fail cp\n")
        }
        FileSystemAccess::Debugfs => format!("image=/dev/xvda\n{WRITE}"),
        FileSystemAccess::Nbd => {
            let (get, put) = ("nbd get /tmp/xvda.nbd $image\n", "nbd put /tmp/xvda.nbd $image\n");
            format!("{}image=/tmp/image\n{get}{WRITE}{put}", nbd())
        }
        FileSystemAccess::Nothing => return config("one", access, image, IDLE),
    };
    let program = format!("{FAIL}{TREE}{SUM}{write}echo demo: written $sum\n{IDLE}");
    config("one", access, image, &program)
}

/// The guest that reads, and then writes while its backend dies. It has a disk of its own.
pub(super) fn second(access: FileSystemAccess, own: &Path) -> String {
    let read = match access {
        FileSystemAccess::Kernel => {
            format!("{MOUNTED}cp -r /mnt/tree /tmp/back || fail cp\ncd /tmp/back || exit 9\n")
        }
        FileSystemAccess::Debugfs => {
            format!("image=/dev/xvdb\nuntil [ -e $image ]; do sleep 0.02; done\n{READ}")
        }
        FileSystemAccess::Nbd => {
            format!("{}image=/tmp/image\nnbd get /tmp/xvdb.nbd $image\n{READ}", nbd())
        }
        FileSystemAccess::Nothing => return config("two", access, own, IDLE),
    };
    let write = match access {
        FileSystemAccess::Nbd => "nbd each /tmp/xvdc.nbd /tmp/source 16384\n\
                     nbd get /tmp/xvdc.nbd /tmp/again; disk=/tmp/again\n"
            .to_owned(),
        _ => format!(
            "disk=/dev/xvdc\nuntil [ -e $disk ]; do sleep 0.02; done\n\
             n=0; while [ $n -lt {PIECES} ]; do \
             dd if=/tmp/source of=$disk bs=16384 skip=$n seek=$n count=1 conv=notrunc,fsync 2> /tmp/said || fail \"dd: $(cat /tmp/said)\"; \
             n=$((n + 1)); echo demo: wrote $n; sleep 0.01; done\n"
        ),
    };
    let compare =
        "cmp -n 2097152 /tmp/source $disk || fail it reads something else\necho demo: compared\n";
    let program = format!("{FAIL}{read}{SUM}echo demo: read $sum\n{SOURCE}{write}{compare}{IDLE}");
    config("two", access, own, &program)
}

fn config(name: &str, access: FileSystemAccess, image: &Path, program: &str) -> String {
    let mut config = format!("name = \"{name}\"\nmemory = 64\n");
    if access == FileSystemAccess::Kernel {
        config.push_str("kernel_block = 1\n");
    }
    let image = image.display();
    config.push_str(&format!("disk = [\"format=raw,vdev=xvda,access=w,target={image}\"]\n"));
    config + &format!("extra = {}\n", quoted(program))
}
