//! Reads the header of an image: its properties, and the files that it needs.

use super::ImageFault;
use super::layout::{ImageLayout, fill};
use std::fs::File;

/// The bytes of a header of version 2.
const V2_BYTES: usize = 72;
/// The least bytes of a header of version 3.
const V3_BYTES: usize = 104;
/// The bytes that must hold everything that a header names; no known image comes near this limit.
const HEADER_MAX: usize = 64 * 1024;
/// The longest name of a file, in bytes (`qcow2.rst`).
const NAME_MAX: usize = 1023;

/// The offsets of fields in a header: the size of the disk and the incompatible features (8 bytes
/// each), and the type of compression (one byte).
pub(super) const SIZE_AT: usize = 24;
pub(super) const FEATURES_AT: usize = 72;
pub(super) const COMPRESSION_AT: usize = 104;

/// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
pub(super) const COMPRESSION: u64 = 1 << 3;
const SUBCLUSTERS: u64 = 1 << 4;

/// Header extensions.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;
const FEATURE_NAMES: u32 = 0x6803_f857;
/// The bytes of each entry of the table of features' names.
const FEATURE_NAME_BYTES: usize = 48;

/// A compression method for clusters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

impl Compression {
    /// Reads the method from a header of this length with these features.
    fn of(bytes: HeaderBytes<'_>, header_len: usize, features: u64) -> Result<Self, ImageFault> {
        let named = if header_len > COMPRESSION_AT { bytes.0[COMPRESSION_AT] } else { 0 };
        match (features & COMPRESSION != 0, named) {
            (false, 0) => Ok(Self::Zlib),
            (true, 1) => Ok(Self::Zstd),
            (true, 2..) => Err(ImageFault::Compression(named)),
            _ => {
                let what = "its type of compression does not go together with its features";
                Err(ImageFault::Claim(what))
            }
        }
    }
}

/// The header of an image that can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ImageHeader {
    pub(super) layout: ImageLayout,
    /// The size of the disk in bytes.
    pub(super) size: u64,
    /// The method of its compressed clusters.
    pub(super) compression: Compression,
    /// The incompatible features that it needs.
    pub(super) features: u64,
    /// The name and format of the backing file.
    pub(super) backing: Option<(String, Option<String>)>,
    /// The name of the file that has the data, if it is another one.
    pub(super) data_file: Option<String>,
}

impl ImageHeader {
    /// Returns the bytes of the disk, rounded up to whole clusters.
    pub(super) fn rounded_size(&self) -> u64 {
        self.size.next_multiple_of(1 << self.layout.cluster_bits)
    }

    /// Reads the header of the image in this file, and checks it against the file.
    ///
    /// # Errors
    /// The reason why the image cannot be used.
    pub(super) fn read(file: &File) -> Result<Self, ImageFault> {
        let said = |error: std::io::Error| ImageFault::Said(error.to_string());
        let mut bytes = vec![0; HEADER_MAX];
        fill(file, &mut bytes, 0).map_err(said)?;
        let len = file.metadata().map_err(said)?;
        let len = if len.is_file() { len.len() } else { u64::MAX };
        let bytes = HeaderBytes(&bytes);
        if bytes.u32(0) != Some(u32::from_be_bytes(*b"QFI\xfb")) {
            return Err(ImageFault::NotQcow2);
        }
        let header = Self::parse(bytes, len)?;
        header.layout.check(file)?;
        Ok(header)
    }

