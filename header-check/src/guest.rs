//! The numbers and layouts of Xen that the guest of the conformance suite uses. The guest is a
//! workspace of its own, for no operating system; its numbers are compiled here once more.

use crate::{CheckedNumber, layout, row};

#[path = "../../tests/xen/guest/src/abi.rs"]
#[allow(missing_docs)] // Each item has the name that its header gives it.
pub mod abi;

use abi::{clock, console, shared_info, store};

/// Returns all rows.
#[must_use]
pub fn rows() -> Vec<CheckedNumber> {
    let mut rows = vec![
        row("1UL << XEN_PAGE_SHIFT", abi::PAGE_SIZE),
        row("__HYPERVISOR_update_va_mapping", abi::UPDATE_VA_MAPPING),
        row("__HYPERVISOR_sched_op", abi::SCHED_OP),
        row("__HYPERVISOR_event_channel_op", abi::EVENT_CHANNEL_OP),
        row("UVMF_INVLPG", abi::UVMF_INVLPG),
        row("SCHEDOP_shutdown", abi::SCHEDOP_SHUTDOWN),
        row("SCHEDOP_poll", abi::SCHEDOP_POLL),
        row("EVTCHNOP_send", abi::EVTCHNOP_SEND),
        row("SHUTDOWN_crash", abi::SHUTDOWN_CRASH),
        row("XEN_ELFNOTE_ENTRY", abi::NOTE_ENTRY),
        row("XEN_ELFNOTE_VIRT_BASE", abi::NOTE_VIRT_BASE),
        row("XEN_ELFNOTE_PADDR_OFFSET", abi::NOTE_PADDR_OFFSET),
        row("XEN_ELFNOTE_XEN_VERSION", abi::NOTE_XEN_VERSION),
        row("XEN_ELFNOTE_GUEST_OS", abi::NOTE_GUEST_OS),
        row("XEN_ELFNOTE_LOADER", abi::NOTE_LOADER),
        row("offsetof(struct shared_info, vcpu_info[0].time)", shared_info::CLOCK),
        row("offsetof(struct shared_info, evtchn_pending)", shared_info::PENDING),
        row("offsetof(struct vcpu_time_info, version)", clock::VERSION),
        row("offsetof(struct vcpu_time_info, tsc_timestamp)", clock::TSC_TIMESTAMP),
        row("offsetof(struct vcpu_time_info, system_time)", clock::SYSTEM_TIME),
        row("offsetof(struct vcpu_time_info, tsc_to_system_mul)", clock::TSC_TO_SYSTEM_MUL),
        row("offsetof(struct vcpu_time_info, tsc_shift)", clock::TSC_SHIFT),
    ];
    rows.extend(rings());
    let start = [
        ("magic", std::mem::offset_of!(abi::StartInfo, magic)),
        ("nr_pages", std::mem::offset_of!(abi::StartInfo, nr_pages)),
        ("shared_info", std::mem::offset_of!(abi::StartInfo, shared_info)),
        ("flags", std::mem::offset_of!(abi::StartInfo, flags)),
        ("store_mfn", std::mem::offset_of!(abi::StartInfo, store_mfn)),
        ("store_evtchn", std::mem::offset_of!(abi::StartInfo, store_evtchn)),
        ("console.domU.mfn", std::mem::offset_of!(abi::StartInfo, console_mfn)),
        ("console.domU.evtchn", std::mem::offset_of!(abi::StartInfo, console_evtchn)),
        ("pt_base", std::mem::offset_of!(abi::StartInfo, pt_base)),
        ("nr_pt_frames", std::mem::offset_of!(abi::StartInfo, nr_pt_frames)),
        ("mfn_list", std::mem::offset_of!(abi::StartInfo, mfn_list)),
    ];
    let field = |name| format!("offsetof(struct start_info, {name})");
    rows.extend(start.map(|(name, ours)| row(field(name), ours)));
    layout!(rows, "struct sched_poll" = abi::SchedPoll { ports, nr_ports, timeout });
    rows
}

/// Returns the rows of the two pages that the guest shares with domain 0.
fn rings() -> Vec<CheckedNumber> {
    let of_store = |name| format!("offsetof(struct xenstore_domain_interface, {name})");
    let of_console = |name| format!("offsetof(struct xencons_interface, {name})");
    vec![
        row("XENSTORE_RING_SIZE", store::RING),
        row(of_store("rsp"), store::RESPONSES),
        row(of_store("req_cons"), store::REQ_CONS),
        row(of_store("req_prod"), store::REQ_PROD),
        row(of_store("rsp_cons"), store::RSP_CONS),
        row(of_store("rsp_prod"), store::RSP_PROD),
        row(of_store("connection"), store::CONNECTION),
        row(of_store("error"), store::ERROR),
        row("sizeof(((struct xencons_interface *)0)->in)", console::IN),
        row("sizeof(((struct xencons_interface *)0)->out)", console::OUT),
        row(of_console("in_cons"), console::IN_CONS),
        row(of_console("in_prod"), console::IN_PROD),
        row(of_console("out_cons"), console::OUT_CONS),
        row(of_console("out_prod"), console::OUT_PROD),
    ]
}
