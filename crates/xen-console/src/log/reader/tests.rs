use super::*;
use crate::log::{ConsoleLog, LogLimits, LogOutcome};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use std::rc::Rc;
use tempfile::TempDir;

const NAME: &str = "guest-a.log";
const SECOND: u64 = 1_000_000;

/// A folder with a log that is written and read.
struct Scene {
    folder: TempDir,
    log: ConsoleLog,
}

impl Scene {
    fn new(bytes_max: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let log = open_log(&folder, bytes_max);
        Self { folder, log }
    }

    fn reader(&self) -> LogReader {
        LogReader::open(self.folder.path(), OsStr::new(NAME)).unwrap()
    }

    fn index(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{name}.index"))
    }
}

fn open_log(folder: &TempDir, bytes_max: u64) -> ConsoleLog {
    let opened: Rc<OwnedFd> = Rc::new(File::open(folder.path()).unwrap().into());
    let limits = LogLimits { bytes_max, reserve: 0, mode: 0o640 };
    ConsoleLog::open(opened, OsStr::new(NAME), limits).unwrap()
}

/// Reads all that is there, as text: `@` and the time before each piece whose time is another one,
/// `{life}` and `{lost N}`.
fn told(reader: &mut LogReader) -> String {
    told_until(reader, u64::MAX)
}

fn told_until(reader: &mut LogReader, end: u64) -> String {
    let (mut text, mut buffer, mut last) = (String::new(), [0; 7], None);
    while let Some(piece) = reader.next(&mut buffer, end).unwrap() {
        match piece {
            LogPiece::Output { bytes, time_us } => {
                if last.replace(time_us) != Some(time_us) {
                    text += &time_us.map_or("@-:".into(), |time_us| format!("@{time_us}:"));
                }
                text += std::str::from_utf8(bytes).unwrap();
            }
            LogPiece::Life => text += "{life}",
            LogPiece::Lost { bytes, .. } => {
                text += &bytes.map_or("{gap}".into(), |bytes| format!("{{lost {bytes}}}"));
            }
        }
    }
    text
}

/// Reads the bytes alone.
fn bytes(reader: &mut LogReader) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
    while let Some(piece) = reader.next(&mut buffer, u64::MAX).unwrap() {
        if let LogPiece::Output { bytes, .. } = piece {
            all.extend_from_slice(bytes);
        }
    }
    all
}

#[test]
fn output_has_its_time_and_lives_begin_where_they_did() {
    let mut scene = Scene::new(1 << 20);
    scene.log.begin_life(3, 1).unwrap();
    scene.log.append(b"one\nand tw", 2);
    scene.log.append(b"o\n", 3);
    scene.log.begin_life(5, 4).unwrap();
    let mut reader = scene.reader();
    assert_eq!(told(&mut reader), "{life}@2:one\nand tw@3:o\n{life}");
    let life = |place, time_us, domid| LogLife { place, time_us, domid: Some(domid) };
    assert_eq!(reader.lives().unwrap(), [life(0, 1, 3), life(12, 4, 5)]);
    // What is written meanwhile comes next.
    scene.log.append(b"again\n", 6);
    assert_eq!(told(&mut reader), "@6:again\n");
    // A daemon that was started again begins no life.
    scene.log = open_log(&scene.folder, 1 << 20);
    scene.log.resume(7).unwrap();
    scene.log.append(b"on\n", 8);
    assert_eq!(told(&mut reader), "@8:on\n");
    assert_eq!(reader.lives().unwrap().len(), 2);
    reader.seek(12).unwrap();
    assert_eq!(told(&mut reader), "{life}@6:again\n@8:on\n");
    reader.seek(0).unwrap();
    assert_eq!(told_until(&mut reader, 12), "{life}@2:one\nand tw@3:o\n");
    reader.seek(5).unwrap();
    assert_eq!(told_until(&mut reader, 11), "@2:nd tw@3:o");
}

