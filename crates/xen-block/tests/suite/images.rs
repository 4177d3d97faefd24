//! Images and servers of other programs: QEMU's tools read data that was written through a device,
//! and the other way round.

use crate::support::{Scene, Setup, device};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use tempfile::TempDir;
use xen_block::front::{BufferSectors, Completion, DiskRequest};
use xen_io::blkif::Status;
use xenbus::{State, toolstack};

/// A folder for images; `None`, with a printed line that gives the reason, if QEMU's tools are not
/// available.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new(name: &str) -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            conformance::skip(name, "there is no qemu-img (Debian: qemu-utils)");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

pub(crate) fn tool(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&text));
    output
}

/// Returns a device whose nodes name this disk.
pub(crate) fn scene(params: &str, mode: &str) -> Option<Scene> {
    scene_with(Setup::named(), params, mode)
}

pub(crate) fn scene_with(setup: Setup, params: &str, mode: &str) -> Option<Scene> {
    let mut scene = Scene::new(setup)?;
    let mut device = device();
    device.backend_nodes = vec![("params".into(), params.into()), ("mode".into(), mode.into())];
    toolstack::add(&mut scene.tool, &device).unwrap();
    Some(scene)
}

pub(crate) fn connected(params: &str, mode: &str) -> Option<Scene> {
    let mut scene = scene(params, mode)?;
    scene.until_connected();
    Some(scene)
}

pub(crate) fn pattern(seed: u8, pages: usize) -> Vec<u8> {
    (0..pages * 4096).map(|at| (at / 512) as u8 ^ seed).collect()
}

