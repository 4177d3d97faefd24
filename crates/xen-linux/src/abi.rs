//! Numbers and layouts, as in the C headers; `header-check` compares each of them.
//!
//! Sources: Xen's `xen/include/public/{xen,domctl,sysctl,event_channel,sched,version,grant_table}.h`
//! and Linux's `include/uapi/xen/{evtchn,gntdev,gntalloc,privcmd}.h`, `include/xen/xenbus_dev.h`.
#![allow(missing_docs)] // Each item has the name that its header gives it.

// `struct xen_arch_domainconfig`, and with it every entry of a list of domains, has another size on Arm.
#[cfg(not(target_arch = "x86_64"))]
compile_error!("xen-linux knows the hypercalls' layouts of x86_64 alone");

/// `_IOC(_IOC_NONE, group, number, size)` of Linux on x86 and Arm.
const fn ioc(group: u8, number: u8, size: usize) -> u32 {
    ((size as u32) << 16) | ((group as u32) << 8) | number as u32
}

// <xen/evtchn.h>
pub const IOCTL_EVTCHN_BIND_VIRQ: u32 = ioc(b'E', 0, 4);
pub const IOCTL_EVTCHN_BIND_INTERDOMAIN: u32 = ioc(b'E', 1, 8);
pub const IOCTL_EVTCHN_BIND_UNBOUND_PORT: u32 = ioc(b'E', 2, 4);
pub const IOCTL_EVTCHN_UNBIND: u32 = ioc(b'E', 3, 4);
pub const IOCTL_EVTCHN_NOTIFY: u32 = ioc(b'E', 4, 4);
pub const IOCTL_EVTCHN_RESET: u32 = ioc(b'E', 5, 0);

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ioctl_evtchn_bind_interdomain {
    pub remote_domain: u32,
    pub remote_port: u32,
}

// <xen/gntdev.h>
pub const IOCTL_GNTDEV_MAP_GRANT_REF: u32 = ioc(b'G', 0, size_of::<ioctl_gntdev_map_grant_ref>());
pub const IOCTL_GNTDEV_UNMAP_GRANT_REF: u32 =
    ioc(b'G', 1, size_of::<ioctl_gntdev_unmap_grant_ref>());
