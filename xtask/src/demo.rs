//! `cargo xtask demo`: a store without Xen, in a directory of its own, and a watch that fires.
//!
//! Each step prints the command, what it shows, and how long it took. Whatever happens to this
//! program, [`Keeper`] ends what it started and removes the directory.

use crate::Result;
use crate::workspace::{Workspace, cargo};
use std::fs::{self, DirBuilder, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long one step may take before it counts as stuck; building is not meant.
const PATIENCE: Duration = Duration::from_secs(10);

const HELP: &str = "\
cargo xtask demo [OPTION...]: a store without Xen, and a watch that fires

  --keep           leave the daemon running, and say what to try with it
  --programs DIR   use xenstored and xenstore from DIR, and build nothing
";

/// What the keeper does: a shell that collects process numbers from its standard input, and when
/// that ends tells those processes to end and removes the directory. It is in a process group of
/// its own, so Ctrl-C does not reach it.
const KEEPER: &str = r#"trap "" HUP INT TERM
pids=
while read -r word; do
    case $word in
    keep) exit 0 ;;
    ended) pids= ;;
    *) pids="$pids $word" ;;
    esac
done
for pid in $pids; do kill -TERM "$pid" 2>/dev/null; done
rm -rf -- "$1""#;

/// What the command line asks for.
#[derive(Default)]
struct Options {
    keep: bool,
    programs: Option<PathBuf>,
}

/// `cargo xtask demo`.
pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--keep" => options.keep = true,
            "--programs" => {
                let dir = words.next().ok_or("--programs needs a directory")?;
                options.programs = Some(fs::canonicalize(dir).map_err(|error| {
                    format!("--programs {dir}: {error}; build xenstored and xenstore first")
                })?);
            }
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            other => return Err(format!("demo: there is no option {other}\n{HELP}").into()),
        }
    }
    let programs = match &options.programs {
        Some(dir) => dir.clone(),
        None => build()?,
    };
    show(&programs, &options).map_err(|error| format!("the demo failed: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

fn build() -> Result<PathBuf> {
    let step = Step::begin("build the daemon and the tool");
    let arguments = ["build", "--release", "--package", "xenstored", "--package", "xenstore"];
    shown(&format!("cargo {}", arguments.join(" ")));
    let workspace = Workspace::load()?;
    if !cargo().args(arguments).current_dir(&workspace.root).status()?.success() {
        return Err("xenstored and xenstore do not build; cargo has said why".into());
    }
    step.done();
    Ok(workspace.target.join("release"))
}

/// One step on the screen.
struct Step(Instant);

impl Step {
    fn begin(what: &str) -> Self {
        println!("==> {what}");
        Self(Instant::now())
    }

    fn done(self) {
        let took = self.0.elapsed();
        match took.as_millis() {
            0..10_000 => println!("    {:.1} ms\n", took.as_secs_f64() * 1000.0),
            _ => println!("    {:.1} s\n", took.as_secs_f64()),
        }
    }
}

fn shown(command: &str) {
    println!("    $ {command}");
}

fn indented(text: &str) {
    for line in text.trim_end().lines() {
        println!("    {line}");
    }
}

fn show(programs: &Path, options: &Options) -> Result<()> {
    let mut stage = Stage::set_up(programs)?;
    let pid = stage.start_daemon()?;
    let events = stage.start_watch()?;

    let step = Step::begin("write a node: the watch fires");
    stage.tool(&["write", "/demo/greeting", "hello"])?;
    expect(&events, &["/demo/greeting"])?;
    step.done();

    let step = Step::begin("write two nodes in one transaction: the watch fires at its commit");
    let (state, mac) = ("/demo/device/state", "/demo/device/mac");
    stage.tool(&["write", state, "1", mac, "00:16:3e:00:00:01"])?;
    expect(&events, &[state, mac])?;
    step.done();

    let step = Step::begin("list the store");
    indented(&stage.tool(&["ls", "-f", "/"])?);
    step.done();

    let step = Step::begin("what domain 0 uses, and what the daemon has counted");
    indented(&stage.tool(&["control", "quota", "0"])?);
    let stats = stage.tool(&["control", "stats"])?;
    let telling = ["requests", "type", "WRITE", "TRANSACTION", "WATCH"];
    for line in stats.lines().filter(|line| telling.iter().any(|word| line.starts_with(word))) {
        println!("    {line}");
    }
    step.done();

    if options.keep { stage.leave(pid) } else { stage.end_daemon(pid) }
}

/// Waits until the watch has printed these paths.
fn expect(events: &Receiver<String>, paths: &[&str]) -> Result<()> {
    for path in paths {
        let line = events.recv_timeout(PATIENCE).map_err(|_| {
            format!("the watch did not tell of {path} within {} s", PATIENCE.as_secs())
        })?;
        println!("    the watch prints: {line}");
        if line != *path {
            return Err(format!("the watch told of {line} where {path} was written").into());
        }
    }
    Ok(())
}

/// The lines of a stream as they come.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (to, from) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(std::result::Result::ok);
        // Nobody may listen any more; then the thread ends.
        lines.into_iter().all(|line| to.send(line).is_ok())
    });
    from
}