/// Creates an image of this size whose first MiB is 0x5a, and an empty one that has it as its
/// backing file.
fn base_and_top(folder: &Folder, size: &str) -> (String, String) {
    let (base, top) = (folder.file("base.qcow2"), folder.file("top.qcow2"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &base, size]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -q -P 0x5a 0 1M", &base]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &top]);
    (base, top)
}

pub(crate) fn detach(scene: &mut Scene) {
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
}

#[test]
fn qcow2_images_are_written_as_qemu_reads_them() {
    let Some(folder) = Folder::new("qcow2") else { return };
    let image = folder.file("a.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &image, "64M"]);
    let Some(mut scene) = connected(&format!("qcow2:{image}"), "w") else { return };
    assert_eq!(scene.front().info().unwrap().sectors, 131_072);
    let raw = folder.file("wanted");
    let mut wanted = vec![0; 64 << 20];
    for (seed, page, pages) in [(1, 0, 40), (2, 16, 64), (3, 8000, 100), (4, 16383, 1)] {
        let bytes = pattern(seed, pages);
        assert_eq!(scene.write(page * 8, &bytes), Status::Okay);
        wanted[page as usize * 4096..][..bytes.len()].copy_from_slice(&bytes);
    }
    let discard = |tag| DiskRequest::Discard { tag, sector: 8000 * 8, sectors: 256 };
    assert_eq!(scene.ask(discard, &[]), Status::Okay);
    wanted[8000 * 4096..][..256 * 512].fill(0);
    assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
    assert_eq!(scene.read(16 * 8, 64), Ok(pattern(2, 64)));
    detach(&mut scene);
    std::fs::write(&raw, wanted).unwrap();
    tool("qemu-img", &["check", "-q", &image]);
    tool("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", &image, &raw]);
}

/// A backend that is killed leaves the contents of its file, and its successor continues with that:
/// all answered writes must be there, flushed or not, and no cluster in use may be free.
#[test]
fn qcow2_images_have_what_was_answered_without_a_flush() {
    let Some(folder) = Folder::new("answered") else { return };
    let (_, top) = base_and_top(&folder, "2G");
    let Some(mut scene) = connected(&format!("qcow2:{top}"), "w") else { return };
    let left = folder.file("left.qcow2");
    let mut reads: Vec<String> = Vec::new();
    let mut look = |what: &str, read: String| {
        std::fs::copy(&top, &left).unwrap();
        reads.push(read);
        let mut arguments = vec!["-r", "-f", "qcow2"];
        arguments.extend(reads.iter().flat_map(|read| ["-c", read.as_str()]));
        arguments.push(&left);
        let output = tool("qemu-io", &arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "after {what}");
        tool("qemu-img", &["check", "-q", &left]);
    };
    // Parts of a cluster that the backing file has; clusters that neither file has; the same
    // clusters again, in place; further tables.
    for (at, page) in [16, 17, 300, 300, 310, 200_000, 400_000].into_iter().enumerate() {
        let pattern = at as u8 + 1;
        assert_eq!(scene.write(page * 8, &[pattern; 4096]), Status::Okay);
        if page == 300 && at == 2 {
            continue;
        }
        look(&format!("write {at}"), format!("read -q -P {pattern} {}k 4k", page * 4));
    }
    let discard = |tag| DiskRequest::Discard { tag, sector: 8 * 128, sectors: 128 };
    assert_eq!(scene.ask(discard, &[]), Status::Okay);
    look("a discard", format!("read -q -P 0 {}k 64k", 512));
    assert_eq!(scene.read(300 * 8, 1), Ok(vec![4; 4096]));
    detach(&mut scene);
}

/// Writes and discards in parallel: at each pause the file has all of them, and no cluster twice.
#[test]
fn qcow2_images_are_whole_after_writes_and_discards_side_by_side() {
    whole_after_writes_and_discards_side_by_side("zlib");
}

#[test]
fn images_with_zstd_are_whole_after_writes_and_discards_side_by_side() {
    whole_after_writes_and_discards_side_by_side("zstd");
}

fn whole_after_writes_and_discards_side_by_side(compression: &str) {
    let Some(folder) = Folder::new(&format!("beside-{compression}")) else { return };
    let (packed, image, left) =
        (folder.file("base.qcow2"), folder.file("top.qcow2"), folder.file("left.qcow2"));
    // Some clusters are compressed, and some also belong to a snapshot.
    let raw = folder.file("raw");
    std::fs::write(&raw, pattern(9, 1024)).unwrap();
    let option = format!("compression_type={compression}");
    tool("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &option, &raw, &packed]);
    tool("qemu-img", &["resize", "-q", &packed, "3G"]);
    std::fs::copy(&packed, &image).unwrap();
    tool("qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 2M 1M", &image]);
    tool("qemu-img", &["snapshot", "-c", "before", &image]);
    let Some(mut scene) = connected(&format!("qcow2:{image}"), "w") else { return };
    // 32 areas of 128 KiB, each of one tag: some in the first table, some in others.
    let area = |tag: u64| if tag < 24 { tag * 32 } else { (tag - 20) * 65536 };
    let buffers = scene.buffers(32);
    let mut seed = 11_u64;
    let mut wanted: Vec<Vec<u8>> = (0..32)
        .map(|tag| match scene.read(area(tag) * 8, 32) {
            Ok(bytes) => bytes,
            Err(status) => panic!("{status:?}"),
        })
        .collect();
    for round in 0..12 {
        for _ in 0..20 {
            let mut done = 0;
            for (tag, wanted) in (0..32).zip(&mut wanted) {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let (page, value) = (seed >> 33 & 31, (seed >> 40) as u8);
                if seed >> 50 & 3 == 0 {
                    let half = page / 16 * 16;
                    let want =
                        DiskRequest::Discard { tag, sector: (area(tag) + half) * 8, sectors: 128 };
                    scene.front().submit(0, want, &[]).unwrap();
                    wanted[half as usize * 4096..][..65536].fill(0);
                } else {
                    let buffer = buffers[tag as usize];
                    scene.front().page(buffer).unwrap().copy_in(0, &[value; 4096]).unwrap();
                    let want = DiskRequest::Write { tag, sector: (area(tag) + page) * 8 };
                    scene.front().submit(0, want, &[BufferSectors::whole(buffer)]).unwrap();
                    wanted[page as usize * 4096..][..4096].fill(value);
                }
            }
            scene.front().push().unwrap();
            scene.until("all answers", |scene| {
                let take = |ended: Completion| {
                    assert_eq!(ended.status, Status::Okay);
                    done += 1;
                };
                scene.front().take(take).unwrap();
                done == 32
            });
        }
        // The image that a successor would find.
        std::fs::copy(&image, &left).unwrap();
        tool("qemu-img", &["check", "-q", &left]);
        let flat = folder.file("flat");
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &left, &flat]);
        let flat = std::fs::File::open(flat).unwrap();
        for (tag, wanted) in (0..32).zip(&wanted) {
            let mut there = vec![0; wanted.len()];
            flat.read_exact_at(&mut there, area(tag) * 4096).unwrap();
            assert!(there == *wanted, "round {round}: area {tag}");
        }
    }
    detach(&mut scene);
}

