//! The terminal of a domain's console: it is a whole terminal, the domain's alone, and only as much
//! as a terminal's requests need.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, playing};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use xen_hosted::domain::{ConsoleTerminal, Devices, DomainConfig, MissingFeature};

/// The byte of the key ^C.
const INTERRUPT: u8 = 3;
/// The byte of the key ^D.
const END: u8 = 4;
/// The byte of the key ^Z.
const SUSPEND: u8 = 26;

/// Returns the configuration of a puppet with a terminal.
fn with_terminal() -> DomainConfig {
    let mut config = playing("puppet");
    config.terminal = ConsoleTerminal::Private;
    config
}

/// Starts a domain with a terminal and has it take the master.
fn start(host: &BrokerHost, config: &DomainConfig) -> Puppet {
    let mut guest = Puppet::start_with(&mut host.control(), config);
    let lacks = &guest.created.lacks;
    assert!(!lacks.contains(&MissingFeature::Terminal), "{lacks:?}");
    assert_eq!(guest.ask("terminal take"), "done");
    guest
}

/// Has a shell of a domain do what people do at a terminal.
fn is_a_whole_terminal(host: &BrokerHost) {
    let mut guest = start(host, &with_terminal());
    let facts = guest.ask("terminal facts");
    assert_eq!(facts, "terminal=true size=80x24 nonblocking=true name=/dev/pts/0");
    assert_eq!(guest.ask("terminal shell"), "session=true");
    let mut at = |act: &str, said: &str| assert_eq!(guest.ask(&format!("terminal {act}")), said);
    at("type test -t 0 && test -t 1 && stty size", "done");
    at("shows 24 80", "true");
    at("size 132 43", "done");
    at("type stty size", "done");
    at("shows 43 132", "true");
    // Modes, as an editor sets them: what is typed is no longer shown.
    at("type stty -echo; echo $((5 * 5))", "done");
    at("shows 25", "true");
    at("type stty -a | grep -o ' -echo '; stty echo; echo $((6 * 6))", "done");
    at("shows  -echo ", "true");
    at("shows 36", "true");
    has_job_control(&mut guest);
    assert_eq!(guest.ask("terminal type exit 3"), "done");
    assert_eq!(guest.ask("terminal end"), format!("Some(3) Err({})", libc::EIO));
}

/// Has the shell run jobs in the foreground. Each is a group of its own, and the keys are for it
/// alone.
fn has_job_control(guest: &mut Puppet) {
    let key = |guest: &mut Puppet, byte: u8| {
        assert_eq!(guest.ask("terminal foreground"), "a job");
        assert_eq!(guest.ask(&format!("terminal key {byte}")), "done");
        support::until("the shell is in the foreground again", || {
            guest.ask("terminal foreground") == "the shell"
        });
    };
    let at = |guest: &mut Puppet, typed: &str, shown: &str| {
        assert_eq!(guest.ask(&format!("terminal type {typed}")), "done");
        assert_eq!(guest.ask(&format!("terminal shows {shown}")), "true");
    };
    // What is shown is not what was typed: the job changes it.
    let job = |guest: &mut Puppet, typed: &str, shown: &str| {
        assert_eq!(guest.ask("terminal type sed s/ing/ong/"), "done");
        at(guest, typed, shown);
    };
    job(guest, "ping", "pong");
    key(guest, INTERRUPT);
    at(guest, "echo $((128 + 2))=$?", "130=130");
    job(guest, "ding", "dong");
    key(guest, SUSPEND);
    at(guest, "echo $((128 + 20))=$?", "148=148");
    assert_eq!(guest.ask("terminal type fg"), "done");
    at(guest, "wing", "wong");
    key(guest, END);
    at(guest, "echo $((6 * 7))=$?", "42=0");
}

#[test]
fn a_domain_has_a_whole_terminal() {
    is_a_whole_terminal(&BrokerHost::start());
}

#[test]
fn an_ordinary_users_domain_has_a_whole_terminal() {
    if !rustix::process::geteuid().is_root() {
        // Then all other tests run that way.
        return;
    }
    is_a_whole_terminal(&BrokerHost::start_as(65534));
}

