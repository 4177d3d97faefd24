//! Tests that data whose flush was answered is on stable storage. A file system's journal is
//! written through a device onto a store that keeps, at a crash, the flushed data and any part of
//! the rest. e2fsck recovers every crash image, which is then clean and has every transaction whose
//! flush was answered.
//!
//! The journal has ext4's own format (jbd2), so that e2fsck's recovery is the judge: a descriptor
//! block with the numbers of the blocks that follow, these blocks, a flush, the commit block, a
//! flush; then the blocks are written to their final places.
//!
//! The raw store is in memory and records its requests. The qcow2 store is the real one on a real
//! file: strace records its system calls (`qcow2.rs`), so parts of tables and data are lost as in a
//! crash.

mod qcow2;

use crate::support::{Scene, Setup};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use tempfile::TempDir;
use xen_block::back::OpenDisk;
use xen_block::disk::memory::Memory;
use xen_block::disk::{Disk, DiskIo, DiskOp, Finished, Geometry};
use xen_block::front::DiskRequest;
use xen_io::blkif::Status;

const BLOCK: usize = 4096;
const IMAGE_BYTES: usize = 24 << 20;
const TRANSACTIONS: usize = 5;
/// The number of random images for each possible time of a crash, besides those with nothing and
/// with all of the unflushed data.
const SUBSETS: u64 = 5;
const JOURNAL_MAGIC: u32 = 0xc03b_3998;

/// An event on the store; the log has them in order.
#[derive(Clone, Debug)]
enum StoreEvent {
    Write(usize, Vec<u8>),
    Flush,
    /// The guest has the answer that this transaction is safe.
    Answered(usize),
}

/// The store's treatment of flushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FlushBehaviour {
    Honest,
    /// It answers a flush and does nothing, like a build without fdatasync.
    ForgetsFlushes,
}

type WriteLog = Rc<RefCell<Vec<StoreEvent>>>;

#[derive(Debug)]
struct Recording {
    disk: Memory,
    log: WriteLog,
    flushes: FlushBehaviour,
}

impl Disk for Recording {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        match io.op {
            DiskOp::Write => {
                let mut bytes = vec![0; io.bytes()];
                io.gather(&mut bytes).unwrap();
                let at = usize::try_from(io.offset()).unwrap();
                self.log.borrow_mut().push(StoreEvent::Write(at, bytes));
            }
            DiskOp::Flush if self.flushes == FlushBehaviour::Honest => {
                self.log.borrow_mut().push(StoreEvent::Flush);
            }
            _ => {}
        }
        self.disk.submit(io)
    }
}

/// Makes a folder for images; `None`, with a printed line that gives the reason, if the tools of
/// ext4 are not available.
fn folder(test: &str) -> Option<TempDir> {
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        conformance::skip(test, "there is no mkfs.ext4 (Debian: e2fsprogs)");
        return None;
    }
    Some(tempfile::tempdir().unwrap())
}