#[test]
fn encrypted_images_are_refused() {
    let Some(folder) = Folder::new("encrypted") else { return };
    let image = folder.file("a.qcow2");
    let (secret, options) =
        ("secret,id=sec0,data=word", "encrypt.format=luks,encrypt.key-secret=sec0");
    let how = ["create", "-q", "--object", secret, "-f", "qcow2", "-o", options, &image, "8M"];
    tool("qemu-img", &how);
    let top = folder.file("top.qcow2");
    tool(
        "qemu-img",
        &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &image, &top, "8M"],
    );
    for (image, mode) in [(&image, "w"), (&image, "r"), (&top, "w"), (&top, "r")] {
        let Some(mut scene) = scene(&format!("qcow2:{image}"), mode) else { return };
        scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
        let error = scene.node(&format!("{}/error", device().backend_path()));
        assert!(error.contains("the image is encrypted"), "{error}");
    }
}

/// A machine that loses power may leave an image whose clusters are in use and not counted: the
/// next writer must not take these.
#[test]
fn clusters_of_a_qcow2_image_that_are_used_and_not_counted_are_counted() {
    let Some(folder) = Folder::new("counted") else { return };
    for bits in ["1", "4", "8", "16", "64"] {
        let image = folder.file(&format!("{bits}.qcow2"));
        let option = format!("refcount_bits={bits}");
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option, &image, "2G"]);
        let writes = ["write -q -P 1 0 1M", "write -q -P 2 1G 1M", "write -z -q 2M 64k"];
        let commands = writes.iter().flat_map(|write| ["-c", write]);
        tool("qemu-io", &[&["-f", "qcow2"], &*commands.collect::<Vec<_>>(), &[&image]].concat());
        // The only block of counts.
        let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
        let number = |at| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_be_bytes(bytes)
        };
        file.write_all_at(&[0; 65536], number(number(48))).unwrap();
        let check = || Command::new("qemu-img").args(["check", "-q", &image]).output().unwrap();
        assert_eq!(check().status.code(), Some(2), "no cluster is counted");
        let Some(mut scene) = connected(&format!("qcow2:{image}"), "w") else { return };
        for page in (512..1024).step_by(16) {
            assert_eq!(scene.write(page * 8, &[3; 4096]), Status::Okay);
        }
        detach(&mut scene);
        assert_eq!(check().status.code(), Some(0), "{:?}", check());
        let reads = ["read -q -P 1 0 1M", "read -q -P 2 1G 1M", "read -q -P 3 2M 4k"];
        for read in reads {
            let output = tool("qemu-io", &["-r", "-f", "qcow2", "-c", read, &image]);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{bits} bits");
        }
    }
}

#[test]
fn qcow2_backing_files_are_read_and_left_alone() {
    let Some(folder) = Folder::new("backing") else { return };
    let (base, top) = base_and_top(&folder, "8M");
    let before = std::fs::read(&base).unwrap();
    let Some(mut scene) = connected(&format!("qcow2:{top}"), "w") else { return };
    assert_eq!(scene.read(0, 1), Ok(vec![0x5a; 4096]));
    assert_eq!(scene.write(8, &[1; 4096]), Status::Okay);
    assert_eq!(scene.read(8, 2), Ok([[1; 4096], [0x5a; 4096]].concat()));
    assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
    detach(&mut scene);
    assert!(before == std::fs::read(&base).unwrap(), "the backing file has changed");
    tool("qemu-img", &["check", "-q", &top]);
    let commands = ["read -q -P 0x5a 0 4k", "read -q -P 1 4k 4k", "read -q -P 0x5a 8k 1000k"];
    for command in commands {
        tool("qemu-io", &["-f", "qcow2", "-c", command, &top]);
    }
}

#[test]
fn an_image_in_use_and_one_that_is_none_are_refused_with_the_reason() {
    let Some(folder) = Folder::new("refused") else { return };
    let image = folder.file("a.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &image, "8M"]);
    let none = folder.file("none");
    std::fs::write(&none, vec![0; 1 << 20]).unwrap();
    let Some(mut first) = connected(&format!("qcow2:{image}"), "w") else { return };
    for (params, reason) in [
        (format!("qcow2:{image}"), "EBUSY: "),
        (format!("raw:{image}"), "EBUSY: "),
        (format!("qcow2:{none}"), "none: "),
        ("/nowhere".to_owned(), "No such file"),
        ("vhd:/x".to_owned(), "is no disk"),
    ] {
        let Some(mut second) = scene(&params, "w") else { return };
        second.until("it to close", |scene| scene.states().1 == Some(State::Closed));
        let error = second.node(&format!("{}/error", device().backend_path()));
        assert!(error.contains(reason), "{params}: {error}");
    }
    // Readers do not conflict with each other.
    let Some(mut reader) = connected(&format!("raw:{image}"), "r") else { return };
    assert_eq!(&reader.read(0, 1).unwrap()[..4], b"QFI\xfb");
    assert_eq!(first.read(0, 1), Ok(vec![0; 4096]));
}
