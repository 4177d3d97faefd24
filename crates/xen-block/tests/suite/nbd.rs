//! Servers of network block devices: QEMU's, which comes and goes; and one of this test, which
//! describes itself as no server should.

use crate::images::{Folder, connected, detach, pattern, scene, scene_with, tool};
use crate::support::{self, Scene, Setup, device};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen_block::back;
use xen_block::disk::DiskAccess;
use xen_block::disk::nbd::{self, Options};
use xen_block::front::{BufferSectors, Completion, DiskRequest};
use xen_driver::backend::rings;
use xen_io::blkif::Status;
use xenbus::{State, toolstack};
use xenstore::Store;

/// A server of QEMU, ended with the test.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(socket: &str, image: &str, more: &[&str]) -> Self {
        // A killed server has left its socket.
        let _ = std::fs::remove_file(socket);
        let args = ["--persistent", "--shared=8", "--discard=unmap", "-k", socket, "-f", "raw"];
        let mut command = Command::new("qemu-nbd");
        let child = command.args(args).args(more).arg(image).spawn().unwrap();
        let end = Instant::now() + support::PATIENCE;
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < end, "qemu-nbd did not open {socket}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Creates a folder with an image; returns also the path for its server's socket.
fn image(name: &str) -> Option<(Folder, String, String)> {
    let folder = Folder::new(name)?;
    let (image, socket) = (folder.file("a.raw"), folder.file("socket"));
    tool("qemu-img", &["create", "-q", "-f", "raw", &image, "16M"]);
    Some((folder, image, socket))
}

/// Returns a device on a server that is waited for no longer than this.
fn impatient_scene(socket: &str, patience: Duration) -> Option<Scene> {
    let socket = socket.to_owned();
    let setup = Setup::new(Box::new(move |_| {
        let options = Options { patience, ..Options::new(DiskAccess::ReadWrite) };
        let disk = nbd::connect(Path::new(&socket), "", options);
        Ok(Box::new(disk.map_err(|error| xenbus::Error::Driver(error.to_string()))?))
    }));
    Scene::connected(setup)
}

/// True if the backend has noted that its server is gone; the backend checks first.
fn is_gone(scene: &mut Scene) -> bool {
    scene.server.announce_changes().unwrap();
    let path = format!("{}/server-gone", device().backend_path());
    scene.tool.read(path).is_ok_and(|value| value == b"1")
}

/// Makes a request to read a page, and does not wait for it.
fn begin_to_read(scene: &mut Scene) {
    let buffer = scene.buffers(1)[0];
    let want = DiskRequest::Read { tag: 77, sector: 0 };
    scene.front().submit(0, want, &[BufferSectors::whole(buffer)]).unwrap();
    scene.front().push().unwrap();
    scene.until("it is taken", |scene| {
        scene.back_bus().driver(support::ID).unwrap().in_flight() > 0
    });
}

/// Returns the result of the request of [`begin_to_read`], once it has one.
fn take_result(scene: &mut Scene) -> Option<Status> {
    let mut status = None;
    scene.front().take(|done: Completion| status = Some(done.status)).unwrap();
    status
}

