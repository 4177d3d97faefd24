//! `xb demo`: the main job, shown step by step.

mod guests;

use super::options::GlobalOptions;
use super::{host, out, tree};
use crate::config::{DiskSpec, Syntax};
use crate::devices::disk;
use crate::doctor::cause::{BackendFault, FaultCause};
use crate::host::daemons::{self, BLOCK, DAEMONS, HostDaemon};
use crate::host::folder::Folder;
use crate::host::process::DaemonProcess;
use crate::host::{Host, HostChoice};
use crate::host::{bring, programs, service};
use crate::lifecycle::create::{self, StartMode};
use crate::wait::Limit;
use crate::{Error, devices, doctor, domain, text, wait};
use clap::Args;
use guests::FileSystemAccess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use xen_console::client::{ClientError, ConsoleClient};
use xen_console::service::wire::{ClientAccess, DaemonFrame, OutputStart};

/// Bytes of the images.
const IMAGE: u64 = 64 << 20;
/// The time between two looks at a backend that is awaited.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Leave the host up, and say what to try next.
    #[arg(long)]
    keep: bool,
    /// Fail where all of it takes longer than this.
    #[arg(long, value_name = "SECONDS", value_parser = super::options::seconds)]
    within: Option<Duration>,
}

/// The settings and the state of a demo.
struct DemoRun {
    folder: Folder,
    began: Instant,
    /// The longest time that any step may take.
    within: Duration,
}

pub(crate) fn run(options: &GlobalOptions, demo: &Demo) -> Result<u8, Error> {
    let folder = match (&options.host, options.choice()) {
        (Some(_), HostChoice::Hosted(folder)) => folder,
        // In a folder beside any other host of this user, unless it is to stay.
        _ if demo.keep => Folder::default(),
        _ => Folder::temporary()?,
    };
    programs::make()?;
    let show = DemoRun { folder, began: Instant::now(), within: options.within() };
    // A host that is refused here is not taken down either.
    show.folder.make()?;
    if DAEMONS.iter().any(|daemon| daemon.running(&show.folder).is_some()) {
        let dir = show.folder.path().display();
        return Err(Error::Refused(format!(
            "a host is up in {dir}; xb demo makes its own: name another folder with --host"
        )));
    }
    let shown = show.all();
    if shown.is_ok() && demo.keep {
        let xb = format!(
            "{} --host {}",
            this_program(),
            text::shell_word(&show.folder.path().to_string_lossy())
        );
        return out::print(&format!(
            "\nThe host stays up. Try next:\n  {xb} tree\n  {xb} log two\n  {xb} host down\n"
        ));
    }
    let down = wait::undo(|| {
        show.step("all is taken down", || {
            host::down(&show.folder, devices::CLOSES_WITHIN).map(|()| String::new())
        })
    });
    match (shown, down) {
        (Err(error), Err(left)) => {
            Err(Error::Refused(format!("{error}; and what is left cannot be taken down: {left}")))
        }
        (shown, down) => shown.and(down).and_then(|()| show.in_time(demo)),
    }
}

impl DemoRun {
    fn in_time(&self, demo: &Demo) -> Result<u8, Error> {
        match demo.within.filter(|within| self.began.elapsed() > *within) {
            None => Ok(0),
            Some(after) => Err(Error::Refused(format!(
                "all is as it should be, but has taken {}, and {} were allowed",
                text::took(self.began.elapsed()),
                text::took(after)
            ))),
        }
    }

    fn limit(&self) -> Limit {
        Limit::new(self.within)
    }

    /// Does one step, and prints it with its time, and the text that it returns behind it.
    fn step(&self, name: &str, step: impl FnOnce() -> Result<String, Error>) -> Result<(), Error> {
        // A user at a terminal sees the step while it is done, and then its time.
        let looks = std::io::stdout().is_terminal();
        if looks {
            out::print(&format!("     ...  {name}"))?;
        }
        let begin = Instant::now();
        let done = step();
        let time = text::took(begin.elapsed());
        let line = match &done {
            Ok(more) if more.is_empty() => format!("{time:>8}  {name}\n"),
            Ok(more) => format!("{time:>8}  {name}: {}\n", out::clean(more)),
            Err(_) => format!("{time:>8}  FAILED: {name}\n"),
        };
        out::print(&format!("{}{line}", if looks { "\r" } else { "" }))?;
        done.map(drop)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.demo().join(name)
    }

