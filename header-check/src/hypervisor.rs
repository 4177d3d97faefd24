//! The definitions of the hypervisor's own headers.

use crate::{CheckedNumber, XenVersion, layout, row};
use xen::domwatch::ShutdownReason;
use xen::evtchn::Virq;
use xen::gnttab::STATUSES;
use xen::shared::PAGE_SIZE;
use xen::{DomId, Error, GrantRef};
use xen_linux::abi;

/// Returns all rows.
#[must_use]
pub fn rows() -> Vec<CheckedNumber> {
    let mut rows = vocabulary();
    rows.extend(calls());
    layouts(&mut rows);
    rows
}

/// The errors that `xen` names.
const ERRORS: [(Error, &str); 11] = [
    (Error::Perm, "EPERM"),
    (Error::NoEnt, "ENOENT"),
    (Error::Srch, "ESRCH"),
    (Error::NoMem, "ENOMEM"),
    (Error::Access, "EACCES"),
    (Error::Busy, "EBUSY"),
    (Error::Exist, "EEXIST"),
    (Error::NoDev, "ENODEV"),
    (Error::Inval, "EINVAL"),
    (Error::NoSpc, "ENOSPC"),
    (Error::NoSys, "ENOSYS"),
];

/// Returns the rows of the types of the crate `xen`.
fn vocabulary() -> Vec<CheckedNumber> {
    let mut rows: Vec<CheckedNumber> =
        STATUSES.iter().map(|(status, name)| row(*name, *status as i16)).collect();
    // Both Xen's own number and Linux's, as answers of Linux's drivers carry the latter.
    for (error, name) in ERRORS {
        rows.push(row(format!("XEN_{name}"), error.errno()));
        rows.push(row(name, error.errno()));
    }
    rows.extend([
        row("1UL << XEN_PAGE_SHIFT", PAGE_SIZE),
        row("DOMID_FIRST_RESERVED", DomId::FIRST_RESERVED.0),
        row("DOMID_SELF", DomId::SELF.0),
        row("DOMID_INVALID", DomId::INVALID.0),
        row("GNTTAB_NR_RESERVED_ENTRIES", GrantRef::FIRST_FREE.0),
        row("GNTTAB_RESERVED_CONSOLE", GrantRef::CONSOLE.0),
        row("GNTTAB_RESERVED_XENSTORE", GrantRef::XENSTORE.0),
        row("GNTST_okay", 0),
        row("VIRQ_DOM_EXC", Virq::DomExc.number()),
        row("VIRQ_CON_RING", Virq::ConRing.number()),
        row("SHUTDOWN_poweroff", ShutdownReason::Poweroff.code()),
        row("SHUTDOWN_reboot", ShutdownReason::Reboot.code()),
        row("SHUTDOWN_suspend", ShutdownReason::Suspend.code()),
        row("SHUTDOWN_crash", ShutdownReason::Crash.code()),
        row("SHUTDOWN_watchdog", ShutdownReason::Watchdog.code()),
        row("SHUTDOWN_soft_reset", ShutdownReason::SoftReset.code()),
    ]);
    rows
}

