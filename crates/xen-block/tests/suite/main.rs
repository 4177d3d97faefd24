//! Block devices: both ends on one machine, images, crashes, advisories, and hosted guests with the real processes.

mod chain;
mod device;
mod driver_domain;
mod durable;
mod export;
mod fault;
mod hosted;
mod hosted_fuse;
mod images;
mod large_sectors;
mod nbd;
mod opening;
mod restart;
mod support;
mod traced;
mod xsa;
mod zstd;
