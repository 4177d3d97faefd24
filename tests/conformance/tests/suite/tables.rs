//! Every table against every daemon: `c::paths` is `tables/paths.txt` against Debian's C daemon.

use conformance::{DaemonKind, TABLES, run};

macro_rules! tables {
    ($($file:ident),* $(,)?) => {
        mod c {
            $(#[test] fn $file() { super::check(super::DaemonKind::C, stringify!($file)); })*
        }
        mod ox {
            $(#[test] fn $file() { super::check(super::DaemonKind::OCaml, stringify!($file)); })*
        }
        mod ours {
            $(#[test] fn $file() { super::check(super::DaemonKind::Ours, stringify!($file)); })*
        }
    };
}

tables!(
    basics,
    payloads,
    types,
    paths,
    permissions,
    watches,
    special_watches,
    transactions,
    quotas,
    domains,
    control,
    settings,
);

fn check(kind: DaemonKind, file: &str) {
    let (_, text) = TABLES.iter().find(|(name, _)| *name == file).expect("a file of tables");
    run::run_file(kind, file, text);
}