/// Returns the rows of the numbers of hypercalls and of their subcommands.
fn calls() -> Vec<CheckedNumber> {
    let mut rows = vec![
        row("__HYPERVISOR_xen_version", abi::HYPERVISOR_XEN_VERSION),
        row("__HYPERVISOR_sched_op", abi::HYPERVISOR_SCHED_OP),
        row("__HYPERVISOR_event_channel_op", abi::HYPERVISOR_EVENT_CHANNEL_OP),
        row("__HYPERVISOR_grant_table_op", abi::HYPERVISOR_GRANT_TABLE_OP),
        row("__HYPERVISOR_sysctl", abi::HYPERVISOR_SYSCTL),
        row("__HYPERVISOR_domctl", abi::HYPERVISOR_DOMCTL),
        row("XENVER_version", abi::XENVER_VERSION),
        row("XENVER_extraversion", abi::XENVER_EXTRAVERSION),
        row("sizeof(xen_extraversion_t)", abi::XEN_EXTRAVERSION_LEN),
        row("GNTCOPY_source_gref", abi::GNTCOPY_SOURCE_GREF),
        row("GNTCOPY_dest_gref", abi::GNTCOPY_DEST_GREF),
        row("GNTTABOP_query_size", abi::GNTTABOP_QUERY_SIZE),
        row("EVTCHNOP_status", abi::EVTCHNOP_STATUS),
        row("EVTCHNSTAT_closed", abi::EVTCHNSTAT_CLOSED),
        row("EVTCHNSTAT_unbound", abi::EVTCHNSTAT_UNBOUND),
        row("EVTCHNSTAT_interdomain", abi::EVTCHNSTAT_INTERDOMAIN),
        row("EVTCHNSTAT_virq", abi::EVTCHNSTAT_VIRQ),
        row("SCHEDOP_remote_shutdown", abi::SCHEDOP_REMOTE_SHUTDOWN),
        row("XEN_SYSCTL_readconsole", abi::XEN_SYSCTL_READCONSOLE),
        row("XEN_SYSCTL_physinfo", abi::XEN_SYSCTL_PHYSINFO),
        row("XEN_SYSCTL_getdomaininfolist", abi::XEN_SYSCTL_GETDOMAININFOLIST),
        row("XEN_DOMCTL_destroydomain", abi::XEN_DOMCTL_DESTROYDOMAIN),
        row("XEN_DOMCTL_pausedomain", abi::XEN_DOMCTL_PAUSEDOMAIN),
        row("XEN_DOMCTL_unpausedomain", abi::XEN_DOMCTL_UNPAUSEDOMAIN),
        row("XEN_DOMCTL_getdomaininfo", abi::XEN_DOMCTL_GETDOMAININFO),
        row("XEN_DOMCTL_max_mem", abi::XEN_DOMCTL_MAX_MEM),
        row("XEN_DOMCTL_scheduler_op", abi::XEN_DOMCTL_SCHEDULER_OP),
        row("XEN_DOMCTL_SCHEDOP_putinfo", abi::XEN_DOMCTL_SCHEDOP_PUTINFO),
        row("XEN_DOMCTL_SCHEDOP_getinfo", abi::XEN_DOMCTL_SCHEDOP_GETINFO),
        row("XEN_SCHEDULER_CREDIT", abi::XEN_SCHEDULER_CREDIT),
        row("XEN_SCHEDULER_CREDIT2", abi::XEN_SCHEDULER_CREDIT2),
        row("XEN_DOMINF_dying", abi::XEN_DOMINF_DYING),
        row("XEN_DOMINF_shutdown", abi::XEN_DOMINF_SHUTDOWN),
        row("XEN_DOMINF_paused", abi::XEN_DOMINF_PAUSED),
        row("XEN_DOMINF_blocked", abi::XEN_DOMINF_BLOCKED),
        row("XEN_DOMINF_running", abi::XEN_DOMINF_RUNNING),
        row("XEN_DOMINF_shutdownshift", abi::XEN_DOMINF_SHUTDOWNSHIFT),
        row("XEN_DOMINF_shutdownmask", abi::XEN_DOMINF_SHUTDOWNMASK),
    ];
    let newer = [
        row("XEN_DOMCTL_get_domain_state", abi::XEN_DOMCTL_GET_DOMAIN_STATE),
        row("XEN_DOMCTL_GETDOMSTATE_STATE_EXIST", abi::GETDOMSTATE_EXIST),
        row("XEN_DOMCTL_GETDOMSTATE_STATE_SHUTDOWN", abi::GETDOMSTATE_SHUTDOWN),
        row("XEN_DOMCTL_GETDOMSTATE_STATE_DEAD", abi::GETDOMSTATE_DEAD),
    ];
    rows.extend(newer.map(|row| row.since(XenVersion::V4_21)));
    // The version of these headers is one of those that the code tries.
    let known = |name: &str, versions: &[u32]| {
        let tests: Vec<String> =
            versions.iter().map(|version| format!("{name} == {version}")).collect();
        row(tests.join(" || "), 1)
    };
    rows.push(known("XEN_DOMCTL_INTERFACE_VERSION", abi::DOMCTL_VERSIONS));
    rows.push(known("XEN_SYSCTL_INTERFACE_VERSION", abi::SYSCTL_VERSIONS));
    rows
}

