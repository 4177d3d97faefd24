//! The system calls that a domain may not make: each is tried, in a sandbox with namespaces and in
//! one without.

use crate::support::puppet::Puppet;
use crate::support::{BrokerHost, entries, raw};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use xen_hosted::domain::{MissingFeature, system_calls};

/// The limit of the numbers of calls.
const NUMBERS: libc::c_long = 480;

/// Has a domain try each call that it may not make.
fn each_is_refused(host: &BrokerHost, namespaces: bool) {
    let mut guest = Puppet::start(host);
    let lacks = |lack| guest.created.lacks.contains(&lack);
    assert_eq!(lacks(MissingFeature::Namespaces), !namespaces);
    let own_user = !lacks(MissingFeature::OwnUser);
    let allowed = system_calls(namespaces, own_user);
    let mut tried = 0;
    // The kernel lets no filter refuse its calls for probes of programs; any other process is
    // killed by them.
    let probes = [335, 336];
    let untried = |number: &libc::c_long| allowed.contains(number) || probes.contains(number);
    for number in (0..NUMBERS).filter(|number| !untried(number)) {
        let expected = match number {
            188..=199 => libc::EOPNOTSUPP,
            libc::SYS_io_setup
            | libc::SYS_get_mempolicy
            | libc::SYS_set_mempolicy
            | libc::SYS_mbind
            | libc::SYS_seccomp
            | libc::SYS_bpf
            | libc::SYS_userfaultfd
            | libc::SYS_perf_event_open
            | libc::SYS_inotify_init1
            | libc::SYS_keyctl
            | libc::SYS_add_key
            | libc::SYS_request_key => libc::ENOSYS,
            424.. => libc::ENOSYS,
            _ => libc::EPERM,
        };
        assert_eq!(guest.ask(&format!("call {number}")), expected.to_string(), "call {number}");
        tried += 1;
    }
    // Some 180 numbers have a call that no domain may make; those in the hole below 424 have none.
    assert!(tried > 180, "{tried}");
}

/// Arguments with which calls are refused everywhere.
const REFUSED: [&str; 23] = [
    "memfd-huge",
    "mmap-huge",
    "fadvise-dontneed",
    "attach-filter",
    "attach-reuseport-filter",
    "prctl-death",
    "prctl-seccomp",
    "prctl-core-scheduling",
    "prctl-merge",
    "setpriority-user",
    "socket-inet",
    "socket-netlink",
    "pair-inet",
    "pair-tipc",
    "madvise-merge",
    "madvise-pageout",
    "lease",
    "notice",
    "clone-user",
    "clone-net",
    "setfl",
    "fionbio",
    "tiocsti",
];

#[test]
fn every_other_call_is_refused() {
    let host = BrokerHost::start();
    each_is_refused(&host, true);
    let mut guest = Puppet::start(&host);
    for what in REFUSED {
        assert_eq!(guest.ask(&format!("refused {what}")), libc::EPERM.to_string(), "{what}");
    }
}

/// With only a user's own rights, its files and other processes are still out of reach.
#[test]
fn every_other_call_is_refused_without_namespaces() {
    let host = BrokerHost::start_without_namespaces();
    each_is_refused(&host, false);
    let folder = host.dir.path().join("theirs");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("file");
    fs::write(&file, "as it was").unwrap();
    let state = || {
        let data = fs::metadata(&file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        (data.permissions().mode(), data.mtime(), data.mtime_nsec(), data.ctime_nsec(), text)
    };
    let before = state();
    let mut guest = Puppet::start(&host);
    let more = ["process", "kill-others", "datagrams", "owner", "bind"];
    for what in REFUSED.into_iter().chain(more) {
        assert_eq!(guest.ask(&format!("refused {what}")), libc::EPERM.to_string(), "{what}");
    }
    for what in ["write", "truncate", "create", "chmod", "chown", "utime", "unlink", "rename"] {
        let came = guest.ask(&format!("spoil {what} {}", file.display()));
        assert_eq!(came, libc::EPERM.to_string(), "{what}");
    }
    assert_eq!(state(), before);
    assert_eq!(entries(&folder), ["file"]);
}

/// Descriptors in flight are counted by user: a domain that sees the host, and shares its user, may
/// send none.
#[test]
fn who_shares_the_host_passes_no_descriptors() {
    let host = BrokerHost::start_without_namespaces();
    let mut shared = Puppet::start(&host);
    assert_eq!(shared.ask("park"), libc::EPERM.to_string());
    let host = BrokerHost::start();
    let mut guest = Puppet::start(&host);
    let parked = guest.ask("park");
    // It can have as many in flight as it may, and a user with a higher limit still passes its own.
    assert_eq!(parked, libc::ETOOMANYREFS.to_string());
    assert_eq!(Puppet::start(&host).ask("alloc 0"), "3");
    let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
    raw::pass(&one, &one).unwrap();
}
