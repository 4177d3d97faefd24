//! The files of a guest's devices, in FUSE's own messages: a socket pair replaces the kernel, and
//! behind the files are a frontend and this crate's backend in one thread.

use crate::support::{self, ID, Scene, Setup, device};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::os::fd::OwnedFd;
use xen_block::disk::memory::Memory;
use xen_block::disk::{Disk, DiskIo, DiskOp, Finished, Geometry};
use xen_block::front::fuse::Fuse;
use xenbus::{State, toolstack};

const SECTORS: u64 = 4096;
const SIZE: u64 = SECTORS * 512;
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const INIT: u32 = 26;
const READDIR: u32 = 28;
const FALLOCATE: u32 = 43;

/// A disk that reports success for a discard and does nothing, as a backend may.
#[derive(Debug)]
struct ForgetfulDisk(Memory);

impl Disk for ForgetfulDisk {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        if io.op == DiskOp::Discard { Ok(Some((io, Ok(())))) } else { self.0.submit(io) }
    }
}

struct FuseMount {
    scene: Scene,
    fuse: Fuse,
    kernel: OwnedFd,
    unique: u64,
    /// The node of the device.
    node: u64,
}

fn words(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl FuseMount {
    fn new(disk: impl Fn() -> Memory + 'static) -> Option<Self> {
        let open =
            move |_: &mut xenbus::Device<'_>| Ok(Box::new(ForgetfulDisk(disk())) as Box<dyn Disk>);
        let scene = Scene::connected(Setup::new(Box::new(open)))?;
        let (kernel, own) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let mut fuse = Fuse::new(own);
        fuse.add(ID.devid, "xvda");
        let mut mount = Self { scene, fuse, kernel, unique: 0, node: 0 };
        mount.turn();
        let entry = mount.ask(LOOKUP, 1, b"xvda\0").unwrap();
        mount.node = u64_at(&entry, 0);
        Some(mount)
    }

    fn turn(&mut self) {
        self.scene.turn();
        let mut done = Vec::new();
        let front = self.scene.bus.driver(ID).unwrap();
        front.take(|completion| done.push(completion)).unwrap();
        for completion in done {
            assert!(self.fuse.complete(ID.devid, front, completion));
        }
        self.fuse.turn().unwrap();
        self.fuse.ask(ID.devid, front).unwrap();
    }

    /// Sends a request; returns its number.
    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 1;
        let mut packet = u32::try_from(40 + body.len()).unwrap().to_ne_bytes().to_vec();
        packet.extend(opcode.to_ne_bytes());
        packet.extend(words(&[self.unique, node, 0, 0]));
        packet.extend_from_slice(body);
        send(&self.kernel, &packet, SendFlags::empty()).unwrap();
        self.unique
    }

    /// Waits for an answer; returns the number of its request, and the result.
    fn receive_answer(&mut self) -> (u64, Result<Vec<u8>, Errno>) {
        let mut buffer = vec![0; 1 << 20];
        let mut count = 0;
        let end = std::time::Instant::now() + support::PATIENCE;
        while count == 0 {
            self.turn();
            match recv(&self.kernel, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((got, _)) => count = got,
                Err(Errno::AGAIN) => {}
                Err(errno) => panic!("{errno}"),
            }
            assert!(std::time::Instant::now() < end, "no answer within {:?}", support::PATIENCE);
        }
        buffer.truncate(count);
        let len = u32::from_ne_bytes(buffer[..4].try_into().unwrap());
        assert_eq!(len as usize, count);
        let error = i32::from_ne_bytes(buffer[4..8].try_into().unwrap());
        let unique = u64_at(&buffer, 8);
        let body = buffer.split_off(16);
        (unique, if error == 0 { Ok(body) } else { Err(Errno::from_raw_os_error(-error)) })
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let unique = self.send(opcode, node, body);
        let (answered, result) = self.receive_answer();
        assert_eq!(answered, unique);
        result
    }

    fn read(&mut self, offset: u64, size: u32) -> Vec<u8> {
        self.ask(READ, self.node, &words(&[0, offset, size.into(), 0, 0])).unwrap()
    }

    fn write_body(offset: u64, data: &[u8], flags: i32) -> Vec<u8> {
        let flags = u64::from(flags.unsigned_abs());
        let mut body = words(&[0, offset, data.len() as u64, 0, flags]);
        body.extend_from_slice(data);
        body
    }

    fn write(&mut self, offset: u64, data: &[u8], flags: i32) -> Result<u64, Errno> {
        let answer = self.ask(WRITE, self.node, &Self::write_body(offset, data, flags))?;
        Ok(u64_at(&answer, 0))
    }

    fn flushes(&mut self) -> u64 {
        self.scene.back_bus().driver(ID).unwrap().stats().flush.requests
    }
}

fn sevens(sector_size: u32) -> impl Fn() -> Memory {
    move || Memory::with_contents(vec![7; SIZE as usize]).with_sector_size(sector_size)
}

