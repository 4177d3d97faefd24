//! The program that is a hosted guest's kernel, and the check that it can be run.
//!
//! Source: elf(5), `Documentation/arch/x86/boot.rst` of Linux.

use crate::Error;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// The number of bytes that identify the type of a file.
const HEAD: usize = 1024;
/// A program of ELF: magic, 64 bits.
const ELF: &[u8] = b"\x7fELF\x02";
/// The bytes of ELF that name the machine.
const MACHINE: std::ops::Range<usize> = 18..20;
/// The bytes of Linux' images for x86 that are `HdrS`.
const LINUX: std::ops::Range<usize> = 0x202..0x206;

/// Opens the file, which is to be run without Xen.
///
/// # Errors
/// A sentence: it does not exist, or cannot be run.
pub(crate) fn open(path: &str) -> Result<File, Error> {
    let said = |error| Error::io(format!("kernel {path}"))(error);
    let refused = |why: &str| Err(Error::Refused(format!("kernel {path} {why}")));
    let file = File::options().read(true).open(path).map_err(said)?;
    let data = file.metadata().map_err(said)?;
    if !data.is_file() {
        return refused("is no file");
    }
    if data.permissions().mode() & 0o111 == 0 {
        return refused("may not be run (chmod +x)");
    }
    let head = head(&file).map_err(said)?;
    if head.starts_with(b"#!") || (head.starts_with(ELF) && machine(&head) == own_machine()) {
        return Ok(file);
    }
    let program = "without Xen a guest's kernel is a program of this machine or a script (#!); \
                   without the key, xb's own init runs what extra says";
    let what = if head.get(LINUX) == Some(b"HdrS") || head.starts_with(b"MZ") {
        "is a Linux kernel"
    } else if head.starts_with(b"\x7fELF") {
        "is of another machine"
    } else {
        "is no program"
    };
    refused(&format!("{what}: {program}"))
}

fn head(file: &File) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let count = file.read_at(&mut head, 0)?;
    head.truncate(count);
    Ok(head)
}

fn machine(head: &[u8]) -> Option<[u8; 2]> {
    head.get(MACHINE)?.try_into().ok()
}

/// Returns the machine of this program.
fn own_machine() -> Option<[u8; 2]> {
    machine(&head(&File::open(Path::new("/proc/self/exe")).ok()?).ok()?)
}
