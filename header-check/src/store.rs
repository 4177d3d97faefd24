//! The XenStore protocol and its ring: `io/xs_wire.h`.

use crate::{CheckedNumber, XenVersion, row};
use xen_io::xs_ring::{CONNECTED, ErrorWord, RECONNECT, RING_SIZE, offset};
use xenstore_core::limits;
use xenstore_core::wire::{ERRORS, TYPES, feature};

/// Returns the first headers that have a message type.
fn since(name: &str) -> XenVersion {
    match name {
        "GET_FEATURE" | "SET_FEATURE" | "GET_QUOTA" | "SET_QUOTA" => XenVersion::V4_21,
        _ => XenVersion::V4_17,
    }
}

/// Returns all rows.
#[must_use]
pub fn rows() -> Vec<CheckedNumber> {
    let mut rows = Vec::new();
    for (kind, name) in TYPES {
        rows.push(row(format!("XS_{name}"), kind.code()).since(since(name)));
    }
    for (at, (_, name, number)) in ERRORS.iter().enumerate() {
        rows.push(row(format!("xsd_errors[{at}].errnum"), *number));
        rows.push(row(format!("__builtin_strcmp(xsd_errors[{at}].errstring, \"{name}\")"), 0));
    }
    let words = [
        ("XENSTORE_PAYLOAD_MAX", limits::PAYLOAD_MAX),
        ("XENSTORE_ABS_PATH_MAX", limits::ABS_PATH_MAX),
        ("XENSTORE_REL_PATH_MAX", limits::REL_PATH_MAX),
        ("sizeof(struct xsd_sockmsg)", limits::HEADER_SIZE),
        ("XENSTORE_RING_SIZE", RING_SIZE),
    ];
    rows.extend(words.map(|(c, ours)| row(c, ours)));
    let fields = [
        ("req", offset::REQ),
        ("rsp", offset::RSP),
        ("req_cons", offset::REQ_CONS),
        ("req_prod", offset::REQ_PROD),
        ("rsp_cons", offset::RSP_CONS),
        ("rsp_prod", offset::RSP_PROD),
        ("server_features", offset::SERVER_FEATURES),
        ("connection", offset::CONNECTION),
        ("error", offset::ERROR),
    ];
    let field = |name| format!("offsetof(struct xenstore_domain_interface, {name})");
    rows.extend(fields.map(|(name, ours)| row(field(name), ours)));
    rows.push(row(field("evtchn_port"), offset::EVTCHN_PORT).since(XenVersion::V4_21));
    rows.extend([
        row("XENSTORE_CONNECTED", CONNECTED),
        row("XENSTORE_RECONNECT", RECONNECT),
        row("XENSTORE_ERROR_NONE", ErrorWord::None as u32),
        row("XENSTORE_ERROR_COMM", ErrorWord::Communication as u32),
        row("XENSTORE_ERROR_RINGIDX", ErrorWord::RingIndex as u32),
        row("XENSTORE_ERROR_PROTO", ErrorWord::Protocol as u32),
        row("XENSTORE_SERVER_FEATURE_RECONNECTION", feature::RECONNECTION),
        row("XENSTORE_SERVER_FEATURE_ERROR", feature::ERROR),
        row("XENSTORE_SERVER_FEATURE_WATCHDEPTH", feature::WATCH_DEPTH).since(XenVersion::V4_22),
        row("XENSTORE_SERVER_FEATURE_DOMID_ANY", feature::DOMID_ANY).since(XenVersion::V4_22),
        row("DOMID_ANY", limits::DOMID_ANY).since(XenVersion::V4_22),
    ]);
    rows
}
