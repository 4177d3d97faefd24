//! `xb top`: its columns and its objects beside what a guest does, and the terminal after its screen.

use super::support::{TestHost, WITHIN};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, Termios, Winsize, tcflow, tcgetattr, tcsetwinsize};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A guest that writes to its disk and pauses in turn.
fn writing_guest(host: &TestHost, name: &str) -> String {
    let image = host.image(&format!("{name}.img"), 1 << 20);
    let program = "while true; do dd if=/dev/zero of=/dev/xvda bs=4096 count=16 conv=notrunc,fsync 2>/dev/null; \
                   echo written; sleep 0.05; done";
    host.config(name, &format!("disk = [\"{image},,xvda,w\"]\nextra = \"{program}\""))
}

/// Returns the cells of the line of a domain.
fn cells<'a>(lines: &[&'a str], name: &str) -> Vec<&'a str> {
    let cells = |line: &&'a str| line.split_whitespace().collect::<Vec<_>>();
    let of = lines.iter().map(cells).find(|cells| cells[0] == name);
    of.unwrap_or_else(|| panic!("no {name} in {lines:#?}"))
}

/// The columns of xentop, by their place.
const CPU_PERCENT: usize = 3;
const VBDS: usize = 12;
const VBD_WR: usize = 15;
const VBD_WSECT: usize = 17;

/// Scripts that read xentop read this; what a process serves is counted (netdata/netdata 5357), and
/// what is unknown is not 0 (xcp-ng/xcp 379).
#[test]
fn batch_prints_the_columns_of_xentop() {
    let host = TestHost::up("top-batch");
    if !host.has_fuse("batch_prints_the_columns_of_xentop") {
        return;
    }
    host.ok(&["create", &writing_guest(&host, "web")]);
    host.ok(&["create", &host.config("idle", "extra = \"exec sleep 1000\"")]);
    host.until_log("web", "written");
    let printed = host.ok(&["top", "--batch", "-d", "2", "-n", "2"]);
    let turns: Vec<Vec<&str>> = {
        let lines: Vec<&str> = printed.lines().collect();
        lines.chunks(4).map(<[&str]>::to_vec).collect()
    };
    assert_eq!(turns.len(), 2, "{printed}");
    let titles: Vec<&str> = turns[0][0].split_whitespace().collect();
    assert_eq!(
        titles.join(" "),
        "NAME STATE CPU(sec) CPU(%) MEM(k) MEM(%) MAXMEM(k) MAXMEM(%) VCPUS NETS NETTX(k) NETRX(k) VBDS VBD_OO VBD_RD VBD_WR VBD_RSECT VBD_WSECT SSID"
    );
    let names = |turn: &[&str]| -> Vec<String> {
        turn.iter().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    for turn in &turns {
        assert_eq!(names(turn), ["NAME", "Domain-0", "idle", "web"], "{printed}");
        let idle = cells(turn, "idle");
        assert_eq!((idle[VBDS], idle[VBD_WR], idle[1]), ("0", "0", "-----r"), "{printed}");
    }
    assert_eq!(cells(&turns[0], "web")[CPU_PERCENT], "-", "{printed}");
    assert!(cells(&turns[1], "web")[CPU_PERCENT].parse::<f64>().is_ok(), "{printed}");
    let count = |turn: &[&str], column: usize| cells(turn, "web")[column].parse::<u64>().unwrap();
    assert_eq!(count(&turns[0], VBDS), 1, "{printed}");
    for column in [VBD_WR, VBD_WSECT] {
        assert!(count(&turns[1], column) > count(&turns[0], column), "{printed}");
    }
    assert!(count(&turns[1], VBD_WSECT) >= count(&turns[1], VBD_WR), "{printed}");
    // Nobody counts these on a hosted host.
    assert_eq!((cells(&turns[1], "web")[13], cells(&turns[1], "web")[18]), ("-", "-"), "{printed}");
    let short = host.ok(&["top", "-b", "-i", "1", "-f"]);
    assert_eq!(short.lines().count(), 4, "{short}");
}

/// Runs `xb top --json` and gives each of its objects to `look`, until that returns true.
fn objects(host: &TestHost, mut look: impl FnMut(&Value) -> bool) {
    let mut command = host.command(&["top", "--json", "--delay", "1"]);
    let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let end = Instant::now() + WITHIN;
    let mut last = Value::Null;
    for line in BufReader::new(running.0.stdout.take().unwrap()).lines() {
        last = serde_json::from_str(&line.unwrap()).unwrap();
        if look(&last) {
            return;
        }
        assert!(Instant::now() < end, "not within {WITHIN:?}: {last}");
    }
    panic!("the objects have ended with {last}");
}

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the object of a domain in a turn.
fn domain<'a>(turn: &'a Value, name: &str) -> &'a Value {
    let domains = turn["domains"].as_array().unwrap();
    domains.iter().find(|domain| domain["name"] == name).unwrap_or(&Value::Null)
}