#[test]
fn a_domain_of_the_hosts_user_namespace_has_a_whole_terminal() {
    if !rustix::process::geteuid().is_root() {
        conformance::skip("a terminal without user namespaces", "this is not root");
        return;
    }
    is_a_whole_terminal(&BrokerHost::start_as_root_without_user_namespaces());
}

#[test]
fn a_terminal_is_one_domains_alone() {
    let host = BrokerHost::start();
    let (mut one, mut two) = (start(&host, &with_terminal()), start(&host, &with_terminal()));
    let mut none = Puppet::start(&host);
    // Each is the first and only one of its instance, and the host's is another.
    let devices = [&mut one, &mut two].map(|guest| {
        let said = guest.ask("terminal device");
        let (device, own) = said.split_once(' ').unwrap();
        assert_eq!(own, "true", "it belongs to the domain's user");
        assert_eq!(guest.ask("descriptors"), "0 1 2 3");
        device.parse::<u64>().unwrap()
    });
    let of_host = std::fs::metadata("/dev/pts").map(|folder| folder.dev()).unwrap_or_default();
    let different = BTreeSet::from([devices[0], devices[1], of_host]);
    assert_eq!(different.len(), 3, "{devices:?}, the host's {of_host}");
    assert_eq!(
        one.ask("terminal take"),
        "the descriptor \"console-terminal\" is closed, or was taken before; the broker gives it to a domain \
         that was created with ConsoleTerminal::Private, where the machine can make it a terminal \
         (CreatedDomain::lacks)"
    );
    assert!(none.ask("terminal take").starts_with("no descriptor is named \"console-terminal\""));
    for guest in [&mut one, &mut two, &mut none] {
        for path in ["/dev/pts/0", "/dev/ptmx", "/dev/tty", "/pts/0"] {
            assert_eq!(guest.ask(&format!("open {path}")), "Err(NotFound)", "{path}");
        }
    }
    // What is typed at one is shown there.
    for guest in [&mut one, &mut two] {
        assert_eq!(guest.ask("terminal shell"), "session=true");
    }
    assert_eq!(one.ask("terminal type echo $((6 * 7))"), "done");
    assert_eq!(one.ask("terminal shows 42"), "true");
    assert_eq!(two.ask("terminal type exit $((6 * 8))"), "done");
    assert_eq!(two.ask("terminal end"), format!("Some(48) Err({})", libc::EIO));
}

#[test]
fn a_terminal_comes_beside_files() {
    let host = BrokerHost::start();
    let mut config = with_terminal();
    config.devices = Devices::Files;
    let mut guest = start(&host, &config);
    assert_eq!(guest.ask("terminal facts").split_once(' ').unwrap().0, "terminal=true");
    if guest.created.lacks.contains(&MissingFeature::Devices) {
        conformance::skip("a terminal beside files", "domains get no files here");
        return;
    }
    assert_eq!(guest.ask("dirty-files"), "done");
}

/// Numbers of requests: all that have the terminals' letter, with each direction and length that a
/// request of theirs has.
fn of_terminals() -> Vec<u64> {
    let kinds = [0, 0x4004, 0x8004, 0x402c, 0x802c].map(|kind| kind << 16);
    kinds.iter().flat_map(|kind| (0x5400..0x5500).map(move |number| kind | number)).collect()
}