/// Waits for the result of the request of [`begin_to_read`].
fn answer(scene: &mut Scene) -> Status {
    let mut status = None;
    scene.until("the answer", |scene| {
        status = status.or(take_result(scene));
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn nbd_servers_are_disks() {
    let Some((_folder, image, socket)) = image("nbd") else { return };
    let server = QemuNbd::start(&socket, &image, &[]);
    let Some(mut scene) = connected(&format!("nbd:unix:{socket}"), "w") else { return };
    assert_eq!(scene.front().info().unwrap().sectors, 32768);
    let bytes = pattern(9, 200);
    assert_eq!(scene.write(80, &bytes), Status::Okay);
    assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
    assert_eq!(scene.read(80, 200), Ok(bytes.clone()));
    assert!(std::fs::read(&image).unwrap()[80 * 512..][..bytes.len()] == bytes);
    // A server that is gone does not block the end of its disk: the requests to it fail, without a
    // wait.
    drop(server);
    begin_to_read(&mut scene);
    scene.turn();
    assert_eq!(take_result(&mut scene), None, "it is waited for");
    let begin = Instant::now();
    detach(&mut scene);
    assert!(begin.elapsed() < Options::new(DiskAccess::ReadWrite).patience / 2);
}

#[test]
fn a_server_that_comes_back_is_connected_again_and_requests_wait_for_it() {
    let Some((_folder, image, socket)) = image("back") else { return };
    let server = QemuNbd::start(&socket, &image, &[]);
    let Some(mut scene) = connected(&format!("nbd:unix:{socket}"), "w") else { return };
    let first = pattern(3, 20);
    assert_eq!(scene.write(0, &first), Status::Okay);
    assert!(!is_gone(&mut scene));
    drop(server);
    begin_to_read(&mut scene);
    scene.until("it is noticed", is_gone);
    assert_eq!(take_result(&mut scene), None);
    let server = QemuNbd::start(&socket, &image, &[]);
    assert_eq!(answer(&mut scene), Status::Okay);
    assert!(!is_gone(&mut scene));
    assert_eq!(scene.read(0, 20), Ok(first));
    // The loss and the return of the server are noticed without any request.
    drop(server);
    scene.until("it is noticed", is_gone);
    let _server = QemuNbd::start(&socket, &image, &[]);
    scene.until("it is back", |scene| !is_gone(scene));
    let second = pattern(4, 20);
    assert_eq!(scene.write(0, &second), Status::Okay);
    assert!(std::fs::read(&image).unwrap()[..second.len()] == second);
    detach(&mut scene);
}

/// A device on QEMU's server, with a backend that keeps a record.
struct NbdScene {
    scene: Scene,
    options: back::Options,
    server: Option<QemuNbd>,
    image: String,
    socket: String,
    _folder: Folder,
}

impl NbdScene {
    fn new(name: &str) -> Option<Self> {
        let (folder, image, socket) = image(name)?;
        let records = folder.file("records");
        std::fs::create_dir(&records).unwrap();
        let rings = rings::RingOptions::recorded_in(records);
        let options = back::Options { rings, ..back::Options::default() };
        let setup = Setup { back: options.clone(), ..Setup::named() };
        let server = Some(QemuNbd::start(&socket, &image, &[]));
        let mut scene = scene_with(setup, &format!("nbd:unix:{socket}"), "w")?;
        scene.until_connected();
        Some(Self { scene, options, server, image, socket, _folder: folder })
    }

    /// Stops the server, then kills the backend and starts it again.
    fn lose_both(&mut self) {
        self.server = None;
        let (scene, open) = (&mut self.scene, Setup::named().open);
        let next = support::server(&scene.host, &scene.daemon, self.options.clone(), open);
        drop(std::mem::replace(&mut scene.server, next));
        scene.until("it is told that the server is away", is_gone);
        assert_eq!(scene.states(), (Some(State::Connected), Some(State::Connected)));
    }
}

/// A backend that is started again while its disk's server is away waits for it, as the earlier one
/// would have.
#[test]
fn who_takes_over_waits_for_a_server_that_is_away() {
    let Some(mut used) = NbdScene::new("takeover") else { return };
    let bytes = pattern(3, 1);
    assert_eq!(used.scene.write(0, &bytes), Status::Okay);
    used.lose_both();
    let NbdScene { scene, image, socket, server, .. } = &mut used;
    let buffer = scene.buffers(1)[0];
    let want = DiskRequest::Read { tag: 77, sector: 0 };
    scene.front().submit(0, want, &[BufferSectors::whole(buffer)]).unwrap();
    scene.front().push().unwrap();
    for _ in 0..100 {
        scene.turn();
        assert_eq!(take_result(scene), None);
    }
    *server = Some(QemuNbd::start(socket, image, &[]));
    assert_eq!(answer(scene), Status::Okay);
    scene.until("it is told that the server is back", |scene| !is_gone(scene));
    assert_eq!(scene.read(0, 1), Ok(bytes));
    // A frontend that closes does not wait for a server.
    used.lose_both();
    let scene = &mut used.scene;
    scene.bus.leave(&mut scene.front_store, support::ID).unwrap();
    let closed = (Some(State::Closed), Some(State::Closed));
    let begin = Instant::now();
    scene.until("both ends to be closed", |scene| scene.states() == closed);
    assert!(begin.elapsed() < Options::new(DiskAccess::ReadWrite).patience / 2);
}

#[test]
fn a_device_that_waits_for_a_server_is_detached_at_once() {
    let Some(mut used) = NbdScene::new("unwanted") else { return };
    used.lose_both();
    // A server that accepts connections and closes them counts as away, too.
    let _ = std::fs::remove_file(&used.socket);
    let listener = UnixListener::bind(&used.socket).unwrap();
    let closing = std::thread::spawn(move || {
        for client in listener.incoming().take(3) {
            drop(client);
        }
    });
    used.scene.until("it has closed three times", |_| closing.is_finished());
    let connected = (Some(State::Connected), Some(State::Connected));
    for _ in 0..20 {
        used.scene.turn();
        assert_eq!(used.scene.states(), connected);
    }
    let begin = Instant::now();
    detach(&mut used.scene);
    assert!(begin.elapsed() < Options::new(DiskAccess::ReadWrite).patience / 2);
}

#[test]
fn a_server_that_stays_away_or_silent_is_waited_for_with_an_end() {
    let Some((_folder, image, socket)) = image("away") else { return };
    let server = QemuNbd::start(&socket, &image, &[]);
    let Some(mut scene) = impatient_scene(&socket, Duration::from_secs(2)) else { return };
    assert_eq!(scene.write(0, &pattern(1, 1)), Status::Okay);
    server.signal(Signal::STOP);
    assert_eq!(scene.read(0, 1), Err(Status::Error), "it is silent");
    server.signal(Signal::CONT);
    assert_eq!(scene.read(0, 1), Ok(pattern(1, 1)), "it speaks again");
    // A write that the server has taken, and does late, must not overwrite a later one.
    server.signal(Signal::STOP);
    assert_eq!(scene.write(0, &pattern(5, 1)), Status::Error);
    server.signal(Signal::CONT);
    assert_eq!(scene.write(0, &pattern(1, 1)), Status::Okay);
    assert_eq!(scene.read(0, 1), Ok(pattern(1, 1)));
    drop(server);
    assert_eq!(scene.read(0, 1), Err(Status::Error), "it is gone");
    assert_eq!(scene.write(0, &pattern(2, 1)), Status::Error);
    let _server = QemuNbd::start(&socket, &image, &[]);
    assert_eq!(scene.write(0, &pattern(2, 1)), Status::Okay, "the first request finds it");
    detach(&mut scene);
}

#[test]
fn another_export_under_the_same_name_is_not_the_disk() {
    let Some((folder, image, socket)) = image("other") else { return };
    let server = QemuNbd::start(&socket, &image, &[]);
    let Some(mut scene) = impatient_scene(&socket, Duration::from_secs(2)) else { return };
    assert_eq!(scene.write(0, &pattern(1, 1)), Status::Okay);
    drop(server);
    let other = folder.file("other.raw");
    tool("qemu-img", &["create", "-q", "-f", "raw", &other, "8M"]);
    let server = QemuNbd::start(&socket, &other, &[]);
    assert_eq!(scene.write(0, &pattern(2, 1)), Status::Error);
    assert!(std::fs::read(&other).unwrap()[..4096] == [0; 4096]);
    drop(server);
    let _server = QemuNbd::start(&socket, &image, &[]);
    assert_eq!(scene.read(0, 1), Ok(pattern(1, 1)));
    detach(&mut scene);
}

#[test]
fn a_server_that_needs_six_seconds_is_waited_for() {
    let Some((_folder, image, socket)) = image("slow") else { return };
    let server = QemuNbd::start(&socket, &image, &[]);
    server.signal(Signal::STOP);
    let Some(mut scene) = scene(&format!("nbd:unix:{socket}"), "w") else { return };
    let begin = Instant::now();
    scene.until("six seconds", |_| begin.elapsed() > Duration::from_secs(6));
    server.signal(Signal::CONT);
    scene.until_connected();
    detach(&mut scene);
}

#[test]
fn what_qemu_says_of_an_export_is_heeded() {
    let Some((_folder, image, socket)) = image("export") else { return };
    let _server = QemuNbd::start(&socket, &image, &["--read-only"]);
    for (name, mode, reason) in [
        (":exportname=other", "w", "refuses export \"other\""),
        ("", "w", "for reading only; attach it read-only (mode r)"),
    ] {
        let Some(mut scene) = scene(&format!("nbd:unix:{socket}{name}"), mode) else { return };
        scene.until("it to close", |scene| scene.states().1 == Some(State::Closed));
        let error = scene.node(&format!("{}/error", device().backend_path()));
        assert!(error.contains(reason), "{error}");
    }
    let Some(mut scene) = connected(&format!("nbd:unix:{socket}"), "r") else { return };
    assert_eq!(scene.read(0, 1), Ok(vec![0; 4096]));
    detach(&mut scene);
}

/// The description that this test's server gives of itself.
#[derive(Clone)]
struct ServerInfo {
    bytes: u64,
    flags: u16,
    /// The smallest, the preferred and the largest size of a request, in bytes; with 0 as the
    /// largest, none is sent.
    blocks: [u32; 3],
    /// The error that is sent in place of the export.
    refuses: Option<(u32, &'static str)>,
    /// The error number for each request.
    error: u32,
}

impl ServerInfo {
    /// Returns the description of a correct server of 8 MiB.
    fn honest() -> Self {
        Self { bytes: 8 << 20, flags: 1 | 4, blocks: [0; 3], refuses: None, error: 0 }
    }
}

/// A message that is longer than a node's value.
const LONG: &str = {
    const BYTES: [u8; 8000] = {
        let mut bytes = [b'x'; 8000];
        bytes[1] = b'y';
        bytes
    };
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => "",
    }
};

/// The largest request that a server has had.
type LargestRequest = Arc<Mutex<u32>>;

/// Serves a disk of zeroes that ignores writes, until the test ends.
fn serve(socket: &str, description: ServerInfo) -> LargestRequest {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let largest = LargestRequest::default();
    let told = Arc::clone(&largest);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (description, largest) = (description.clone(), Arc::clone(&told));
            std::thread::spawn(move || drop(talk(stream, &description, &largest)));
        }
    });
    largest
}