/// While somebody looks, the counters are fresh each second; a backend that has nothing to do sleeps
/// all the same.
#[test]
fn objects_have_fresh_rates_while_somebody_looks() {
    let host = TestHost::up("top-json");
    if !host.has_fuse("objects_have_fresh_rates_while_somebody_looks") {
        return;
    }
    host.ok(&["create", &writing_guest(&host, "web")]);
    host.until_log("web", "written");
    // The turns, and those with requests, bytes, a latency and events.
    let (mut turns, mut busy) = (0, [0; 4]);
    objects(&host, |turn| {
        let web = domain(turn, "web");
        assert_eq!(web["disks"][0]["vdev"], "xvda", "{turn}");
        turns += 1;
        if turns == 1 {
            assert!(web["disk"]["requests_per_s"].is_null(), "{turn}");
            return false;
        }
        let disk = &web["disk"];
        let found =
            [&disk["requests_per_s"], &disk["bytes_per_s"], &disk["p99_us"], &web["events_per_s"]];
        assert!(disk["requests_per_s"].is_number() && disk["bytes_per_s"].is_number(), "{turn}");
        for (busy, found) in busy.iter_mut().zip(found) {
            *busy += u32::from(found.as_f64().is_some_and(|found| found > 0.0));
        }
        turns == 6
    });
    // Counters that are written each five seconds would be new in one of these turns, or two.
    assert!(
        busy.iter().all(|busy| *busy >= 3),
        "{busy:?} of 5 turns: the guest writes all the time"
    );
    let web = host.json(&["top", "-n", "1"]);
    let web = domain(&web, "web");
    assert_eq!(web["store"]["nodes_max"], 1000, "{web}");
    assert!(web["store"]["watches"].as_u64().unwrap() > 0, "{web}");
    assert_eq!((&web["store"]["refusals"], &web["grant_frames_max"]), (&0.into(), &32.into()));
    assert!(web["granted_pages"].as_u64().unwrap() > 0, "{web}");
    // It stops writing, and the backend has no more to do.
    host.ok(&["pause", "web"]);
    let backend = host.pid("xen-blockd").unwrap();
    let (mut sleeps, mut quiet) = (Vec::new(), 0);
    objects(&host, |turn| {
        quiet += usize::from(domain(turn, "web")["disk"]["requests_per_s"] == 0.0);
        sleeps.push(switches(backend));
        quiet == 8
    });
    let woken = sleeps[sleeps.len() - 1] - sleeps[sleeps.len() - 6];
    assert!(woken <= 3, "an idle backend was woken {woken} times in five turns");
}

