//! The files that an image names: which are opened, how, and their locks. QEMU's tools make the
//! images and use them at the same time.

use crate::images::{Folder, tool};
use rustix::fs::{CWD, FileType, Mode};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::disk::image::{CHAIN_MAX, ImageFault};
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::open::OpenError;
use xen_block::disk::{Disk, DiskAccess, qcow2};

const WRITE: DiskAccess = DiskAccess::ReadWrite;
const READ: DiskAccess = DiskAccess::ReadOnly;

/// The longest time that a step may take.
const WITHIN: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(2);

/// Returns the rules without image folders.
fn no_image_dirs() -> ImageDirs {
    ImageDirs::default().with_file("/dev/null".into())
}

/// Opens a file that is not in use any more. A process that another test starts has, until it runs
/// its program, the locks of files that were closed here meanwhile: so an opening that finds one is
/// tried again.
fn open_when_free<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let end = Instant::now() + WITHIN;
    loop {
        match open() {
            Err(OpenError::Busy(_)) if Instant::now() < end => std::thread::sleep(MOMENT),
            opened => return opened,
        }
    }
}

/// Opens an image and closes it.
fn try_open(path: &str, access: DiskAccess, image_dirs: &ImageDirs) -> Result<(), OpenError> {
    open_when_free(|| qcow2::open(Path::new(path), access, image_dirs)).map(drop)
}

fn fault(path: &str, image_dirs: &ImageDirs) -> ImageFault {
    match try_open(path, READ, image_dirs) {
        Err(OpenError::Image(_, fault)) => fault,
        other => panic!("{path}: {other:?}"),
    }
}

fn create(path: &str, options: &[&str]) {
    let arguments = [&["create", "-q", "-f", "qcow2"], options, &[path]].concat();
    tool("qemu-img", &arguments);
}

/// Returns the resolved name of a file.
fn real(path: &str) -> PathBuf {
    std::fs::canonicalize(path).unwrap()
}

/// Such a chain ended the daemon that serves all guests, again at each start.
#[test]
fn a_chain_that_ends_in_itself_is_refused() {
    let Some(folder) = Folder::new("loop") else { return };
    let (one, two) = (folder.file("1.qcow2"), folder.file("2.qcow2"));
    create(&one, &["-o", "size=16M"]);
    for (named, by) in [(&one, &one), (&one, &two), (&two, &one)] {
        if !Path::new(by.as_str()).exists() {
            create(by, &["-o", "size=16M"]);
        }
        tool("qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", named, by]);
        if by == &one {
            assert_eq!(fault(&one, &no_image_dirs()), ImageFault::Loop(real(&one)));
        }
    }
    assert_eq!(fault(&two, &no_image_dirs()), ImageFault::Loop(real(&two)));
}

#[test]
fn a_chain_has_64_images_at_most() {
    let Some(folder) = Folder::new("long") else { return };
    let name = |at: usize| folder.file(&format!("{at}.qcow2"));
    create(&name(1), &["-o", "size=16M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 0 64k", &name(1)]);
    for at in 2..=CHAIN_MAX + 1 {
        // The file behind the image is not looked at.
        let behind = format!("{}.qcow2", at - 1);
        create(&name(at), &["-u", "-F", "qcow2", "-b", &behind, "-o", "size=16M"]);
    }
    try_open(&name(CHAIN_MAX), WRITE, &no_image_dirs()).unwrap();
    assert_eq!(fault(&name(CHAIN_MAX + 1), &no_image_dirs()), ImageFault::Long);
}