pub const IOCTL_GNTDEV_GRANT_COPY: u32 = ioc(b'G', 8, size_of::<ioctl_gntdev_grant_copy>());

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ioctl_gntdev_grant_ref {
    pub domid: u32,
    pub r#ref: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ioctl_gntdev_map_grant_ref {
    pub count: u32,
    pub pad: u32,
    pub index: u64,
    /// The first of `count`.
    pub refs: [ioctl_gntdev_grant_ref; 1],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ioctl_gntdev_unmap_grant_ref {
    pub index: u64,
    pub count: u32,
    pub pad: u32,
}

/// One end of a copy: an address of this process, or a piece of a granted page.
#[repr(C)]
#[derive(Clone, Copy)]
pub union gntdev_copy_end {
    pub virt: *mut u8,
    pub foreign: gntdev_copy_foreign,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct gntdev_copy_foreign {
    pub r#ref: u32,
    pub offset: u16,
    pub domid: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct gntdev_grant_copy_segment {
    pub source: gntdev_copy_end,
    pub dest: gntdev_copy_end,
    pub len: u16,
    pub flags: u16,
    pub status: i16,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ioctl_gntdev_grant_copy {
    pub count: u32,
    pub segments: *mut gntdev_grant_copy_segment,
}

// xen/include/public/grant_table.h
pub const GNTCOPY_SOURCE_GREF: u16 = 1;
pub const GNTCOPY_DEST_GREF: u16 = 2;
pub const GNTTABOP_QUERY_SIZE: u64 = 6;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct gnttab_query_size {
    pub dom: u16,
    pub nr_frames: u32,
    pub max_nr_frames: u32,
    pub status: i16,
}

// <xen/gntalloc.h>
pub const IOCTL_GNTALLOC_ALLOC_GREF: u32 = ioc(b'G', 5, size_of::<ioctl_gntalloc_alloc_gref>());
pub const IOCTL_GNTALLOC_DEALLOC_GREF: u32 = ioc(b'G', 6, size_of::<ioctl_gntalloc_dealloc_gref>());
pub const GNTALLOC_FLAG_WRITABLE: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ioctl_gntalloc_alloc_gref {
    pub domid: u16,
    pub flags: u16,
    pub count: u32,
    pub index: u64,
    /// The first of `count`.
    pub gref_ids: [u32; 1],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ioctl_gntalloc_dealloc_gref {
    pub index: u64,
    pub count: u32,
}

// <xen/privcmd.h>
pub const IOCTL_PRIVCMD_HYPERCALL: u32 = ioc(b'P', 0, size_of::<privcmd_hypercall>());
pub const IOCTL_PRIVCMD_MMAPBATCH_V2: u32 = ioc(b'P', 4, size_of::<privcmd_mmapbatch_v2>());

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct privcmd_hypercall {
    pub op: u64,
    pub arg: [u64; 5],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct privcmd_mmapbatch_v2 {
    pub num: u32,
    pub dom: u16,
    pub addr: u64,
    pub arr: *const u64,
    pub err: *mut i32,
}

// Linux include/xen/xenbus_dev.h
pub const IOCTL_XENBUS_BACKEND_EVTCHN: u32 = ioc(b'B', 0, 0);

// xen/include/public/xen.h
pub const HYPERVISOR_XEN_VERSION: u64 = 17;
pub const HYPERVISOR_GRANT_TABLE_OP: u64 = 20;
pub const HYPERVISOR_SCHED_OP: u64 = 29;
pub const HYPERVISOR_EVENT_CHANNEL_OP: u64 = 32;
pub const HYPERVISOR_SYSCTL: u64 = 35;
pub const HYPERVISOR_DOMCTL: u64 = 36;

// xen/include/public/version.h
pub const XENVER_VERSION: u64 = 0;
pub const XENVER_EXTRAVERSION: u64 = 1;
/// Bytes of `xen_extraversion_t`.
pub const XEN_EXTRAVERSION_LEN: usize = 16;

// xen/include/public/event_channel.h
pub const EVTCHNOP_STATUS: u64 = 5;
pub const EVTCHNSTAT_CLOSED: u32 = 0;
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
pub const EVTCHNSTAT_VIRQ: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct evtchn_status {
    pub dom: u16,
    pub port: u32,
    pub status: u32,
    pub vcpu: u32,
    /// Unbound: the domain. Interdomain: the domain, and in the next word the port. Virtual
    /// interrupt: its number.
    pub u: [u32; 2],
}

// xen/include/public/sched.h
pub const SCHEDOP_REMOTE_SHUTDOWN: u64 = 4;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct sched_remote_shutdown {
    pub domain_id: u16,
    pub reason: u32,
}

// xen/include/public/sysctl.h
/// Versions of the sysctl interface: Xen 4.17 to 4.20, and 4.21 to 4.23.
pub const SYSCTL_VERSIONS: &[u32] = &[0x15, 0x16];
pub const XEN_SYSCTL_READCONSOLE: u32 = 1;
pub const XEN_SYSCTL_PHYSINFO: u32 = 3;
pub const XEN_SYSCTL_GETDOMAININFOLIST: u32 = 6;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct xen_sysctl_physinfo {
    pub cmd: u32,
    pub interface_version: u32,
    pub threads_per_core: u32,
    pub cores_per_socket: u32,
    pub nr_cpus: u32,
    pub max_cpu_id: u32,
    pub nr_nodes: u32,
    pub max_node_id: u32,
    pub cpu_khz: u32,
    pub capabilities: u32,
    pub arch_capabilities: u32,
    pub pad: u32,
    pub total_pages: u64,
    pub free_pages: u64,
    /// The rest of the union.
    pub rest: [u64; 9],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct xen_sysctl_readconsole {
    pub cmd: u32,
    pub interface_version: u32,
    pub clear: u8,
    pub incremental: u8,
    pub pad: [u8; 2],
    pub index: u32,
    pub buffer: u64,
    pub count: u32,
    /// The rest of the union.
    pub rest: [u64; 13],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct xen_sysctl_getdomaininfolist {
    pub cmd: u32,
    pub interface_version: u32,
    pub first_domain: u16,
    pub max_domains: u32,
    pub buffer: u64,
    pub num_domains: u32,
    /// The rest of the union.
    pub rest: [u64; 13],
}

// xen/include/public/domctl.h
/// Versions of the domctl interface: Xen 4.17, 4.18, 4.19 to 4.21, and 4.22 to 4.23.
pub const DOMCTL_VERSIONS: &[u32] = &[0x15, 0x16, 0x17, 0x18];
pub const XEN_DOMCTL_DESTROYDOMAIN: u32 = 2;
pub const XEN_DOMCTL_PAUSEDOMAIN: u32 = 3;
pub const XEN_DOMCTL_UNPAUSEDOMAIN: u32 = 4;
pub const XEN_DOMCTL_GETDOMAININFO: u32 = 5;
pub const XEN_DOMCTL_MAX_MEM: u32 = 11;
pub const XEN_DOMCTL_SCHEDULER_OP: u32 = 16;
/// In the headers since Xen 4.21; part of the stable interface (version 0).
pub const XEN_DOMCTL_GET_DOMAIN_STATE: u32 = 90;
pub const XEN_DOMCTL_SCHEDOP_PUTINFO: u32 = 0;
pub const XEN_DOMCTL_SCHEDOP_GETINFO: u32 = 1;
pub const XEN_SCHEDULER_CREDIT: u32 = 5;
pub const XEN_SCHEDULER_CREDIT2: u32 = 6;
pub const XEN_DOMINF_DYING: u32 = 1;
pub const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
pub const XEN_DOMINF_PAUSED: u32 = 1 << 3;
pub const XEN_DOMINF_BLOCKED: u32 = 1 << 4;
pub const XEN_DOMINF_RUNNING: u32 = 1 << 5;
pub const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;
pub const XEN_DOMINF_SHUTDOWNMASK: u32 = 255;
pub const GETDOMSTATE_EXIST: u16 = 1;
pub const GETDOMSTATE_SHUTDOWN: u16 = 2;
pub const GETDOMSTATE_DEAD: u16 = 8;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct xen_domctl_getdomaininfo {
    pub domain: u16,
    pub pad1: u16,
    pub flags: u32,
    pub tot_pages: u64,
    pub max_pages: u64,
    pub outstanding_pages: u64,
    pub shr_pages: u64,
    pub paged_pages: u64,
    pub shared_info_frame: u64,
    pub cpu_time: u64,
    pub nr_online_vcpus: u32,
    pub max_vcpu_id: u32,
    pub ssidref: u32,
    pub handle: [u8; 16],
    pub cpupool: u32,
    pub gpaddr_bits: u8,
    pub pad2: [u8; 7],
    /// `struct xen_arch_domainconfig` of x86.
    pub arch_config: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct xen_domctl_get_domain_state {
    pub state: u16,
    pub caps: u16,
    pub pad0: u32,
    pub unique_id: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct xen_domctl_scheduler_op {
    pub sched_id: u32,
    pub cmd: u32,
    /// Of `credit` and, alike, of `credit2`.
    pub weight: u16,
    pub cap: u16,
}

/// The arguments of each call, in the union of `struct xen_domctl`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union xen_domctl_u {
    pub getdomaininfo: xen_domctl_getdomaininfo,
    pub get_domain_state: xen_domctl_get_domain_state,
    pub scheduler_op: xen_domctl_scheduler_op,
    /// `struct xen_domctl_max_mem`: in KiB.
    pub max_memkb: u64,
    pub pad: [u64; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct xen_domctl {
    pub cmd: u32,
    pub interface_version: u32,
    pub domain: u16,
    pub pad: [u16; 3],
    pub u: xen_domctl_u,
}

/// The union read as what the hypervisor has filled in. Any bytes are a value of each member.
#[allow(unsafe_code)]
impl xen_domctl {
    /// The answer to `XEN_DOMCTL_getdomaininfo`.
    #[must_use]
    pub fn getdomaininfo(&self) -> xen_domctl_getdomaininfo {
        // SAFETY: integers only, and all of the union is initialised.
        unsafe { self.u.getdomaininfo }
    }

    /// The answer to `XEN_DOMCTL_get_domain_state`.
    #[must_use]
    pub fn get_domain_state(&self) -> xen_domctl_get_domain_state {
        // SAFETY: as above.
        unsafe { self.u.get_domain_state }
    }

    /// The answer to `XEN_DOMCTL_scheduler_op`.
    #[must_use]
    pub fn scheduler_op(&self) -> xen_domctl_scheduler_op {
        // SAFETY: as above.
        unsafe { self.u.scheduler_op }
    }
}
