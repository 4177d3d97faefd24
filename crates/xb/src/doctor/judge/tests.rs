//! Each cause is found in facts that show it, also those that no hosted host can have.

use super::*;
use crate::devices::backend_domain::DriverDomainAnswer;
use crate::devices::disk::FileUser;
use crate::doctor::facts::{BarredNode, LimitFacts, QuotaUse, ScriptFacts};
use crate::host::service::DomainAbsence;
use rustix::process::Pid;
use xen::domwatch::ShutdownReason;
use xenbus::Id;
use xenbus::toolstack::NewDevice;

/// A change of facts.
type FactsChange = fn(&mut DeviceFacts, &mut GuestFacts);

fn end(path: &str) -> EndFacts {
    let (path, exists, state) = (path.to_owned(), true, State::Connected);
    EndFacts { path, exists, state, error: None, barred: None }
}

/// Returns the facts about a disk that is well, and about its guest.
fn well() -> (DeviceFacts, GuestFacts) {
    let id = Id { frontend: DomId(3), devid: 51712 };
    let target = TargetFacts {
        name: "qcow2:/a.img".into(),
        file: "/a.img".into(),
        access: TargetAccess::Good,
        users: Vec::new(),
        server_gone: false,
    };
    let device = DeviceFacts {
        device: NewDevice::new("vbd", id, DomId::DOM0),
        name: "xvda".into(),
        front: end("/local/domain/3/device/vbd/51712"),
        back: end("/local/domain/0/backend/vbd/3/51712"),
        wanted: true,
        has_rings: true,
        script: ScriptFacts::default(),
        target: Some(target),
        limits: LimitFacts::default(),
        supervisor: None,
        service: ServiceProcess::Runs,
        service_path: "/run/xen-blockd/vbd.lock".into(),
        log_line: Some("xen-blockd: 3/51712: Connected (4)".into()),
        log: Some("/run/xb/log/xen-blockd.log".into()),
    };
    let guest = GuestFacts {
        domid: DomId(3),
        name: "web".into(),
        state: Some(RunState::Running),
        status: None,
        quotas: Vec::new(),
        ports: Some((4, 4095)),
        granted: Some(0),
        kernel_block: false,
        console: ServiceProcess::Runs,
    };
    (device, guest)
}

fn subject(guest: &GuestFacts) -> FaultSubject {
    let (xb, domain) = ("xb".into(), guest.name.clone());
    FaultSubject { xb, hosted: true, domid: Some(guest.domid), domain, ..FaultSubject::default() }
}

fn judged(change: FactsChange) -> Option<Finding> {
    let (mut facts, mut guest) = well();
    change(&mut facts, &mut guest);
    device(&subject(&guest), &facts, &guest)
}

fn error(text: &str) -> Option<ReportedError> {
    Some(ReportedError::parse(text.into()))
}

fn states(device: &mut DeviceFacts, front: State, back: State) {
    (device.front.state, device.back.state) = (front, back);
}

fn stopped() -> ServiceProcess {
    ServiceProcess::Stopped(Pid::from_raw(77).unwrap())
}

fn set_access(device: &mut DeviceFacts, access: TargetAccess) {
    states(device, State::Initialised, State::Closing);
    device.back.error = error("5 it cannot be opened");
    device.target.as_mut().unwrap().access = access;
}

fn answer(answers: bool, faults: &[&str]) -> DriverDomainAnswer {
    let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
    DriverDomainAnswer { answers, has_answered: true, faults, ..DriverDomainAnswer::default() }
}

fn barred() -> Option<BarredNode> {
    let (path, perms) = ("/local/domain/3/device/vbd/51712/state".into(), "n3 r0".into());
    Some(BarredNode { path, domid: DomId(3), access: "write", perms })
}

