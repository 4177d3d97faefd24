//! `xb demo`: the main job, shown step by step.

mod guests;

use super::{All, host, out, tree};
use crate::config::{DiskSpec, Syntax};
use crate::domain::create::{self, Then};
use crate::host::daemon::{self, Came, Daemon};
use crate::host::folder::Folder;
use crate::host::{Choice, Host};
use crate::wait::Limit;
use crate::{Error, devices, domain, text, wait};
use clap::Args;
use guests::Way;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long any step may take.
const WITHIN: Duration = Duration::from_secs(30);
/// Bytes of the images.
const IMAGE: u64 = 64 << 20;

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Leave the host up, and say what to try next.
    #[arg(long)]
    keep: bool,
}

/// What is shown, and where.
struct Show {
    folder: Folder,
    began: Instant,
}

pub(crate) fn run(all: &All, demo: &Demo) -> Result<u8, Error> {
    let folder = match (&all.host, all.choice()) {
        (Some(_), Choice::Hosted(folder)) => folder,
        // Beside whatever host this user has, unless it is to stay.
        _ if demo.keep => Folder::default(),
        _ => Folder::temporary()?,
    };
    let show = Show { folder, began: Instant::now() };
    // What is refused here is not taken down either.
    show.folder.make()?;
    if Daemon::ALL.into_iter().any(|daemon| daemon.running(&show.folder).is_some()) {
        let dir = show.folder.path().display();
        return Err(Error::Refused(format!(
            "a host is up in {dir}; xb demo makes its own: name another folder with --host"
        )));
    }
    let shown = show.all();
    if shown.is_ok() && demo.keep {
        let dir = show.folder.path().display();
        return out::print(&format!(
            "\nThe host stays up. Try next:\n  xb --host {dir} tree\n  xb --host {dir} log two\n  xb --host {dir} host down\n"
        ));
    }
    let down = wait::undo(|| {
        show.step("all is taken down", || host::down(&show.folder).map(|()| String::new()))
    });
    match (shown, down) {
        (Err(error), Err(left)) => {
            Err(Error::Refused(format!("{error}; and what is left cannot be taken down: {left}")))
        }
        (shown, down) => shown.and(down).map(|()| 0),
    }
}

impl Show {
    /// Does one step, and prints it with its time; what it returns is put behind.
    fn step(&self, name: &str, step: impl FnOnce() -> Result<String, Error>) -> Result<(), Error> {
        let begin = Instant::now();
        let done = step();
        let time = text::took(begin.elapsed());
        let line = match &done {
            Ok(more) if more.is_empty() => format!("{time:>8}  {name}\n"),
            Ok(more) => format!("{time:>8}  {name}: {}\n", out::clean(more)),
            Err(_) => format!("{time:>8}  FAILED: {name}\n"),
        };
        out::print(&line)?;
        done.map(drop)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join("demo").join(name)
    }

    fn all(&self) -> Result<(), Error> {
        let (data, scratch) = (self.image("data.img"), self.image("scratch.img"));
        self.step("a host is up: broker, xenstored, keeper, xen-blockd", || {
            let came = daemon::up(&self.folder)?;
            debug_assert_eq!(came, Came::Up);
            Ok(self.folder.path().display().to_string())
        })?;
        let mut host = Host::open(Choice::Hosted(self.folder.clone()))?;
        host.store.set_timeout(Some(WITHIN));
        self.step("an ext4 image is made", || {
            std::fs::create_dir_all(self.folder.path().join("demo")).map_err(Error::io("demo"))?;
            make_ext4(&data)?;
            make_raw(&scratch)?;
            Ok(format!("{}, {}", data.display(), text::size(IMAGE)))
        })?;
        let (way, why) = Way::of_this_user();
        out::print(&format!("          {why}\n"))?;
        self.step("guest one is created, with the image as its disk xvda", || {
            self.create(&mut host, "one", &guests::first(way, &data))
        })?;
        self.written(&mut host, way)?;
        self.step("guest two is created, without a disk", || {
            self.create(&mut host, "two", &guests::second(way))
        })?;
        self.step("the disk is detached from one", || self.detach(&mut host, "one", "xvda"))?;
        self.step("and attached to two while it runs", || {
            self.attach(&mut host, "two", "xvda", &data)
        })?;
        self.compared(&mut host, way)?;
        self.killed(&mut host, way, &scratch)?;
        let drawn = tree::draw(&mut host)?;
        out::print(&format!("\n{drawn}\n{} in all\n", text::took(self.began.elapsed())))?;
        Ok(())
    }