#[test]
fn nothing_is_guessed_of_a_backing_file() {
    let Some(folder) = Folder::new("format") else { return };
    let (base, top) = (folder.file("base"), folder.file("top.qcow2"));
    // The guest of a raw disk may write this into it: an image that names a file of the host.
    create(&base, &["-u", "-F", "raw", "-b", "/etc/passwd", "-o", "size=1M"]);
    create(&top, &["-F", "raw", "-b", &base]);
    try_open(&top, READ, &no_image_dirs()).unwrap();
    for (format, wanted) in [
        ("vmdk", ImageFault::Format(base.clone(), "vmdk".to_owned())),
        ("qcow2", ImageFault::Place(real("/etc/passwd"))),
    ] {
        tool("qemu-img", &["rebase", "-u", "-F", format, "-b", &base, &top]);
        assert_eq!(fault(&top, &no_image_dirs()), wanted);
    }
    // Old versions of QEMU's tools wrote images without a format of the backing file.
    for (compat, header) in [("0.10", 72), ("1.1", 0)] {
        create(&top, &["-F", "raw", "-b", &base, "-o", &format!("compat={compat}")]);
        try_open(&top, READ, &no_image_dirs()).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&top).unwrap();
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let format = 0xe279_2aca_u32.to_be_bytes();
        let at = bytes.windows(4).skip(header).position(|four| four == format).unwrap() + header;
        file.write_all_at(&[1], at as u64).unwrap();
        assert_eq!(fault(&top, &no_image_dirs()), ImageFault::NoFormat(base.clone()));
    }
    for name in ["nbd:unix:/x", "json:{}", "https://a/b", "ssh://a/b"] {
        tool("qemu-img", &["rebase", "-u", "-F", "raw", "-b", name, &top]);
        assert_eq!(fault(&top, &no_image_dirs()), ImageFault::Protocol(name.to_owned()));
    }
}

#[test]
fn what_an_image_names_lies_in_its_folder_or_an_image_folder() {
    let Some(folder) = Folder::new("place") else { return };
    let at = |name: &str| folder.file(name);
    for below in ["own/below", "own-not", "images"] {
        std::fs::create_dir_all(at(below)).unwrap();
    }
    let images = ImageDirs::new(vec![at("images").into()]).with_file("/dev/null".into());
    std::os::unix::fs::symlink(at("own-not"), at("own/link")).unwrap();
    let top = at("own/top.qcow2");
    for (base, inside, allowed) in [
        ("own/base.qcow2", true, true),
        ("own/below/base.qcow2", true, true),
        ("own-not/base.qcow2", false, false),
        ("own/link/base.qcow2", false, false),
        ("own/../own-not/base.qcow2", false, false),
        ("images/base.qcow2", false, true),
    ] {
        create(&at(base), &["-o", "size=1M"]);
        create(&top, &["-F", "qcow2", "-b", &at(base)]);
        let refused = || Err(OpenError::Image(real(&top), ImageFault::Place(real(&at(base)))));
        for (image_dirs, allowed) in [(&no_image_dirs(), inside), (&images, allowed)] {
            let wanted = if allowed { Ok(()) } else { refused() };
            assert_eq!(try_open(&top, WRITE, image_dirs), wanted, "{base}");
        }
    }
    // The backing file's own folder counts for the names in it.
    create(&at("images/base.qcow2"), &["-F", "qcow2", "-b", &at("own/base.qcow2")]);
    create(&top, &["-F", "qcow2", "-b", &at("images/base.qcow2")]);
    assert_eq!(fault(&top, &images), ImageFault::Place(real(&at("own/base.qcow2"))));
}

