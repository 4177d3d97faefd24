//! `xb log` and `xb host log`: logs by the writer of `xenconsoled`, by the daemon of a hosted host, and of
//! the daemons.

use super::support::{DAEMONS, TestHost, WITHIN};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::SystemTime;
use xen_console::log::{ConsoleLog, LogLimits};

const SECOND: u64 = 1_000_000;
/// 2026-12-02 16:32:05 UTC.
const TIME_US: u64 = 1_796_229_125 * SECOND;

/// A host that is down, and a folder of logs beside it.
struct LogScene {
    host: TestHost,
    dir: PathBuf,
}

impl LogScene {
    fn new(test: &str) -> Self {
        let host = TestHost::down(test);
        let dir = host.path("logs");
        std::fs::create_dir(&dir).unwrap();
        Self { host, dir }
    }

    fn log(&self, file: &str, bytes_max: u64) -> ConsoleLog {
        open_log(&self.dir, file, bytes_max)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(&["log"]);
        command.args(args).arg("--log-dir").arg(&self.dir).env("TZ", "UTC");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Returns what a command prints that succeeds and has nothing to say beside it.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the code and the words of a command that prints nothing.
    fn said(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    fn objects(&self, args: &[&str]) -> Vec<Value> {
        let text = self.ok(&[args, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn open_log(dir: &Path, file: &str, bytes_max: u64) -> ConsoleLog {
    let folder: Rc<OwnedFd> = Rc::new(File::open(dir).unwrap().into());
    let limits = LogLimits { bytes_max, reserve: 0, mode: 0o600 };
    ConsoleLog::open(folder, OsStr::new(file), limits).unwrap()
}

/// A command that follows a log.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = sync_channel(0);
        // It closes the output once nobody asks for lines.
        std::thread::spawn(move || {
            let mut lines = output.lines().map_while(Result::ok);
            while lines.next().is_some_and(|line| tell.send(line).is_ok()) {}
        });
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.recv_timeout(WITHIN).expect("a line in time")
    }

    /// Ends it as Ctrl-C does, and returns what it has said beside the output.
    fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(130), "{said}");
        said
    }
}

#[test]
fn the_last_life_is_shown_and_the_one_before_it_if_asked_for() {
    let scene = LogScene::new("lives");
    let (code, said) = scene.said(&["web"]);
    let nobody = format!("xb: there is no log of a guest web in {}; ", scene.dir.display());
    assert!(code == Some(4) && said.starts_with(&nobody), "{said}");
    let mut log = scene.log("guest-web.log", 1 << 20);
    log.begin_life(1, TIME_US).unwrap();
    let nothing = "xb: web has written nothing yet\n";
    assert_eq!(scene.said(&["web"]), (Some(0), nothing.into()));
    let (code, said) = scene.said(&["web", "--json"]);
    let note: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, note), (Some(0), json!({ "note": "web has written nothing yet" })));
    log.append(b"first\r\nlogin: ", TIME_US);
    assert_eq!(scene.ok(&["web"]), "first\nlogin: ");
    let (code, said) = scene.said(&["web", "--previous"]);
    assert!(code == Some(4) && said.contains("web has no life before the last one"), "{said}");
    log.begin_life(2, TIME_US + SECOND).unwrap();
    assert_eq!(scene.said(&["web"]), (Some(0), nothing.into()));
    log.append(b"second\n", TIME_US + 2 * SECOND);
    assert_eq!(scene.ok(&["web"]), "second\n");
    assert_eq!(scene.ok(&["web", "--previous"]), "first\nlogin: ");
    let output = scene.run(&["web", "--previous", "--follow"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // A name that is no file's.
    scene.log("guest-a%2f..%1b.log", 1 << 20).append(b"odd\n", TIME_US);
    assert_eq!(scene.ok(&["a/..\u{1b}"]), "odd\n");
    // C's daemon writes no index: no lives, no times, and all is shown.
    std::fs::write(scene.dir.join("guest-old.log"), "one\ntwo\n").unwrap();
    assert_eq!(scene.ok(&["old"]), "one\ntwo\n");
    assert_eq!(scene.ok(&["old", "-t", "-n1"]), "- two\n");
    assert_eq!(scene.objects(&["old", "-n1"]), [json!({ "time": null, "text": "two" })]);
    let (code, said) = scene.said(&["old", "--since", "1h"]);
    assert!(code == Some(1) && said.contains("old has no times"), "{said}");
}

#[test]
fn lines_are_chosen_by_number_and_time() {
    let scene = LogScene::new("tail");
    // The life lasts over a log that was set aside.
    let mut log = scene.log("guest-web.log", 4000);
    let mut expected = Vec::new();
    log.begin_life(1, TIME_US).unwrap();
    for number in 0..1000_u64 {
        log.append(format!("line {number}\n").as_bytes(), TIME_US + number * SECOND);
        expected.push(format!("line {number}"));
    }
    let all = scene.ok(&["web"]);
    let all: Vec<&str> = all.lines().collect();
    assert!(all.len() > 400, "{}", all.len());
    assert_eq!(all, expected[expected.len() - all.len()..]);
    for tail in [0, 1, 2, 399, 400, all.len()] {
        let shown = scene.ok(&["web", "--tail", &tail.to_string()]);
        assert_eq!(shown.lines().collect::<Vec<_>>(), all[all.len() - tail..], "{tail}");
    }
    assert_eq!(scene.ok(&["web", "--tail", "100000"]).lines().count(), all.len());
    // 999 seconds later, and the forms of a time.
    for since in ["2026-12-02T16:48:43Z", "2026-12-02 16:48:43", "2026-12-02T17:48:43+01:00"] {
        assert_eq!(scene.ok(&["web", "--since", since]), "line 998\nline 999\n", "{since}");
    }
    assert_eq!(scene.ok(&["web", "--since", "2026-12-02 16:48", "-n", "1"]), "line 999\n");
    assert_eq!(scene.ok(&["web", "--since", "2026-12-02"]).lines().count(), all.len());
    let late = "xb: web has written nothing since then\n";
    // Beyond the seconds that have 31 bits.
    assert_eq!(scene.said(&["web", "--since", "2038-01-20"]), (Some(0), late.into()));
    let output = scene.run(&["web", "--since", "soon"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("a time is needed: 10m"), "{said}");
    // The line that was begun before is shown whole.
    let mut log = scene.log("guest-now.log", 1 << 20);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_micros()).unwrap();
    log.append(b"an hour ago\nlogin: ", now - 3600 * SECOND);
    log.append(b"root\n", now);
    assert_eq!(scene.ok(&["now", "--since", "10m"]), "login: root\n");
    assert_eq!(scene.ok(&["now", "--since", "2h"]), "an hour ago\nlogin: root\n");
}

#[test]
fn times_and_lost_bytes_are_told() {
    let scene = LogScene::new("times");
    let mut log = scene.log("guest-web.log", 1 << 20);
    log.begin_life(1, TIME_US).unwrap();
    log.append(b"one\r\nhal", TIME_US + 1);
    log.append(b"f\n\x1b[2Jred\x7f\xc2\x9b \xe2\x80\xae\n", TIME_US + SECOND);
    log.append(b"open", TIME_US + 2 * SECOND);
    log.note_lost(7, TIME_US + 3 * SECOND).unwrap();
    log.append(b" end\n", TIME_US + 4 * SECOND);
    log.append(b"late\n", (1 << 31) * SECOND);
    log.append(b"no time\n", u64::MAX);
    assert_eq!(
        scene.ok(&["web", "--timestamps"]).replace("2026-12-02T16:32:0", "@"),
        "@5.000+00:00 one\n@5.000+00:00 half\n@6.000+00:00 \u{1b}[2Jred\u{7f}\u{9b} \u{202e}\n\
         @7.000+00:00 open\n@8.000+00:00 [7 bytes of output were lost]\n@9.000+00:00  end\n\
         2038-01-19T03:14:08.000+00:00 late\n- no time\n"
    );
    let time = |rest: &str| format!("2026-12-02T16:32:0{rest}Z");
    let objects = [
        json!({ "time": time("5.000001"), "text": "one" }),
        json!({ "time": time("5.000001"), "text": "half" }),
        json!({ "time": time("6.000000"), "text": "\u{1b}[2Jred\u{7f}\u{9b} \u{202e}" }),
        json!({ "time": time("7.000000"), "text": "open" }),
        json!({ "time": time("8.000000"), "text": "", "lost": 7 }),
        json!({ "time": time("9.000000"), "text": " end" }),
        json!({ "time": "2038-01-19T03:14:08.000000Z", "text": "late" }),
        json!({ "time": null, "text": "no time" }),
    ];
    assert_eq!(scene.objects(&["web"]), objects);
    let text = scene.ok(&["web", "--json"]);
    assert!(text.chars().all(|letter| letter == '\n' || (' '..='~').contains(&letter)), "{text:?}");
    // In plain output the loss has a line of its own, too.
    let plain = scene.ok(&["web", "--since", "2026-12-02 16:32:07"]);
    assert!(plain.starts_with("open\n[7 bytes of output were lost]\n end\n"), "{plain:?}");
}

/// On a terminal nothing that a guest prints moves the cursor, and the ends of a console's lines are
/// ends of lines.
#[test]
fn a_terminal_gets_no_control_character_of_a_guest() {
    let scene = LogScene::new("terminal");
    let mut log = scene.log("guest-web.log", 1 << 20);
    log.append(b"one\r\ntwo\r\r\n\x1b[2J\x1b]0;title\x07\rred\xc2\x9b\r\n", TIME_US);
    for options in ["", "-t", "--json"] {
        let line = format!(
            "{} --host {} log web {options} --log-dir {}",
            super::support::XB,
            scene.host.path("h").display(),
            scene.dir.display()
        );
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        // The terminal itself puts a CR before each LF.
        let shown = shown.replace("\r\n", "\n");
        assert!(!shown.contains(|letter: char| letter.is_control() && letter != '\n'), "{shown:?}");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown:?}");
        assert!(lines[0].contains("one") && !lines[0].contains('?'), "{shown:?}");
        if options.is_empty() {
            assert_eq!(lines[1..], ["two", "?[2J?]0;title??red\u{fffd}?"]);
        }
    }
}

/// A log that is set aside again and again while it is followed is shown whole.
#[test]
fn who_follows_a_log_misses_nothing() {
    let scene = LogScene::new("follow");
    let mut log = scene.log("guest-web.log", 1000);
    log.begin_life(1, TIME_US).unwrap();
    let mut follower = Follower::start(&mut scene.command(&["web", "--follow"]));
    let mut stamped = Follower::start(&mut scene.command(&["web", "-f", "--json"]));
    // In parts that are not set aside before they were read.
    for round in 0..20_u64 {
        for number in 0..40 {
            log.append(format!("{round} {number}\n").as_bytes(), TIME_US + round);
        }
        for number in 0..40 {
            assert_eq!(follower.line(), format!("{round} {number}"));
            let object: Value = serde_json::from_str(&stamped.line()).unwrap();
            assert_eq!(object["text"], format!("{round} {number}"));
            assert!(object["time"].is_string() && object.get("lost").is_none(), "{object}");
        }
    }
    assert!(scene.dir.join("guest-web.log.1").exists());
    // A new life begins a line.
    log.append(b"login: ", TIME_US);
    log.begin_life(2, TIME_US).unwrap();
    log.append(b"again\n", TIME_US);
    assert_eq!((follower.line(), follower.line()), ("login: ".into(), "again".into()));
    assert_eq!(stamped.line(), "{\"text\":\"login: \",\"time\":\"2026-12-02T16:32:05.000000Z\"}");
    let said = follower.end();
    assert!(said.ends_with("xb: interrupted\n"), "{said}");
    stamped.end();
    // Who reads no more ends it.
    let mut closed = Follower::start(&mut scene.command(&["web", "--follow"]));
    assert_eq!(closed.line(), "again");
    let Follower { mut child, lines } = closed;
    drop(lines);
    let ended = scene.host.until("it ends", || {
        log.append(b"more\n", TIME_US);
        child.try_wait().unwrap()
    });
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn a_hosted_guest_has_its_log_by_name_and_by_number() {
    let host = TestHost::up("places");
    let config = host.config("web", "extra = \"echo one; echo two; exec sleep 1000\"");
    host.ok(&["create", &config]);
    host.until_log("web", "two\n");
    assert_eq!(host.ok(&["log", "web", "--tail", "1"]), "two\n");
    let object = host.ok(&["log", "web", "--tail", "1", "--json"]);
    let object: Value = serde_json::from_str(&object).unwrap();
    assert_eq!(object["text"], json!("two"));
    assert!(object["time"].is_string(), "{object}");
    assert!(host.ok(&["log", "web", "--since", "1h"]).ends_with("one\ntwo\n"));
    // The next guest of the name has a life of its own in the log.
    host.ok(&["destroy", "web"]);
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    let output = host.run(&["log", "web"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing yet"), "{output:?}");
    assert!(host.ok(&["log", "web", "--previous"]).ends_with("one\ntwo\n"));
    // Two domains of one name: by number it is that of the domain.
    let domid = host.json(&["info", "web"])["domid"].as_u64().unwrap();
    let (number, dir) = (u16::try_from(domid).unwrap(), host.path("logs"));
    std::fs::create_dir(&dir).unwrap();
    let log = |which: &str| host.ok(&["log", which, "--log-dir", dir.to_str().unwrap()]);
    let mut one = open_log(&dir, "guest-web.log", 1 << 20);
    one.begin_life(number - 1, TIME_US).unwrap();
    one.append(b"of a console\n", TIME_US);
    assert_eq!(log("web"), "of a console\n");
    assert_eq!(log(&domid.to_string()), "of a console\n");
    let mut other = open_log(&dir, &format!("guest-web.{domid}.log"), 1 << 20);
    other.begin_life(number, TIME_US).unwrap();
    other.append(b"of another console\n", TIME_US);
    assert_eq!(log("web"), "of a console\n");
    assert_eq!(log(&domid.to_string()), "of another console\n");
    host.fails(&["log", "77"], 4, "there is no domain 77");
    host.fails(&["log", "../web"], 4, "there is no log of a guest ../web; xb list shows");
}

#[test]
fn what_the_daemons_have_written_is_shown() {
    let host = TestHost::up("host-log");
    let all = host.ok(&["host", "log"]);
    let headings: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("==> ")).collect();
    assert_eq!(headings.len(), DAEMONS.len(), "{all}");
    for (daemon, heading) in DAEMONS.iter().zip(headings) {
        let path = host.path("h/log").join(format!("{daemon}.log"));
        assert_eq!(heading, format!("{daemon} ({})", path.display()));
        assert_eq!(host.ok(&["host", "log", daemon]), host.log_of(daemon));
        let last = host.ok(&["host", "log", daemon, "--tail", "1"]);
        assert!(last.lines().count() == 1 && host.log_of(daemon).ends_with(&last), "{last}");
        let line = host.log_of(daemon).lines().next().unwrap().to_owned();
        assert!(all.contains(&line), "{all}");
    }
    let text = host.ok(&["host", "log", "--json"]);
    let objects: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let serving =
        json!({ "daemon": "keeper", "text": host.log_of("keeper").lines().next().unwrap() });
    assert!(objects.contains(&serving), "{text}");
    host.fails(
        &["host", "log", "nobody"],
        4,
        "there is no daemon nobody; there are: broker, xenstored, ",
    );
    // What comes, each line behind its daemon's name.
    let mut follower = Follower::start(&mut host.command(&["host", "log", "-f", "--tail", "1"]));
    for daemon in DAEMONS {
        let line = follower.line();
        assert!(line.starts_with(&format!("{daemon} | ")), "{line}");
    }
    for round in 0..3 {
        for daemon in ["keeper", "xen-blockd"] {
            let path = host.path("h/log").join(format!("{daemon}.log"));
            let mut log = File::options().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut log, format!("round {round}\n").as_bytes()).unwrap();
            let line = format!("{daemon} | round {round}");
            while follower.line() != line {}
        }
    }
    follower.end();
    // A log that the keeper has bounded goes on.
    let path = host.path("h/log/xen-blockd.log");
    let mut log = File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut log, &b"long\n".repeat(400_000)).unwrap();
    host.until("it is set aside", || (path.metadata().unwrap().len() == 0).then_some(()));
    assert_eq!(host.ok(&["host", "log", "xen-blockd", "-n", "2"]), "long\nlong\n");
    host.ok(&["host", "down"]);
    host.fails(&["host", "log"], 4, "no host is up in");
}
