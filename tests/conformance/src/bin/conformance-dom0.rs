//! Runs the suite in domain 0 of a Xen host, against the daemon that serves the machine: the tables,
//! domain 0 over the socket and over `/dev/xen/xenbus`, guests as real domains; and the hostile rings.
//!
//! Prints a line for each case. The exit code is 0 if all have the expected result, and 3 if the
//! first unexpected result was a lost signal of a guest: the daemon answered once the guest had
//! signalled again.

use conformance::hostile::{ATTACKS, attack};
use conformance::run::{left_out, run_case};
use conformance::table::{self, TableCase};
use conformance::xen_host::{Route, XenHost};
use conformance::{DaemonKind, Host};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

const USAGE: &str = "\
conformance-dom0 --store c|ours [--over socket|xenbus] [--only TEXT] [--files DIR]

--store  which daemon serves this machine
--over   how domain 0 speaks; both ways, one after the other, where it is not said
--only   only cases whose line contains this
--files  the folder with ring-agent and xl-shim.so; /usr/lib/xenbus-conformance where it is not said";

/// The time after which a case counts as hung: each wait within it has a bound of its own, except
/// those in the kernel.
const CASE_WITHIN: Duration = Duration::from_secs(120);
/// The number of failures after which no further case runs: a fault of the host is the same for
/// all, and each would wait.
const FAILED_MAX: u32 = 5;

/// The exit code if the machine has lost a signal.
const SIGNAL_LOST: i32 = 3;

struct Options {
    kind: DaemonKind,
    routes: Vec<Route>,
    only: String,
    files: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut arguments = std::env::args().skip(1);
    let mut kind = None;
    let mut routes = vec![Route::Socket, Route::Device];
    let mut only = String::new();
    let mut files = PathBuf::from("/usr/lib/xenbus-conformance");
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match (name.as_str(), value.as_str()) {
            ("--store", "c") => kind = Some(DaemonKind::C),
            ("--store", "ours") => kind = Some(DaemonKind::Ours),
            ("--over", "socket") => routes = vec![Route::Socket],
            ("--over", "xenbus") => routes = vec![Route::Device],
            ("--only", _) => only = value,
            ("--files", _) => files = value.into(),
            _ => return Err(format!("{name} {value} is not known")),
        }
    }
    Ok(Options { kind: kind.ok_or("--store is missing")?, routes, only, files })
}

/// The counts of the outcomes of the cases.
struct CaseTally {
    ok: u32,
    failed: u32,
    left_out: u32,
    watched: Sender<String>,
}

impl CaseTally {
    fn new() -> Self {
        let (watched, cases) = channel();
        std::thread::spawn(move || watch(&cases));
        Self { ok: 0, failed: 0, left_out: 0, watched }
    }

    /// Begins a case, and reports it to the thread that bounds its time.
    fn begins(&self, name: &str) -> Instant {
        // Without that thread there is no bound, and all else is the same.
        let _ = self.watched.send(name.to_owned());
        Instant::now()
    }

    fn too_many(&self) -> bool {
        self.failed >= FAILED_MAX
    }

    fn line(&mut self, name: &str, started: Instant, failed: &[String]) {
        let ms = started.elapsed().as_millis();
        if failed.is_empty() {
            self.ok += 1;
            println!("ok    {name} ({ms} ms)");
        } else {
            self.failed += 1;
            println!("FAIL  {name} ({ms} ms)");
            failed.iter().for_each(|line| println!("      {line}"));
            if self.failed == 1 && conformance::peer::signals_lost() > 0 {
                println!("conformance: {} ok, then a guest's signal was lost", self.ok);
                std::process::exit(SIGNAL_LOST);
            }
        }
    }
}