#[test]
fn a_fifo_or_a_device_behind_an_image_is_refused_at_once() {
    let Some(folder) = Folder::new("fifo") else { return };
    let (fifo, top) = (folder.file("fifo"), folder.file("top.qcow2"));
    rustix::fs::mknodat(CWD, Path::new(&fifo), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for named in [&fifo, "/dev/null", "/dev/random"] {
        for format in ["raw", "qcow2"] {
            create(&top, &["-u", "-F", format, "-b", named, "-o", "size=1M"]);
            let wanted = Err(OpenError::NotADisk(named.into()));
            assert_eq!(try_open(&top, WRITE, &no_image_dirs()), wanted);
        }
    }
    let options = Options { access: READ, cache: Cache::PageCache, way: IoMethod::Best };
    let raw = FileDisk::open(Path::new(&fifo), options).map(drop);
    assert_eq!(raw, Err(OpenError::NotADisk(fifo.into())));
}

#[test]
fn a_data_file_is_in_the_images_folder_and_written_for_disks_that_are_written() {
    let Some(folder) = Folder::new("data") else { return };
    let at = |name: &str| folder.file(name);
    std::fs::create_dir_all(at("own")).unwrap();
    std::fs::create_dir_all(at("images")).unwrap();
    let images = ImageDirs::new(vec![at("images").into()]).with_file("/dev/null".into());
    let top = at("own/top.qcow2");
    for (data, inside) in [("own/data", true), ("images/data", false)] {
        create(&top, &["-o", &format!("size=1M,data_file={}", at(data))]);
        for access in [READ, WRITE] {
            let refused =
                || Err(OpenError::Image(real(&top), ImageFault::DataPlace(real(&at(data)))));
            let wanted = if inside { Ok(()) } else { refused() };
            assert_eq!(try_open(&top, access, &images), wanted, "{data}");
        }
    }
    create(&top, &["-o", &format!("size=1M,data_file={}", at("own/data"))]);
    let modes = |access| {
        let disk =
            open_when_free(|| qcow2::open(Path::new(&top), access, &no_image_dirs())).unwrap();
        let modes = open_modes(&real(&at("own/data")));
        drop(disk);
        modes
    };
    assert_eq!(modes(READ), [rustix::fs::OFlags::RDONLY]);
    assert_eq!(modes(WRITE), [rustix::fs::OFlags::RDWR]);
}

/// Returns the modes in which this process has a file open.
fn open_modes(path: &Path) -> Vec<rustix::fs::OFlags> {
    let mut modes = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|link| link == path) {
            let number = entry.file_name().into_string().unwrap();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            modes.push(rustix::fs::OFlags::from_bits_retain(flags) & rustix::fs::OFlags::RWMODE);
        }
    }
    modes
}

/// A server of QEMU that has an image open.
struct QemuServer(Child, String);

impl QemuServer {
    fn start(folder: &Folder, image: &str, format: &str) -> Self {
        let socket = folder.file("socket");
        let mut command = Command::new("qemu-nbd");
        command.args(["-k", &socket, "-f", format, "-e", "2", "-v", "-t", image]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let end = Instant::now() + WITHIN;
        loop {
            // The server listens before it has opened the image, and sends its greeting after that.
            let greeted = UnixStream::connect(&socket)
                .is_ok_and(|mut stream| stream.read_exact(&mut [0; 8]).is_ok());
            if greeted {
                break;
            }
            if let Some(status) = child.try_wait().unwrap() {
                let said = BufReader::new(child.stderr.take().unwrap()).lines();
                let said: Vec<_> = said.map_while(Result::ok).collect();
                panic!("qemu-nbd: {status}: {said:?}");
            }
            assert!(Instant::now() < end, "qemu-nbd does not serve");
            std::thread::sleep(MOMENT);
        }
        Self(child, socket)
    }
}

impl Drop for QemuServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_file(&self.1);
    }
}

/// Opens a disk, without a request to it.
fn disk(path: &str, format: &str, access: DiskAccess) -> Result<Box<dyn Disk>, OpenError> {
    let path = Path::new(path);
    match format {
        "raw" => {
            let options = Options { access, cache: Cache::Direct, way: IoMethod::Best };
            FileDisk::open(path, options).map(|disk| Box::new(disk) as Box<dyn Disk>)
        }
        _ => {
            qcow2::open(path, access, &no_image_dirs()).map(|disk| Box::new(disk) as Box<dyn Disk>)
        }
    }
}

