//! The devices of a driver domain: real scripts, and a store in which the domain has the rights of
//! a guest.

use conformance::{Daemon, DaemonKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xb::devd::devices::{DeviceRules, DriverDomainDevices};
use xen::DomId;
use xenbus::Id;
use xenbus::toolstack::{self, NewDevice};
use xenstore::{Client, Perm, Store};

const PATIENCE: Duration = Duration::from_secs(30);
const DRIVER: DomId = DomId(1);
const GUEST: DomId = DomId(2);
const BACKEND: &str = "/local/domain/1/backend";

/// A driver domain with its toolstack.
struct Scene {
    _daemon: Daemon,
    folder: TempDir,
    tool: Client,
    store: Client,
    devices: DriverDomainDevices,
}

/// Makes a domain with its nodes. Returns its connection to the store.
fn domain(daemon: &Daemon, tool: &mut Client, domid: DomId) -> Client {
    let (page, channel) = testbed::guest::create(&daemon.guests(), domid).unwrap();
    tool.introduce(domid.0, 1, 1).unwrap();
    for (path, perms) in testbed::guest::nodes(domid) {
        let perms: Vec<Perm> =
            perms.iter().map(|perm| Perm::parse(perm.as_bytes()).unwrap()).collect();
        tool.write(&path, "").unwrap();
        tool.set_perms(&path, &perms).unwrap();
    }
    Client::over_ring(page, testbed::guest::STORE_PORT, Box::new(channel))
}

impl Scene {
    /// Makes a domain whose kernel serves `vbd`, and a process `qdisk`.
    fn new() -> Option<Self> {
        let daemon = Daemon::start(DaemonKind::Ours)?;
        let mut tool = Client::connect(daemon.socket()).unwrap();
        let mut store = domain(&daemon, &mut tool, DRIVER);
        drop(domain(&daemon, &mut tool, GUEST));
        let rules = DeviceRules {
            script_within: Duration::from_secs(2),
            removed_after: Duration::ZERO,
            ..rules()
        };
        let devices = DriverDomainDevices::start(&mut store, DRIVER, rules).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Some(Self { _daemon: daemon, folder, tool, store, devices })
    }

    /// Lets the supervisor work until `so` returns a value.
    fn until<T>(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.store.poll_event().unwrap() {
                self.devices.take(&mut self.store, &event).unwrap();
            }
            self.devices.look(&mut self.store, Instant::now()).unwrap();
            if let Some(answer) = so(self) {
                return answer;
            }
            assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lets the supervisor work until nothing more comes.
    fn settle(&mut self) {
        let end = Instant::now() + Duration::from_millis(200);
        self.until("it is settled", |_| (Instant::now() >= end).then_some(()));
    }

    /// Writes a script, whose first step is to say how it was called.
    fn script(&self, name: &str, rest: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let calls = self.calls_file();
        let text = format!(
            "#!/bin/sh\necho \"$1 $XENBUS_TYPE $XENBUS_PATH $XENBUS_BASE_PATH $script\" >> {}\n{rest}\n",
            calls.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn calls_file(&self) -> PathBuf {
        self.folder.path().join("calls")
    }

    /// Returns the calls of scripts so far.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.calls_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Adds a device as the toolstack does, and sets the state of its backend as the kernel does.
    fn add(&mut self, device: &NewDevice, script: &Path) {
        let mut device = device.clone();
        device.backend_nodes.push(("script".into(), script.to_str().unwrap().into()));
        toolstack::add(&mut self.tool, &device).unwrap();
        self.store.write(format!("{}/state", device.backend_path()), "2").unwrap();
    }

    /// Closes a device as toolstack and kernel do together.
    fn close(&mut self, device: &NewDevice) {
        toolstack::detach(&mut self.tool, device).unwrap();
        self.store.write(format!("{}/state", device.backend_path()), "6").unwrap();
    }

    fn read(&mut self, path: String) -> Option<String> {
        let value = self.tool.try_read(path).unwrap();
        value.map(|value| String::from_utf8(value).unwrap())
    }

    fn nodes_below(&mut self, path: &str) -> Vec<String> {
        self.tool.list(path).unwrap()
    }
}

fn rules() -> DeviceRules {
    DeviceRules::new(|kind| kind == "vbd", |kind| kind == "qdisk")
}

fn device(kind: &str, devid: u32) -> NewDevice {
    NewDevice::new(kind, Id { frontend: GUEST, devid }, DRIVER)
}

/// The folders above a device stay if they are domain 0's, and go if they are the driver domain's
/// (QubesOS/qubes-issues 5369).
#[test]
fn scripts_are_run_and_no_empty_folder_stays() {
    let Some(mut scene) = Scene::new() else { return };
    scene.tool.mkdir(BACKEND).unwrap();
    scene.tool.set_perms(BACKEND, &[Perm::parse(b"n1").unwrap()]).unwrap();
    let script = scene.script("block", "");
    let (one, two) = (device("vbd", 51712), device("vbd", 51728));
    for device in [&one, &two] {
        scene.add(device, &script);
    }
    let called = |action: &str, devid: u32| {
        format!("{action} vbd backend/vbd/2/{devid} backend {}", script.display())
    };
    scene.until("both are added", |scene| (scene.calls().len() == 2).then_some(()));
    let mut calls = scene.calls();
    calls.sort();
    assert_eq!(calls, [called("add", 51712), called("add", 51728)]);
    // The script has told that it is done; the kernel goes on with the device.
    for device in [&one, &two] {
        let path = device.backend_path();
        scene.store.write(format!("{path}/hotplug-status"), "connected").unwrap();
        scene.store.write(format!("{path}/state"), "4").unwrap();
    }
    // An error that a driver has told goes with the device.
    scene.store.write("/local/domain/1/error/backend/vbd/2/51712/error", "2 x").unwrap();
    scene.settle();
    assert_eq!(scene.calls().len(), 2, "each is added once");
    scene.close(&one);
    scene.until("one is gone", |scene| {
        (!scene.tool.exists("/local/domain/1/backend/vbd/2/51712").unwrap()).then_some(())
    });
    assert_eq!(scene.calls()[2..], [called("remove", 51712)]);
    assert_eq!(scene.nodes_below(BACKEND), ["vbd"]);
    assert_eq!(scene.nodes_below("/local/domain/1/error"), [""; 0]);
    scene.close(&two);
    scene.until("no node is left", |scene| scene.nodes_below(BACKEND).is_empty().then_some(()));
    assert_eq!(scene.calls()[3..], [called("remove", 51728)]);
}

/// On Xen the folders above belong to domain 0, which removes them itself.
#[test]
fn folders_of_domain_0_are_left_to_it() {
    let Some(mut scene) = Scene::new() else { return };
    let (script, one) = (scene.script("block", ""), device("vbd", 51712));
    for _ in 0..3 {
        scene.add(&one, &script);
        scene.until("it is added", |scene| (!scene.calls().is_empty()).then_some(()));
        scene.close(&one);
        scene.until("it is gone", |scene| {
            (!scene.tool.exists("/local/domain/1/backend/vbd/2/51712").unwrap()).then_some(())
        });
        assert_eq!(scene.nodes_below("/local/domain/1/backend/vbd"), ["2"]);
        toolstack::forget(&mut scene.tool, &one).unwrap();
        assert_eq!(scene.nodes_below("/local/domain/1/backend/vbd"), [""; 0]);
        std::fs::remove_file(scene.calls_file()).unwrap();
    }
}

#[test]
fn a_script_that_fails_or_hangs_is_told_and_ended() {
    let Some(mut scene) = Scene::new() else { return };
    let (pid, path) = (scene.folder.path().join("pid"), device("vbd", 1).backend_path());
    let hangs = scene.script("hangs", &format!("sleep 1000 & echo $! > {}; wait", pid.display()));
    let fails = scene.script("fails", "exit 7");
    let missing = scene.folder.path().join("missing");
    for (script, words) in [
        (&hangs, "it has not ended within 2.0 s, and was killed"),
        (&fails, "exit status: 7"),
        (&missing, "No such file or directory"),
    ] {
        let one = device("vbd", 1);
        scene.add(&one, script);
        scene.until("the failure is told", |scene| {
            (scene.read(format!("{path}/hotplug-status"))? == "error").then_some(())
        });
        let said = scene.read(format!("{path}/hotplug-error")).unwrap();
        assert!(said.contains(words), "{said}");
        scene.close(&one);
        scene.until("it is gone", |scene| {
            scene.read(format!("{path}/state")).is_none().then_some(())
        });
    }
    // All processes of the script's group are ended.
    let pid = std::fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    scene.until("its child is gone", |_| {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    // What a script has said itself stays.
    let says = scene.script("says", "sleep 0.2; exit 1");
    let one = device("vbd", 2);
    scene.add(&one, &says);
    let own = format!("{}/hotplug-error", one.backend_path());
    scene.until("it runs", |scene| scene.calls().last()?.contains("/2/2 ").then_some(()));
    scene.store.write(&own, "the device is held by drbd").unwrap();
    scene.until("the failure is told", |scene| {
        scene.read(format!("{}/hotplug-status", one.backend_path())).map(drop)
    });
    assert_eq!(scene.read(own).unwrap(), "the device is held by drbd");
}

/// A process opens files itself, and needs no common script; another script it may need.
#[test]
fn a_process_needs_the_common_script_not_to_be_run() {
    let Some(mut scene) = Scene::new() else { return };
    let (script, one) = (scene.script("block-own", ""), device("qdisk", 51712));
    let status = format!("{}/hotplug-status", one.backend_path());
    for common in ["block", "/etc/xen/scripts/block"] {
        scene.add(&one, Path::new(common));
        let told = scene.until("it is settled", |scene| scene.read(status.clone()));
        assert_eq!(told, "connected");
        scene.close(&one);
        scene.until("it is gone", |scene| scene.read(status.clone()).is_none().then_some(()));
    }
    assert_eq!(scene.calls(), [""; 0]);
    scene.add(&one, &script);
    scene.until("it is added", |scene| (!scene.calls().is_empty()).then_some(()));
}

/// A device of a kind that is not known needs no script; what is left of one from before the
/// supervisor began is removed, too.
#[test]
fn nodes_are_removed_without_a_script_and_after_a_new_start() {
    let Some(mut scene) = Scene::new() else { return };
    let (script, one) = (scene.script("block", ""), device("9pfs", 51712));
    scene.add(&one, &script);
    scene.settle();
    scene.close(&one);
    scene.until("it is gone", |scene| {
        (!scene.tool.exists("/local/domain/1/backend/9pfs/2/51712").unwrap()).then_some(())
    });
    assert_eq!(scene.calls(), [""; 0]);
    // A device that has gone from one supervisor to another.
    let two = device("vbd", 51728);
    scene.add(&two, &script);
    scene.until("it is added", |scene| (!scene.calls().is_empty()).then_some(()));
    scene.store.write(format!("{}/hotplug-status", two.backend_path()), "connected").unwrap();
    let root = BACKEND;
    scene.store.unwatch(root, root).unwrap();
    let rules = DeviceRules { removed_after: Duration::ZERO, ..rules() };
    scene.devices = DriverDomainDevices::start(&mut scene.store, DRIVER, rules).unwrap();
    scene.settle();
    assert_eq!(scene.calls().len(), 1, "it is not added again");
    scene.close(&two);
    scene.until("it is gone", |scene| {
        (!scene.tool.exists("/local/domain/1/backend/vbd/2/51728").unwrap()).then_some(())
    });
    assert!(scene.calls()[1].starts_with("remove vbd backend/vbd/2/51728 "), "{:?}", scene.calls());
}

/// A frontend that is closed while the device is to stay keeps its nodes.
#[test]
fn a_device_that_is_wanted_stays() {
    let Some(mut scene) = Scene::new() else { return };
    let (script, one) = (scene.script("block", ""), device("vbd", 51712));
    scene.add(&one, &script);
    scene.until("it is added", |scene| (!scene.calls().is_empty()).then_some(()));
    scene.store.write(format!("{}/state", one.backend_path()), "6").unwrap();
    scene.settle();
    assert_eq!(scene.read(format!("{}/state", one.backend_path())).unwrap(), "6");
    assert_eq!(scene.calls().len(), 1);
    // Names that are none are left alone.
    for node in ["vbd/x/1/state", "vbd/2/y/state", "v;d/2/1/state"] {
        let _ = scene.tool.write(format!("{BACKEND}/{node}"), "6");
    }
    scene.settle();
}