/// Facts that show each cause, the cause's name, the beginning of its sentence, and its command.
const CAUSES: &[(FactsChange, &str, &str, &str)] = &[
    (
        |device, _| device.service = ServiceProcess::Down,
        "backend-down",
        "xvda waits: nothing serves vbd in domain 0",
        "xb host up",
    ),
    (
        |device, _| device.service = stopped(),
        "backend-stopped",
        "xvda waits: the process 77 that serves vbd is stopped",
        "kill -CONT 77",
    ),
    (
        |device, _| {
            device.service = ServiceProcess::DomainAway(DomainAbsence::Gone);
            device.back.exists = false;
        },
        "backend-domain-away",
        "xvda waits: domain 0, which serves it, is gone",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| {
            device.device.backend = DomId(2);
            device.service = ServiceProcess::Unknown;
            states(device, State::Initialising, State::Initialising);
        },
        "backend-domain-without-backend",
        "xvda waits: domain 2, which is to serve it, runs nothing that serves vbd",
        "xb log 2",
    ),
    (
        |device, _| {
            device.device.backend = DomId(2);
            device.service = ServiceProcess::Unknown;
            device.supervisor = Some(answer(false, &[]));
        },
        "backend-supervisor-silent",
        "xvda is not looked after: the xb devd of domain 2, which serves it, does not answer",
        "xb log 2",
    ),
    // Of a backend that was killed, the nodes say that it is connected.
    (
        |device, _| {
            device.device.backend = DomId(2);
            device.service = ServiceProcess::Unknown;
            device.supervisor = Some(answer(true, &[]));
        },
        "backend-domain-without-backend",
        "xvda waits: domain 2, which is to serve it, runs nothing that serves vbd",
        "xb log 2",
    ),
    (
        |device, _| {
            device.device.backend = DomId(2);
            device.service = ServiceProcess::Unknown;
            device.supervisor = Some(answer(true, &["it has ended"]));
        },
        "backend-keeps-ending",
        "xvda waits: its backend in domain 2 keeps ending: \"it has ended\"",
        "xb log 2",
    ),
    (
        |device, _| {
            device.device.backend = DomId(2);
            device.service = ServiceProcess::Unknown;
            device.supervisor = Some(answer(true, &["it ends\" always"]));
            states(device, State::Initialising, State::Initialising);
        },
        "backend-keeps-ending",
        "xvda waits: its backend in domain 2 keeps ending: \"it ends' always\"",
        "xb log 2",
    ),
    (
        |device, _| {
            device.service = ServiceProcess::Down;
            device.supervisor = Some(answer(true, &["it has ended 5 times"]));
        },
        "backend-keeps-ending",
        "xvda waits: its backend in domain 0 keeps ending: \"it has ended 5 times\"",
        "tail /run/xb/log/xen-blockd.log",
    ),
    (
        |device, _| {
            device.service = ServiceProcess::Kernel;
            device.script.script = Some("/etc/xen/scripts/block-xenbus".into());
            states(device, State::Initialised, State::InitWait);
        },
        "backend-taken-by-kernel",
        "xvda waits: the kernel's driver has taken it",
        "rmmod xen-blkback && systemctl restart xen-blockd",
    ),
    (
        |device, _| {
            device.limits.bytes = Some(1 << 20);
            device.limits.throttled = true;
        },
        "throttled",
        "xvda is slow: its requests wait for its limit of 1 MiB a second",
        "xb store write /local/domain/0/backend/vbd/3/51712/limit-bytes-per-second 0 \
         /local/domain/0/backend/vbd/3/51712/limit-requests-per-second 0",
    ),
    (
        |device, _| device.target.as_mut().unwrap().server_gone = true,
        "server-gone",
        "xvda waits: the server of \"qcow2:/a.img\" is away",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| states(device, State::Initialised, State::InitWait),
        "undecided",
        "xvda waits: the frontend is ready, and its backend is still at work",
        "tail /run/xb/log/xen-blockd.log",
    ),
    (
        |device, _| set_access(device, TargetAccess::Missing),
        "target-missing",
        "xvda is not connected: /a.img does not exist",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| set_access(device, TargetAccess::Refused("Permission denied".into())),
        "target-refused",
        "xvda is not connected: /a.img cannot be opened: Permission denied",
        "ls -l /a.img",
    ),
    (
        |device, _| {
            set_access(device, TargetAccess::Good);
            device.back.error = error("16 EBUSY: it is held");
            let user = FileUser::Process { pid: 9, name: "qemu-nbd".into() };
            device.target.as_mut().unwrap().users.push(user);
        },
        "target-busy",
        "xvda is not connected: \"qcow2:/a.img\" is in use by qemu-nbd (process 9)",
        "ps -fp 9",
    ),
    (
        |device, _| set_access(device, TargetAccess::Unknown),
        "target-failed",
        "xvda is not connected: its backend has given it up: \"it cannot be opened\"",
        "tail /run/xb/log/xen-blockd.log",
    ),
    (
        |device, _| {
            states(device, State::Initialising, State::InitWait);
            device.script.status = Some("error".into());
        },
        "script-failed",
        "xvda is not connected: its hotplug script has failed, and does not say why",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| {
            states(device, State::Initialising, State::InitWait);
            device.script.script = Some("/etc/xen/scripts/block".into());
        },
        "script-never-ran",
        "xvda is not connected: its hotplug script /etc/xen/scripts/block has not run",
        "env XENBUS_PATH=/local/domain/0/backend/vbd/3/51712 /etc/xen/scripts/block add",
    ),
    (
        |_, guest| guest.state = Some(RunState::Paused),
        "guest-paused",
        "xvda waits: web is paused",
        "xb unpause web",
    ),
    (
        |_, guest| {
            guest.state = Some(RunState::Shutdown(ShutdownReason::Crash));
            guest.status = Some(3);
        },
        "guest-ended",
        "xvda waits: web has ended (crashed, exit status 3)",
        "xb log web",
    ),
    (
        |_, guest| {
            guest.state = Some(RunState::Dying);
            guest.granted = Some(7);
        },
        "guest-dying",
        "xvda waits: web is dying, and does not go while the 7 pages that it grants are mapped",
        "xb disk list web",
    ),
    (
        |device, _| states(device, State::Initialising, State::InitWait),
        "guest-without-driver",
        "xvda waits: web runs, and no driver in it has taken the device yet",
        "xb log web",
    ),
    (
        |device, guest| {
            states(device, State::Initialising, State::InitWait);
            let (name, used, limit) = ("nodes".into(), 12, 1000);
            guest.quotas.push(QuotaUse { name, used, limit, refused_s_ago: Some(2) });
        },
        "quota-used-up",
        "xvda waits: web has used up its quota nodes of the store: 12 of 1000",
        "xb store control quota 3",
    ),
    (
        |device, _| {
            states(device, State::Closed, State::Closed);
            device.front.error = error("28 ENOSPC: 20 pages");
        },
        "out-of-grants",
        "xvda waits: web can grant no more pages for one more device (it says: \"20 pages\")",
        "xb disk list web",
    ),
    (
        |device, guest| {
            states(device, State::Closed, State::Closed);
            device.front.error = error("28 ENOSPC: no free port");
            guest.ports = Some((4095, 4095));
        },
        "out-of-ports",
        "xvda waits: web has no free event channel: 4095 of 4095",
        "xb disk list web",
    ),
    (
        |device, _| {
            states(device, State::Closed, State::Closed);
            device.front.error = error("12 ENOMEM: buffers");
        },
        "out-of-memory",
        "xvda waits: web has no memory for it (it says: \"buffers\")",
        "xb disk list web",
    ),
    (
        |device, _| {
            states(device, State::Initialised, State::InitWait);
            device.limits.connects = Some((16, 16));
        },
        "too-many-connects",
        "xvda waits: web has connected it 16 times within seconds",
        "xb log web",
    ),
    (
        |device, guest| {
            device.wanted = false;
            device.back.state = State::Closing;
            device.front.error = error("16 EBUSY: it is in use");
            guest.kernel_block = true;
        },
        "in-use",
        "xvda is not let go of: web uses it: it is open there, or mounted",
        "xb disk unmount web",
    ),
    (
        |device, _| {
            device.wanted = false;
            states(device, State::Initialising, State::Closing);
        },
        "guest-keeps",
        "xvda is not let go of: web has not closed it yet",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| {
            states(device, State::Closed, State::Closed);
            device.front.error = error("22 no such protocol");
        },
        "guest-refuses",
        "xvda is not connected: the driver in web has given it up (it says: \"no such protocol\")",
        "xb log web",
    ),
    (
        |device, _| device.front.exists = false,
        "end-missing",
        "xvda is not connected: its frontend has no nodes (/local/domain/3/device/vbd/51712)",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| device.front.barred = barred(),
        "node-barred",
        "xvda is hindered: domain 3 may not write /local/domain/3/device/vbd/51712/state",
        "xb store chmod /local/domain/3/device/vbd/51712/state n3 r0",
    ),
    (
        |device, _| states(device, State::Initialising, State::Unknown),
        "states-do-not-fit",
        "xvda is not connected: its ends are in states that do not fit",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| states(device, State::Closed, State::Closed),
        "states-do-not-fit",
        "xvda is not connected: its ends are in states that do not fit",
        "xb disk detach web xvda --force",
    ),
    (
        |device, _| {
            states(device, State::Initialised, State::Closing);
            device.back.error = error("22 mapping a ring: no such grant");
        },
        "ring-not-mappable",
        "xvda is not connected: its backend cannot use the rings that the frontend names",
        "xb disk detach web xvda --force",
    ),
];