/// Returns the number of times that a process has gone to sleep.
fn switches(pid: Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

/// A domain that takes the place of another is a new one, and one that went is gone.
#[test]
fn domains_come_and_go_between_turns() {
    let host = TestHost::up("top-come-go");
    let config = host.config("web", "extra = \"exec sleep 1000\"");
    let mut turns = 0;
    objects(&host, |turn| {
        turns += 1;
        let web = domain(turn, "web");
        match turns {
            1 => {
                assert!(web.is_null(), "{turn}");
                host.ok(&["create", &config]);
                false
            }
            _ if web.is_null() => turns > 3,
            _ => {
                if web["cpu_percent"].is_number() {
                    host.ok(&["destroy", "web"]);
                }
                false
            }
        }
    });
}

/// A terminal with `xb top` on it, whose output a thread reads.
struct TopOnTerminal {
    terminal: File,
    /// The other side, which keeps the terminal's mode after the program.
    ours: OwnedFd,
    before: String,
    child: Child,
    output: Receiver<Vec<u8>>,
    /// All of the output.
    written: String,
    /// The output that is no whole sequence yet.
    rest: String,
    shown: ShownScreen,
}

/// The letters on a screen, and the place of the next.
#[derive(Default)]
struct ShownScreen {
    lines: Vec<Vec<char>>,
    next: (usize, usize),
}

impl ShownScreen {
    /// Shows output; returns what is no whole sequence yet.
    fn show(&mut self, output: &str) -> String {
        let mut left = output;
        while let Some(letter) = left.chars().next() {
            let Some(sequence) = left.strip_prefix("\u{1b}[") else {
                self.put(letter);
                left = &left[letter.len_utf8()..];
                continue;
            };
            let Some(end) = sequence.find(|letter: char| letter.is_ascii_alphabetic()) else {
                break;
            };
            match (&sequence[end..=end], sequence[..end].split_once(';')) {
                ("H", Some((row, column))) => {
                    let place = |text: &str| text.parse::<usize>().unwrap() - 1;
                    self.next = (place(row), place(column));
                }
                ("J", _) => self.lines.clear(),
                _ => {}
            }
            left = &sequence[end + 1..];
        }
        left.to_owned()
    }

    fn put(&mut self, letter: char) {
        let (row, column) = self.next;
        self.lines.resize(self.lines.len().max(row + 1), Vec::new());
        let line = &mut self.lines[row];
        line.resize(line.len().max(column + 1), ' ');
        line[column] = letter;
        self.next.1 += 1;
    }

    fn text(&self) -> String {
        let lines = self.lines.iter().map(|line| line.iter().collect::<String>());
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The mode of a terminal, as text.
fn mode(terminal: &OwnedFd) -> String {
    let Termios { input_modes, output_modes, control_modes, local_modes, .. } =
        tcgetattr(terminal).unwrap();
    format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
}

impl TopOnTerminal {
    fn start(host: &TestHost, args: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap()
        };
        let ours = open();
        let size = Winsize { ws_row: 30, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).unwrap();
        let before = mode(&ours);
        let mut command: Command = host.command(&[&["top"], args].concat());
        command.stdin(open()).stdout(open()).stderr(open());
        let child = command.spawn().unwrap();
        drop(command);
        let terminal = File::from(master);
        let mut reader = terminal.try_clone().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let (written, rest, shown) = (String::new(), String::new(), ShownScreen::default());
        Self { terminal, ours, before, child, output, written, rest, shown }
    }

    /// Waits until the screen has these words.
    fn until(&mut self, words: &str) {
        self.until_so(words, |top| top.shown.text().contains(words));
    }

    fn until_so(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + WITHIN;
        while !so(self) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else {
                panic!("{what:?} is not shown:\n{}", self.shown.text());
            };
            let text = String::from_utf8_lossy(&bytes);
            self.written.push_str(&text);
            let output = std::mem::take(&mut self.rest) + &text;
            self.rest = self.shown.show(&output);
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.terminal.write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end, which leaves the terminal as it was. Returns the exit status.
    fn ended(mut self) -> Option<i32> {
        let end = Instant::now() + WITHIN;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it has not ended within {WITHIN:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.until_so("the earlier screen", |top| {
            top.written.ends_with("\u{1b}[?1049l\u{1b}[?25h")
        });
        assert_eq!(mode(&self.ours), self.before);
        status.code()
    }
}

#[test]
fn the_terminal_is_as_it_was_after_the_screen() {
    let host = TestHost::up("top-screen");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let start = || {
        let mut top = TopOnTerminal::start(&host, &[]);
        top.until("running");
        assert_ne!(mode(&top.ours), top.before, "it reads keys");
        top
    };
    let mut top = start();
    top.press(b"q");
    assert_eq!(top.ended(), Some(0));
    let mut top = start();
    top.press(b"\x03");
    assert_eq!(top.ended(), Some(130));
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let top = start();
        top.signal(signal);
        assert_eq!(top.ended(), Some(code));
    }
    // The terminal is stopped, as by Ctrl-S: it gets its earlier mode all the same.
    let mut top = start();
    tcflow(&top.ours, Action::OOff).unwrap();
    top.press(b"\x0cq");
    let status = top.child.wait().unwrap();
    assert_eq!((status.code(), mode(&top.ours)), (Some(0), top.before.clone()));
    tcflow(&top.ours, Action::OOn).unwrap();
    // The store answers nobody.
    let store = host.pid("xenstored").unwrap();
    for end in ["q", "term"] {
        let mut top = start();
        kill_process(store, Signal::STOP).unwrap();
        match end {
            "q" => top.press(b"q"),
            _ => top.signal(Signal::TERM),
        }
        let code = top.ended();
        kill_process(store, Signal::CONT).unwrap();
        assert_eq!(code, Some(if end == "q" { 0 } else { 143 }));
    }
}

#[test]
fn the_screen_shows_devices_and_what_the_doctor_says() {
    let host = TestHost::up("top-devices");
    let image = host.image("a.img", 1 << 20);
    let rest = format!("disk = [\"{image},,xvda,w\"]\nextra = \"exec sleep 1000\"");
    host.ok(&["create", &host.config("web", &rest)]);
    let mut top = TopOnTerminal::start(&host, &["--delay", "0.2", "--timeout", "1"]);
    top.until("running");
    // Only that domain, and its devices.
    top.press(b"/web\r");
    top.press(b"\r");
    top.until(" devices of web");
    top.until(" xvda  frontend Connected (4), backend Connected (4) (vbd in domain 0)");
    top.until("   ring: grants ");
    let backend = host.pid("xen-blockd").unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    top.until("web: xvda waits: the process ");
    top.until("!web ");
    kill_process(backend, Signal::CONT).unwrap();
    // The store does not answer for a while, which is said.
    let store = host.pid("xenstored").unwrap();
    kill_process(store, Signal::STOP).unwrap();
    top.until("xenstored (process ");
    kill_process(store, Signal::CONT).unwrap();
    top.press(b"\x1b");
    top.press(b"\x1b");
    top.until("Domain-0");
    top.press(b"q");
    assert_eq!(top.ended(), Some(0));
}

#[test]
fn a_screen_needs_a_terminal() {
    let host = TestHost::up("top-none");
    host.fails(
        &["top"],
        1,
        "standard output is no terminal; to print turn after turn: xb top --batch",
    );
    host.fails(&["top", "-n", "2"], 1, "a number of turns is for xb top --batch and --json");
    host.fails(&["top", "--batch", "-d", "0"], 2, "at least 0.1 seconds are needed");
    host.fails(&["top", "--full-name"], 2, "--batch");
    // A reader that has read enough is no error.
    let mut child =
        host.command(&["top", "-b", "-d", "0.1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("MAXMEM(k)"));
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
