//! The counters of QEMU, which serves `qdisk` in domain 0: asked over the monitor that libxl opens
//! for readers of statistics (QMP).
//!
//! A guest may have taken its QEMU over. So an answer has a bound and an end, and what it says is
//! numbers. The monitor serves one reader at a time: while another has it, nothing is known.

use super::sample::{DiskCounters, RequestSums};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xen::DomId;
use xen_block::vbd;

/// The folder of libxl's monitors.
const MONITORS: &str = "/var/run/xen";
/// The commands: the first is needed before any other.
const COMMANDS: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-blockstats\"}\n";
/// The longest time that one QEMU may take, and that all of a turn may.
const ONE_WITHIN: Duration = Duration::from_millis(50);
const ALL_WITHIN: Duration = Duration::from_millis(200);
/// The most bytes of an answer.
const ANSWER_MAX: u64 = 1 << 20;

/// The QEMUs of a Xen host.
#[derive(Debug)]
pub(super) struct QemuMonitors {
    folder: PathBuf,
    /// The time that is left in this turn.
    left: Duration,
}

impl Default for QemuMonitors {
    fn default() -> Self {
        Self { folder: MONITORS.into(), left: ALL_WITHIN }
    }
}

impl QemuMonitors {
    /// Begins a turn.
    pub(super) fn begin_turn(&mut self) {
        self.left = ALL_WITHIN;
    }

    /// Returns the counters of the disks that QEMU serves for a domain, by their numbers; none where
    /// it does not answer. They are of the time `now`, by CLOCK_MONOTONIC.
    pub(super) fn ask(&mut self, domid: DomId, now: Duration) -> BTreeMap<u32, DiskCounters> {
        let begin = Instant::now();
        let within = ONE_WITHIN.min(self.left);
        let path = self.folder.join(format!("qmp-libxenstat-{domid}"));
        let answer = if within.is_zero() { None } else { answer(&path, within) };
        self.left = self.left.saturating_sub(begin.elapsed());
        answer.map(|answer| counters(&answer, now)).unwrap_or_default()
    }
}

/// Asks a monitor, and returns its answer.
fn answer(path: &Path, within: Duration) -> Option<Value> {
    let end = Instant::now() + within;
    let mut monitor = open(path).ok()?;
    monitor.set_nonblocking(false).ok()?;
    monitor.set_write_timeout(Some(within)).ok()?;
    monitor.write_all(COMMANDS).ok()?;
    let (mut bytes, mut read) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        monitor.set_read_timeout(Some(left)).ok()?;
        let count = monitor.read(&mut read).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(read.get(..count)?);
        if bytes.len() as u64 > ANSWER_MAX {
            return None;
        }
        // Whole lines: the greeting, the answer to each command, and what happens meanwhile.
        while let Some(len) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=len).collect();
            let mut line: Value = serde_json::from_slice(&line).ok()?;
            match line.get_mut("return").map(Value::take) {
                Some(found @ Value::Array(_)) => return Some(found),
                _ if line.get("error").is_some() => return None,
                _ => {}
            }
        }
    }
}