#[test]
fn each_cause_is_found_in_facts_that_show_it() {
    for (change, name, sentence, command) in CAUSES {
        let finding = judged(*change).unwrap_or_else(|| panic!("{name} is not found"));
        assert_eq!(finding.cause.name(), *name, "{finding:?}");
        assert!(finding.sentence().starts_with(sentence), "{}", finding.sentence());
        assert_eq!(finding.remedy().command, *command);
        for end in ["/state", ".log"] {
            let found = finding.evidence.iter().any(|(path, _)| path.ends_with(end));
            assert!(found, "{finding:?}");
        }
    }
}

/// The numbers of other backends mean what they mean to them, and this user may be another.
#[test]
fn a_backend_of_others_is_taken_at_its_word() {
    let name = |change: FactsChange| judged(change).unwrap().cause.name();
    let of_others: FactsChange = |device, _| {
        set_access(device, TargetAccess::Refused("Permission denied".into()));
        device.service = ServiceProcess::Kernel;
        device.back.error = error("22 the image is corrupt");
    };
    assert_eq!(name(of_others), "target-failed");
    let finding = judged(of_others).unwrap();
    assert!(finding.sentence().ends_with("\"the image is corrupt\""), "{}", finding.sentence());
    for (number, cause) in [("1 no", "target-refused"), ("13 no", "target-refused")] {
        let (mut facts, mut guest) = well();
        of_others(&mut facts, &mut guest);
        facts.back.error = error(number);
        let finding = device(&subject(&guest), &facts, &guest).unwrap();
        assert_eq!(finding.cause.name(), cause);
    }
    assert_eq!(
        name(|device, _| {
            set_access(device, TargetAccess::Good);
            device.service = ServiceProcess::Unknown;
            device.back.error = error("12 out of memory");
        }),
        "target-failed"
    );
}