#[test]
fn a_device_is_a_file() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    let node = mount.node;
    let init = mount.ask(INIT, 0, &words(&[7 | 38 << 32, u64::MAX])).unwrap();
    assert_eq!(init.len(), 64);
    assert_eq!(u64_at(&init, 0), 7 | 31 << 32);
    let attributes = mount.ask(GETATTR, node, &[0; 16]).unwrap();
    assert_eq!(u64_at(&attributes, 16 + 8), SIZE);
    // A device cannot be truncated.
    let attributes = mount.ask(SETATTR, node, &[0; 88]).unwrap();
    assert_eq!(u64_at(&attributes, 16 + 8), SIZE);
    mount.ask(OPEN, node, &words(&[2])).unwrap();
    assert_eq!(mount.ask(LOOKUP, 1, b"xvdb\0"), Err(Errno::NOENT));
    let list = mount.ask(READDIR, 1, &words(&[0, 0, 4096, 0, 0])).unwrap();
    assert!(list.windows(4).any(|name| name == b"xvda"));
    assert_eq!(mount.ask(READDIR, 1, &words(&[0, 8, 4096, 0, 0])), Ok(Vec::new()));
    assert_eq!(mount.ask(99, 1, &[]), Err(Errno::NOSYS));
    assert_eq!(mount.read(SIZE - 3, 4096), [7; 3]);
    assert_eq!(mount.read(SIZE, 4096), []);
    assert_eq!(mount.write(SIZE - 3, &[1; 9], 0), Ok(3), "as far as there is room");
    assert_eq!(mount.write(SIZE, &[1; 9], 0), Err(Errno::NOSPC));
    assert_eq!(mount.write(u64::MAX - 3, &[1; 9], 0), Err(Errno::NOSPC));
    assert_eq!(mount.read(SIZE - 4, 4096), [7, 1, 1, 1]);
}

#[test]
fn bytes_may_lie_anywhere() {
    for sector_size in [512, 4096] {
        let Some(mut mount) = FuseMount::new(sevens(sector_size)) else { return };
        let mut model = vec![7; SIZE as usize];
        let mut seed = 1_u64;
        for round in 0..60_u8 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (seed >> 20) % (SIZE - 200_000);
            let len = [1, 511, 512, 4095, 5000, 131_072, 200_000][usize::from(round) % 7];
            let place = offset as usize..offset as usize + len;
            if round % 3 == 0 {
                let body = words(&[0, offset, len as u64, 3]);
                mount.ask(FALLOCATE, mount.node, &body).unwrap();
                model[place.clone()].fill(0);
            } else {
                let data = vec![round; len];
                assert_eq!(mount.write(offset, &data, 0), Ok(len as u64));
                model[place.clone()].copy_from_slice(&data);
            }
            let (from, to) = (place.start.saturating_sub(600), (place.end + 600).min(model.len()));
            let read = mount.read(from as u64, (to - from) as u32);
            assert!(read == model[from..to], "sector {sector_size}, round {round}: {place:?}");
        }
        let whole: Vec<u8> =
            (0..SIZE / 131_072).flat_map(|at| mount.read(at * 131_072, 131_072)).collect();
        assert!(whole == model, "sectors of {sector_size}");
    }
}

#[test]
fn fsync_is_a_flush_and_so_is_the_end_of_a_synchronous_write() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    mount.write(0, &[1; 512], 0).unwrap();
    assert_eq!(mount.flushes(), 0);
    mount.ask(FSYNC, mount.node, &[0; 16]).unwrap();
    assert_eq!(mount.flushes(), 1);
    mount.write(100, &[1; 512], libc::O_DSYNC).unwrap();
    assert_eq!(mount.flushes(), 2);
}

#[test]
fn many_requests_are_on_their_way() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    let node = mount.node;
    for at in 0..32_u64 {
        mount.send(READ, node, &words(&[0, at * 4096, 512, 0, 0]));
    }
    mount.fuse.turn().unwrap();
    mount.fuse.ask(ID.devid, mount.scene.bus.driver(ID).unwrap()).unwrap();
    assert_eq!(mount.scene.front().in_flight(), 32);
    for _ in 0..32 {
        assert_eq!(mount.receive_answer().1, Ok(vec![7; 512]));
    }
    // Parts of one sector, all at once: each is written.
    for at in 0..32_u64 {
        mount.send(WRITE, node, &FuseMount::write_body(at * 16, &[at as u8; 16], 0));
    }
    for _ in 0..32 {
        mount.receive_answer().1.unwrap();
    }
    let wanted: Vec<u8> = (0..32).flat_map(|at| [at; 16]).collect();
    assert_eq!(mount.read(0, 512), wanted);
}