/// QEMU's tools and this crate respect each other's locks.
#[test]
fn images_are_locked_against_qemu_and_by_qemu() {
    let Some(folder) = Folder::new("locks") else { return };
    for format in ["raw", "qcow2"] {
        let (image, top) = (folder.file("image"), folder.file("top.qcow2"));
        tool("qemu-img", &["create", "-q", "-f", format, &image, "1M"]);
        create(&top, &["-F", format, "-b", &image]);
        let once = |image: &str, format: &str, what: &str| {
            let mut command = Command::new("qemu-io");
            command.args(["-f", format, "-c", what]);
            if what.starts_with("read") {
                command.arg("-r");
            }
            command.arg(image).output().unwrap().status.success()
        };
        // An opening that is to succeed is tried again, as in `open_when_free`.
        let qemu = |image: &str, format: &str, what: &str, is_let: bool| {
            let end = Instant::now() + WITHIN;
            while once(image, format, what) != is_let {
                assert!(is_let && Instant::now() < end, "{format}: {what}: let in: {}", !is_let);
                std::thread::sleep(MOMENT);
            }
        };
        let (write, read) = ("write 0 4k", "read 0 4k");
        let ours = |image: &str, format: &str, access| {
            open_when_free(|| disk(image, format, access)).unwrap()
        };
        let busy = |path: &str| Err(OpenError::Busy(real(path)));
        // This crate first.
        let held = ours(&image, format, WRITE);
        qemu(&image, format, write, false);
        drop(held);
        let held = ours(&image, format, READ);
        qemu(&image, format, read, true);
        // A raw file may be read while it changes; tables may not change while they are read.
        qemu(&image, format, write, format == "raw");
        drop(held);
        let held = ours(&top, "qcow2", WRITE);
        qemu(&image, format, write, false);
        qemu(&image, format, read, true);
        assert_eq!(disk(&image, format, WRITE).map(drop), busy(&image));
        drop(held);
        qemu(&image, format, write, true);
        // QEMU first.
        let theirs = QemuServer::start(&folder, &image, format);
        assert_eq!(disk(&image, format, WRITE).map(drop), busy(&image));
        assert_eq!(disk(&top, "qcow2", WRITE).map(drop), busy(&image));
        if format == "raw" {
            drop(ours(&image, format, READ));
        } else {
            assert_eq!(disk(&image, format, READ).map(drop), busy(&image));
        }
        drop(theirs);
        let theirs = QemuServer::start(&folder, &top, "qcow2");
        assert_eq!(disk(&top, "qcow2", WRITE).map(drop), busy(&top));
        drop(ours(&image, format, READ));
        drop(theirs);
        drop(ours(&top, "qcow2", WRITE));
    }
}

/// The tables of an image of version 3 with clusters of 64 KiB, written by the test.
struct ForgedImage(std::fs::File);

impl ForgedImage {
    const CLUSTER: u64 = 65536;

    fn new(path: &str, size: u64, l1: (u64, u32), counts: (u64, u32)) -> Self {
        let forged = Self(std::fs::File::create(path).unwrap());
        let mut head = Vec::from(*b"QFI\xfb");
        head.extend(3_u32.to_be_bytes());
        head.extend([0; 12]);
        head.extend(16_u32.to_be_bytes());
        head.extend(size.to_be_bytes());
        head.extend(0_u32.to_be_bytes());
        head.extend(l1.1.to_be_bytes());
        head.extend(l1.0.to_be_bytes());
        head.extend(counts.0.to_be_bytes());
        head.extend(counts.1.to_be_bytes());
        head.extend([0; 12]);
        head.extend([0; 24]);
        head.extend(4_u32.to_be_bytes());
        head.extend(104_u32.to_be_bytes());
        assert_eq!(head.len(), 104);
        forged.0.write_all_at(&head, 0).unwrap();
        forged
    }

    fn table(&self, at: u64, entries: impl Iterator<Item = u64>) {
        let bytes: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
        self.0.write_all_at(&bytes, at).unwrap();
    }

