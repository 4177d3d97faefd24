//! Twenty clients at once, each with commands that a seed chooses, on the same few guests; some are
//! killed in between. Every message is true, and nothing is left.
//!
//! `RACE_SECONDS=600` runs for ten minutes, `RACE_SEED=17` begins with that seed.

use super::support::{TestHost, WITHIN};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const CLIENTS: u64 = 20;
const SECONDS: u64 = 30;
const NAMES: [&str; 5] = ["ant", "bee", "cat", "dog", "eel"];
/// Guests' images, beside their root.
const DISKS: [&str; 2] = ["xvdb", "xvdc"];

/// Texts of refusals, exit status 1, that other clients of the same guest cause.
const REFUSALS: [&str; 8] = [
    "another xb is creating ",
    " already (number ",
    " already; xb disk detach ",
    " is not paused; it is ",
    " has ended (",
    " has ended before its disk ",
    " and is not started again ",
    // Its disk is still in use by another guest, which is ending.
    " is in use by ",
];
/// Texts of exit status 4: there is no such domain or disk, or no longer.
const GONE: [&str; 3] = [" was destroyed meanwhile", "there is no domain ", " has no disk "];
/// Texts of waits that may fail, exit status 3: a paused guest answers nobody.
const TIMEOUTS: [&str; 4] = [" connects (frontend ", " is let go of ", " ends: ", " runs again: "];

/// Numbers by a seed (splitmix64).
struct SeededRandom(u64);

impl SeededRandom {
    fn number_below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % bound
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[usize::try_from(self.number_below(all.len() as u64)).unwrap()]
    }
}

/// Returns a random command line.
fn command(host: &TestHost, chance: &mut SeededRandom) -> Vec<String> {
    let name = chance.of(&NAMES);
    let disk = chance.of(&DISKS);
    let path = |name: String| host.path(&name).to_str().unwrap().to_owned();
    let words: Vec<String> = match chance.number_below(20) {
        0..=5 => {
            let config = path(format!("{name}.cfg"));
            let how = chance.of(&["--paused", "--json", "extra=\"true\"", "--json", "disk=[]"]);
            vec!["create".into(), config, how.into()]
        }
        6..=8 => vec!["destroy".into(), name.into()],
        9..=11 => {
            let image = path(format!("{name}-{disk}.img"));
            vec!["disk".into(), "attach".into(), name.into(), format!("{image},,{disk},w")]
        }
        12 | 13 => ["disk", "detach", name, disk, "--force"].map(str::to_owned).to_vec(),
        14 => ["disk", "detach", name, disk].map(str::to_owned).to_vec(),
        15 => vec!["pause".into(), name.into()],
        16 => vec!["unpause".into(), name.into()],
        17 => {
            let ask = chance.of(&["shutdown", "reboot"]);
            vec![ask.into(), name.into(), chance.of(&["--wait", "--json"]).into()]
        }
        18 => vec![chance.of(&["info"]).into(), name.into()],
        _ => vec![chance.of(&["list", "tree"]).into()],
    };
    // A command that a paused guest takes part in ends soon; all others have time, on a busy
    // machine too.
    let within = match words[0].as_str() {
        "create" => "10",
        "disk" | "shutdown" | "reboot" => "5",
        _ => "60",
    };
    [words, vec!["--timeout".into(), within.into()]].concat()
}

/// Runs commands until the end, and collects unexpected results.
fn client(host: &TestHost, seed: u64, end: Instant, odd: &Mutex<Vec<String>>) -> [u64; 3] {
    let mut chance = SeededRandom(seed);
    let [mut done, mut refused, mut killed] = [0; 3];
    while Instant::now() < end {
        let words = command(host, &mut chance);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut line = host.command(&words);
        let line = line.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
        let child = line.spawn().unwrap();
        let signal = match chance.number_below(12) {
            0 => Some(Signal::TERM),
            1 => Some(Signal::KILL),
            2 => Some(Signal::INT),
            _ => None,
        };
        if let Some(signal) = signal {
            std::thread::sleep(Duration::from_millis(chance.number_below(100)));
            let _ = kill_process(Pid::from_child(&child), signal);
        }
        let output = child.wait_with_output().unwrap();
        let by_signal =
            signal.is_some_and(|signal| output.status.signal() == Some(signal.as_raw()));
        match output.status.code() {
            _ if by_signal => killed += 1,
            Some(130) if signal == Some(Signal::INT) => killed += 1,
            Some(0) => done += 1,
            _ if is_allowed(&output) => refused += 1,
            _ => odd.lock().unwrap().push(format!("seed {seed}: xb {words:?}: {output:?}")),
        }
    }
    [done, refused, killed]
}

/// True if a command has failed in an expected way.
fn is_allowed(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(4) => GONE.iter().any(|words| said.contains(words)),
        Some(3) => TIMEOUTS.iter().any(|words| said.contains(words)),
        Some(1) => REFUSALS.iter().any(|words| said.contains(words)),
        _ => false,
    }
}

#[test]
fn twenty_clients_at_once_are_told_what_happened_and_leave_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("RACE_SECONDS").unwrap_or(SECONDS);
    let seed = number("RACE_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_secs() * 1000
    });
    eprintln!("RACE_SEED={seed}");
    let host = TestHost::up("races");
    for name in NAMES {
        let root = host.image(&format!("{name}.img"), 1 << 20);
        for disk in DISKS {
            host.image(&format!("{name}-{disk}.img"), 1 << 20);
        }
        let disk = format!("disk = [\"{root},,xvda,w\"]");
        host.config(name, &format!("memory = 16\n{disk}\nextra = \"exec sleep 1000\""));
    }
    let nodes = host.nodes();
    let odd = Mutex::new(Vec::new());
    let end = Instant::now() + Duration::from_secs(seconds);
    let counts = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|at| {
                scope.spawn({
                    let (host, odd) = (&host, &odd);
                    move || client(host, seed + at, end, odd)
                })
            })
            .collect();
        let counts: Vec<[u64; 3]> = clients.into_iter().map(|it| it.join().unwrap()).collect();
        counts.iter().fold([0; 3], |sum, of| std::array::from_fn(|at| sum[at] + of[at]))
    });
    let [done, refused, killed] = counts;
    eprintln!("{done} commands done, {refused} refused, {killed} killed");
    let odd = odd.into_inner().unwrap();
    let mut report = String::new();
    odd.iter().for_each(|line| writeln!(report, "{line}").unwrap());
    assert!(
        odd.is_empty(),
        "RACE_SEED={seed}: {} answers are not as they should be:\n{report}",
        odd.len()
    );
    assert!(done > 0 && refused > 0 && killed > 0, "all of it has happened");
    // Remaining guests are destroyed with ordinary commands; the rest is the host's own work.
    let mut asked = Vec::new();
    let begin = Instant::now();
    loop {
        let listed = host.json(&["list"]);
        let guests: Vec<String> =
            listed.as_array().unwrap()[1..].iter().map(|it| it["domid"].to_string()).collect();
        for domid in &guests {
            if !asked.contains(domid) {
                let output = host.run(&["destroy", domid]);
                assert!(matches!(output.status.code(), Some(0 | 4)), "{output:?}");
                asked.push(domid.clone());
            }
        }
        let left = host.nodes();
        if guests.is_empty() && left == nodes {
            break;
        }
        assert!(begin.elapsed() < WITHIN, "RACE_SEED={seed}: left of {guests:?}: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