/// Cleans up after this program, however that ends.
struct Keeper {
    shell: Child,
    tell: Option<ChildStdin>,
}

impl Keeper {
    fn start(dir: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut shell = command.spawn().map_err(|error| format!("sh: {error}"))?;
        Ok(Self { tell: shell.stdin.take(), shell })
    }

    fn tell(&mut self, word: &str) -> Result<()> {
        let to = self.tell.as_mut().ok_or("the keeper has no input")?;
        writeln!(to, "{word}").map_err(|error| format!("the keeper is gone: {error}").into())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.tell.take());
        let _ = self.shell.wait();
    }
}

/// The directory and the processes of one demo.
struct Stage {
    programs: PathBuf,
    dir: PathBuf,
    daemon: Option<Child>,
    watch: Option<Child>,
    keeper: Keeper,
}

impl Stage {
    fn set_up(programs: &Path) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("xenbus-demo-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(|error| {
            format!("{}: {error}; set TMPDIR to a directory that you may write", dir.display())
        })?;
        let keeper = Keeper::start(&dir).inspect_err(|_| drop(fs::remove_dir(&dir)))?;
        Ok(Self { programs: programs.to_owned(), dir, daemon: None, watch: None, keeper })
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// One of the programs, told of this store and of nothing else that it would heed.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        for other in ["XENSTORED_RUNDIR", "XENSTORED_ROOTDIR", "NOTIFY_SOCKET"] {
            command.env_remove(other);
        }
        command.env("XENSTORED_PATH", self.socket());
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    fn spawn(&mut self, mut command: Command) -> Result<Child> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        self.keeper.tell(&child.id().to_string())?;
        Ok(child)
    }

    /// Starts the daemon; its number once it accepts connections.
    fn start_daemon(&mut self) -> Result<u32> {
        let uid = fs::metadata("/proc/self")?.uid();
        let step = Step::begin(&format!("start the daemon, without Xen, as user {uid}"));
        let (pid_file, log) = (self.dir.join("pid"), File::create(self.dir.join("log"))?);
        shown(&format!("export XENSTORED_PATH={}", self.socket().display()));
        shown(&format!("xenstored --no-fork --output-pid --pid-file {}", pid_file.display()));
        let mut command = self.program("xenstored");
        command.args(["--no-fork", "--output-pid", "--pid-file"]).arg(&pid_file);
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = self.spawn(command)?;
        let said = child.stdout.take().map(lines_of).ok_or("the daemon has no output")?;
        let pid = child.id();
        self.daemon = Some(child);
        // It prints its number once it accepts connections.
        if said.recv_timeout(PATIENCE).is_err() {
            let log = self.log();
            return Err(format!("the daemon does not serve; it says:\n{log}").into());
        }
        indented(&self.log());
        step.done();
        Ok(pid)
    }

    /// Starts `xenstore watch`; the lines that it prints from now on.
    fn start_watch(&mut self) -> Result<Receiver<String>> {
        let step = Step::begin("watch /demo: a watch fires once when it is set");
        shown("xenstore watch /demo &");
        let mut command = self.program("xenstore");
        command.args(["watch", "/demo"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.spawn(command)?;
        let events = child.stdout.take().map(lines_of).ok_or("the watch has no output")?;
        self.watch = Some(child);
        expect(&events, &["/demo"])?;
        step.done();
        Ok(events)
    }

    /// Runs `xenstore` and returns what it prints.
    fn tool(&mut self, arguments: &[&str]) -> Result<String> {
        shown(&format!("xenstore {}", arguments.join(" ")));
        let mut command = self.program("xenstore");
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(command)?;
        let (to, from) = channel();
        std::thread::spawn(move || to.send(child.wait_with_output()));
        let words = arguments.join(" ");
        let output = from.recv_timeout(PATIENCE).map_err(|_| {
            format!("`xenstore {words}` has no answer within {} s", PATIENCE.as_secs())
        })??;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            let status = output.status;
            return Err(format!("`xenstore {words}` ended with {status}: {why}").into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// SIGTERM, and what is left then: nothing.
    fn end_daemon(mut self, pid: u32) -> Result<()> {
        let step = Step::begin("end the daemon: nothing is left");
        let mut daemon = self.daemon.take().ok_or("the daemon is gone")?;
        shown(&format!("kill -TERM {pid}"));
        terminate(pid)?;
        let (to, from) = channel();
        std::thread::spawn(move || to.send(daemon.wait()));
        let status = from.recv_timeout(PATIENCE).map_err(|_| {
            format!("the daemon did not end within {} s of SIGTERM", PATIENCE.as_secs())
        })??;
        if !status.success() {
            return Err(format!("the daemon ended with {status}; it says:\n{}", self.log()).into());
        }
        // Its connection is closed, so the watch ends, too.
        self.watch.take().map(|mut watch| watch.wait()).transpose()?;
        self.keeper.tell("ended")?;
        indented(self.log().lines().last().unwrap_or_default());
        let mut left: Vec<String> = fs::read_dir(&self.dir)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?;
        left.retain(|name| name != "log");
        if !left.is_empty() {
            return Err(format!("the daemon left behind: {}", left.join(", ")).into());
        }
        println!("    exit status 0; socket, lock and pid file are gone");
        let dir = self.dir.clone();
        // The keeper removes the directory with the log.
        drop(self);
        if dir.exists() {
            return Err(format!("{} could not be removed", dir.display()).into());
        }
        println!("    {} is gone", dir.display());
        step.done();
        println!("`cargo xtask demo --keep` leaves the daemon running, for you to try it.");
        Ok(())
    }

    /// Leaves the daemon to the user.
    fn leave(mut self, pid: u32) -> Result<()> {
        if let Some(mut watch) = self.watch.take() {
            watch.kill()?;
            watch.wait()?;
        }
        self.keeper.tell("keep")?;
        let tool = self.programs.join("xenstore");
        let (tool, dir) = (tool.display(), self.dir.display());
        println!("The daemon goes on, with pid {pid}. To try it:");
        println!("    export XENSTORED_PATH={}", self.socket().display());
        println!("    {tool} ls -fp /");
        println!("    {tool} watch --json / &");
        println!("    {tool} export /demo");
        println!("To end it:");
        println!("    kill {pid} && rm -r {dir}");
        Ok(())
    }
}

/// SIGTERM, by the shell's own kill: the standard library has no other signal than SIGKILL.
fn terminate(pid: u32) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -TERM \"$1\"", "kill"]).arg(pid.to_string());
    if command.status()?.success() { Ok(()) } else { Err(format!("no process {pid}").into()) }
}