/// A guest that does not run is not judged by what it wrote before.
#[test]
fn the_state_of_a_guest_counts_before_its_words() {
    let name = |change: FactsChange| judged(change).unwrap().cause.name();
    assert_eq!(
        name(|device, guest| {
            states(device, State::Closed, State::Closed);
            device.front.error = error("28 ENOSPC: 20 pages");
            guest.state = Some(RunState::Paused);
        }),
        "guest-paused"
    );
    assert_eq!(
        name(|device, guest| {
            device.wanted = false;
            device.back.state = State::Closing;
            device.front.error = error("16 EBUSY: it is in use");
            guest.state = Some(RunState::Shutdown(ShutdownReason::Crash));
        }),
        "guest-ended"
    );
}

/// Words of another domain are no advice, and no commands.
#[test]
fn words_of_others_are_quoted() {
    const FORGED: &str = "28 no pages\"; run: \u{202e}curl x|sh;";
    let finding = judged(|device, _| {
        states(device, State::Closed, State::Closed);
        device.front.error = error(FORGED);
    });
    let advice = finding.unwrap().advice();
    let begin = "xvda waits: web can grant no more pages for one more device (it says: ";
    assert!(advice.starts_with(begin), "{advice}");
    assert!(advice.contains("\"no pages'; run: curl x|sh;\""), "{advice}");
    let script = "/x; curl x|sh #";
    let never_ran = |backend: DomId| {
        let (mut facts, guest) = well();
        states(&mut facts, State::Initialising, State::InitWait);
        facts.device.backend = backend;
        facts.script.script = Some(script.into());
        device(&subject(&guest), &facts, &guest).unwrap()
    };
    let command = never_ran(DomId::DOM0).remedy().command;
    assert!(command.ends_with(" '/x; curl x|sh #' add"), "{command}");
    let finding = never_ran(DomId(2));
    assert_eq!(finding.cause.name(), "guest-without-driver");
    assert!(!finding.advice().contains("curl"), "{}", finding.advice());
    let finding = judged(|device, guest| {
        states(device, State::Closed, State::Closed);
        guest.name = "$(id)".into();
    });
    let command = finding.unwrap().remedy().command;
    assert_eq!(command, "xb disk detach '$(id)' xvda --force");
}

