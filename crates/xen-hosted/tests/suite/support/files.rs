//! A domain's `/dev` that is served for a while and then no more: one file, served through FUSE by
//! a thread.
//!
//! Source: `include/uapi/linux/fuse.h`, version 7.31.

use super::raw;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::OwnedFd;

/// The length of the file in bytes.
const SIZE: u64 = 1 << 20;
/// The file's node; the root's is 1.
const FILE: u64 = 2;
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

/// Serves the file until a write is to be stored in it. That one is never answered, nor is any
/// later request.
fn serve(fuse: &OwnedFd) {
    let mut request = vec![0; 1 << 20];
    loop {
        poll(&mut [PollFd::new(fuse, PollFlags::IN)], None).unwrap();
        let Ok(count) = rustix::io::read(fuse, &mut request[..]) else { continue };
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        assert!(count >= 40);
        let (operation, unique, node) = (word(4), long(8), long(16));
        let body = match operation {
            LOOKUP => entry(),
            GETATTR => [&[0; 16], &attributes(node)[..]].concat(),
            OPEN => vec![0; 16],
            READ => vec![0; word(40 + 16) as usize],
            INIT => init(),
            _ => loop {
                std::thread::park();
            },
        };
        let mut reply = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        reply.extend(0_u32.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        rustix::io::write(fuse, &reply).unwrap();
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_init_out`: no flags, so that a mapping is written as it is unmapped.
fn init() -> Vec<u8> {
    let mut body = words(&[7, 31, 1 << 17, 0, 0, 1 << 17, 1]);
    body.resize(64, 0);
    body
}

/// `struct fuse_entry_out`, valid without limit.
fn entry() -> Vec<u8> {
    let valid = [3600_u64.to_ne_bytes(), 3600_u64.to_ne_bytes()].concat();
    [&FILE.to_ne_bytes(), &0_u64.to_ne_bytes(), &valid[..], &[0; 8], &attributes(FILE)].concat()
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> [u8; 88] {
    let mode: u32 = if node == FILE { 0o100_600 } else { 0o40_700 };
    let id = rustix::process::getuid().as_raw();
    let mut attributes = [0; 88];
    attributes[..8].copy_from_slice(&node.to_ne_bytes());
    attributes[8..16].copy_from_slice(&SIZE.to_ne_bytes());
    attributes[60..80].copy_from_slice(&words(&[mode, 1, id, id, 0]));
    attributes
}

/// Maps the file and writes into it while it is served; the write is stored when it is no longer
/// served.
pub(crate) fn dirty() -> String {
    let Ok(fuse) = xen_hosted::guest_devices() else { return "no devices".to_owned() };
    std::thread::spawn(move || serve(&fuse));
    let file = std::fs::File::options().read(true).write(true).open("/dev/file").unwrap();
    raw::write_mapped(&file, &[1; 4096]);
    // It stays open: its end is the process's.
    std::mem::forget(file);
    "done".to_owned()
}