fn number<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn talk(
    mut stream: UnixStream,
    description: &ServerInfo,
    largest: &LargestRequest,
) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _: [u8; 4] = number(&mut stream)?;
    let _: [u8; 12] = number(&mut stream)?;
    let len = u32::from_be_bytes(number(&mut stream)?);
    stream.read_exact(&mut vec![0; len as usize])?;
    let reply = |kind: u32, payload: &[u8]| {
        let head =
            [0x0003_e889_0455_65a9_u64.to_be_bytes().as_slice(), &7_u32.to_be_bytes()].concat();
        [&head, &kind.to_be_bytes()[..], &(payload.len() as u32).to_be_bytes(), payload].concat()
    };
    if let Some((kind, why)) = description.refuses {
        return stream.write_all(&reply(kind, why.as_bytes()));
    }
    let export = [
        &0_u16.to_be_bytes()[..],
        &description.bytes.to_be_bytes(),
        &description.flags.to_be_bytes(),
    ];
    stream.write_all(&reply(3, &export.concat()))?;
    if description.blocks[2] != 0 {
        let blocks: Vec<u8> =
            description.blocks.iter().flat_map(|size| size.to_be_bytes()).collect();
        stream.write_all(&reply(3, &[&3_u16.to_be_bytes()[..], &blocks].concat()))?;
    }
    stream.write_all(&reply(1, b""))?;
    loop {
        let _: [u8; 6] = number(&mut stream)?;
        let command = u16::from_be_bytes(number(&mut stream)?);
        let handle: [u8; 8] = number(&mut stream)?;
        let _: [u8; 8] = number(&mut stream)?;
        let len = u32::from_be_bytes(number(&mut stream)?);
        if command == 1 {
            stream.read_exact(&mut vec![0; len as usize])?;
        }
        let mut largest = largest.lock().unwrap();
        *largest = (*largest).max(len);
        // A server with such a limit refuses larger requests.
        let error = if description.blocks[2] != 0 && len > description.blocks[2] {
            22
        } else {
            description.error
        };
        let head = [0x6744_6698_u32.to_be_bytes(), error.to_be_bytes()].concat();
        stream.write_all(&[&head[..], &handle].concat())?;
        if command == 0 && error == 0 {
            stream.write_all(&vec![0; len as usize])?;
        }
    }
}