    fn blocks(&self) -> u64 {
        self.0.metadata().unwrap().blocks()
    }
}

/// Each of 8192 clusters that a table names would be counted in another block, which the file does
/// not have: 512 MiB.
#[test]
fn an_image_does_not_grow_by_what_its_tables_claim() {
    let Some(folder) = Folder::new("forged") else { return };
    let image = folder.file("forged.qcow2");
    let (cluster, in_a_block) = (ForgedImage::CLUSTER, 32768);
    let forged = ForgedImage::new(&image, 512 << 20, (cluster, 1), (3 * cluster, 1));
    forged.table(cluster, std::iter::once((2 * cluster) | (1 << 63)));
    forged.table(2 * cluster, (0..8192).map(|at| (at * in_a_block * cluster) | (1 << 63)));
    forged.table(3 * cluster, (0..8192).map(|at| (4 + at) * cluster));
    forged.0.set_len((4 + 8192) * cluster).unwrap();
    // The first block counts the header and the tables as used.
    forged.0.write_all_at(&[0, 1].repeat(4 + 8192), 4 * cluster).unwrap();
    let before = forged.blocks();
    let refused = try_open(&image, WRITE, &no_image_dirs());
    assert!(matches!(refused, Err(OpenError::Image(_, ImageFault::Claim(_)))), "{refused:?}");
    assert_eq!(forged.blocks(), before);
}

/// Tables that are longer than the file, or too long for a file of its size, are not read into
/// memory.
#[test]
fn tables_are_within_the_file_and_no_larger_than_it_can_need() {
    let Some(folder) = Folder::new("claims") else { return };
    let image = folder.file("forged.qcow2");
    let cluster = ForgedImage::CLUSTER;
    let long = 256 << 20;
    for (l1, counts, len) in [
        ((cluster, u32::MAX), (2 * cluster, 1), long),
        ((cluster, 4 << 20), (2 * cluster, 1), long),
        ((cluster, 4 << 20), (2 * cluster, 1), 3 * cluster),
        ((cluster, 1), (2 * cluster, u32::MAX), long),
        ((cluster, 1), (2 * cluster, 200), long),
        ((cluster, 1), (2 * cluster, 2), 3 * cluster),
        ((1 << 60, 1), (2 * cluster, 1), long),
        ((cluster + 512, 1), (2 * cluster, 1), long),
        ((u64::MAX - 511, 1), (2 * cluster, 1), long),
    ] {
        let forged = ForgedImage::new(&image, 512 << 20, l1, counts);
        forged.0.set_len(len).unwrap();
        for access in [READ, WRITE] {
            let refused = try_open(&image, access, &no_image_dirs());
            let is_claim = matches!(refused, Err(OpenError::Image(_, ImageFault::Claim(_))));
            assert!(is_claim, "{l1:?} {counts:?} {len}: {refused:?}");
        }
    }
}

