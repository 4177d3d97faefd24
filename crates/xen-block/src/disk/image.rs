//! Faults of images.

use super::places::IMAGE_DIRS;
use super::shown::Shown;
use std::fmt;
use std::path::{Path, PathBuf};

/// Most images that may stand one behind the other.
pub const CHAIN_MAX: usize = 64;

/// Why an image cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ImageFault {
    /// The file has so few bytes that its header is not whole.
    Cut(u64),
    /// It begins as no qcow2 image does.
    NotQcow2,
    /// A version of the format that is not known.
    Version(u32),
    /// It is encrypted, and would be taken for plain.
    Encrypted,
    /// It was not closed in order.
    Dirty,
    /// QEMU has found it to be broken.
    Corrupt,
    /// Its compressed clusters are compressed in a way of this number, which is not known.
    Compression(u8),
    /// Its tables have entries for parts of clusters.
    Subclusters,
    /// It needs a feature of this bit, which is not known.
    Feature(u8),
    /// A claim of its header cannot be true.
    Claim(&'static str),
    /// A cluster at this offset is in use, and there is no place for the count of its uses.
    Uncounted(u64),
    /// It names this file, in whose chain of backing files it is itself.
    Loop(PathBuf),
    /// There are more than [`CHAIN_MAX`] images, one behind the other.
    Long,
    /// It has this backing file, and does not say in which format.
    NoFormat(String),
    /// It has this backing file in this format, which is not served.
    Format(String, String),
    /// It has this backing file, which is no path.
    Protocol(String),
    /// Its data are in another file, which it does not name.
    NoDataFile,
    /// It has this backing file, which lies in no image folder.
    Place(PathBuf),
    /// Its data are in this file, which is not in the image's own folder.
    DataPlace(PathBuf),
    /// The words of the reader of images.
    Said(String),
}

impl ImageFault {
    /// A sentence on the image at `path`. Control characters of names are escaped: an image may name anything.
    pub(super) fn tell(&self, path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = Shown(path);
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
            _ => self.tell_of_names(path, f),
        }
    }

    /// The same, on what it names.
    fn tell_of_names(&self, path: Shown<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop(named) => {
                let named = Shown(named);
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
                let folder = Shown(named.parent().unwrap_or(named));
                let named = Shown(named);
                write!(
                    f,
                    "its backing file {named} is neither in its own folder nor in an image folder; \
                     where images of there may be read through others, add a line to {IMAGE_DIRS}: {folder}"
                )
            }
            Self::DataPlace(named) => write!(
                f,
                "its data are in {}, which is not in the image's own folder; move it there",
                Shown(named)
            ),
            _ => Ok(()),
        }
    }
}