#[test]
fn the_most_that_a_server_takes_at_once_is_heeded() {
    let Some(folder) = Folder::new("most") else { return };
    let socket = folder.file("socket");
    let largest =
        serve(&socket, ServerInfo { blocks: [512, 4096, 10_000], ..ServerInfo::honest() });
    let Some(mut scene) = connected(&format!("nbd:unix:{socket}"), "w") else { return };
    assert_eq!(scene.write(0, &pattern(1, 256)), Status::Okay);
    assert_eq!(scene.read(0, 256), Ok(vec![0; 1 << 20]));
    assert_eq!(*largest.lock().unwrap(), 9728, "whole sectors");
    detach(&mut scene);
}

#[test]
fn a_servers_errors_are_passed_on_and_what_cannot_be_is_refused() {
    let Some(folder) = Folder::new("absurd") else { return };
    let socket = folder.file("socket");
    for (description, reason) in [
        (ServerInfo { bytes: 0, ..ServerInfo::honest() }, "the export has 0 bytes"),
        (
            ServerInfo { bytes: 1 << 63, ..ServerInfo::honest() },
            "the export has 9223372036854775808 bytes",
        ),
        (
            ServerInfo { blocks: [1000, 4096, 4096], ..ServerInfo::honest() },
            "has sectors of 1000 bytes",
        ),
        (
            ServerInfo { blocks: [65536, 65536, 65536], ..ServerInfo::honest() },
            "has sectors of 65536 bytes",
        ),
        (
            ServerInfo { blocks: [4096, 4096, 512], ..ServerInfo::honest() },
            "takes 512 bytes at most, and 4096 at least",
        ),
        (ServerInfo { flags: 3, ..ServerInfo::honest() }, "for reading only"),
        (
            ServerInfo { refuses: Some((1 << 31 | 5, "")), ..ServerInfo::honest() },
            "it asks for TLS",
        ),
        (
            ServerInfo { refuses: Some((1 << 31 | 2, "come back later")), ..ServerInfo::honest() },
            "come back later",
        ),
        (
            ServerInfo { refuses: Some((1 << 31 | 2, LONG)), ..ServerInfo::honest() },
            "refuses export \"\": xyxx",
        ),
        (
            ServerInfo { refuses: Some((1, "")), ..ServerInfo::honest() },
            "has not said how large the export is",
        ),
    ] {
        serve(&socket, description);
        let Some(mut scene) = scene(&format!("nbd:unix:{socket}"), "w") else { return };
        scene.until("it to close", |scene| scene.states().1 == Some(State::Closed));
        let error = scene.node(&format!("{}/error", device().backend_path()));
        assert!(error.contains(reason), "{error}");
    }
    // The error of a request belongs to that request; the connection stays, and no request is
    // repeated.
    serve(&socket, ServerInfo { error: 28, ..ServerInfo::honest() });
    let Some(mut scene) = connected(&format!("nbd:unix:{socket}"), "w") else { return };
    assert_eq!(scene.write(0, &pattern(1, 1)), Status::Error);
    assert!(!is_gone(&mut scene));
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    scene.until("it to close", |scene| scene.states().1 == Some(State::Closed));
}
