//! Arbitrary bytes as a qcow2 image, opened for reading or for writing: it is refused, or can be
//! read and written. Opening makes no file larger, opens only files of the image's folder, and
//! leaves no thread.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use xen_block::RequestPage;
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::{Disk, DiskAccess, DiskIo, DiskOp, Piece, qcow2};

/// The folder of the image; in memory, as it is written for each input.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(format!("/dev/shm/xenbus-image-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder in memory");
    std::fs::write(folder.join("base"), [0x5a; 4096]).expect("a raw backing file");
    std::fs::write(folder.join("data"), [0; 65536]).expect("a data file");
    folder
});

fuzz_target!(|input: &[u8]| {
    let Some((&[how, behind], bytes)) = input.split_first_chunk() else { return };
    let image = FOLDER.join("image");
    std::fs::write(&image, bytes).expect("an image in memory");
    // The bytes behind the input were never written.
    let file = std::fs::File::options().write(true).open(&image).expect("it is there");
    let len = bytes.len() as u64 + (u64::from(behind) << 12);
    file.set_len(len).expect("a sparse file");
    let blocks = || file.metadata().expect("it is open").blocks();
    let before = blocks();
    let writes = how & 1 != 0;
    let access = if writes { DiskAccess::ReadWrite } else { DiskAccess::ReadOnly };
    let image_dirs = ImageDirs::default().with_file("/dev/null".into());
    let opened = qcow2::open(&image, access, &image_dirs);
    assert!(blocks() <= before, "opening has made the file larger");
    let Ok(mut disk) = opened else { return };
    let sectors = disk.geometry().sectors;
    let mut pending = 0;
    for (tag, op, sector) in [
        (0, DiskOp::Read, 0),
        (1, DiskOp::Read, u64::from(how) << 3),
        (2, DiskOp::Write, u64::from(behind) << 3),
        (3, DiskOp::Discard, 0),
        (4, DiskOp::Read, sectors.saturating_sub(8)),
        (5, DiskOp::Flush, 0),
    ] {
        let is_change = matches!(op, DiskOp::Write | DiskOp::Discard);
        if sector.saturating_add(8) > sectors || (is_change && !writes) {
            continue;
        }
        let mut io = DiskIo::empty();
        (io.tag, io.op, io.sector) = (tag, op, sector);
        if op != DiskOp::Flush {
            io.sectors = 8;
        }
        if matches!(op, DiskOp::Read | DiskOp::Write) {
            io.pieces.push(Piece { page: RequestPage::private(), offset: 0, len: 4096 });
        }
        match disk.submit(io) {
            Ok(None) => pending += 1,
            Ok(Some(_)) => {}
            Err(_) => panic!("there is room for a few"),
        }
    }
    let end = Instant::now() + Duration::from_secs(10);
    while pending > 0 {
        assert!(Instant::now() < end, "{pending} requests are not answered");
        match disk.finished() {
            Some(_) => pending -= 1,
            None => std::thread::yield_now(),
        }
    }
});
