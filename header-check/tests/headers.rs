//! Runs the comparison against Debian's `libxen-dev`, and checks that it is complete.

use conformance::peers::{Peers, target_dir};
use header_check::compare::{compare, compare_32};
use header_check::{CheckedNumber, drivers, guest, hypervisor, io, row, store};
use std::collections::HashSet;
use std::path::PathBuf;
use xen_io::blkif::Layout;

/// Returns the folder of the headers: `XENBUS_HEADERS`, else the unpacked packages.
fn headers() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("XENBUS_HEADERS") {
        return Some(given.into());
    }
    match Peers::get() {
        Ok(peers) => Some(peers.root().to_owned()),
        Err(why) => {
            conformance::skip("the C headers", why);
            None
        }
    }
}

fn native() -> Vec<CheckedNumber> {
    let all = [
        hypervisor::rows(),
        drivers::rows(),
        store::rows(),
        guest::rows(),
        io::rows(),
        io::layout_rows(Layout::X86_64),
    ];
    all.into_iter().flatten().collect()
}

#[test]
fn every_number_is_the_headers() {
    let Some(root) = headers() else { return };
    let folder = target_dir().join("header-check");
    let outcome = compare(&native(), &root, &folder).unwrap();
    println!("{} the same; newer than these headers: {}", outcome.same, outcome.newer.join(", "));
    assert!(outcome.different.is_empty(), "{:#?}", outcome.different);

    // A wrong row is found.
    let wrong = compare(&[row("XENSTORE_RING_SIZE", 1023)], &root, &folder.join("wrong"));
    assert_eq!(wrong.unwrap().different.len(), 1);
}

#[test]
fn every_number_of_32_bits_is_the_headers() {
    let Some(root) = headers() else { return };
    let folder = target_dir().join("header-check");
    let mut rows = io::layout_rows(Layout::X86_32);
    let outcome = compare_32(&rows, &root, &folder).unwrap();
    assert!(outcome.different.is_empty(), "{:#?}", outcome.different);
    assert_eq!(outcome.same, rows.len());

    rows.push(row("sizeof(struct blkif_response)", 16));
    let wrong = compare_32(&rows, &root, &folder.join("wrong")).unwrap();
    assert_eq!(wrong.different, ["sizeof(struct blkif_response): not 16 with 32 bits"]);
    assert!(compare_32(&[row("no_such_thing", 1)], &root, &folder.join("wrong")).is_err());
}

/// The nodes that the two ends of a block device write are named only in the prose of `blkif.h`.
#[test]
fn every_node_of_a_block_device_is_in_the_header() {
    let Some(root) = headers() else { return };
    let header = std::fs::read_to_string(root.join("usr/include/xen/io/blkif.h")).unwrap();
    let names = include_str!("../../crates/xen-io/src/blkif/names.rs");
    let names: Vec<&str> = names.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let described = header.lines().any(|line| line == format!(" * {name}"));
        assert!(described || header.contains(&format!("\"{name}\" node")), "{name}");
    }
}

/// The sources of the rows.
const ROWS: &str = concat!(
    include_str!("../src/drivers.rs"),
    include_str!("../src/guest.rs"),
    include_str!("../src/hypervisor.rs"),
    include_str!("../src/io.rs"),
    include_str!("../src/store.rs"),
);

/// The files with numbers of Xen's or Linux's, and the names in them that are not.
const FILES: [(&str, &[&str]); 5] = [
    (include_str!("../../crates/xen-linux/src/abi.rs"), &[]),
    (include_str!("../../tests/xen/guest/src/abi.rs"), &[]),
    (include_str!("../../crates/xen-io/src/xs_ring.rs"), &[]),
    (include_str!("../../crates/xen-io/src/ring.rs"), &[]),
    (
        include_str!("../../crates/xen-io/src/blkif.rs"),
        // The size of a sector, numbers that follow from compared ones, and a layout.
        &[
            "SECTOR_SIZE",
            "SECTORS_PER_PAGE",
            "SEGMENTS_PER_PAGE",
            "INDIRECT_SEGMENTS_MAX",
            "NATIVE",
        ],
    ),
];

/// Returns the constants of a file and, if it holds only layouts, their fields.
fn declared(text: &'static str) -> impl Iterator<Item = &'static str> {
    let layouts = text.contains("#[repr(C)]");
    let names = text.lines().filter_map(move |line| {
        let line = line.trim();
        let field = || line.strip_prefix("pub ").filter(|_| layouts && line.ends_with(','));
        line.strip_prefix("pub const ").or_else(field)?.split(':').next()
    });
    let names = names.map(|name| name.trim_start_matches("r#"));
    // Padding, and the remaining bytes of a union.
    names.filter(|name| !name.starts_with("pad") && *name != "rest")
}

#[test]
fn every_number_has_a_row() {
    let rows = ROWS.split(|c: char| !c.is_alphanumeric() && c != '_');
    let rows: HashSet<&str> = rows.collect();
    let mut seen = 0;
    for (text, own) in FILES {
        for name in declared(text).filter(|name| !own.contains(name)) {
            assert!(rows.contains(name), "{name} has no row");
            seen += 1;
        }
    }
    assert!(seen > 150, "only {seen} numbers were found");
}