/// A fault that a driver domain still reports is none of a disk that is served again.
#[test]
fn a_backend_that_serves_again_is_well() {
    let served = |faults: &[&str]| {
        let (mut facts, guest) = well();
        facts.device.backend = DomId(2);
        facts.service = ServiceProcess::Unknown;
        let kinds = vec!["qdisk".into(), "vbd".into()];
        facts.supervisor = Some(DriverDomainAnswer { kinds, ..answer(true, faults) });
        device(&subject(&guest), &facts, &guest)
    };
    assert_eq!(served(&[]), None);
    assert_eq!(served(&["it has ended 5 times"]), None);
}

/// On Xen the toolstack is xl, and the daemons are units of systemd.
#[test]
fn commands_are_those_of_the_platform() {
    let changes: [(FactsChange, &str); 4] = [
        (|device, _| device.service = ServiceProcess::Down, "systemctl start xen-blockd"),
        (|_, guest| guest.state = Some(RunState::Paused), "xl unpause web"),
        (|device, _| states(device, State::Initialising, State::InitWait), "xl console web"),
        (
            |device, _| device.service = ServiceProcess::DomainAway(DomainAbsence::Paused),
            "xl unpause 0",
        ),
    ];
    for (change, command) in changes {
        let (mut facts, mut guest) = well();
        change(&mut facts, &mut guest);
        let on_xen = FaultSubject { hosted: false, ..subject(&guest) };
        let finding = device(&on_xen, &facts, &guest).unwrap();
        assert_eq!(finding.remedy().command, command);
    }
}

#[test]
fn a_device_that_is_well_has_no_cause() {
    let well: &[FactsChange] = &[
        |_, _| (),
        |device, _| device.service = ServiceProcess::Kernel,
        |device, _| device.service = ServiceProcess::Unknown,
        // An error of before.
        |device, _| device.back.error = error("5 it was away"),
        // One that was asked for and is closed.
        |device, _| {
            device.wanted = false;
            states(device, State::Closed, State::Closed);
        },
        // A limit that nothing waits for.
        |device, _| device.limits.bytes = Some(1),
    ];
    for (at, change) in well.iter().enumerate() {
        assert_eq!(judged(*change), None, "{at}");
    }
}

/// A device in any states is either connected or has a cause.
#[test]
fn no_states_are_without_an_answer() {
    for front in State::ALL {
        for back in State::ALL {
            let (mut facts, guest) = well();
            states(&mut facts, front, back);
            let finding = device(&subject(&guest), &facts, &guest);
            assert_eq!(finding.is_none(), facts.is_connected(), "{front}, {back}");
        }
    }
}

#[test]
fn a_guest_and_a_host_have_causes_of_their_own() {
    let (_, mut facts) = well();
    assert_eq!(guest(&subject(&facts), &facts), None);
    facts.console = ServiceProcess::Down;
    let finding = guest(&subject(&facts), &facts).unwrap();
    assert_eq!(finding.advice(), "nothing serves the console of web; start it with: xb host up");
    facts.console = ServiceProcess::Stopped(Pid::from_raw(77).unwrap());
    let finding = guest(&subject(&facts), &facts).unwrap();
    assert_eq!(
        finding.advice(),
        "the process 77 that serves the console of web is stopped; let it go on with: kill -CONT 77"
    );
    let daemon = |service| DaemonFacts {
        name: "xenstored",
        part: "store",
        service,
        log: "/run/xb/log/xenstored.log".into(),
    };
    let of = |services: &[ServiceProcess]| -> Vec<String> {
        let facts: Vec<DaemonFacts> = services.iter().copied().map(daemon).collect();
        let host = FaultSubject { xb: "xb".into(), hosted: true, ..FaultSubject::default() };
        daemons(&host, "/run/xb".as_ref(), &facts).iter().map(Finding::advice).collect()
    };
    assert_eq!(of(&[ServiceProcess::Runs]), Vec::<String>::new());
    assert_eq!(
        of(&[ServiceProcess::Down]),
        ["no host is up in /run/xb; start it with: xb host up"]
    );
    let two = of(&[ServiceProcess::Runs, ServiceProcess::Down]);
    assert_eq!(two, ["the store (xenstored) does not run; start it with: xb host up"]);
    let words =
        "xenstored (process 77) is stopped and does nothing; let it go on with: kill -CONT 77";
    assert_eq!(of(&[stopped()]), [words]);
}