    fn all(&self) -> Result<(), Error> {
        let (data, own, scratch) =
            (self.image("data.img"), self.image("own.img"), self.image("scratch.img"));
        let daemons = daemons::words(HostDaemon::name);
        self.step(&format!("a host is up: {daemons}"), || {
            bring::up(&self.folder, &[], self.limit())?;
            Ok(self.folder.path().display().to_string())
        })?;
        let mut host = Host::open(HostChoice::Hosted(self.folder.clone()))?;
        host.store.set_timeout(Some(self.within));
        self.step("an ext4 image is made, and two raw ones", || {
            let folder = self.folder.demo();
            std::fs::create_dir_all(&folder).map_err(Error::io(folder.display()))?;
            make_ext4(&data)?;
            make_raw(&own)?;
            make_raw(&scratch)?;
            Ok(format!("{}, {}", data.display(), text::size(IMAGE)))
        })?;
        let (access, why) = FileSystemAccess::of_this_user();
        out::print(&format!("          {why}\n"))?;
        self.step("guest one is created, with the ext4 image as its disk xvda", || {
            self.create(&mut host, "one", &guests::first(access, &data))
        })?;
        self.written(&mut host, access)?;
        self.step("guest two is created, with a disk of its own", || {
            self.create(&mut host, "two", &guests::second(access, &own))
        })?;
        self.step("the disk is detached from one", || self.detach(&mut host, "one", "xvda"))?;
        self.step("and attached to two while it runs, as xvdb", || {
            self.attach(&mut host, "two", "xvdb", &data)
        })?;
        self.compared(&mut host, access)?;
        if access != FileSystemAccess::Nothing {
            let name = "a console is attached to two for a moment";
            self.step(name, || self.console_line(&host, "two"))?;
        }
        self.step("a third disk is plugged into two", || {
            self.attach(&mut host, "two", "xvdc", &scratch)
        })?;
        self.stopped(&mut host, access)?;
        self.killed(access)?;
        let drawn = tree::draw(&mut host)?;
        out::print(&format!("\n{drawn}\n{} in all\n", text::took(self.began.elapsed())))?;
        Ok(())
    }

    /// Writes a tree onto the disk of guest one.
    fn written(&self, host: &mut Host, access: FileSystemAccess) -> Result<(), Error> {
        let how = match access {
            FileSystemAccess::Kernel => {
                "the host's kernel mounts one's disk for it, it writes a directory tree and syncs, it is unmounted"
            }
            FileSystemAccess::Debugfs | FileSystemAccess::Nbd => {
                "it writes a directory tree onto its disk, and e2fsck finds nothing wrong"
            }
            FileSystemAccess::Nothing => return Ok(()),
        };
        self.step(how, || {
            if access == FileSystemAccess::Kernel {
                self.mount(host, "one", "xvda")?;
            }
            let sum = self.await_word("one", "written")?;
            if access == FileSystemAccess::Kernel {
                let one = domain::find(host, "one")?;
                disk::mount::unmount(host, &one)?;
            }
            Ok(format!("40 files, sha256 {}", sum.get(..16).unwrap_or(&sum)))
        })
    }

    /// Compares the tree, which guest two reads, with the one written.
    fn compared(&self, host: &mut Host, access: FileSystemAccess) -> Result<(), Error> {
        if access == FileSystemAccess::Nothing {
            return Ok(());
        }
        self.step("two reads the tree and compares", || {
            if access == FileSystemAccess::Kernel {
                self.mount(host, "two", "xvdb")?;
            }
            let (read, written) =
                (self.await_word("two", "read")?, self.await_word("one", "written")?);
            if read == written {
                return Ok("the checksums are the same".into());
            }
            Err(Error::Refused(format!("two has read {read}, one has written {written}")))
        })
    }