    /// One writes a tree onto its disk.
    fn written(&self, host: &mut Host, way: Way) -> Result<(), Error> {
        let how = match way {
            Way::Kernel => {
                "its disk is mounted, it writes a directory tree, syncs, and it is unmounted"
            }
            Way::Debugfs => {
                "it writes a directory tree onto its disk, and e2fsck finds nothing wrong"
            }
            Way::NoFile => return Ok(()),
        };
        self.step(how, || {
            if way == Way::Kernel {
                let one = domain::find(host, "one")?;
                let disk = devices::disk(&mut host.store, one.info.domid, "xvda")?;
                devices::mount::mount(host, &one, &disk, "ext4", Limit::new(WITHIN))?;
            }
            let sum = self.says("one", "written")?;
            if way == Way::Kernel {
                let one = domain::find(host, "one")?;
                devices::mount::unmount(host, &one)?;
            }
            Ok(format!("40 files, sha256 {}", sum.get(..16).unwrap_or(&sum)))
        })
    }

    /// Two reads what one wrote.
    fn compared(&self, host: &mut Host, way: Way) -> Result<(), Error> {
        if way == Way::NoFile {
            return Ok(());
        }
        self.step("two reads the tree and compares", || {
            if way == Way::Kernel {
                let two = domain::find(host, "two")?;
                let disk = devices::disk(&mut host.store, two.info.domid, "xvda")?;
                devices::mount::mount(host, &two, &disk, "ext4", Limit::new(WITHIN))?;
            }
            let (read, written) = (self.says("two", "read")?, self.says("one", "written")?);
            if read == written {
                return Ok("the checksums are the same".into());
            }
            Err(Error::Refused(format!("two has read {read}, one has written {written}")))
        })
    }

    /// A disk is plugged in, and its backend dies.
    fn killed(&self, host: &mut Host, way: Way, scratch: &Path) -> Result<(), Error> {
        self.step("a second disk is plugged into two", || {
            self.attach(host, "two", "xvdb", scratch)
        })?;
        let name = match way {
            Way::NoFile => "the backend is killed (SIGKILL) and started again",
            _ => "while two writes to it, the backend is killed (SIGKILL) and started again",
        };
        self.step(name, || {
            self.says("two", "writing")?;
            let before = Daemon::Block.running(&self.folder);
            before.ok_or_else(|| Error::Refused("xen-blockd is gone".into()))?.kill();
            Daemon::Block.start(&self.folder)?;
            Ok(String::new())
        })?;
        if way == Way::NoFile {
            return Ok(());
        }
        self.step("two has noticed nothing but a pause", || {
            self.says("two", "compared")?;
            Ok("what it wrote is what it reads".into())
        })
    }

    fn create(&self, host: &mut Host, name: &str, config: &str) -> Result<String, Error> {
        let path = self.folder.path().join("demo").join(format!("{name}.cfg"));
        std::fs::write(&path, config).map_err(Error::io(path.display()))?;
        let (description, settings, _) = super::create::read(&path, &[])?;
        debug_assert_eq!(Syntax::of(&path), Syntax::Xl);
        let new = create::create(host, &description, &settings, Then::Run, Limit::new(WITHIN))?;
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
        let disk = devices::prepare(&spec, devices::Place::Hosted)?;
        devices::attach(host, domid, &disk, Limit::new(WITHIN)).map(|()| String::new())
    }

    fn detach(&self, host: &mut Host, name: &str, vdev: &str) -> Result<String, Error> {
        let domid = domain::find(host, name)?.info.domid;
        let disk = devices::disk(&mut host.store, domid, vdev)?;
        devices::detach(host, &disk.device, devices::Force::Ask, Limit::new(WITHIN))
            .map(|()| String::new())
    }

    /// What a guest has printed behind `demo: WORD`, once it has; an error where it has given up.
    fn says(&self, name: &str, word: &str) -> Result<String, Error> {
        let start = format!("demo: {word}");
        let limit = Limit::new(WITHIN);
        crate::keeper::await_line(&self.folder, name, limit, &|line| {
            if let Some(failed) = line.strip_prefix("demo: failed") {
                return Some(Err(Error::Refused(format!(
                    "guest {name}:{failed}; xb log {name} says more"
                ))));
            }
            Some(Ok(line.strip_prefix(&start)?.trim().to_owned()))
        })?
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
