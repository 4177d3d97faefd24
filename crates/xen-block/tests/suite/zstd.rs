//! Images whose clusters are compressed with zstd, made by QEMU's tools: read, written, in chains,
//! and broken.

use crate::images::{Folder, pattern, tool};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use xen_block::RequestPage;
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::pool::PooledDisk;
use xen_block::disk::{Disk, DiskAccess, DiskIo, DiskOp, Piece, qcow2};

/// The longest time that a request may take.
const WITHIN: Duration = Duration::from_secs(30);

/// An open image, without a device.
struct OpenImage(PooledDisk);

impl OpenImage {
    /// Opens an image. A process that another test starts may have the locks of files that were
    /// closed here for a moment.
    fn open(path: &str, access: DiskAccess) -> Self {
        let image_dirs = ImageDirs::default().with_file("/dev/null".into());
        let open = || qcow2::open(Path::new(path), access, &image_dirs);
        Self(crate::support::once_free(open).unwrap())
    }

    /// Does one request of at most 4096 bytes; `Err` is its error.
    fn ask(
        &mut self,
        op: DiskOp,
        sector: u64,
        sectors: u64,
        page: &RequestPage,
    ) -> Result<(), Errno> {
        let mut io = DiskIo::empty();
        (io.op, io.sector) = (op, sector);
        if op != DiskOp::Flush {
            io.sectors = sectors;
        }
        if matches!(op, DiskOp::Read | DiskOp::Write) {
            io.pieces.push(Piece { page: page.clone(), offset: 0, len: sectors as u16 * 512 });
        }
        let submitted = self.0.submit(io);
        let Ok(mut done) = submitted else { panic!("there is room for one") };
        let end = Instant::now() + WITHIN;
        loop {
            match done.take() {
                Some(done) => return done.1,
                None => assert!(Instant::now() < end, "{op:?} at {sector} is not answered"),
            }
            done = self.0.finished();
        }
    }

    fn read(&mut self, sector: u64, sectors: u64) -> Result<Vec<u8>, Errno> {
        let page = RequestPage::private();
        self.ask(DiskOp::Read, sector, sectors, &page)?;
        let mut bytes = vec![0; sectors as usize * 512];
        page.copy_out(0, &mut bytes).unwrap();
        Ok(bytes)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Errno> {
        let page = RequestPage::private();
        page.copy_in(0, bytes).unwrap();
        self.ask(DiskOp::Write, sector, bytes.len() as u64 / 512, &page)
    }

    /// Reads all of the disk.
    fn all(&mut self) -> Vec<u8> {
        let sectors = self.0.geometry().sectors;
        let reads = (0..sectors).step_by(8);
        reads.flat_map(|at| self.read(at, 8.min(sectors - at)).unwrap()).collect()
    }
}

/// Packs `bytes` into an image, with clusters of this size.
fn packed(image: &str, bytes: &[u8], cluster: &str) {
    let raw = format!("{image}.raw");
    std::fs::write(&raw, bytes).unwrap();
    let options = format!("compression_type=zstd,cluster_size={cluster}");
    tool("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &options, &raw, image]);
}

/// Checks that QEMU finds these bytes in the image, and no fault in its tables.
fn assert_holds(image: &str, bytes: &[u8]) {
    let raw = format!("{image}.wanted");
    std::fs::write(&raw, bytes).unwrap();
    tool("qemu-img", &["check", "-q", image]);
    tool("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", image, &raw]);
}

/// Returns some bytes that compress well and some that do not; the last cluster is not whole.
fn content() -> Vec<u8> {
    let mut seed = 7_u64;
    let mut bytes = pattern(3, 512);
    for byte in &mut bytes[1 << 20..5 << 18] {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 33) as u8 & 0x3f;
    }
    bytes.extend([9; 3 * 512]);
    bytes
}

#[test]
fn compressed_clusters_of_each_size_are_read() {
    let Some(folder) = Folder::new("zstd-read") else { return };
    let wanted = content();
    for cluster in ["512", "4k", "64k", "2M"] {
        let image = folder.file("a.qcow2");
        packed(&image, &wanted, cluster);
        assert!(OpenImage::open(&image, DiskAccess::ReadOnly).all() == wanted, "{cluster}");
    }
}