    /// Attaches a console to a guest until it has shown a line of the guest's program. Returns the line.
    fn console_line(&self, host: &Host, name: &str) -> Result<String, Error> {
        let failed = |error: ClientError| Error::Refused(format!("the console of {name}: {error}"));
        let socket = service::console_socket(host);
        let (access, start) = (ClientAccess::Watch, OutputStart::Oldest);
        let client = ConsoleClient::open(&socket, name.as_bytes(), access, start);
        let mut client = client.map_err(failed)?;
        let (limit, mut shown) = (self.limit(), Vec::new());
        loop {
            client.receive().map_err(failed)?;
            while let Some(frame) = client.next_frame().map_err(failed)? {
                if let DaemonFrame::Output(bytes) = frame {
                    shown.extend_from_slice(bytes);
                }
            }
            let text = String::from_utf8_lossy(&shown);
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find(|line| line.starts_with("demo: ")) {
                return Ok(line.to_owned());
            }
            let slice = limit.slice(&|| format!("{name} prints on its console"))?;
            let slice = Timespec::try_from(slice).ok();
            let _ = poll(&mut [PollFd::new(&client, PollFlags::IN)], slice.as_ref());
        }
    }

    fn mount(&self, host: &mut Host, name: &str, vdev: &str) -> Result<(), Error> {
        let guest = domain::find(host, name)?;
        let disk = disk::find(&mut host.store, guest.info.domid, vdev)?;
        disk::mount::mount(host, &guest, &disk, "ext4", self.limit())
    }

    /// Returns the backend's process.
    fn backend(&self) -> Result<DaemonProcess, Error> {
        let gone = || Error::Refused(format!("{} is gone", BLOCK.name()));
        BLOCK.running(&self.folder).ok_or_else(gone)
    }

    /// Waits until the backend runs.
    fn await_backend(&self) -> Result<(), Error> {
        let limit = self.limit();
        while BLOCK.running(&self.folder).is_none() {
            let slice = limit.slice(&|| format!("{} is started again", BLOCK.name()))?;
            std::thread::sleep(slice.min(LOOK_AGAIN));
        }
        Ok(())
    }

    /// Stops the backend while two writes, where two has something to write, and asks the doctor.
    fn stopped(&self, host: &mut Host, access: FileSystemAccess) -> Result<(), Error> {
        let name = match access {
            FileSystemAccess::Nothing => "the backend is stopped (SIGSTOP), and xb doctor finds it",
            _ => "while two writes to it, the backend is stopped (SIGSTOP), and xb doctor finds it",
        };
        self.step(name, || {
            if access != FileSystemAccess::Nothing {
                self.await_word("two", "wrote 8")?;
            }
            self.backend()?.suspend(self.limit())?;
            let two = [domain::find(host, "two")?];
            let diagnosis = doctor::examine(host, &two, Some("xvdc"))?;
            match diagnosis.findings.first() {
                Some(found) if is_stopped(&found.cause) => Ok(found.advice()),
                Some(found) => Err(Error::Refused(format!("it says: {}", found.advice()))),
                None => Err(Error::Refused("it finds nothing wrong".into())),
            }
        })
    }

    /// Kills the backend, which is stopped, and waits until its supervisor has started another.
    fn killed(&self, access: FileSystemAccess) -> Result<(), Error> {
        self.step("the backend is killed (SIGKILL) and started again", || {
            self.backend()?.kill();
            // Nobody writes any more, so this is the number of pieces that two has written.
            let written = if access == FileSystemAccess::Nothing { 0 } else { self.pieces()? };
            self.await_backend()?;
            match written {
                0 => Ok(String::new()),
                guests::PIECES => Err(Error::Refused("two had written all before it was".into())),
                written => Ok(format!("after {written} of {} writes", guests::PIECES)),
            }
        })?;
        if access == FileSystemAccess::Nothing {
            return Ok(());
        }
        self.step("two has noticed nothing but a pause", || {
            self.await_word("two", "compared")?;
            Ok("what it wrote is what it reads".into())
        })
    }

