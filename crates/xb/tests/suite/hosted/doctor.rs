//! `xb doctor`: each cause that a hosted host can have is brought about, and found.

use super::support::TestHost;
use rustix::process::{Pid, Signal, kill_process};

/// A guest with one disk, that does nothing.
fn guest_with_disk(host: &TestHost) -> String {
    let image = host.image("a.img", 1 << 20);
    let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\"");
    host.config("web", &rest)
}

/// Stops a process, and returns once it is stopped.
fn stop(host: &TestHost, pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    host.until("it is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        stat.contains(") T ").then_some(())
    });
}

/// No list calls a device connected whose backend is down or stopped (QubesOS/qubes-issues 1426).
#[test]
fn no_list_calls_a_device_connected_whose_backend_does_not_run() {
    let host = TestHost::up("lists-backend");
    host.ok(&["create", &guest_with_disk(&host)]);
    let check = |state: &str, runs: bool| {
        for disk in [
            &host.json(&["disk", "list"])[0],
            &host.json(&["tree"])[1]["disks"][0],
            &host.json(&["info", "web"])["disks"][0],
        ] {
            assert_eq!(
                (&disk["backend_state"], &disk["backend_runs"]),
                (&state.into(), &runs.into())
            );
        }
        for list in [&["tree"][..], &["disk", "list"], &["info", "web"]] {
            let shown = host.ok(list);
            assert!(shown.contains(state), "{list:?}: {shown}");
        }
    };
    check("Connected (4)", true);
    let backend = host.pid("xen-blockd").unwrap();
    stop(&host, backend);
    check("its backend is stopped", false);
    kill_process(backend, Signal::CONT).unwrap();
    check("Connected (4)", true);
    host.kill("xen-blockd");
    check("its backend is down", false);
    host.ok(&["host", "up"]);
    check("Connected (4)", true);
}