fn run(program: &str, args: &[&str], file: &Path) -> (Option<i32>, String) {
    let output = Command::new(program).args(args).arg(file).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// The file system before and after each transaction, and the blocks of its journal.
struct Workload {
    states: Vec<Vec<u8>>,
    journal: Vec<usize>,
}

impl Workload {
    fn make(folder: &Path) -> Self {
        let image = folder.join("image");
        std::fs::write(&image, vec![0; IMAGE_BYTES]).unwrap();
        let options = "-q -b 4096 -O ^metadata_csum,^64bit,^resize_inode -J size=4";
        let args: Vec<&str> = options.split(' ').collect();
        assert_eq!(run("mkfs.ext4", &args, &image).0, Some(0));
        let mut states = vec![std::fs::read(&image).unwrap()];
        for number in 0..TRANSACTIONS {
            let source = folder.join("source");
            std::fs::write(&source, vec![number as u8 + 1; 3000 + number * 9000]).unwrap();
            for command in
                [format!("mkdir d{number}"), format!("write {} d{number}/f", source.display())]
            {
                assert_eq!(run("debugfs", &["-w", "-R", &command], &image).0, Some(0));
            }
            let (code, text) = run("e2fsck", &["-fn"], &image);
            assert_eq!(code, Some(0), "debugfs has left {text}");
            states.push(std::fs::read(&image).unwrap());
        }
        let (_, text) = run("debugfs", &["-R", "blocks <8>"], &image);
        let numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
        let journal: Vec<usize> = numbers.collect();
        let first = &states[0][journal[0] * BLOCK..];
        assert_eq!(first[..4], JOURNAL_MAGIC.to_be_bytes(), "{text}");
        for state in &mut states {
            // The feature bit for a journal that needs recovery.
            state[1024 + 96] |= 4;
        }
        Self { states, journal }
    }

    /// Saves it for another process.
    fn save(&self, folder: &Path) {
        for (number, state) in self.states.iter().enumerate() {
            std::fs::write(folder.join(format!("state-{number}")), state).unwrap();
        }
        let numbers: Vec<String> = self.journal.iter().map(usize::to_string).collect();
        std::fs::write(folder.join("journal"), numbers.join(" ")).unwrap();
    }

    /// Loads the workload that another process has saved.
    fn load(folder: &Path) -> Self {
        let state = |number| std::fs::read(folder.join(format!("state-{number}"))).unwrap();
        let text = std::fs::read_to_string(folder.join("journal")).unwrap();
        let journal = text.split(' ').map(|number| number.parse().unwrap()).collect();
        Self { states: (0..=TRANSACTIONS).map(state).collect(), journal }
    }

    /// Returns the store's contents at the start.
    fn start(&self) -> Vec<u8> {
        let mut start = self.states[0].clone();
        let head = self.journal_head(1, 1);
        start[self.journal[0] * BLOCK..][..BLOCK].copy_from_slice(&head);
        start
    }

    /// Returns the blocks that a transaction changes.
    fn changes(&self, number: usize) -> Vec<usize> {
        let (old, new) = (&self.states[number], &self.states[number + 1]);
        let changed = |block: &usize| {
            let range = block * BLOCK..(block + 1) * BLOCK;
            old[range.clone()] != new[range] && !self.journal.contains(block)
        };
        (0..IMAGE_BYTES / BLOCK).filter(changed).collect()
    }

    /// Returns the journal's first block, for a journal that begins with transaction `sequence` at
    /// its block `start`.
    fn journal_head(&self, sequence: u32, start: usize) -> Vec<u8> {
        let mut block = self.states[0][self.journal[0] * BLOCK..][..BLOCK].to_vec();
        block[24..28].copy_from_slice(&sequence.to_be_bytes());
        block[28..32].copy_from_slice(&(start as u32).to_be_bytes());
        block
    }
}

fn journal_block(kind: u32, sequence: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    for (at, word) in [(0, JOURNAL_MAGIC), (4, kind), (8, sequence)] {
        block[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    block
}

/// Returns the block that gives the final places of the blocks after it.
fn descriptor(sequence: u32, blocks: &[usize]) -> Vec<u8> {
    let mut block = journal_block(1, sequence);
    let mut at = 12;
    for (number, home) in blocks.iter().enumerate() {
        // 2: no UUID follows; 8: the last one.
        let mut flags: u16 = if number > 0 { 2 } else { 0 };
        if number + 1 == blocks.len() {
            flags |= 8;
        }
        block[at..at + 4].copy_from_slice(&(*home as u32).to_be_bytes());
        block[at + 6..at + 8].copy_from_slice(&flags.to_be_bytes());
        at += if number > 0 { 8 } else { 24 };
    }
    block
}

fn put(scene: &mut Scene, block: usize, bytes: &[u8]) {
    assert_eq!(scene.write(block as u64 * 8, bytes), Status::Okay);
}

fn flush(scene: &mut Scene) {
    assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
}

/// Writes all transactions through a device onto a store in memory.
fn play(workload: &Workload, log: &WriteLog, flushes: FlushBehaviour) -> bool {
    let (start, recorded) = (workload.start(), Rc::clone(log));
    let open: Box<OpenDisk> = Box::new(move |_| {
        let disk = Memory::with_contents(start.clone());
        Ok(Box::new(Recording { disk, log: Rc::clone(&recorded), flushes }))
    });
    play_on(workload, open, |number| log.borrow_mut().push(StoreEvent::Answered(number)))
}

/// Writes all transactions through a device; calls `answered` for each that is safe.
fn play_on(workload: &Workload, open: Box<OpenDisk>, mut answered: impl FnMut(usize)) -> bool {
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return false };
    let (mut at, mut sequence) = (1, 1);
    for number in 0..TRANSACTIONS {
        let blocks = workload.changes(number);
        let state = &workload.states[number + 1];
        put(&mut scene, workload.journal[at], &descriptor(sequence, &blocks));
        for (behind, home) in blocks.iter().enumerate() {
            let bytes = &state[home * BLOCK..][..BLOCK];
            assert_ne!(bytes[..4], JOURNAL_MAGIC.to_be_bytes(), "would have to be escaped");
            put(&mut scene, workload.journal[at + 1 + behind], bytes);
        }
        flush(&mut scene);
        at += 1 + blocks.len();
        put(&mut scene, workload.journal[at], &journal_block(2, sequence));
        flush(&mut scene);
        answered(number + 1);
        for home in &blocks {
            put(&mut scene, *home, &state[home * BLOCK..][..BLOCK]);
        }
        flush(&mut scene);
        (at, sequence) = (at + 1, sequence + 1);
        put(&mut scene, workload.journal[0], &workload.journal_head(sequence, at));
    }
    true
}

/// Returns a crash image: the flushed data, with some sectors of the unflushed data.
fn crash(
    flushed: &[u8],
    unflushed: &[(usize, Vec<u8>)],
    mut keeps: impl FnMut() -> bool,
) -> Vec<u8> {
    let mut image = flushed.to_vec();
    for (at, bytes) in unflushed {
        for (number, sector) in bytes.chunks(512).enumerate() {
            if keeps() {
                put_at(&mut image, at + number * 512, sector);
            }
        }
    }
    image
}

/// Writes into an image, which grows if necessary.
fn put_at(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    image.resize(image.len().max(at + bytes.len()), 0);
    image[at..][..bytes.len()].copy_from_slice(bytes);
}

/// The format of a store's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum StoreFormat {
    Raw,
    Qcow2,
}

/// Recovers an image; returns the number of its transaction, or a description of the fault.
fn recover(
    workload: &Workload,
    file: &Path,
    image: &[u8],
    format: StoreFormat,
) -> Result<usize, String> {
    match format {
        StoreFormat::Raw => std::fs::write(file, image).unwrap(),
        StoreFormat::Qcow2 => qcow2::unpack(image, file)?,
    }
    let (code, text) = run("e2fsck", &["-fy"], file);
    if !matches!(code, Some(0 | 1)) {
        return Err(format!("e2fsck -fy: {code:?} {text}"));
    }
    let (code, text) = run("e2fsck", &["-fn"], file);
    if code != Some(0) {
        return Err(format!("e2fsck -fn: {code:?} {text}"));
    }
    let recovered = std::fs::read(file).unwrap();
    // Recovery changes the superblock and the journal, and nothing else.
    let same = |state: &Vec<u8>| {
        (1..IMAGE_BYTES / BLOCK).all(|block| {
            let range = block * BLOCK..(block + 1) * BLOCK;
            workload.journal.contains(&block) || state[range.clone()] == recovered[range]
        })
    };
    workload.states.iter().position(same).ok_or_else(|| "in no state that there was".to_owned())
}

/// Simulates a crash at every point. Returns the number of images, and the error of the first one
/// that had lost something. `flushed` is the store's contents at the start.
fn crash_everywhere(
    workload: &Workload,
    (mut flushed, format): (Vec<u8>, StoreFormat),
    log: &[StoreEvent],
    file: &Path,
) -> (usize, Option<String>) {
    let mut unflushed: Vec<(usize, Vec<u8>)> = Vec::new();
    let (mut answered, mut seed, mut images) = (0, 3_u64, 0);
    let mut outcomes: BTreeMap<usize, u32> = BTreeMap::new();
    for event in log.iter().chain([&StoreEvent::Flush]) {
        if let StoreEvent::Write(at, bytes) = event {
            unflushed.push((*at, bytes.clone()));
            continue;
        }
        for subset in 0..SUBSETS + 2 {
            let keeps = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(subset);
                match subset {
                    0 => false,
                    1 => true,
                    _ => (seed >> 40).is_multiple_of(2),
                }
            };
            let image = crash(&flushed, &unflushed, keeps);
            images += 1;
            match recover(workload, file, &image, format) {
                Ok(state) if state >= answered => *outcomes.entry(state).or_default() += 1,
                Ok(state) => {
                    let what = format!("transaction {answered} was answered, {state} is there");
                    return (images, Some(what));
                }
                Err(what) => return (images, Some(what)),
            }
        }
        match event {
            StoreEvent::Answered(number) => answered = *number,
            _ => {
                for (at, bytes) in unflushed.drain(..) {
                    put_at(&mut flushed, at, &bytes);
                }
            }
        }
    }
    assert_eq!(outcomes.len(), TRANSACTIONS + 1, "each state was recovered to: {outcomes:?}");
    (images, None)
}

#[test]
fn every_crash_recovers_to_what_was_answered() {
    let Some(folder) = folder("durable") else { return };
    let workload = Workload::make(folder.path());
    let log = WriteLog::default();
    if !play(&workload, &log, FlushBehaviour::Honest) {
        return;
    }
    let start = (workload.start(), StoreFormat::Raw);
    let (images, lost) =
        crash_everywhere(&workload, start, &log.borrow(), &folder.path().join("crash"));
    assert_eq!(lost, None, "image {images}");
    assert!(images > 100, "{images}");
}

/// Checks the test above: with a store that forgets flushes, it finds a lost transaction.
#[test]
fn a_store_that_forgets_flushes_is_found_out() {
    let Some(folder) = folder("forgets") else { return };
    let workload = Workload::make(folder.path());
    let log = WriteLog::default();
    if !play(&workload, &log, FlushBehaviour::ForgetsFlushes) {
        return;
    }
    let start = (workload.start(), StoreFormat::Raw);
    let (_, lost) = crash_everywhere(&workload, start, &log.borrow(), &folder.path().join("crash"));
    assert!(lost.is_some(), "nothing was lost without any flush");
}
