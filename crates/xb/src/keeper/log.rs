//! The logs of a host's daemons: the keeper's own lines, and the size of them all.

use crate::host::daemons::DAEMONS;
use crate::host::folder::Folder;
use std::fs::File;
use std::io::Write;

/// The size at which a daemon's log is replaced.
const LOG_MAX: u64 = 1 << 20;

/// Writes a line of the keeper's log; where the disk is full, it is lost.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "keeper: {line}");
}

/// Replaces daemons' logs that have become large. Their daemons hold them open for appending, so
/// each is copied and then emptied; lines that are written in between are lost.
pub(super) fn bound_logs(folder: &Folder) {
    for daemon in DAEMONS {
        let path = daemon.log(folder);
        if std::fs::metadata(&path).is_ok_and(|data| data.len() > LOG_MAX) {
            // Without room for a copy the log is emptied all the same, as it fills the disk.
            let _ = std::fs::copy(&path, path.with_extension("1"));
            let _ = File::options().write(true).truncate(true).open(&path);
        }
    }
}