#[test]
fn times_are_found_and_go_beyond_what_fits_into_31_bits() {
    let mut scene = Scene::new(1 << 20);
    let late = (1 << 31) * SECOND + 5;
    scene.log.begin_life(1, SECOND).unwrap();
    scene.log.append(b"early\n", 2 * SECOND);
    scene.log.append(b"late\n", late);
    scene.log.append(b"never\n", u64::MAX);
    let mut reader = scene.reader();
    assert!(reader.has_times().unwrap());
    for (time_us, place) in [
        (0, Some(0)),
        (2 * SECOND, Some(0)),
        (2 * SECOND + 1, Some(6)),
        (late, Some(6)),
        (late + 1, Some(11)),
        (u64::MAX, Some(11)),
    ] {
        assert_eq!(reader.place_since(time_us).unwrap(), place, "{time_us}");
    }
    let told = told(&mut reader);
    assert_eq!(told, format!("{{life}}@2000000:early\n@{late}:late\n@{}:never\n", u64::MAX));
    // Without output at the end nothing came later.
    let empty = Scene::new(100);
    assert!(!empty.reader().has_times().unwrap());
    assert_eq!(empty.reader().place_since(0).unwrap(), None);
}

/// A reader that finds a log before its index is made has the times of the first bytes, too.
#[test]
fn an_index_that_is_made_after_its_log_has_the_times_of_the_first_bytes() {
    let folder = TempDir::new().unwrap();
    File::create(folder.path().join(NAME)).unwrap();
    let mut reader = LogReader::open(folder.path(), OsStr::new(NAME)).unwrap();
    assert_eq!(told(&mut reader), "");
    let mut log = open_log(&folder, 1000);
    log.append(b"first\n", 7);
    assert_eq!(told(&mut reader), "@7:first\n");
}

#[test]
fn lost_bytes_have_their_place() {
    let mut scene = Scene::new(1 << 20);
    scene.log.append(b"kept\n", 1);
    scene.log.note_lost(7, 2).unwrap();
    scene.log.append(b"on\n", 3);
    let mut reader = scene.reader();
    assert_eq!(told(&mut reader), "@1:kept\n{lost 7}@3:on\n");
    // A reader that begins behind the place is not told.
    reader.seek(5).unwrap();
    assert_eq!(told(&mut reader), "{lost 7}@3:on\n");
    reader.seek(6).unwrap();
    assert_eq!(told(&mut reader), "@3:n\n");
}

/// The place of a loss is known also where the index has no room for the times of output.
#[test]
fn a_loss_in_a_full_index_has_its_place() {
    let mut scene = Scene::new(1 << 20);
    for number in 0..6000 {
        scene.log.append(b"x\n", number);
    }
    let place = scene.reader().end().unwrap();
    let full = rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty()).unwrap();
    let whole = std::mem::replace(&mut scene.log.file, full.into());
    assert_eq!(scene.log.append(b"gone", 6000), LogOutcome::FirstLost);
    scene.log.file = whole;
    assert_eq!(scene.log.append(b"again\n", 6001), LogOutcome::KeptAgain { lost: 4 });
    let mut reader = scene.reader();
    reader.seek(place - 2).unwrap();
    let told = told(&mut reader);
    assert!(told.ends_with(":x\n{lost 4}@6001:again\n"), "{told}");
}

#[test]
fn a_log_that_is_set_aside_is_one_stream_with_the_next() {
    let mut scene = Scene::new(20);
    scene.log.begin_life(1, 1).unwrap();
    scene.log.append(b"0123456789\n", 2);
    let mut reader = scene.reader();
    let (mut all, mut expected) = (bytes(&mut reader), b"0123456789\n".to_vec());
    for number in 3..200_u64 {
        let line = format!("line {number}\n");
        expected.extend_from_slice(line.as_bytes());
        scene.log.append(line.as_bytes(), number);
        if number == 100 {
            scene.log.begin_life(2, 100).unwrap();
        }
        reader.look_again().unwrap();
        all.extend(bytes(&mut reader));
        assert!(reader.files.len() <= 3);
    }
    assert_eq!(all, expected);
    assert_eq!(reader.place, expected.len() as u64);
    // A new reader has both files, and begins where the older one does.
    let mut reader = scene.reader();
    let both = bytes(&mut reader);
    assert!(both.len() > 20 && expected.ends_with(&both));
    assert_eq!(reader.files.len(), 1, "the older one is closed behind its last byte");
}