/// A cluster that is written in part is whole and uncompressed afterwards, also the last cluster,
/// and the header is unchanged.
#[test]
fn compressed_clusters_are_written() {
    let Some(folder) = Folder::new("zstd-write") else { return };
    for cluster in ["512", "4k", "64k", "2M"] {
        let mut wanted = content();
        let image = folder.file("a.qcow2");
        packed(&image, &wanted, cluster);
        // A feature that nobody knows: a program that writes to the image clears this bit, and so
        // writes the whole header.
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(&32_u64.to_be_bytes(), 88).unwrap();
        let mut disk = OpenImage::open(&image, DiskAccess::ReadWrite);
        let last = wanted.len() as u64 / 512 - 1;
        for (value, sector, sectors) in
            [(1, 0, 1), (2, 127, 3), (3, 1280, 8), (4, 2050, 2), (5, 2555, 8), (6, last, 1)]
        {
            let bytes = vec![value; sectors as usize * 512];
            disk.write(sector, &bytes).unwrap();
            wanted[sector as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
            assert_eq!(disk.read(sector, sectors), Ok(bytes));
        }
        disk.ask(DiskOp::Discard, 512, 700, &RequestPage::private()).unwrap();
        wanted[512 * 512..1212 * 512].fill(0);
        disk.ask(DiskOp::Discard, last - 1, 2, &RequestPage::private()).unwrap();
        wanted[(last as usize - 1) * 512..].fill(0);
        assert!(disk.all() == wanted, "{cluster}");
        drop(disk);
        let mut features = [0; 8];
        File::open(&image).unwrap().read_exact_at(&mut features, 88).unwrap();
        assert_eq!(features, [0; 8], "the header was written");
        assert_holds(&image, &wanted);
        let said = tool("qemu-img", &["info", "--output=json", &image]).stdout;
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(r#""compression-type": "zstd""#), "{said}");
        assert!(said.contains(&format!(r#""virtual-size": {}"#, wanted.len())), "{said}");
    }
}

/// An image with zlib on one with zstd on a raw one, and the other way round; the backing files are
/// smaller.
#[test]
fn images_with_zstd_stand_in_chains() {
    let Some(folder) = Folder::new("zstd-chain") else { return };
    let behind = content();
    for (middle, top) in [("zstd", "zlib"), ("zlib", "zstd")] {
        let at = |name: &str| folder.file(&format!("{middle}-{name}"));
        let (base, image) = (at("base"), at("top"));
        let option = format!("compression_type={middle}");
        let raw = at("raw");
        std::fs::write(&raw, &behind).unwrap();
        tool("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &option, &raw, &base]);
        // One cluster of the top is its own, and compressed; the end of the backing file is within
        // a cluster.
        let options = format!("compression_type={top},size=4M");
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, "-o", &options];
        tool("qemu-img", &[&create[..], &[&image]].concat());
        tool("qemu-io", &["-f", "qcow2", "-c", "write -q -c -P 5 64k 64k", &image]);
        let mut wanted = behind.clone();
        wanted.resize(4 << 20, 0);
        wanted[65536..131_072].fill(5);
        let mut disk = OpenImage::open(&image, DiskAccess::ReadWrite);
        assert!(disk.all() == wanted, "{middle} behind {top}");
        let end = behind.len() as u64 / 512;
        for (value, sector) in [(1, 3), (2, 129), (3, 1000), (4, end - 1), (5, end + 9)] {
            disk.write(sector, &[value; 512]).unwrap();
            wanted[sector as usize * 512..][..512].fill(value);
        }
        assert!(disk.all() == wanted, "{middle} behind {top}, written");
        drop(disk);
        assert_holds(&image, &wanted);
        assert_holds(&base, &behind);
    }
}

/// Reads a number of an image's tables.
fn number(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Returns the place in the file of the first table of the disk's clusters.
fn table(file: &File) -> u64 {
    number(file, number(file, 40)) & 0xff_ffff_ffff_fe00
}

/// An image can be made so that the disk's data overlaps its tables: the guest's writes then change
/// them while they are in use.
#[test]
fn tables_that_the_guest_can_write_harm_its_own_disk_alone() {
    let Some(folder) = Folder::new("zstd-upon") else { return };
    let image = folder.file("a.qcow2");
    packed(&image, &content(), "64k");
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let table = table(&file);
    file.write_all_at(&(1 << 63 | table).to_be_bytes(), table).unwrap();
    let mut disk = OpenImage::open(&image, DiskAccess::ReadWrite);
    let second = disk.read(128, 1).unwrap();
    assert_eq!(second, content()[65536..][..512]);
    // The table in the file names no cluster any more, and the one in memory still does.
    disk.write(0, &[0; 4096]).unwrap();
    assert_eq!(disk.read(128, 1), Err(Errno::IO));
    assert_eq!(disk.write(129, &[1; 512]), Err(Errno::IO));
    assert_eq!(disk.ask(DiskOp::Discard, 129, 1, &RequestPage::private()), Err(Errno::IO));
    disk.write(1, &[1; 512]).unwrap();
    assert_eq!(disk.read(1, 1), Ok(vec![1; 512]));
}

/// A cluster that cannot be decoded is an error for a request that needs it, and for no other; it
/// can be written again.
#[test]
fn broken_clusters_with_zstd_harm_themselves_alone() {
    let Some(folder) = Folder::new("zstd-broken") else { return };
    let image = folder.file("a.qcow2");
    let place = |file: &File, cluster: u64| {
        let entry_at = table(file) + cluster * 8;
        (entry_at, number(file, entry_at))
    };
    let offset = |entry: u64| entry & ((1 << 54) - 1);
    type Break = fn(&File, (u64, u64), u64);
    let breaks: [(&str, Break); 7] = [
        ("another magic number", |file, _, at| file.write_all_at(b"no", at).unwrap()),
        ("a block of no type", |file, _, at| file.write_all_at(&[255; 40], at + 6).unwrap()),
        ("a window of 3.75 TB", |file, _, at| file.write_all_at(&[0, 255], at + 4).unwrap()),
        ("behind the end", |file, (entry_at, entry), _| {
            file.write_all_at(&(entry | 1 << 50).to_be_bytes(), entry_at).unwrap();
        }),
        // A frame with a window of 1 MiB, and blocks that repeat one byte 128 KiB times.
        ("longer than a cluster", |file, entry, _| {
            point_to_frame(file, entry, &[0x02, 0x00, 0x10, 0x55].repeat(4000), 0x50);
        }),
        // The same frame with empty blocks.
        ("too many blocks", |file, entry, _| point_to_frame(file, entry, &[0; 12_000], 0x50)),
        ("cut off", |file, _, at| file.set_len(at + 9).unwrap()),
    ];
    for (what, broken) in breaks {
        let wanted = content();
        packed(&image, &wanted, "64k");
        let file = File::options().read(true).write(true).open(&image).unwrap();
        // The last whole cluster: only the last cluster of the disk follows it.
        let cluster = wanted.len() as u64 / 65536 - 1;
        let (entry_at, entry) = place(&file, cluster);
        broken(&file, (entry_at, entry), offset(entry));
        let sector = cluster * 128;
        let mut disk = OpenImage::open(&image, DiskAccess::ReadWrite);
        assert_eq!(disk.read(sector, 1), Err(Errno::IO), "{what}");
        assert_eq!(disk.write(sector + 9, &[1; 512]), Err(Errno::IO), "{what}");
        let discarded = disk.ask(DiskOp::Discard, sector + 9, 8, &RequestPage::private());
        assert_eq!(discarded, Err(Errno::IO), "{what}");
        assert_eq!(disk.read(0, 1).unwrap(), wanted[..512], "{what}");
        disk.write(1, &[7; 512]).unwrap();
        assert_eq!(disk.read(0, 2).unwrap()[512..], [7; 512], "{what}");
        drop(disk);
        // The same image as a backing file.
        let top = folder.file("top.qcow2");
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &image, &top]);
        let mut disk = OpenImage::open(&top, DiskAccess::ReadWrite);
        assert_eq!(disk.write(sector + 9, &[1; 512]), Err(Errno::IO), "{what}");
        disk.write(3, &[8; 512]).unwrap();
        assert_eq!(disk.read(3, 1), Ok(vec![8; 512]), "{what}");
    }
}

/// Points an entry to a frame at the end of the file, with these blocks and this descriptor of its
/// window.
fn point_to_frame(file: &File, (entry_at, entry): (u64, u64), blocks: &[u8], window: u8) {
    let end = file.metadata().unwrap().len().next_multiple_of(512);
    let head = [0x28, 0xb5, 0x2f, 0xfd, 0x00, window];
    file.write_all_at(&[&head, blocks].concat(), end).unwrap();
    let flags = entry & 1 << 62;
    file.write_all_at(&(flags | 0xff << 54 | end).to_be_bytes(), entry_at).unwrap();
}