/// Reports a case that hangs, with the kernel's state of this process, and gives up.
fn watch(cases: &Receiver<String>) {
    let mut running = "the first case".to_owned();
    loop {
        match cases.recv_timeout(CASE_WITHIN) {
            Ok(next) => running = next,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    println!("FAIL  {running}: not done within {} s", CASE_WITHIN.as_secs());
    for file in ["status", "wchan", "syscall", "stack"] {
        let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let lines = text.lines().filter(|line| file != "status" || line.starts_with("State"));
        lines.for_each(|line| println!("      {file}: {line}"));
    }
    std::process::exit(1);
}

fn tables(host: &mut XenHost, way: &str, only: &str, tally: &mut CaseTally) {
    for (file, text) in conformance::TABLES {
        let cases = table::parse(text).unwrap_or_else(|why| panic!("tables/{file}.txt: {why}"));
        for case in &cases {
            let name = format!("{way} {file}: {}", case.name);
            if !name.contains(only) {
                continue;
            }
            if let Some(id) = left_out(case, &host.marks()) {
                tally.left_out += 1;
                println!("not   {name}: {id}");
                continue;
            }
            let started = tally.begins(&name);
            let failed = guarded(|| case_on(host, case));
            tally.line(&name, started, &failed);
            if tally.too_many() || host.ended().is_some() {
                return;
            }
        }
    }
}

/// Runs the hostile rings. Domain 0 has no part in them, so they run only once.
fn attacks(host: &mut XenHost, only: &str, tally: &mut CaseTally) {
    for case in ATTACKS.iter().filter(|case| case.name.contains(only)) {
        if !case.on.contains(&host.kind()) {
            tally.left_out += 1;
            println!("not   {}: this daemon does not promise it", case.name);
            continue;
        }
        let started = tally.begins(case.name);
        let failed = guarded(|| {
            host.prepare(None);
            attack(host, case);
            Vec::new()
        });
        tally.line(case.name, started, &failed);
        if tally.too_many() || host.ended().is_some() {
            return;
        }
    }
}

fn case_on(host: &mut XenHost, case: &TableCase) -> Vec<String> {
    let changed = host.prepare(Some(case));
    if !changed.is_empty() {
        println!("note  the case before has changed the machine's own: {}", changed.join(", "));
    }
    let mut failed = run_case(host, case);
    if let Some(how) = host.ended() {
        failed.push(format!("the daemon: {how}"));
    }
    failed
}

/// Runs a case. A panic is its failure; the next case begins on a restored host.
fn guarded(run: impl FnOnce() -> Vec<String>) -> Vec<String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        vec![text.unwrap_or_else(|| "a panic".to_owned())]
    })
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("conformance-dom0: {why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut host = match XenHost::open(options.kind, Route::Socket, &options.files) {
        Ok(host) => host,
        Err(error) => {
            eprintln!("conformance-dom0: no daemon at its socket: {error}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let mut tally = CaseTally::new();
    for route in &options.routes {
        host.set_route(*route);
        let way = if *route == Route::Socket { "socket" } else { "xenbus" };
        tables(&mut host, way, &options.only, &mut tally);
        if let Some(how) = host.ended() {
            tally.line("the daemon serves", started, &[how]);
            println!("conformance: stopped");
            return ExitCode::FAILURE;
        }
        if tally.too_many() {
            println!("conformance: stopped after {FAILED_MAX} failures");
            return ExitCode::FAILURE;
        }
    }
    host.set_route(Route::Socket);
    attacks(&mut host, &options.only, &mut tally);
    let last = "the store is put back";
    let started_last = tally.begins(last);
    let failed = guarded(|| {
        host.prepare(None);
        Vec::new()
    });
    tally.line(last, started_last, &failed);
    let CaseTally { ok, failed, left_out, .. } = tally;
    let seconds = started.elapsed().as_secs();
    println!("conformance: {ok} ok, {failed} FAIL, {left_out} not run here, {seconds} s");
    // The last line is a case, too; if it is the only one, nothing was tested.
    if ok + failed <= 1 {
        println!("conformance: no case has {:?} in its line", options.only);
        return ExitCode::FAILURE;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
