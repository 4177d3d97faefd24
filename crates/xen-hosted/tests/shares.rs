//! Shares of a processor: the effect of weights, and that many tasks have no more than one task.
//! This is a program of its own, as tests beside it would use the processor too.

#[allow(dead_code, reason = "of the hosts of the other tests it uses a part")]
#[path = "suite/support/mod.rs"]
mod support;

use std::fs::File;
use std::time::Duration;
use support::{BrokerHost, playing};
use xen::DomId;
use xen::domctl::{DomainControl, Scheduling};
use xen_hosted::domctl::Control;

/// Makes a domain that computes without end, in this number of processes.
fn busy(control: &mut Control, processes: u32, tasks_max: u32) -> DomId {
    let mut config = playing("none");
    let more = "while :; do :; done & ".repeat(processes as usize - 1);
    config.args = ["sh", "-c", &format!("{more}while :; do :; done")].map(Into::into).to_vec();
    config.tasks_max = tasks_max;
    let shell = File::open("/bin/sh").unwrap();
    let created = support::create_with(control, &config, &shell).unwrap();
    control.unpause(created.domid).unwrap();
    created.domid
}

/// Returns the ratio of the processor time of `a` to that of `b`.
fn ratio(control: &mut Control, a: DomId, b: DomId) -> f64 {
    let used = |control: &mut Control| {
        [a, b].map(|domid| control.accounts(domid).unwrap().cpu_time_ns as f64)
    };
    // At first, one of them may have less processor time to make up for.
    std::thread::sleep(Duration::from_millis(100));
    let before = used(control);
    std::thread::sleep(Duration::from_millis(1000));
    let after = used(control);
    let [a, b] = [after[0] - before[0], after[1] - before[1]];
    assert!(a > 0.0 && b > 0.0, "{a} and {b} ns in a second");
    a / b
}

fn weight(control: &mut Control, domid: DomId, weight: u16) {
    control.set_scheduling(domid, Scheduling { weight, cap: 0 }).unwrap();
}

/// Makes a host whose domains share one processor, where they can be limited.
fn of_one_processor() -> Option<BrokerHost> {
    let host = BrokerHost::start_with(|command| {
        support::raw::before_exec(command, || {
            let mut one = rustix::thread::CpuSet::new();
            one.set(0);
            Ok(rustix::thread::sched_setaffinity(None, &one)?)
        });
    });
    let config = playing("none");
    let program = File::open("/bin/sh").unwrap();
    let created = support::create_with(&mut host.control(), &config, &program).unwrap();
    host.control().destroy(created.domid).unwrap();
    if created.lacks.contains(&xen_hosted::domain::MissingFeature::CpuLimit) {
        conformance::skip("shares of a processor", "no cpu control group may be made here");
        return None;
    }
    Some(host)
}

#[test]
fn a_weight_decides_and_the_number_of_tasks_does_not() {
    let Some(host) = of_one_processor() else { return };
    let mut control = host.control();
    let a = busy(&mut control, 1, 256);
    let b = busy(&mut control, 1, 256);
    weight(&mut control, a, 1024);
    let four = ratio(&mut control, a, b);
    assert!(four > 2.0, "1024 to 256: {four:.2}");
    weight(&mut control, a, 256);
    // The same holds although a domain of one task has no group of its own.
    control.destroy(b).unwrap();
    let one = busy(&mut control, 1, 1);
    let even = ratio(&mut control, a, one);
    assert!((0.5..2.0).contains(&even), "one task each: {even:.2}");
    control.destroy(a).unwrap();
    let many = busy(&mut control, 16, 256);
    let even = ratio(&mut control, many, one);
    assert!((0.5..2.0).contains(&even), "sixteen tasks to one: {even:.2}");
    // It gets a group when its weight changes.
    weight(&mut control, one, 1024);
    let four = ratio(&mut control, one, many);
    assert!(four > 2.0, "1024 to 256, afterwards: {four:.2}");
    control.set_scheduling(one, Scheduling { weight: 256, cap: 10 }).unwrap();
    let capped = ratio(&mut control, one, many);
    assert!(capped < 0.3, "a cap of a tenth: {capped:.2}");
}