/// Has a domain make requests, and returns those that its filter lets through.
fn let_through(guest: &mut Puppet, requests: &[u64]) -> BTreeSet<u64> {
    let words: Vec<String> = requests.iter().map(u64::to_string).collect();
    let said = guest.ask(&format!("requests {}", words.join(" ")));
    said.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

#[test]
fn of_a_terminals_requests_a_few_are_let_through() {
    let host = BrokerHost::start();
    let few: BTreeSet<u64> = [
        libc::TCGETS,
        libc::TCGETS2,
        libc::TIOCGWINSZ,
        libc::FIONREAD,
        libc::FIOCLEX,
        libc::FIONCLEX,
    ]
    .into();
    let more = [
        libc::TCSETS,
        libc::TCSETSW,
        libc::TCSETSF,
        libc::TCSETS2,
        libc::TCSETSW2,
        libc::TCSETSF2,
        libc::TIOCSWINSZ,
        libc::TIOCGPGRP,
        libc::TIOCSPGRP,
        libc::TIOCGSID,
        libc::TIOCSCTTY,
        libc::TIOCNOTTY,
        libc::TCSBRK,
        libc::TCFLSH,
        libc::TCXONC,
        libc::TIOCOUTQ,
        libc::TIOCGPTPEER,
        libc::TIOCGPTN,
    ];
    let with: BTreeSet<u64> = few.iter().copied().chain(more).collect();
    let without_namespaces = BrokerHost::start_without_namespaces();
    let guests = [
        (Puppet::start(&host), &few),
        (start(&host, &with_terminal()), &with),
        (Puppet::start_with(&mut without_namespaces.control(), &with_terminal()), &few),
    ];
    for (mut guest, expected) in guests {
        assert_eq!(&let_through(&mut guest, &of_terminals()), expected);
        // The kernel takes 32 bits of a request's number, and so does the filter.
        for high in [1 << 32, 1 << 63, 0xffff_ffff << 32, libc::TCGETS << 32] {
            let requests: Vec<u64> = of_terminals().iter().map(|number| number | high).collect();
            let expected: BTreeSet<u64> = expected.iter().map(|number| number | high).collect();
            assert_eq!(let_through(&mut guest, &requests), expected, "{high:#x}");
        }
    }
}

#[test]
fn nobody_types_or_pastes_at_a_terminal_by_a_request() {
    let host = BrokerHost::start();
    let mut guest = start(&host, &with_terminal());
    let mut at = |number: u64| guest.ask(&format!("terminal request {number}"));
    // These are requests that any terminal answers.
    assert_eq!(at(libc::TIOCGWINSZ), "0");
    assert_eq!(at(libc::TIOCGWINSZ | 1 << 32), "0");
    for request in [
        libc::TIOCSTI,
        libc::TIOCLINUX,
        libc::TIOCSETD,
        libc::TIOCCONS,
        libc::TIOCEXCL,
        libc::FIONBIO,
        libc::FIOASYNC,
    ] {
        for high in [0, 1 << 32, 1 << 63, 0xffff_ffff << 32, libc::TIOCGWINSZ << 32] {
            assert_eq!(at(request | high), libc::EPERM.to_string(), "{request:#x} of {high:#x}");
        }
    }
}

/// Checks that a domain that asks for a terminal runs without, and is said to.
fn runs_without(host: &BrokerHost) {
    let mut control = host.control();
    let lacks = MissingFeature::Terminal;
    for _ in 0..2 {
        let mut guest = Puppet::start_with(&mut control, &with_terminal());
        assert!(guest.created.lacks.contains(&lacks), "{:?}", guest.created.lacks);
        assert!(guest.ask("terminal take").starts_with("no descriptor is named"));
        assert_eq!(guest.ask("alloc 0"), "3");
        // Who asks for none lacks none.
        let other = support::create(&mut control, "puppet");
        assert!(!other.lacks.contains(&lacks), "{:?}", other.lacks);
    }
    assert!(lacks.to_string().starts_with("a domain's console gets no terminal: "));
}

#[test]
fn a_domain_without_namespaces_runs_without_a_terminal() {
    runs_without(&BrokerHost::start_without_namespaces());
}

/// As with a kernel that has no devpts, and with all pseudoterminals in use.
#[test]
fn a_domain_runs_without_a_terminal_that_cannot_be_made() {
    for (call, errno) in [(libc::SYS_fsopen, libc::ENODEV), (libc::SYS_fsmount, libc::ENOSPC)] {
        let refuse = support::raw::refusing(call, errno);
        let host = BrokerHost::start_with(|command| support::raw::before_exec(command, refuse));
        runs_without(&host);
    }
}
