//! A block device with sectors of 4096 bytes: a loop device, which only root can make.

use crate::support::{Scene, Setup, device, once_free};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::NamedTempFile;
use xen_block::disk::DiskAccess;
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::front::{BufferSectors, DiskRequest};
use xen_io::blkif::Status;

const BYTES: usize = 4 << 20;

/// A loop device over a file of bytes 7; both are removed with it, also if the test fails.
struct LoopDevice {
    device: PathBuf,
    file: NamedTempFile,
}

impl LoopDevice {
    /// Creates the device; prints the reason if that is not possible.
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            conformance::skip(test, "only root can make a loop device");
            return None;
        }
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; BYTES]).unwrap();
        let mut losetup = Command::new("losetup");
        let made = losetup.args(["-b", "4096", "--show", "-f"]).arg(file.path()).output();
        let why = match made {
            Ok(made) if made.status.success() => {
                let name = String::from_utf8(made.stdout).unwrap();
                return Some(Self { device: name.trim().into(), file });
            }
            Ok(made) => String::from_utf8_lossy(&made.stderr).trim().to_owned(),
            Err(error) => format!("losetup: {error}"),
        };
        conformance::skip(test, &why);
        None
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// The device's node is in `/dev`, which is in memory, but the device is not: the loop that serves
/// all devices would wait for it.
#[test]
fn a_block_device_is_not_waited_for() {
    let Some(disk) = LoopDevice::new("a_block_device_is_not_waited_for") else { return };
    let (access, cache, way) = (DiskAccess::ReadWrite, Cache::Direct, IoMethod::Best);
    let disk = FileDisk::open(&disk.device, Options { access, cache, way }).unwrap();
    assert!(format!("{disk:?}").contains("io_uring"), "{disk:?}");
}

fn setup_of(path: &Path, cache: Cache, way: IoMethod) -> Setup {
    let path = path.to_owned();
    Setup::new(Box::new(move |_| {
        let options = Options { access: DiskAccess::ReadWrite, cache, way };
        let disk = once_free(|| FileDisk::open(&path, options));
        Ok(Box::new(disk?))
    }))
}

/// `io/blkif.h`: `sectors` and all numbers in requests count units of 512 bytes. The bounds of
/// requests are multiples of `sector-size`; a request with other bounds is refused.
#[test]
fn large_sectors_of_a_block_device() {
    let Some(disk) = LoopDevice::new("large_sectors_of_a_block_device") else { return };
    for (cache, way) in [
        (Cache::Direct, IoMethod::Best),
        (Cache::Direct, IoMethod::Uring),
        (Cache::Direct, IoMethod::Threads),
        (Cache::PageCache, IoMethod::Uring),
    ] {
        let what = format!("{cache:?} {way:?}");
        std::fs::write(disk.file.path(), vec![7; BYTES]).unwrap();
        // The device's cache of the file is dropped.
        let device_file = std::fs::File::options().read(true).write(true).open(&disk.device);
        device_file.unwrap().write_all_at(&vec![7; BYTES], 0).unwrap();
        let Some(mut scene) = Scene::connected(setup_of(&disk.device, cache, way)) else { return };
        let back = device().backend_path();
        for (name, value) in
            [("sector-size", "4096"), ("physical-sector-size", "4096"), ("sectors", "8192")]
        {
            assert_eq!(scene.node(&format!("{back}/{name}")), value, "{what}: {name}");
        }
        let bytes: Vec<u8> = (0..8192).map(|at| (at % 251) as u8).collect();
        assert_eq!(scene.write(8, &bytes), Status::Okay, "{what}");
        assert_eq!(scene.read(8, 2), Ok(bytes.clone()), "{what}");

        let buffer = scene.buffers(1)[0];
        scene.front().page(buffer).unwrap().copy_in(0, &[9; 4096]).unwrap();
        let (whole, sector) =
            (BufferSectors::whole(buffer), BufferSectors { buffer, first: 0, last: 0 });
        for (at, part) in
            [(16, sector), (20, whole), (8, BufferSectors { buffer, first: 1, last: 7 })]
        {
            let write = |tag| DiskRequest::Write { tag, sector: at };
            assert_eq!(scene.ask(write, &[part]), Status::Error, "{what}: sector {at}");
            let read = |tag| DiskRequest::Read { tag, sector: at };
            assert_eq!(scene.ask(read, &[part]), Status::Error, "{what}: sector {at}");
        }
        let discard = |tag| DiskRequest::Discard { tag, sector: 17, sectors: 8 };
        assert_eq!(scene.ask(discard, &[]), Status::Error, "{what}");
        assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay, "{what}");
        let mut wanted = vec![7; BYTES];
        wanted[4096..][..8192].copy_from_slice(&bytes);
        let kept = std::fs::File::open(disk.file.path()).unwrap();
        let mut found = vec![0; BYTES];
        kept.read_exact_at(&mut found, 0).unwrap();
        assert!(found == wanted, "{what}: what was refused has changed the disk");
        let discard = |tag| DiskRequest::Discard { tag, sector: 8, sectors: 8 };
        assert_eq!(scene.ask(discard, &[]), Status::Okay, "{what}");
        assert_eq!(scene.read(8, 2).map(|read| read[4096..] == bytes[4096..]), Ok(true), "{what}");
    }
}
