//! A guest's device as an NBD server: QEMU's tools use it, and clients that violate the protocol
//! end alone.

use crate::support::{self, ID, Scene, Setup};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;
use xen_block::disk::memory::Memory;
use xen_block::front::export::Export;

const SECTORS: u64 = 16384;

struct ServedDevice {
    scene: Scene,
    export: Export,
    folder: TempDir,
}

impl ServedDevice {
    fn new() -> Option<Self> {
        let open = |_: &mut xenbus::Device<'_>| {
            Ok(Box::new(Memory::new(SECTORS)) as Box<dyn xen_block::disk::Disk>)
        };
        let mut setup = Setup::new(Box::new(open));
        setup.front.buffers = 1024;
        let scene = Scene::connected(setup)?;
        let folder = tempfile::tempdir().unwrap();
        let export = Export::listen(&folder.path().join("socket")).unwrap();
        Some(Self { scene, export, folder })
    }

    fn turn(&mut self) {
        self.scene.turn();
        let front = self.scene.bus.driver(ID).unwrap();
        let mut done = Vec::new();
        front.take(|completion| done.push(completion)).unwrap();
        for completion in done {
            self.export.complete(front, completion);
        }
        self.export.serve(front).unwrap();
    }

    /// Serves the device while a program runs.
    fn run(&mut self, program: &str, args: &[&str]) {
        let mut child = Command::new(program)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + support::PATIENCE;
        while child.try_wait().unwrap().is_none() {
            self.turn();
            if Instant::now() > end {
                let _ = child.kill();
            }
        }
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "{program} {args:?}: {text}");
        assert!(!text.contains("failed") && !text.contains("error"), "{text}");
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }
}

fn no_tools(name: &str) -> bool {
    let missing = Command::new("qemu-io").arg("--version").output().is_err();
    if missing {
        conformance::skip(name, "there is no qemu-io (Debian: qemu-utils)");
    }
    missing
}

#[test]
fn qemus_tools_use_the_device() {
    if no_tools("export") {
        return;
    }
    let Some(mut served) = ServedDevice::new() else { return };
    let url = served.url();
    for command in [
        "write -q -P 0x11 0 4M",
        "aio_write -q -P 0x22 1M 512k",
        "write -q -P 0x33 513k 1k",
        "flush",
        "read -q -P 0x11 0 513k",
        "discard -q 2M 1M",
        "read -q -P 0x33 513k 1k",
        "read -q -P 0 2M 1M",
        "read -q -P 0x11 3M 1M",
    ] {
        served.run("qemu-io", &["-f", "raw", "-c", command, &url]);
    }
    let image = served.folder.path().join("image");
    let path = image.to_str().unwrap().to_owned();
    let mut seed = 1_u64;
    let bytes: Vec<u8> = (0..SECTORS * 512)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .collect();
    std::fs::write(&image, bytes).unwrap();
    served.run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &path, &url]);
    served.run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &path, &url]);
    std::fs::remove_file(image).unwrap();
}

/// True if the server ends a connection that has sent these bytes.
fn ends(served: &mut ServedDevice, bytes: &[u8]) -> bool {
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = [0; 4096];
    for _ in 0..100 {
        served.turn();
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return true,
            _ => {}
        }
    }
    false
}

#[test]
fn nonsense_ends_its_own_connection() {
    let Some(mut served) = ServedDevice::new() else { return };
    let option = |number: u32, len: u32| {
        let magic = 0x4948_4156_454f_5054_u64.to_be_bytes();
        [&3_u32.to_be_bytes()[..], &magic, &number.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let request = |command: u16, len: u32| {
        let magic = 0x2560_9513_u32.to_be_bytes();
        let go = option(1, 0);
        let rest = [[0; 2], command.to_be_bytes()].concat();
        [&go[..], &magic, &rest, &[0; 16], &len.to_be_bytes()].concat()
    };
    assert!(!ends(&mut served, &3_u32.to_be_bytes()), "flags");
    assert!(!ends(&mut served, &option(99, 0)), "an option that is not known is answered");
    assert!(!ends(&mut served, &request(0, 512)), "a read");
    assert!(!ends(&mut served, &request(77, 512)), "a command that is not known is answered");
    assert!(!ends(&mut served, &request(0, u32::MAX)), "a read of too much is answered");
    assert!(ends(&mut served, &u32::MAX.to_be_bytes()), "flags that there are not");
    assert!(ends(&mut served, &[&3_u32.to_be_bytes()[..], &[7; 16]].concat()), "no option");
    assert!(ends(&mut served, &option(7, 1 << 20)), "an option of a megabyte");
    assert!(ends(&mut served, &option(2, 0)), "abort");
    assert!(ends(&mut served, &request(1, u32::MAX)), "a write of four gigabytes");
    assert!(ends(&mut served, &request(2, 0)), "disconnect");
    assert_eq!(served.scene.read(0, 1), Ok(vec![0; 4096]), "the device does not mind");
}