#[test]
fn lives_and_lines_are_found_in_both_files() {
    let mut scene = Scene::new(20);
    scene.log.append(b"life 0\n", 1);
    scene.log.begin_life(1, 2).unwrap();
    scene.log.append(b"life 1, long enough\n", 3);
    // It ends with the file: the next byte is in the next one.
    scene.log.begin_life(2, 4).unwrap();
    scene.log.append(b"life 2\nopen", 5);
    let mut reader = scene.reader();
    assert_eq!((reader.start(), reader.newest_start()), (0, 27));
    let end = reader.end().unwrap();
    assert_eq!(end, 38);
    let places: Vec<u64> = reader.lives().unwrap().iter().map(|life| life.place).collect();
    assert_eq!(places, [7, 27]);
    for (lines, place) in [(0, 38), (1, 34), (2, 27), (3, 7), (4, 0), (5, 0)] {
        assert_eq!(reader.last_lines(0, end, lines).unwrap(), place, "{lines}");
    }
    assert_eq!(reader.last_lines(10, end, 9).unwrap(), 10);
    assert_eq!(reader.last_lines(0, 27, 1).unwrap(), 7);
    for (place, start) in [(0, 0), (6, 0), (7, 7), (26, 7), (27, 27), (36, 34)] {
        assert_eq!(reader.line_start(0, place).unwrap(), start, "{place}");
    }
    reader.seek(7).unwrap();
    assert_eq!(told_until(&mut reader, 27), "{life}@3:life 1, long enough\n");
    reader.seek(27).unwrap();
    assert_eq!(told(&mut reader), "@5:life 2\nopen");
    assert_eq!(reader.place_since(4).unwrap(), Some(27));
}

/// A reader that is late by more than both files is told that there may be a gap.
#[test]
fn a_log_that_was_set_aside_twice_meanwhile_may_have_a_gap() {
    let mut scene = Scene::new(10);
    scene.log.append(b"0123456789", 1);
    let mut reader = scene.reader();
    assert_eq!(told(&mut reader), "@1:0123456789");
    for number in 2..6 {
        scene.log.append(format!("number: {number}\n").as_bytes(), number);
    }
    reader.look_again().unwrap();
    assert_eq!(told(&mut reader), "{gap}@4:number: 4\n@5:number: 5\n");
    // An older one that it has seen is no gap, though the log was renamed by somebody else.
    std::fs::rename(scene.folder.path().join(NAME), scene.folder.path().join("kept")).unwrap();
    reader.look_again().unwrap();
    scene.log.append(b"more\n", 6);
    scene.log.reopen().unwrap();
    scene.log.append(b"new\n", 7);
    reader.look_again().unwrap();
    let told = told(&mut reader);
    assert!(told.ends_with("more\n@7:new\n") && !told.contains("gap"), "{told}");
}

#[test]
fn a_log_between_its_names_and_an_emptied_one_are_read_on() {
    let mut scene = Scene::new(100);
    scene.log.append(b"before\n", 1);
    let path = scene.folder.path().join(NAME);
    let old = scene.folder.path().join(format!("{NAME}.1"));
    std::fs::rename(&path, &old).unwrap();
    // As a daemon that is killed between both names leaves it.
    let mut reader = scene.reader();
    assert_eq!(told(&mut reader), "@1:before\n");
    reader.look_again().unwrap();
    std::fs::write(&path, "next\n").unwrap();
    reader.look_again().unwrap();
    assert_eq!(told(&mut reader), "@-:next\n");
    File::options().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(told(&mut reader), "");
    std::fs::write(&path, "x\n").unwrap();
    assert_eq!(told(&mut reader), "@-:x\n");
    assert_eq!(
        LogReader::open(scene.folder.path(), OsStr::new("guest-b.log")).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    std::os::unix::fs::symlink(&path, scene.folder.path().join("guest-b.log")).unwrap();
    assert!(LogReader::open(scene.folder.path(), OsStr::new("guest-b.log")).is_err());
}

#[test]
fn an_index_that_is_torn_gone_or_another_logs_costs_times_alone() {
    let mut scene = Scene::new(1 << 20);
    scene.log.begin_life(1, 1).unwrap();
    scene.log.append(b"one\n", 2);
    scene.log.append(b"two\n", 3);
    let index = scene.index(NAME);
    let whole = std::fs::read(&index).unwrap();
    let lines = b"one\ntwo\n";
    for len in 0..whole.len() {
        std::fs::write(&index, &whole[..len]).unwrap();
        let mut reader = scene.reader();
        assert_eq!(bytes(&mut reader), lines, "{len}");
        assert_eq!(reader.lives().unwrap().len(), usize::from(len >= 32), "{len}");
        // What is missing comes while it is read.
        std::fs::write(&index, &whole).unwrap();
        reader.look_again().unwrap();
        assert_eq!(reader.place_since(3).unwrap(), Some(4), "{len}");
    }
    std::fs::remove_file(&index).unwrap();
    assert_eq!(told(&mut scene.reader()), "@-:one\ntwo\n");
    assert!(!scene.reader().has_times().unwrap());
    let mut other = whole.clone();
    other[8] ^= 1;
    std::fs::write(&index, &other).unwrap();
    assert_eq!(told(&mut scene.reader()), "@-:one\ntwo\n");
    std::fs::remove_file(&index).unwrap();
    mknodat(CWD, &index, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(told(&mut scene.reader()), "@-:one\ntwo\n");
}

/// Numbers by a seed (xorshift).
struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(bound).unwrap()
    }
}