    fn parse(bytes: HeaderBytes<'_>, len: u64) -> Result<Self, ImageFault> {
        let number = |at| bytes.u32(at).unwrap_or_default();
        let long = |at| bytes.u64(at).unwrap_or_default();
        let (needed, features, count_order, header_len) = match number(4) {
            2 => (V2_BYTES, 0, 4, V2_BYTES),
            3 => (V3_BYTES, long(FEATURES_AT), number(96), number(100) as usize),
            version if len < V2_BYTES as u64 => {
                let _ = version;
                return Err(ImageFault::Cut(len));
            }
            version => return Err(ImageFault::Version(version)),
        };
        if len < needed as u64 {
            return Err(ImageFault::Cut(len));
        }
        if number(32) != 0 {
            return Err(ImageFault::Encrypted);
        }
        check_features(features)?;
        let cluster_bits = number(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(ImageFault::Claim("clusters have 512 bytes to 2 MiB"));
        }
        if count_order > 6 {
            return Err(ImageFault::Claim("refcounts have 64 bits at most"));
        }
        if header_len < needed || header_len >= HEADER_MAX {
            return Err(ImageFault::Claim("the header itself has no such length"));
        }
        let layout = ImageLayout {
            cluster_bits,
            l1: (long(40), u64::from(number(36)) * 8),
            counts: (long(48), u64::from(number(56)) << cluster_bits),
            count_order,
            data_here: features & DATA_FILE == 0,
        };
        let size = long(SIZE_AT);
        if layout.table_covers().saturating_mul(layout.l1.1 / 8) < size {
            return Err(ImageFault::Claim("its L1 table is too small for its disk"));
        }
        let compression = Compression::of(bytes, header_len, features)?;
        let name_at = long(8);
        let first_cluster = HEADER_MAX.min(1 << cluster_bits);
        let end = match usize::try_from(name_at) {
            Ok(0) => first_cluster,
            Ok(at) if at < first_cluster => at,
            _ => {
                return Err(ImageFault::Claim(
                    "the name of its backing file is not in the first cluster",
                ));
            }
        };
        let extensions = Extensions::read(bytes, header_len, end)?;
        if !extensions.ended && needed == V3_BYTES {
            return Err(ImageFault::Claim("its extensions have no end"));
        }
        let backing = match name_at {
            0 => None,
            _ => {
                let name = bytes.text(end, number(16) as usize);
                let what = "the name of its backing file is none";
                let name = name.filter(|name| !name.is_empty()).ok_or(ImageFault::Claim(what))?;
                Some((name, extensions.backing_format))
            }
        };
        let data_file = match (layout.data_here, extensions.data_file) {
            (true, _) => None,
            (false, Some(name)) => Some(name),
            (false, None) => return Err(ImageFault::NoDataFile),
        };
        Ok(Self { layout, size, compression, features, backing, data_file })
    }
}

fn check_features(features: u64) -> Result<(), ImageFault> {
    for (bit, fault) in [
        (CORRUPT, ImageFault::Corrupt),
        (DIRTY, ImageFault::Dirty),
        (SUBCLUSTERS, ImageFault::Subclusters),
    ] {
        if features & bit != 0 {
            return Err(fault);
        }
    }
    let unknown = features & !(DATA_FILE | COMPRESSION);
    match u8::try_from(unknown.trailing_zeros()) {
        Ok(bit) if bit < 64 => Err(ImageFault::Feature(bit)),
        _ => Ok(()),
    }
}

/// The header extensions that are needed here.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    /// True if the extension that ends the list was found.
    ended: bool,
}

impl Extensions {
    /// Reads the extensions between two offsets.
    fn read(bytes: HeaderBytes<'_>, mut at: usize, end: usize) -> Result<Self, ImageFault> {
        let mut extensions = Self::default();
        while at.saturating_add(8) <= end {
            let kind = bytes.u32(at).unwrap_or_default();
            let len = bytes.u32(at + 4).unwrap_or_default() as usize;
            if kind == 0 {
                extensions.ended = true;
                break;
            }
            at += 8;
            if len > end.saturating_sub(at) {
                return Err(ImageFault::Claim("an extension is longer than the header"));
            }
            if kind == FEATURE_NAMES && !len.is_multiple_of(FEATURE_NAME_BYTES) {
                return Err(ImageFault::Claim("its table of features' names ends within an entry"));
            }
            let which = match kind {
                BACKING_FORMAT => Some(&mut extensions.backing_format),
                DATA_FILE_NAME => Some(&mut extensions.data_file),
                _ => None,
            };
            if let Some(which) = which {
                let text = bytes.text(at, len);
                let text = text.ok_or(ImageFault::Claim("a name in its header is none"))?;
                if which.replace(text).is_some() {
                    return Err(ImageFault::Claim("it names the same thing two times"));
                }
            }
            at += len.next_multiple_of(8);
        }
        Ok(extensions)
    }
}

/// The first bytes of an image.
#[derive(Clone, Copy)]
struct HeaderBytes<'b>(&'b [u8]);

impl HeaderBytes<'_> {
    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    /// Returns a name; `None` if the bytes are no valid name.
    fn text(self, at: usize, len: usize) -> Option<String> {
        let bytes = self.0.get(at..at.checked_add(len)?).filter(|_| len <= NAME_MAX)?;
        if bytes.contains(&0) { None } else { String::from_utf8(bytes.to_vec()).ok() }
    }
}