    /// Returns the number of pieces that two has written.
    fn pieces(&self) -> Result<u32, Error> {
        let guest = self.folder.guest("two");
        let log = guest.printed().map_err(Error::io(guest.log().display()))?;
        let log = String::from_utf8_lossy(&log);
        let counts = log.lines().filter_map(|line| line.strip_prefix("demo: wrote ")?.parse().ok());
        Ok(counts.max().unwrap_or(0))
    }

    fn create(&self, host: &mut Host, name: &str, config: &str) -> Result<String, Error> {
        let path = self.folder.demo().join(format!("{name}.cfg"));
        std::fs::write(&path, config).map_err(Error::io(path.display()))?;
        let (description, settings, _) = super::create::read(&path, &[])?;
        debug_assert_eq!(Syntax::of(&path), Syntax::Xl);
        let new = create::create(host, &description, &settings, StartMode::Run, self.limit())?;
        Ok(format!("domain {}, from {}", new.domid, path.display()))
    }

    fn attach(
        &self,
        host: &mut Host,
        name: &str,
        vdev: &str,
        image: &Path,
    ) -> Result<String, Error> {
        let spec = format!("vdev={vdev},access=w,target={}", image.display());
        let domid = domain::find(host, name)?.info.domid;
        let spec = DiskSpec::parse(&spec).map_err(|wrong| Error::Refused(wrong.to_string()))?;
        let disk = disk::prepare(&spec, disk::HostKind::Hosted, &super::options::current_folder())?;
        devices::attach(host, &disk.device(domid)?, self.limit()).map(|()| String::new())
    }

    fn detach(&self, host: &mut Host, name: &str, vdev: &str) -> Result<String, Error> {
        let domid = domain::find(host, name)?.info.domid;
        let disk = disk::find(&mut host.store, domid, vdev)?;
        devices::detach(host, &disk.attached.device, devices::Force::Ask, self.limit())
            .map(|()| String::new())
    }

    /// Waits for the text that a guest prints behind `demo: WORD`; an error where it has given up.
    fn await_word(&self, name: &str, word: &str) -> Result<String, Error> {
        let start = format!("demo: {word}");
        let limit = self.limit();
        self.folder.guest(name).await_line(limit, &|line| {
            if let Some(failed) = line.strip_prefix("demo: failed") {
                return Some(Err(Error::Refused(format!(
                    "guest {name}:{failed}; xb log {name} says more"
                ))));
            }
            Some(Ok(line.strip_prefix(&start)?.trim().to_owned()))
        })?
    }
}

/// True if the cause is a backend that is stopped.
fn is_stopped(cause: &FaultCause) -> bool {
    matches!(cause, FaultCause::Backend(BackendFault::Stopped { .. }))
}

/// Returns the words that a shell runs this program by: its name where the search path leads to it,
/// else its path.
fn this_program() -> String {
    let own = std::env::current_exe().unwrap_or_else(|_| "xb".into());
    let found = std::env::var_os("PATH").and_then(|path| {
        let mut found = std::env::split_paths(&path).map(|dir| dir.join("xb"));
        found.find(|file| file.is_file())?.canonicalize().ok()
    });
    if found.as_ref() == Some(&own) {
        "xb".into()
    } else {
        text::shell_word(&own.to_string_lossy())
    }
}

/// Makes a file for a raw disk.
fn make_raw(path: &Path) -> Result<(), Error> {
    let made = std::fs::File::create(path).and_then(|file| file.set_len(IMAGE));
    made.map_err(Error::io(path.display()))
}

/// Makes an image with an empty file system.
fn make_ext4(path: &Path) -> Result<(), Error> {
    make_raw(path)?;
    let search = "/usr/sbin:/sbin:/usr/bin:/bin";
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-O", "^has_journal"])
        .arg(path)
        .env("PATH", search)
        .stdin(Stdio::null());
    let output = command.output().map_err(|error| {
        let cause = text::cause(&error);
        Error::Refused(format!("mkfs.ext4: {cause}; it is in the package e2fsprogs, which Debian and Ubuntu install always"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Refused(format!("mkfs.ext4 {}: {}", path.display(), said.trim())))
}
