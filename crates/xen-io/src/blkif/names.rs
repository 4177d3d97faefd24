//! The nodes that the two ends of a block device write, by their names in `blkif.h`.

/// Backend: takes [`super::op::WRITE_BARRIER`].
pub const FEATURE_BARRIER: &str = "feature-barrier";
/// Backend: takes [`super::op::FLUSH_DISKCACHE`].
pub const FEATURE_FLUSH_CACHE: &str = "feature-flush-cache";
/// Backend: takes [`super::op::DISCARD`].
pub const FEATURE_DISCARD: &str = "feature-discard";
/// Both: the same grants are used again and again, and stay mapped.
pub const FEATURE_PERSISTENT: &str = "feature-persistent";
/// Backend: most segments of an indirect request. Not written where there are none.
pub const FEATURE_MAX_INDIRECT_SEGMENTS: &str = "feature-max-indirect-segments";
/// Backend: largest ring, as the logarithm of its pages.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// Frontend: its rings' size, as the logarithm of the pages.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// Frontend, deprecated: its rings' size in pages.
pub const NUM_RING_PAGES: &str = "num-ring-pages";
/// Backend, set by the toolstack: 0 forbids to offer discard.
pub const DISCARD_ENABLE: &str = "discard-enable";
/// Backend: bytes from the beginning of the device to the first piece that can be discarded.
pub const DISCARD_ALIGNMENT: &str = "discard-alignment";
/// Backend: bytes of the pieces that can be discarded.
pub const DISCARD_GRANULARITY: &str = "discard-granularity";
/// Backend: discards can be secure.
pub const DISCARD_SECURE: &str = "discard-secure";
/// Backend: [`super::info`].
pub const INFO: &str = "info";
/// Backend: bytes of the medium's sectors.
pub const SECTOR_SIZE: &str = "sector-size";
/// Backend: bytes of the smallest piece that the medium writes at once.
pub const PHYSICAL_SECTOR_SIZE: &str = "physical-sector-size";
/// Backend: size of the medium in units of 512 bytes.
pub const SECTORS: &str = "sectors";
/// Backend, set by the toolstack: `r` or `w`.
pub const MODE: &str = "mode";
/// Backend, set by the toolstack: the image or device to serve.
pub const PARAMS: &str = "params";
/// Frontend: the layout of its rings.
pub const PROTOCOL: &str = "protocol";
/// Frontend, set by the toolstack: 0 where it is not to trust the backend.
pub const TRUSTED: &str = "trusted";
/// Frontend, set by the toolstack: the device's number.
pub const VIRTUAL_DEVICE: &str = "virtual-device";