#[test]
fn a_device_that_is_gone_fails_what_was_asked_of_it() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    let node = mount.node;
    mount.send(READ, node, &words(&[0, 0, 4096, 0, 0]));
    mount.fuse.turn().unwrap();
    mount.fuse.ask(ID.devid, mount.scene.bus.driver(ID).unwrap()).unwrap();
    mount.fuse.remove(ID.devid);
    assert_eq!(mount.receive_answer().1, Err(Errno::IO));
    assert_eq!(mount.ask(READ, node, &words(&[0, 0, 4096, 0, 0])), Err(Errno::NXIO));
    assert_eq!(mount.ask(GETATTR, node, &[0; 16]), Err(Errno::NOENT));
}

/// As with Linux's own frontend, a device that is open or mounted is not removed, unless by force.
#[test]
fn a_device_that_is_open_does_not_close() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    let node = mount.node;
    mount.ask(OPEN, node, &words(&[2])).unwrap();
    mount.ask(OPEN, node, &words(&[0])).unwrap();
    mount.ask(RELEASE, node, &[0; 24]).unwrap();
    assert_eq!(mount.fuse.users(ID.devid), 1);
    mount.scene.front().set_users(1);
    toolstack::detach(&mut mount.scene.tool, &device()).unwrap();
    mount.scene.until("the frontend to refuse", |scene| {
        scene.log.iter().any(|line| line.starts_with("front error: EBUSY"))
    });
    let error = format!("{}/error", device().frontend_path());
    assert!(mount.scene.node(&error).starts_with("16 EBUSY"));
    assert_eq!(mount.scene.states(), (Some(State::Connected), Some(State::Closing)));
    assert_eq!(mount.write(0, &[1; 512], 0), Ok(512));
    assert_eq!(mount.read(0, 512), [1; 512]);
    mount.ask(RELEASE, node, &[0; 24]).unwrap();
    assert_eq!(mount.fuse.users(ID.devid), 0);
    let scene = &mut mount.scene;
    scene.front().set_users(0);
    assert!(scene.bus.waits(ID));
    scene.bus.look_again(&mut scene.front_store, ID).unwrap();
    let closed = (Some(State::Closed), Some(State::Closed));
    scene.until("both ends to close", |scene| scene.states() == closed);
}

#[test]
fn a_descriptor_of_the_old_device_is_none_of_the_new_one() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    let old = mount.node;
    mount.ask(OPEN, old, &words(&[2])).unwrap();
    mount.fuse.remove(ID.devid);
    mount.fuse.add(ID.devid, "xvda");
    mount.turn();
    let entry = mount.ask(LOOKUP, 1, b"xvda\0").unwrap();
    mount.node = u64_at(&entry, 0);
    assert_eq!(mount.ask(WRITE, old, &FuseMount::write_body(0, &[1; 512], 0)), Err(Errno::NXIO));
    mount.ask(RELEASE, old, &[0; 24]).unwrap();
    assert_eq!(mount.fuse.users(ID.devid), 0, "nor is it counted");
    assert_eq!(mount.read(0, 512), [7; 512]);
}

/// A device that does not answer blocks the programs that use it, within bounds, and no others.
#[test]
fn a_device_that_is_stuck_stops_no_other_file() {
    let Some(mut mount) = FuseMount::new(sevens(512)) else { return };
    let (null, body) = (2, FuseMount::write_body(0, &[1; 128 << 10], 0));
    let mut refused = None;
    let mut buffer = vec![0; 4096];
    // The device's requests are not made.
    for sent in 0..1024 {
        mount.send(WRITE, mount.node, &body);
        mount.fuse.turn().unwrap();
        if recv(&mount.kernel, buffer.as_mut_slice(), RecvFlags::empty()).is_ok() {
            refused = Some((sent, i32::from_ne_bytes(buffer[4..8].try_into().unwrap())));
            break;
        }
    }
    assert_eq!(refused.map(|at| at.1), Some(-libc::ENOMEM));
    assert!(refused.is_some_and(|at| at.0 > 256), "{refused:?}");
    mount.send(READ, null, &words(&[0, 0, 512, 0, 0]));
    mount.fuse.turn().unwrap();
    let (count, _) = recv(&mount.kernel, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
    assert_eq!((count, &buffer[4..8]), (16, &[0; 4][..]), "an empty answer without an error");
}

#[test]
fn a_read_only_device_is_not_opened_for_writing() {
    let disk = || Memory::new(SECTORS).read_only();
    let Some(mut mount) = FuseMount::new(disk) else { return };
    let node = mount.node;
    assert_eq!(mount.ask(OPEN, node, &words(&[1])), Err(Errno::ROFS));
    mount.ask(OPEN, node, &words(&[0])).unwrap();
    assert_eq!(mount.ask(FALLOCATE, node, &words(&[0, 0, 4096, 3])), Err(Errno::BADF));
    assert_eq!(mount.write(0, &[1; 512], 0), Err(Errno::PERM));
}
