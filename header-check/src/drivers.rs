//! The definitions of Linux's Xen drivers, as `libxen-dev` repeats them.

use crate::{CheckedNumber, layout, row};
use xen_linux::abi;

/// Returns all rows.
#[must_use]
pub fn rows() -> Vec<CheckedNumber> {
    let mut rows = vec![
        row("IOCTL_EVTCHN_BIND_VIRQ", abi::IOCTL_EVTCHN_BIND_VIRQ),
        row("IOCTL_EVTCHN_BIND_INTERDOMAIN", abi::IOCTL_EVTCHN_BIND_INTERDOMAIN),
        row("IOCTL_EVTCHN_BIND_UNBOUND_PORT", abi::IOCTL_EVTCHN_BIND_UNBOUND_PORT),
        row("IOCTL_EVTCHN_UNBIND", abi::IOCTL_EVTCHN_UNBIND),
        row("IOCTL_EVTCHN_NOTIFY", abi::IOCTL_EVTCHN_NOTIFY),
        row("IOCTL_EVTCHN_RESET", abi::IOCTL_EVTCHN_RESET),
        row("IOCTL_GNTDEV_MAP_GRANT_REF", abi::IOCTL_GNTDEV_MAP_GRANT_REF),
        row("IOCTL_GNTDEV_UNMAP_GRANT_REF", abi::IOCTL_GNTDEV_UNMAP_GRANT_REF),
        row("IOCTL_GNTDEV_GRANT_COPY", abi::IOCTL_GNTDEV_GRANT_COPY),
        row("IOCTL_GNTALLOC_ALLOC_GREF", abi::IOCTL_GNTALLOC_ALLOC_GREF),
        row("IOCTL_GNTALLOC_DEALLOC_GREF", abi::IOCTL_GNTALLOC_DEALLOC_GREF),
        row("GNTALLOC_FLAG_WRITABLE", abi::GNTALLOC_FLAG_WRITABLE),
        row("IOCTL_PRIVCMD_HYPERCALL", abi::IOCTL_PRIVCMD_HYPERCALL),
        row("IOCTL_PRIVCMD_MMAPBATCH_V2", abi::IOCTL_PRIVCMD_MMAPBATCH_V2),
        row("IOCTL_XENBUS_BACKEND_EVTCHN", abi::IOCTL_XENBUS_BACKEND_EVTCHN),
    ];
    layouts(&mut rows);
    rows
}

fn layouts(rows: &mut Vec<CheckedNumber>) {
    layout!(
        rows,
        "struct ioctl_evtchn_bind_interdomain" =
            abi::ioctl_evtchn_bind_interdomain { remote_domain, remote_port }
    );
    layout!(rows, "struct ioctl_gntdev_grant_ref" = abi::ioctl_gntdev_grant_ref { domid, r#ref });
    layout!(
        rows,
        "struct ioctl_gntdev_map_grant_ref" =
            abi::ioctl_gntdev_map_grant_ref { count, index, refs }
    );
    layout!(
        rows,
        "struct ioctl_gntdev_unmap_grant_ref" = abi::ioctl_gntdev_unmap_grant_ref { index, count }
    );
    layout!(
        rows,
        "struct ioctl_gntdev_grant_copy_segment" =
            abi::gntdev_grant_copy_segment { source, dest, len, flags, status }
    );
    let virt = |end: &str| format!("offsetof(struct ioctl_gntdev_grant_copy_segment, {end}.virt)");
    rows.extend([
        row(virt("source"), std::mem::offset_of!(abi::gntdev_grant_copy_segment, source)),
        row(virt("dest"), std::mem::offset_of!(abi::gntdev_grant_copy_segment, dest)),
    ]);
    let foreign = |field: &str| {
        format!(
            "offsetof(struct ioctl_gntdev_grant_copy_segment, source.foreign.{field}) - \
             offsetof(struct ioctl_gntdev_grant_copy_segment, source)"
        )
    };
    rows.extend([
        row(foreign("ref"), std::mem::offset_of!(abi::gntdev_copy_foreign, r#ref)),
        row(foreign("offset"), std::mem::offset_of!(abi::gntdev_copy_foreign, offset)),
        row(foreign("domid"), std::mem::offset_of!(abi::gntdev_copy_foreign, domid)),
    ]);
    layout!(
        rows,
        "struct ioctl_gntdev_grant_copy" = abi::ioctl_gntdev_grant_copy { count, segments }
    );
    layout!(
        rows,
        "struct ioctl_gntalloc_alloc_gref" =
            abi::ioctl_gntalloc_alloc_gref { domid, flags, count, index, gref_ids }
    );
    layout!(
        rows,
        "struct ioctl_gntalloc_dealloc_gref" = abi::ioctl_gntalloc_dealloc_gref { index, count }
    );
    layout!(rows, "struct privcmd_hypercall" = abi::privcmd_hypercall { op, arg });
    layout!(
        rows,
        "struct privcmd_mmapbatch_v2" = abi::privcmd_mmapbatch_v2 { num, dom, addr, arr, err }
    );
}
