//! The rows, the readers of each, and the goals of the figures.

use crate::load::{Load, Order};

/// The file system that holds the files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum FilePlace {
    Tmpfs,
    Disk,
    /// No file is used.
    Nowhere,
}

impl FilePlace {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
            Self::Nowhere => "memory",
        }
    }
}

/// The format of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A way to read, with its programs and threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadMethod {
    /// One thread through io_uring.
    Direct,
    /// Our frontend in one thread, our backend in another.
    Ring(Format),
    /// Frontend and backend in one thread, with a disk that completes each request at once.
    AtOnce,
    /// The NBD client, through our frontend's NBD server.
    Export(Format),
    /// The NBD client, through `qemu-nbd`.
    QemuNbd(Format),
}

/// The goal of a figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Goal {
    /// Our rate divided by the other's, at least.
    Rate(f64),
    /// Requests for each second of processor time, divided by the other's, at least.
    PerCpu(f64),
    /// Requests a second, at least.
    PerSecond(f64),
    /// Bytes of memory, at most.
    Bytes(f64),
}

/// The quantity that a row measures.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Quantity {
    /// The rate at which `ours` reads, and `other` in turn with it.
    Reads { load: Load, ours: ReadMethod, other: Option<ReadMethod> },
    /// The memory of a backend with `disks` disks.
    Memory { disks: usize, format: Format },
}

/// One row of the table.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) work: &'static str,
    pub(crate) place: FilePlace,
    pub(crate) quantity: Quantity,
    pub(crate) goals: &'static [Goal],
}

const SMALL: Load = Load { pages: 1, order: Order::Random };
const LARGE: Load = Load { pages: 32, order: Order::Sequential };
/// The disks of the backend whose memory is measured.
const DISKS: usize = 32;

/// The most memory that it may use, in bytes.
const MEMORY_MAX: f64 = (64 << 20) as f64;

const fn reads(load: Load, ours: ReadMethod, other: ReadMethod) -> Quantity {
    Quantity::Reads { load, ours, other: Some(other) }
}

const fn memory(id: &'static str, work: &'static str, format: Format) -> Row {
    let (quantity, goals) = (Quantity::Memory { disks: DISKS, format }, &[Goal::Bytes(MEMORY_MAX)]);
    Row { id, work, place: FilePlace::Disk, quantity, goals }
}

macro_rules! rows {
    ($($id:literal, $work:literal, $quantity:expr, $goals:expr;)*) => {
        [$(
            Row { id: concat!($id, "-tmpfs"), work: $work, place: FilePlace::Tmpfs, quantity: $quantity, goals: $goals },
            Row { id: concat!($id, "-disk"), work: $work, place: FilePlace::Disk, quantity: $quantity, goals: $goals },
        )*
            Row {
                id: "at-once",
                work: "4 KiB reads before a disk that has them at once, not copied, both ends on one CPU",
                place: FilePlace::Nowhere,
                quantity: Quantity::Reads { load: SMALL, ours: ReadMethod::AtOnce, other: None },
                goals: &[Goal::PerSecond(1_500_000.0)],
            },
            memory("memory-raw", "memory of a backend with 32 connected disks, beyond granted pages; raw", Format::Raw),
            memory("memory-qcow2", "the same; qcow2", Format::Qcow2),
        ]
    };
}

/// All rows, in the order of the table.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &rows! {
    "random", "4 KiB random reads, 32 in flight, beside one io_uring thread on the same file",
        reads(SMALL, ReadMethod::Ring(Format::Raw), ReadMethod::Direct), &[Goal::Rate(0.8), Goal::PerCpu(0.6)];
    "sequential", "128 KiB sequential reads, the same",
        reads(LARGE, ReadMethod::Ring(Format::Raw), ReadMethod::Direct), &[Goal::Rate(0.9)];
    "front-raw", "4 KiB random reads by our frontend, beside an NBD client on qemu-nbd; raw",
        reads(SMALL, ReadMethod::Ring(Format::Raw), ReadMethod::QemuNbd(Format::Raw)), &[Goal::Rate(4.0)];
    "front-qcow2", "the same; qcow2",
        reads(SMALL, ReadMethod::Ring(Format::Qcow2), ReadMethod::QemuNbd(Format::Qcow2)), &[Goal::Rate(2.0)];
    "nbd-raw", "4 KiB random reads by one NBD client, through our NBD server, beside qemu-nbd; raw",
        reads(SMALL, ReadMethod::Export(Format::Raw), ReadMethod::QemuNbd(Format::Raw)), &[Goal::Rate(0.8)];
    "nbd-qcow2", "the same; qcow2",
        reads(SMALL, ReadMethod::Export(Format::Qcow2), ReadMethod::QemuNbd(Format::Qcow2)), &[Goal::Rate(0.7)];
};
