//! An image with all files that it needs, each opened, checked and locked before any data is read
//! through it.

use super::header::ImageHeader;
use super::{DiskAccess, ImageFault, OpenError};
use crate::disk::image::CHAIN_MAX;
use crate::disk::image_dirs::ImageDirs;
use crate::disk::lock::FileUse;
use crate::disk::open::OpenFile;
use rustix::fs::OFlags;
use std::fs::File;
use std::path::{Path, PathBuf};

/// An image and its backing files, the top first.
#[derive(Debug)]
pub(super) struct Chain(pub(super) Vec<ChainFile>);

/// One file of a chain.
#[derive(Debug)]
pub(super) struct ChainFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// The header; `None` for a raw file, which is the last.
    pub(super) header: Option<ImageHeader>,
    /// The file that has the data, if it is another one.
    pub(super) data: Option<(PathBuf, File)>,
}

/// A format of a backing file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BackingFormat {
    Raw,
    Qcow2,
}

/// The purpose for which a chain is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChainPurpose {
    /// The files are used, and so are locked.
    Use(DiskAccess),
    /// The files are only checked, without locks.
    Look,
}

impl ChainPurpose {
    fn flags(self) -> OFlags {
        if self == Self::Use(DiskAccess::ReadWrite) { OFlags::RDWR } else { OFlags::RDONLY }
    }

    fn lock(self, opened: &OpenFile) -> Result<(), OpenError> {
        match self {
            Self::Use(DiskAccess::ReadWrite) => opened.lock(FileUse::Writing),
            Self::Use(DiskAccess::ReadOnly) => opened.lock(FileUse::Keeping),
            Self::Look => Ok(()),
        }
    }

    /// Returns the purpose for the backing files.
    fn behind(self) -> Self {
        if self == Self::Look { self } else { Self::Use(DiskAccess::ReadOnly) }
    }
}

impl Chain {
    /// Opens the image at `path` and its backing files. Each opened link is reported to `see`, so
    /// that the caller knows the earlier ones when a later one is refused.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) fn open(
        path: &Path,
        mut purpose: ChainPurpose,
        image_dirs: &ImageDirs,
        mut see: impl FnMut(&ChainFile),
    ) -> Result<Self, OpenError> {
        let (mut links, mut ids) = (Vec::new(), Vec::new());
        let mut next = Some((path.to_owned(), BackingFormat::Qcow2));
        // The image that named the next one, and its folder.
        let mut by: Option<(PathBuf, PathBuf)> = None;
        while let Some((named, format)) = next.take() {
            let opened = OpenFile::open(&named, purpose.flags())?;
            if let Some((image, folder)) = &by {
                let fault = if ids.contains(&opened.id) {
                    Some(ImageFault::Loop(opened.path.clone()))
                } else if ids.len() >= CHAIN_MAX {
                    Some(ImageFault::Long)
                } else if !opened.path.starts_with(folder) && !image_dirs.has(&opened.path) {
                    Some(ImageFault::Place(opened.path.clone()))
                } else {
                    None
                };
                fault.map_or(Ok(()), |fault| Err(OpenError::Image(image.clone(), fault)))?;
            }
            purpose.lock(&opened)?;
            ids.push(opened.id);
            let OpenFile { file, path, .. } = opened;
            let bad = |fault| OpenError::Image(path.clone(), fault);
            let mut link =
                ChainFile { path: path.clone(), file: file.into(), header: None, data: None };
            if format == BackingFormat::Qcow2 {
                let header = ImageHeader::read(&link.file).map_err(bad)?;
                let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
                // Names are relative to the image's name as it was given, without resolving links,
                // as in QEMU.
                let beside = |name: &str| named.parent().unwrap_or(Path::new("/")).join(name);
                if let Some(name) = &header.data_file {
                    let data = OpenFile::open(&beside(name), purpose.flags())?;
                    if !data.path.starts_with(&folder) {
                        return Err(bad(ImageFault::DataPlace(data.path)));
                    }
                    if ids.contains(&data.id) {
                        return Err(bad(ImageFault::Loop(data.path)));
                    }
                    purpose.lock(&data)?;
                    ids.push(data.id);
                    link.data = Some((data.path, data.file.into()));
                }
                if let Some((name, format)) = &header.backing {
                    let (path, format) = backing(name, format.as_deref()).map_err(bad)?;
                    next = Some((beside(path), format));
                    by = Some((link.path.clone(), folder));
                }
                link.header = Some(header);
            }
            see(&link);
            links.push(link);
            purpose = purpose.behind();
        }
        Ok(Self(links))
    }
}

/// Returns the path and format of a backing file.
fn backing<'n>(
    name: &'n str,
    format: Option<&str>,
) -> Result<(&'n str, BackingFormat), ImageFault> {
    let path = name.strip_prefix("file:").unwrap_or(name);
    // As in QEMU, a colon before the first slash ends a protocol.
    let first = path.split('/').next().unwrap_or_default();
    if first.contains(':') {
        return Err(ImageFault::Protocol(name.to_owned()));
    }
    let format = match format {
        None => return Err(ImageFault::NoFormat(name.to_owned())),
        Some("qcow2") => BackingFormat::Qcow2,
        // The names of QEMU's drivers that read a file without a format.
        Some("raw" | "file" | "host_device") => BackingFormat::Raw,
        Some(other) => return Err(ImageFault::Format(name.to_owned(), other.to_owned())),
    };
    Ok((path, format))
}