/// Connects without waiting for a monitor that serves another.
fn open(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Returns the counters of Xen's disks in an answer. QEMU calls the node of such a disk by the disk's
/// name and the format: `xvda-qcow2`.
fn counters(answer: &Value, at: Duration) -> BTreeMap<u32, DiskCounters> {
    let disks = answer.as_array().into_iter().flatten().filter_map(|disk| {
        let (vdev, _format) = disk.get("node-name")?.as_str()?.rsplit_once('-')?;
        let devid = vbd::number(vdev).ok()?;
        let of = |name: &str| disk.get("stats")?.get(name)?.as_u64();
        let sums = |requests, bytes| {
            Some(RequestSums { requests: of(requests)?, sectors: of(bytes)? / 512 })
        };
        let sum = |names: &[&str]| {
            let counts = names.iter().map(|name| of(name));
            counts.flatten().fold(0, u64::saturating_add)
        };
        let failed = ["failed_rd_operations", "failed_wr_operations", "failed_flush_operations"];
        Some((
            devid,
            DiskCounters {
                at,
                read: sums("rd_operations", "rd_bytes")?,
                write: sums("wr_operations", "wr_bytes")?,
                others: sum(&["flush_operations", "unmap_operations"]),
                errors: of(failed[0]).map(|_| sum(&failed)),
                ..DiskCounters::default()
            },
        ))
    });
    disks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
    const ANSWER: &str = "{\"return\": {}}\r\n\
        {\"timestamp\": {}, \"event\": \"RTC_CHANGE\"}\r\n\
        {\"return\": [\
        {\"device\": \"\", \"node-name\": \"xvda-qcow2\", \"qdev\": \"/machine/x\", \"stats\": \
        {\"rd_operations\": 7, \"rd_bytes\": 4096, \"wr_operations\": 3, \"wr_bytes\": 1024, \
        \"flush_operations\": 2, \"unmap_operations\": 1, \"failed_rd_operations\": 1, \
        \"failed_wr_operations\": 0, \"failed_flush_operations\": 4}},\
        {\"device\": \"ide0-cd0\", \"node-name\": \"#block123\", \"stats\": {\"rd_operations\": 7}},\
        {\"node-name\": \"xvdb-raw\", \"stats\": {\"rd_operations\": \"many\"}}]}\r\n";

    /// A monitor that says this when it was asked.
    fn monitor(folder: &Path, says: Vec<u8>) -> JoinHandle<()> {
        let listener = UnixListener::bind(folder.join("qmp-libxenstat-3")).unwrap();
        std::thread::spawn(move || {
            let (mut reader, _) = listener.accept().unwrap();
            reader.write_all(GREETING.as_bytes()).unwrap();
            let mut asked = vec![0; COMMANDS.len()];
            reader.read_exact(&mut asked).unwrap();
            assert_eq!(asked, COMMANDS);
            // A reader that has had enough is gone.
            let _ = reader.write_all(&says);
            let _ = reader.read(&mut [0]);
        })
    }

    fn asked(says: &[u8]) -> BTreeMap<u32, DiskCounters> {
        let folder = tempfile::tempdir().unwrap();
        let thread = monitor(folder.path(), says.to_vec());
        let mut monitors = QemuMonitors { folder: folder.path().into(), ..QemuMonitors::default() };
        // The machine may be busy.
        monitors.left = Duration::from_secs(10);
        let found = monitors.ask(DomId(3), Duration::from_secs(9));
        thread.join().unwrap();
        found
    }

    /// Disks that QEMU serves are counted (netdata/netdata 5357).
    #[test]
    fn the_disks_of_qemu_are_counted() {
        let found = asked(ANSWER.as_bytes());
        let disk = DiskCounters {
            at: Duration::from_secs(9),
            read: RequestSums { requests: 7, sectors: 8 },
            write: RequestSums { requests: 3, sectors: 2 },
            others: 3,
            errors: Some(5),
            ..DiskCounters::default()
        };
        assert_eq!(found, [(51712, disk)].into(), "of the others not all is told");
    }

    #[test]
    fn a_hostile_answer_is_none() {
        let long = vec![b'x'; usize::try_from(ANSWER_MAX).unwrap() + (64 << 10)];
        let deep = [vec![b'['; 100_000], b"\n".to_vec()].concat();
        for says in [
            &b"{\"return\": {}}\n{\"error\": {\"class\": \"GenericError\"}}\n"[..],
            b"{\"return\": [{\"node-name\": 7}, 3, {\"node-name\": \"xvda-raw\", \"stats\": []}]}\n",
            b"no json\n",
            &long,
            &deep,
        ] {
            assert_eq!(asked(says), BTreeMap::new());
        }
    }

    #[test]
    fn a_monitor_that_is_silent_costs_a_moment() {
        let folder = tempfile::tempdir().unwrap();
        let mut monitors = QemuMonitors { folder: folder.path().into(), ..QemuMonitors::default() };
        assert_eq!(monitors.ask(DomId(3), Duration::ZERO), BTreeMap::new(), "there is none");
        let _silent = UnixListener::bind(folder.path().join("qmp-libxenstat-3")).unwrap();
        monitors.begin_turn();
        for _ in 0..100 {
            assert_eq!(monitors.ask(DomId(3), Duration::ZERO), BTreeMap::new());
        }
        assert_eq!(monitors.left, Duration::ZERO, "they have had their time");
    }
}
