//! Faults of images.

use super::escaped_path::EscapedPath;
use super::image_dirs::IMAGE_DIRS;
use std::fmt;
use std::path::{Path, PathBuf};

/// The longest chain of images.
pub const CHAIN_MAX: usize = 64;

/// A fault for which an image cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ImageFault {
    /// The file of this many bytes is too short for a whole header.
    Cut(u64),
    /// It does not begin with the magic number of qcow2.
    NotQcow2,
    /// Its version of the format is not known.
    Version(u32),
    /// It is encrypted; its data would be read as plain.
    Encrypted,
    /// It was not closed properly.
    Dirty,
    /// QEMU has marked it as corrupt.
    Corrupt,
    /// Its clusters are compressed by the method of this number, which is not known.
    Compression(u8),
    /// Its tables have entries for subclusters.
    Subclusters,
    /// It needs a feature of this bit, which is not known.
    Feature(u8),
    /// A claim of its header cannot be true.
    Claim(&'static str),
    /// The cluster at this offset is in use, and has no place for its reference count.
    Uncounted(u64),
    /// It names this file, which has the image itself in its chain of backing files.
    Loop(PathBuf),
    /// The chain has more than [`CHAIN_MAX`] images.
    Long,
    /// It has this backing file, and does not say in which format.
    NoFormat(String),
    /// It has this backing file in this format, which is not supported.
    Format(String, String),
    /// It has this backing file, which is not a path.
    Protocol(String),
    /// Its data is in another file, which it does not name.
    NoDataFile,
    /// It has this backing file, which is not in an image folder.
    Place(PathBuf),
    /// Its data is in this file, which is not in the image's own folder.
    DataPlace(PathBuf),
    /// The message of the reader of images.
    Said(String),
}

impl ImageFault {
    /// Writes a sentence about the image at `path`. Control characters of names are escaped, as an
    /// image may name anything.
    pub(super) fn describe(&self, path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = EscapedPath(path);
        match self {
            Self::Cut(bytes) => {
                write!(f, "the file ends within its header, behind {bytes} bytes: it was cut off")
            }
            Self::NotQcow2 => f.write_str(
                "this is no qcow2 image, as its first bytes are not QFI\\xfb; \
                 a raw one is attached with format=raw",
            ),
            Self::Version(version) => {
                write!(f, "version {version} of qcow2 is not known; 2 and 3 are")
            }
            Self::Encrypted => f.write_str("the image is encrypted"),
            Self::Dirty => write!(
                f,
                "it was not closed in order, its dirty bit is set; \
                 put it right: qemu-img check -r all {path}"
            ),
            Self::Corrupt => write!(
                f,
                "it is marked as corrupt; qemu-img check -r all {path} repairs what can be repaired"
            ),
            Self::Compression(kind) => write!(
                f,
                "its clusters are compressed in way {kind}, and 0 (zlib) and 1 (zstd) are read; \
                 write it anew: qemu-img convert -O qcow2 {path} NEW"
            ),
            Self::Subclusters => write!(
                f,
                "it has extended L2 entries, which are not read; \
                 write it anew: qemu-img convert -O qcow2 {path} NEW"
            ),
            Self::Feature(bit) => write!(f, "it needs feature {bit}, which is not known here"),
            Self::Claim(what) => write!(f, "its header is false: {what}"),
            Self::Uncounted(at) => write!(
                f,
                "the cluster at {at} is in use, and no block counts it; \
                 qemu-img check -r all {path} makes one"
            ),
            Self::Said(text) => f.write_str(text),
            _ => self.describe_name_fault(path, f),
        }
    }

    /// Writes the sentence for a fault of a name in the image.
    fn describe_name_fault(
        &self,
        path: EscapedPath<'_>,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        match self {
            Self::Loop(named) => {
                let named = EscapedPath(named);
                write!(f, "it names {named} as its backing file, behind which it is itself")
            }
            Self::Long => write!(
                f,
                "more than {CHAIN_MAX} images stand one behind the other; \
                 qemu-img commit or convert makes them fewer"
            ),
            Self::NoFormat(name) => write!(
                f,
                "it does not say in which format its backing file {name:?} is, and nothing is guessed: \
                 the guest that writes to a raw disk could have it taken for an image; \
                 say it with: qemu-img rebase -u -F raw -b {name:?} {path}, or -F qcow2"
            ),
            Self::Format(name, format) => write!(
                f,
                "its backing file {name:?} is in the format {format:?}; raw and qcow2 are served"
            ),
            Self::Protocol(name) => write!(
                f,
                "its backing file is {name:?}; only files and block devices are, by their paths"
            ),
            Self::NoDataFile => f.write_str("its data are in another file, which it does not name"),
            Self::Place(named) => {
                let folder = EscapedPath(named.parent().unwrap_or(named));
                let named = EscapedPath(named);
                write!(
                    f,
                    "its backing file {named} is neither in its own folder nor in an image folder; \
                     where images of there may be read through others, add a line to {IMAGE_DIRS}: {folder}"
                )
            }
            Self::DataPlace(named) => write!(
                f,
                "its data are in {}, which is not in the image's own folder; move it there",
                EscapedPath(named)
            ),
            _ => Ok(()),
        }
    }
}
