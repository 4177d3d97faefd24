//! Numbers and layouts, as in the C headers; `header-check` compares each of them.
//!
//! Source: `xen/include/public/{xen,elfnote,sched,event_channel}.h`, `io/{console,xs_wire}.h`.

/// Bytes of a page.
pub const PAGE_SIZE: u32 = 4096;

// xen.h
pub const UPDATE_VA_MAPPING: u64 = 14;
pub const SCHED_OP: u64 = 29;
pub const EVENT_CHANNEL_OP: u64 = 32;
/// Flush the one page on this processor.
pub const UVMF_INVLPG: u64 = 2;

// sched.h, event_channel.h
pub const SCHEDOP_SHUTDOWN: u64 = 2;
pub const SCHEDOP_POLL: u64 = 3;
pub const EVTCHNOP_SEND: u64 = 4;
pub const SHUTDOWN_CRASH: u32 = 3;

// elfnote.h
pub const NOTE_ENTRY: u32 = 1;
pub const NOTE_VIRT_BASE: u32 = 3;
pub const NOTE_PADDR_OFFSET: u32 = 4;
pub const NOTE_XEN_VERSION: u32 = 5;
pub const NOTE_GUEST_OS: u32 = 6;
pub const NOTE_LOADER: u32 = 8;

/// `struct start_info`, its first part.
#[repr(C)]
pub struct StartInfo {
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub store_mfn: u64,
    pub store_evtchn: u32,
    pub console_mfn: u64,
    pub console_evtchn: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
}

/// `struct sched_poll`.
#[repr(C)]
pub struct SchedPoll {
    pub ports: *const u32,
    pub nr_ports: u32,
    pub timeout: u64,
}

/// Offsets in `struct shared_info`: processor 0's clock, and the pending bits.
pub mod shared_info {
    pub const CLOCK: usize = 32;
    pub const PENDING: usize = 2048;
}

/// Offsets in `struct vcpu_time_info`.
pub mod clock {
    pub const VERSION: usize = 0;
    pub const TSC_TIMESTAMP: usize = 8;
    pub const SYSTEM_TIME: usize = 16;
    pub const TSC_TO_SYSTEM_MUL: usize = 24;
    pub const TSC_SHIFT: usize = 28;
}

/// `struct xenstore_domain_interface`: bytes of each ring, and offsets.
pub mod store {
    pub const RING: u32 = 1024;
    pub const RESPONSES: u32 = 1024;
    pub const REQ_CONS: u32 = 2048;
    pub const REQ_PROD: u32 = 2052;
    pub const RSP_CONS: u32 = 2056;
    pub const RSP_PROD: u32 = 2060;
    pub const CONNECTION: u32 = 2068;
    pub const ERROR: u32 = 2072;
}

/// `struct xencons_interface`: bytes of each ring, and offsets.
pub mod console {
    pub const IN: u32 = 1024;
    pub const OUT: u32 = 2048;
    pub const IN_CONS: u32 = 3072;
    pub const IN_PROD: u32 = 3076;
    pub const OUT_CONS: u32 = 3080;
    pub const OUT_PROD: u32 = 3084;
}