/// A fault of each kind of a header.
#[test]
fn a_header_is_refused_for_what_is_wrong_with_it() {
    let Some(folder) = Folder::new("header") else { return };
    let image = folder.file("a.qcow2");
    let change = |at: u64, bytes: &[u8]| {
        create(&image, &["-o", "size=1M"]);
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(bytes, at).unwrap();
        fault(&image, &no_image_dirs())
    };
    assert_eq!(change(0, b"KDMV"), ImageFault::NotQcow2);
    assert_eq!(change(4, &4_u32.to_be_bytes()), ImageFault::Version(4));
    assert_eq!(change(32, &2_u32.to_be_bytes()), ImageFault::Encrypted);
    assert_eq!(change(72, &1_u64.to_be_bytes()), ImageFault::Dirty);
    assert_eq!(change(72, &3_u64.to_be_bytes()), ImageFault::Corrupt);
    assert_eq!(change(72, &16_u64.to_be_bytes()), ImageFault::Subclusters);
    assert_eq!(change(72, &(1_u64 << 40).to_be_bytes()), ImageFault::Feature(40));
    assert_eq!(change(72, &4_u64.to_be_bytes()), ImageFault::NoDataFile);
    let zstd = |kind| {
        create(&image, &["-o", "size=1M,compression_type=zstd"]);
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(&[kind], 104).unwrap();
        fault(&image, &no_image_dirs())
    };
    assert_eq!(zstd(2), ImageFault::Compression(2));
    assert!(matches!(zstd(0), ImageFault::Claim(_)), "zlib needs no feature");
    assert!(matches!(change(104, &[1]), ImageFault::Claim(_)), "zstd is a feature");
    // A disk that is larger than the table of tables covers.
    assert!(matches!(change(24, &(1_u64 << 40).to_be_bytes()), ImageFault::Claim(_)));
    for (at, bytes) in [(20, 30_u32), (96, 7), (100, 8), (100, u32::MAX)] {
        let fault = change(at, &bytes.to_be_bytes());
        assert!(matches!(fault, ImageFault::Claim(_)), "{at}: {fault:?}");
    }
    // Cut off within its header.
    for bytes in [5, 30, 71, 103] {
        create(&image, &["-o", "size=1M"]);
        std::fs::File::options().write(true).open(&image).unwrap().set_len(bytes).unwrap();
        assert_eq!(fault(&image, &no_image_dirs()), ImageFault::Cut(bytes));
    }
}

/// The program checks several images, and its exit status tells if one is refused.
#[test]
fn xen_blockd_checks_images() {
    let Some(folder) = Folder::new("check") else { return };
    let at = |name: &str| folder.file(name);
    std::fs::create_dir_all(at("images")).unwrap();
    std::fs::create_dir_all(at("own")).unwrap();
    create(&at("images/base.qcow2"), &["-o", "size=1M"]);
    create(&at("own/top.qcow2"), &["-F", "qcow2", "-b", &at("images/base.qcow2")]);
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xen-blockd"));
        let output = command.arg("--check").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (top, base) = (at("own/top.qcow2"), at("images/base.qcow2"));
    let lines = |path: &str| real(path).display().to_string();
    let (code, said) = check(&[&base, &top]);
    let begin =
        format!("{0}: qcow2\nserved\n{1}: qcow2\nnot served: {1}: ", lines(&base), lines(&top));
    assert!(code == Some(1) && said.starts_with(&begin), "{code:?}: {said}");
    assert_eq!(said.lines().count(), 4, "{said}");
    let (code, said) = check(&["--image-dir", &at("images"), &top]);
    let wanted = format!("{}: qcow2\n  {}: qcow2\nserved\n", lines(&top), lines(&base));
    assert_eq!((code, said), (Some(0), wanted));
    assert_eq!(check(&[]).0, Some(2), "no image");
    let version = Command::new(env!("CARGO_BIN_EXE_xen-blockd")).arg("--version").output().unwrap();
    let wanted = concat!("xen-blockd ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!((version.status.code(), &*version.stdout), (Some(0), wanted.as_bytes()));
}

/// The check before anything is attached: the files that would be used, and the reason for a
/// refusal.
#[test]
fn a_chain_can_be_looked_at_while_it_is_used() {
    let Some(folder) = Folder::new("look") else { return };
    let (base, top) = (folder.file("base.qcow2"), folder.file("top.qcow2"));
    create(&base, &["-o", "size=1M"]);
    create(&top, &["-F", "qcow2", "-b", "base.qcow2"]);
    let _used = qcow2::open(Path::new(&top), WRITE, &no_image_dirs()).unwrap();
    let (lines, verdict) = qcow2::look(Path::new(&top), &no_image_dirs());
    let line = |path: &str| format!("{}: qcow2", real(path).display());
    assert_eq!((lines, verdict), (vec![line(&top), line(&base)], Ok(())));
}