/// Each byte of a log is told once and in order, whatever its index says, and all ends.
#[test]
fn garbage_in_an_index_changes_no_byte() {
    let mut chance = SeededRandom(0x9e37_79b9_7f4a_7c15);
    let mut scene = Scene::new(300);
    for number in 0..40 {
        scene.log.append(format!("line {number}\n").as_bytes(), number);
    }
    let old = std::fs::read(scene.folder.path().join(format!("{NAME}.1"))).unwrap();
    let new = std::fs::read(scene.folder.path().join(NAME)).unwrap();
    let all = [old, new].concat();
    let indices = [NAME.to_owned(), format!("{NAME}.1")].map(|name| scene.index(&name));
    let whole = indices.each_ref().map(|index| std::fs::read(index).unwrap());
    for _ in 0..2000 {
        for (index, whole) in indices.iter().zip(&whole) {
            let mut bytes = whole.clone();
            for _ in 0..chance.below(40) {
                // Most garbage has a known kind, and an offset near the log's size.
                let (kind, value) = (
                    chance.below(7),
                    match chance.below(3) {
                        0 => chance.below(1 << 48),
                        _ => chance.below(400),
                    },
                );
                let mut record = chance.below(u64::MAX).to_le_bytes().to_vec();
                record.extend((kind << 48 | value).to_le_bytes());
                let at = 16 + 16 * usize::try_from(chance.below(40)).unwrap();
                bytes.resize(bytes.len().max(at + 16), 0);
                bytes[at..at + 16].copy_from_slice(&record);
            }
            let len = usize::try_from(chance.below(bytes.len() as u64 + 1)).unwrap();
            bytes.truncate(if chance.below(4) == 0 { len } else { bytes.len() });
            std::fs::write(index, bytes).unwrap();
        }
        let mut reader = scene.reader();
        let end = reader.end().unwrap();
        assert!(reader.lives().unwrap().iter().all(|life| life.place <= end));
        assert!(
            reader.place_since(chance.below(u64::MAX)).unwrap().is_none_or(|place| place < end)
        );
        reader.has_times().unwrap();
        let from = chance.below(end + 1);
        reader.seek(from).unwrap();
        assert_eq!(bytes(&mut reader), &all[usize::try_from(from).unwrap()..]);
    }
}

/// Neither more lives than are told nor an index that is too long are kept in memory or read for long.
#[test]
fn a_huge_index_is_bounded() {
    let mut scene = Scene::new(1 << 20);
    for number in 0..3000 {
        scene.log.begin_life(1, number).unwrap();
    }
    scene.log.append(b"last\n", 3000);
    let reader = scene.reader();
    let lives = reader.lives().unwrap();
    assert_eq!((lives.len(), lives.back().unwrap().time_us), (LIVES_MAX, 2999));
    let index = File::options().write(true).open(scene.index(NAME)).unwrap();
    index.set_len(1 << 40).unwrap();
    let mut reader = scene.reader();
    assert_eq!(reader.lives().unwrap().len(), LIVES_MAX);
    assert!(told(&mut reader).ends_with("last\n"));
}
