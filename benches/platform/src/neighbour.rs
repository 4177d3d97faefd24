//! The effect of a hostile domain on its neighbour: the 99th percentile of the time of the
//! neighbour's reads from the store, beside a program that only spins and beside attacks, all under
//! the same cap.

use crate::guest::RingStore;
use crate::host::{MeasuredHost, run};
use crate::result::Result;
use crate::table::{Extent, Goal, Row, median};
use crate::talker::Talker;
use rustix::process::{WaitOptions, wait};
use std::process::Command;
use std::time::{Duration, Instant};
use xen::domctl::DomainControl;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::{DomId, GrantRef, Port};
use xen_hosted::domctl::Control;
use xenstore::Store;

/// The activities of the other domain, the harmless one first.
const BESIDE: [&str; 8] =
    ["spin", "notifications", "requests", "ports", "grants", "store", "memory", "forks"];
/// Doubles a string until the kernel ends it.
const MEMORY: &str = "s=0123456789abcdef; while :; do s=$s$s; done";
/// Each process forks one more and goes on, until the limit of processes is reached and they end.
const FORKS: &str = "f() { f & f; }; f";
/// The cap of the other domain, in hundredths of a processor.
const CAP: u16 = 25;
/// The time of the samples for one percentile: five periods of 100 ms, after which a cap begins
/// anew. The other domain is held still for most of each period.
const SPAN: Duration = Duration::from_millis(500);

/// Runs the neighbour: prints, for each line of its input, the 99th percentile of a read, in ns.
pub(crate) fn reader() -> Result<()> {
    let mut store = RingStore::open()?;
    let name = store.name();
    for line in std::io::stdin().lines() {
        line?;
        let mut times = Vec::new();
        let end = Instant::now() + SPAN;
        while Instant::now() < end {
            let begin = Instant::now();
            store.read_many(&name, 1, 1)?;
            times.push(begin.elapsed().as_nanos());
        }
        times.sort_unstable();
        println!("{}", times[times.len() * 99 / 100]);
    }
    Ok(())
}

/// Runs the other domain: reports that it begins, and repeats one activity for ever.
pub(crate) fn attack(what: &str) -> Result<()> {
    let mut store = RingStore::open()?;
    let name = store.name();
    println!("1");
    loop {
        match what {
            "spin" => std::hint::spin_loop(),
            "notifications" => store.channels.notify(store.port)?,
            "requests" => {
                let _ = store.channels.bind_interdomain(DomId(4000), Port(1));
                let _ = store.platform.grants().map(DomId(1), GrantRef(1), PageAccess::ReadWrite);
            }
            "ports" => {
                let mut ports = Vec::new();
                while let Ok(port) = store.channels.alloc_unbound(DomId::DOM0) {
                    ports.push(port);
                }
                for port in ports {
                    let _ = store.channels.close(port);
                }
            }
            "grants" => {
                let mut offers = store.platform.offers();
                let mut offered = Vec::new();
                while let Ok(page) = offers.offer(DomId::DOM0, PageAccess::ReadWrite) {
                    offered.push(page);
                }
            }
            "store" => store.read_many(&name, 1000, 8)?,
            "memory" => drop(shell(MEMORY).status()),
            "forks" => {
                // It is the init of its domain, so it must wait for every process that ends.
                drop(shell(FORKS).spawn());
                while wait(WaitOptions::NOHANG).is_ok_and(|ended| ended.is_some()) {}
            }
            other => return Err(format!("no attack is called {other:?}").into()),
        }
    }
}

/// Returns a shell whose standard error is closed, so that exhausted resources print nothing.
fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("exec 2>&-; {script}")]);
    command
}

/// Creates and runs a domain that the store knows and that has a name there.
fn known(
    host: &MeasuredHost,
    control: &mut Control,
    args: &[&str],
    weight: u16,
    cap: u16,
) -> Result<Talker> {
    let mut client = host.client()?;
    let talker = Talker::create_with(control, args, |config| {
        config.weight = weight;
        config.cap = cap;
    })?;
    let name = format!("/local/domain/{}/name", talker.created.domid);
    client.write(&name, "guest")?;
    let perm = xenstore::Perm::parse(format!("n{}", talker.created.domid).as_bytes());
    client.set_perms(&name, &[perm.ok_or("no such permission")?])?;
    run(control, &mut client, &talker.created)?;
    Ok(talker)
}

/// Measures each activity beside the neighbour in turn, so that other work of the machine falls on
/// all alike. The median of the rounds' ratios counts.
pub(crate) fn rows(extent: &Extent) -> Result<Vec<Row>> {
    let host = MeasuredHost::start(extent.limit)?;
    let mut control = host.control()?;
    let mut neighbour = known(&host, &mut control, &["reader"], 1024, 0)?;
    let mut all = [const { Vec::new() }; BESIDE.len()];
    for _ in 0..extent.rounds {
        for (all, what) in all.iter_mut().zip(BESIDE) {
            let mut other = known(&host, &mut control, &["attack", what], 256, CAP)?;
            other.hear()?;
            // The first two samples do not count: until then it may spend its burst of requests to
            // the broker.
            for counted in [false, false, true] {
                neighbour.tell("go")?;
                let p99 = neighbour.hear()?;
                if counted {
                    all.push(p99 as f64);
                }
            }
            control.destroy(other.created.domid)?;
        }
    }
    let [harmless, attacks @ ..] = all;
    let row = |(what, attacked): (&str, Vec<f64>)| {
        let mut ratios: Vec<f64> =
            attacked.iter().zip(&harmless).map(|(p99, beside)| p99 / beside).collect();
        let ratio = median(&mut ratios);
        let (p99, beside) = (median(&mut attacked.clone()), median(&mut harmless.clone()));
        let text = format!("p99 of a read {p99:.0} ns; beside a harmless program {beside:.0} ns");
        Row::new(&format!("neighbour of a flood of {what}"), text, ratio, Goal::AtMost(1.5))
    };
    Ok(BESIDE.into_iter().skip(1).zip(attacks).map(row).collect())
}