fn layouts(rows: &mut Vec<CheckedNumber>) {
    layout!(rows, "struct evtchn_status" = abi::evtchn_status { dom, port, status, vcpu, u });
    layout!(
        rows,
        "struct sched_remote_shutdown" = abi::sched_remote_shutdown { domain_id, reason }
    );
    layout!(
        rows,
        "struct gnttab_query_size" =
            abi::gnttab_query_size { dom, nr_frames, max_nr_frames, status }
    );
    sysctls(rows);
    layout!(rows, "struct xen_domctl" = abi::xen_domctl { cmd, interface_version, domain, u });
    layout!(
        rows,
        "struct xen_domctl_getdomaininfo" = abi::xen_domctl_getdomaininfo {
            domain,
            flags,
            tot_pages,
            max_pages,
            outstanding_pages,
            shr_pages,
            paged_pages,
            shared_info_frame,
            cpu_time,
            nr_online_vcpus,
            max_vcpu_id,
            ssidref,
            handle,
            cpupool,
            gpaddr_bits,
            arch_config,
        }
    );
    unions(rows);
    let mut newer = Vec::new();
    layout!(
        newer,
        "struct xen_domctl_get_domain_state" =
            abi::xen_domctl_get_domain_state { state, caps, pad0, unique_id }
    );
    rows.extend(newer.into_iter().map(|row| row.since(XenVersion::V4_21)));
}

/// Adds the rows of `struct xen_sysctl`, whose union has a use for each call.
fn sysctls(rows: &mut Vec<CheckedNumber>) {
    layout!(rows, "struct xen_sysctl" = abi::xen_sysctl_getdomaininfolist {
        cmd,
        interface_version,
        first_domain = "u.getdomaininfolist.first_domain",
        max_domains = "u.getdomaininfolist.max_domains",
        buffer = "u.getdomaininfolist.buffer",
        num_domains = "u.getdomaininfolist.num_domains",
    });
    layout!(rows, "struct xen_sysctl" = abi::xen_sysctl_physinfo {
        cmd,
        interface_version,
        threads_per_core = "u.physinfo.threads_per_core",
        cores_per_socket = "u.physinfo.cores_per_socket",
        nr_cpus = "u.physinfo.nr_cpus",
        max_cpu_id = "u.physinfo.max_cpu_id",
        nr_nodes = "u.physinfo.nr_nodes",
        max_node_id = "u.physinfo.max_node_id",
        cpu_khz = "u.physinfo.cpu_khz",
        capabilities = "u.physinfo.capabilities",
        arch_capabilities = "u.physinfo.arch_capabilities",
        total_pages = "u.physinfo.total_pages",
        free_pages = "u.physinfo.free_pages",
    });
    layout!(rows, "struct xen_sysctl" = abi::xen_sysctl_readconsole {
        cmd,
        interface_version,
        clear = "u.readconsole.clear",
        incremental = "u.readconsole.incremental",
        index = "u.readconsole.index",
        buffer = "u.readconsole.buffer",
        count = "u.readconsole.count",
    });
}

/// Adds the rows of the fields of unions, where the header has one for each use.
fn unions(rows: &mut Vec<CheckedNumber>) {
    let status = std::mem::offset_of!(abi::evtchn_status, u);
    for field in ["unbound.dom", "interdomain.dom", "virq"] {
        rows.push(row(format!("offsetof(struct evtchn_status, u.{field})"), status));
    }
    rows.push(row("offsetof(struct evtchn_status, u.interdomain.port)", status + 4));
    let size = |field: &str| format!("sizeof(((struct evtchn_status *)0)->u.{field})");
    rows.extend([
        row(size("unbound.dom"), size_of::<u16>()),
        row(size("interdomain.dom"), size_of::<u16>()),
        row(size("interdomain.port"), size_of::<u32>()),
        row(size("virq"), size_of::<u32>()),
    ]);
    let op = |field: &str| format!("offsetof(struct xen_domctl_scheduler_op, {field})");
    let weight = std::mem::offset_of!(abi::xen_domctl_scheduler_op, weight);
    let cap = std::mem::offset_of!(abi::xen_domctl_scheduler_op, cap);
    rows.extend([
        row(op("sched_id"), std::mem::offset_of!(abi::xen_domctl_scheduler_op, sched_id)),
        row(op("cmd"), std::mem::offset_of!(abi::xen_domctl_scheduler_op, cmd)),
        row(op("u.credit.weight"), weight),
        row(op("u.credit.cap"), cap),
        row(op("u.credit2.weight"), weight),
        row(op("u.credit2.cap"), cap),
        row("offsetof(struct xen_domctl_max_mem, max_memkb)", 0),
        row("sizeof(((struct xen_domctl_max_mem *)0)->max_memkb)", size_of::<u64>()),
    ]);
    let of = |field: &str| format!("offsetof(struct xen_domctl, u.{field})");
    let u = std::mem::offset_of!(abi::xen_domctl, u);
    rows.extend(["getdomaininfo", "scheduler_op", "max_mem", "pad"].map(|name| row(of(name), u)));
    rows.push(row(of("get_domain_state"), u).since(XenVersion::V4_21));
}
