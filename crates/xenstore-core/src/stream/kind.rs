//! The types of records: Xen's 0 to 8, and this project's from `0x7862_0001` (`xb`) on. The layout
//! of a type never changes: another layout has another number.

pub(super) const END: u32 = 0;
pub(super) const GLOBAL: u32 = 1;
pub(super) const CONNECTION: u32 = 2;
pub(super) const WATCH: u32 = 3;
pub(super) const TRANSACTION: u32 = 4;
pub(super) const NODE: u32 = 5;
pub(super) const GLOBAL_QUOTA: u32 = 6;
pub(super) const DOMAIN: u32 = 7;
pub(super) const WATCH_EXTENDED: u32 = 8;
pub(super) const GENERATION: u32 = 0x7862_0001;
pub(super) const UNCONNECTED: u32 = 0x7862_0002;
pub(super) const DOMAIN_MORE: u32 = 0x7862_0003;
pub(super) const CONNECTION_MORE: u32 = 0x7862_0004;
pub(super) const INPUT: u32 = 0x7862_0005;

pub(super) fn name(kind: u32) -> &'static str {
    match kind {
        END => "END",
        GLOBAL => "GLOBAL_DATA",
        CONNECTION => "CONNECTION_DATA",
        WATCH => "WATCH_DATA",
        TRANSACTION => "TRANSACTION_DATA",
        NODE => "NODE_DATA",
        GLOBAL_QUOTA => "GLOBAL_QUOTA_DATA",
        DOMAIN => "DOMAIN_DATA",
        WATCH_EXTENDED => "WATCH_DATA_EXTENDED",
        GENERATION => "XB_GENERATION",
        UNCONNECTED => "XB_UNCONNECTED",
        DOMAIN_MORE => "XB_DOMAIN",
        CONNECTION_MORE => "XB_CONNECTION",
        INPUT => "XB_INPUT",
        _ => "of a type that is not known",
    }
}
