//! Granted pages of other domains, through `/dev/xen/gntdev`.
#![allow(unsafe_code)]

use crate::abi::{self, gntdev_copy_end, gntdev_copy_foreign, gntdev_grant_copy_segment};
use crate::sys::{DeviceFile, Region};
use xen::gnttab::{CopySegment, GrantMap, GrantStatus, Mapping, PageAccess, check_buffer};
use xen::shared::PAGE_SIZE;
use xen::{DomId, Error, GrantRef};

/// Words of the fixed part of `ioctl_gntdev_map_grant_ref`, and of each grant after it.
const HEAD_WORDS: usize = 2;

/// The direction of a copy.
#[derive(Clone, Copy)]
enum Direction {
    /// From granted pages into this process.
    Out,
    /// From this process into granted pages.
    In,
}

/// The device.
#[derive(Debug)]
pub struct Gntdev {
    device: DeviceFile,
}

impl Gntdev {
    /// Opens the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn open() -> Result<Self, crate::Error> {
        Ok(Self { device: DeviceFile::open("/dev/xen/gntdev")? })
    }

    /// Maps `grants` side by side: all or none.
    fn map_all(
        &self,
        domid: DomId,
        grants: &[GrantRef],
        access: PageAccess,
    ) -> Result<Region, Error> {
        let count = u32::try_from(grants.len()).map_err(|_| Error::Inval)?;
        // count and pad, index, then one word a grant: in words, as all of it is aligned to 8.
        let mut words = vec![0_u64; HEAD_WORDS + grants.len().max(1)];
        words[0] = pair(count, 0);
        for (word, grant) in words[HEAD_WORDS..].iter_mut().zip(grants) {
            *word = pair(domid.0.into(), grant.0);
        }
        let argument = words.as_mut_ptr().cast();
        // SAFETY: laid out as the request says, with room for `count` grants.
        unsafe { self.device.call_at(abi::IOCTL_GNTDEV_MAP_GRANT_REF, argument) }?;
        let index = words[1];
        let region = self.device.map(index, grants.len(), access);
        // The mapping keeps the grants; from now on unmapping is all that is left to do.
        let mut undo = abi::ioctl_gntdev_unmap_grant_ref { index, count, pad: 0 };
        // SAFETY: the structure of the request; it holds no pointer.
        let _ = unsafe { self.device.call(abi::IOCTL_GNTDEV_UNMAP_GRANT_REF, &mut undo) };
        region
    }

    fn copy(
        &self,
        segments: &mut [CopySegment],
        buffer: *mut u8,
        direction: Direction,
    ) -> Result<(), Error> {
        let mut asked: Vec<gntdev_grant_copy_segment> = Vec::with_capacity(segments.len());
        for segment in &mut *segments {
            // The driver would refuse all of them for one that leaves its page.
            let inside = usize::from(segment.offset) + usize::from(segment.len) <= PAGE_SIZE;
            segment.status = if inside { Ok(()) } else { Err(GrantStatus::BadCopyArg) };
            if inside {
                asked.push(kernel_segment(segment, buffer, direction));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(asked.len()).map_err(|_| Error::Inval)?;
        let mut argument = abi::ioctl_gntdev_grant_copy { count, segments: asked.as_mut_ptr() };
        // SAFETY: `count` segments; the local ends lie inside the caller's buffer, as it checked,
        // and are written only where that is borrowed mutably.
        unsafe { self.device.call(abi::IOCTL_GNTDEV_GRANT_COPY, &mut argument) }?;
        let tried = segments.iter_mut().filter(|segment| segment.status.is_ok());
        for (segment, done) in tried.zip(&asked) {
            segment.status = GrantStatus::from_code(done.status);
        }
        Ok(())
    }
}

/// Two 32-bit numbers as they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// A segment as the driver takes it.
fn kernel_segment(
    segment: &CopySegment,
    buffer: *mut u8,
    direction: Direction,
) -> gntdev_grant_copy_segment {
    let foreign = gntdev_copy_end {
        foreign: gntdev_copy_foreign {
            r#ref: segment.grant.0,
            offset: segment.offset,
            domid: segment.domid.0,
        },
    };
    let local = gntdev_copy_end { virt: buffer.wrapping_add(segment.at) };
    let (source, dest, flags) = match direction {
        Direction::Out => (foreign, local, abi::GNTCOPY_SOURCE_GREF),
        Direction::In => (local, foreign, abi::GNTCOPY_DEST_GREF),
    };
    gntdev_grant_copy_segment { source, dest, len: segment.len, flags, status: 0 }
}

impl GrantMap for Gntdev {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: PageAccess) -> Result<Mapping, Error> {
        let mut pages = self.map_all(domid, &[grant], access)?.into_pages();
        let page = pages.next().ok_or(Error::Inval)?;
        Ok(Mapping::new(domid, grant, page))
    }

    /// The grants are held until the last of the batch is dropped.
    fn map_batch(
        &mut self,
        domid: DomId,
        grants: &[GrantRef],
        access: PageAccess,
        into: &mut Vec<Result<Mapping, Error>>,
    ) {
        match self.map_all(domid, grants, access) {
            Ok(region) => {
                let named = region.into_pages().zip(grants);
                into.extend(named.map(|(page, grant)| Ok(Mapping::new(domid, *grant, page))));
            }
            // The driver refuses all for one: one by one shows which.
            Err(_) => into.extend(grants.iter().map(|grant| self.map(domid, *grant, access))),
        }
    }

    fn copy_out(&mut self, segments: &mut [CopySegment], to: &mut [u8]) -> Result<(), Error> {
        check_buffer(segments, to.len())?;
        self.copy(segments, to.as_mut_ptr(), Direction::Out)
    }

    fn copy_in(&mut self, segments: &mut [CopySegment], from: &[u8]) -> Result<(), Error> {
        check_buffer(segments, from.len())?;
        self.copy(segments, from.as_ptr().cast_mut(), Direction::In)
    }
}
