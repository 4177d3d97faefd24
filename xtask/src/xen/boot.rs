//! One boot: QEMU without acceleration, Xen, dom0, and the steps that run there.

use super::disk::{self, BootDisks};
use super::lab::{Lab, StoreDaemon, say};
use super::outcome::{BootExtent, Outcome};
use super::packages::program;
use super::verdict::{self, TryVerdict};
use crate::Result;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A way to start a host, and the steps that run on it.
pub(crate) struct Boot {
    /// Its name, and that of its folder of steps in `tests/xen/dom0`.
    pub(crate) name: &'static str,
    /// The daemons that it can start.
    stores: &'static [StoreDaemon],
    /// The program that dom0's kernel starts.
    init: &'static str,
    disks: BootDisks,
    /// The recipe of the files that lie over those of dom0's image, if there are some.
    pub(super) overlay: Option<&'static str>,
    /// The command that runs it.
    pub(crate) purpose: BootPurpose,
    /// The longest time of the boot; a longer one is ended, and has failed.
    bound: Duration,
}

/// The use of a boot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BootPurpose {
    /// It checks: `cargo xtask xen` runs it.
    Check,
    /// It measures, alone on the machine: `cargo xtask bench xen` runs it.
    Measure,
}

/// The boots, the longest first, so that two at a time end together.
///
/// All but `systemd` start the daemon by Debian's `/etc/init.d/xen`, and that one by upstream's unit
/// with `launch-xenstore`. Debian builds its daemon without systemd, so the daemon does not report
/// when it is ready, which that unit requires.
pub(crate) const ALL: &[Boot] = &[
    Boot {
        name: "block",
        stores: &[StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::Images,
        overlay: None,
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(1500),
    },
    Boot {
        name: "conformance",
        stores: &[StoreDaemon::C, StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::None,
        overlay: None,
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(1500),
    },
    Boot {
        name: "many",
        stores: &[StoreDaemon::C, StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::None,
        overlay: None,
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(1500),
    },
    Boot {
        name: "sysv",
        stores: &[StoreDaemon::C, StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::None,
        overlay: None,
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(1500),
    },
    Boot {
        name: "console",
        stores: &[StoreDaemon::C, StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::None,
        overlay: Some("console"),
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(1500),
    },
    Boot {
        name: "driver",
        stores: &[StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::Root,
        overlay: Some("driver"),
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(1200),
    },
    Boot {
        name: "systemd",
        stores: &[StoreDaemon::Ours],
        init: "/lib/systemd/systemd",
        disks: BootDisks::None,
        overlay: None,
        purpose: BootPurpose::Check,
        bound: Duration::from_secs(600),
    },
    Boot {
        name: "speed",
        stores: &[StoreDaemon::Ours],
        init: "/init",
        disks: BootDisks::Images,
        overlay: None,
        purpose: BootPurpose::Measure,
        bound: Duration::from_secs(1200),
    },
];

/// The emulated machine. On this processor of this QEMU both PV and PVH guests run.
pub(super) const MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=multi,tb-size=512",
    "-cpu",
    "qemu64,+svm,+npt",
    "-smp",
    "2",
    "-m",
    "4G",
];
/// Xen's command line.
pub(super) const XEN_ARGUMENTS: &str = "console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M dom0_max_vcpus=1 loglvl=info \
     guest_loglvl=info noreboot=0 spec-ctrl=no xpti=0 cpuidle=0";
/// The beginning of dom0's command line.
pub(super) const LINUX_ARGUMENTS: &str = "console=hvc0 mitigations=off quiet";

/// The bounds of a boot whose steps have their long forms, in bounds of the short ones.
const LONG_BOUNDS: u32 = 3;

/// The first number of a step that does not belong to the set-up. Set-up steps run with any
/// `--only`.
const SETUP_STEPS_END: u32 = 20;

/// The selection of a boot's steps.
#[derive(Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// Selects only the steps with this in their name, and the set-up steps.
    pub(crate) only: Option<&'a str>,
    /// The number of times that each selected step runs.
    pub(crate) times: u32,
    /// The extent of steps that have a long form.
    pub(crate) form: StepForm,
}

/// The form of the steps that have a short and a long one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StepForm {
    /// As `.ci/run` runs them.
    Short,
    /// With more repetitions.
    Long,
}

impl Boot {
    /// True if it can start this daemon.
    pub(crate) fn supports(&self, store: StoreDaemon) -> bool {
        self.stores.contains(&store)
    }

    /// Returns the names of its steps, in order.
    pub(crate) fn steps(&self, lab: &Lab) -> Result<Vec<String>> {
        let folder = lab.recipes().join("dom0").join(self.name);
        let names = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Returns the selected steps; none where only set-up steps would be left.
    pub(crate) fn selected(&self, lab: &Lab, selection: Selection<'_>) -> Result<Vec<String>> {
        let mut steps = self.steps(lab)?;
        if let Some(only) = selection.only {
            steps.retain(|step| step.contains(only) || is_setup_step(step));
            if steps.iter().all(|step| is_setup_step(step)) {
                steps.clear();
            }
        }
        Ok(steps)
    }

    /// Returns the longest time of the boot with these steps.
    fn bound(&self, selection: Selection<'_>) -> Duration {
        match selection.form {
            StepForm::Short => self.bound,
            StepForm::Long => self.bound * LONG_BOUNDS,
        }
    }

    /// Returns the folder of a boot's results.
    pub(crate) fn results(&self, lab: &Lab, store: StoreDaemon) -> PathBuf {
        lab.dir.join("results").join(format!("{}-{}", store.name(), self.name))
    }

    /// Boots, prints progress, and waits for the end, within the bound.
    pub(crate) fn run(
        &self,
        lab: &Lab,
        store: StoreDaemon,
        selection: Selection<'_>,
    ) -> Result<Outcome> {
        let expected = self.selected(lab, selection)?;
        let extent = if selection.only.is_some() { BootExtent::Part } else { BootExtent::Whole };
        let results = self.results(lab, store);
        if results.exists() {
            fs::remove_dir_all(&results)?;
        }
        fs::create_dir_all(&results)?;
        let title = format!("{}-{}", store.name(), self.name);
        say(&format!("{title}: Xen, dom0 by {}", self.init));
        disk::make(lab, self.name, self.disks)?;
        let begin = Instant::now();
        let mut command = self.qemu(lab, store, selection, &expected, &results)?;
        // Errors go to a file: they are read only after the console's end, and QEMU must not wait
        // for that.
        let errors = results.join("qemu-errors");
        command.stderr(fs::File::create(&errors)?);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child =
            child.map_err(|error| format!("timeout, of coreutils, is needed: {error}"))?;
        let output = child.stdout.take().ok_or("QEMU has no output")?;
        keep_console(output, &results.join("console"), begin, &title)?;
        let status = child.wait()?;
        let why = fs::read_to_string(&errors).unwrap_or_default();
        let fault = match status.code() {
            Some(0) => None,
            Some(124 | 137) => {
                let bound = self.bound(selection).as_secs();
                Some(format!("not done within {bound} s, and was ended"))
            }
            _ => Some(format!("QEMU ended with {status}: {}", why.trim())),
        };
        let took = Some(begin.elapsed());
        let mut outcome = Outcome {
            store,
            boot: self.name,
            expected,
            extent,
            results,
            took,
            fault,
            disk_faults: Vec::new(),
            first: None,
        };
        if self.disks != BootDisks::None {
            let guests = match verdict::judge_try(&outcome) {
                TryVerdict::LostGuest(_) => disk::GuestExit::Crashed,
                TryVerdict::Held | TryVerdict::Failed => disk::GuestExit::Ended,
            };
            outcome.disk_faults = disk::check(lab, self.name, self.disks, guests);
        }
        Ok(outcome)
    }

    fn qemu(
        &self,
        lab: &Lab,
        store: StoreDaemon,
        selection: Selection<'_>,
        steps: &[String],
        results: &Path,
    ) -> Result<Command> {
        let (root, images) = (lab.root(), lab.dir.join("images"));
        if lab.dir.to_string_lossy().contains([',', ' ']) {
            return Err(format!("QEMU takes no comma or space in {}", lab.dir.display()).into());
        }
        let file = |name: &str| images.join(name).display().to_string();
        let emulator = program(&root, "usr/bin/qemu-system-x86_64");
        let mut command = Command::new("timeout");
        // In the foreground, so that Ctrl-C reaches QEMU, too.
        let bound = self.bound(selection).as_secs().to_string();
        command.args(["--foreground", "--kill-after=5", &bound]);
        command.arg(emulator.get_program()).args(emulator.get_args());
        command.env_remove("LD_LIBRARY_PATH");
        command.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(root.join(folder));
        }
        command.args(MACHINE).args(["-display", "none", "-vga", "none", "-nic", "none"]);
        command.args(["-no-reboot", "-serial", "stdio", "-monitor", "none"]);
        for file in disk::files(lab, self.name, self.disks) {
            let drive = format!("file={},format=raw,if=virtio", file.display());
            command.args(["-drive", &drive]);
        }
        let share =
            format!("local,path={},mount_tag=results,security_model=none", results.display());
        command.args(["-virtfs", &share, "-kernel", &file("xen"), "-append"]);
        command.arg(XEN_ARGUMENTS);
        let linux = format!(
            "{} {LINUX_ARGUMENTS} rdinit={} lab.store={} lab.boot={} lab.times={} lab.form={} lab.steps={}",
            file("vmlinux"),
            self.init,
            store.name(),
            self.name,
            selection.times,
            match selection.form {
                StepForm::Short => "short",
                StepForm::Long => "long",
            },
            steps.join(":"),
        );
        let image = file(self.overlay.unwrap_or("dom0"));
        command.args(["-initrd", &format!("{linux},{image}.cpio")]);
        Ok(command)
    }
}

/// Writes the console to a file, with times; prints the outcome of each step.
fn keep_console(output: impl Read, file: &Path, begin: Instant, title: &str) -> Result<()> {
    let mut console = fs::File::create(file)?;
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        let seconds = begin.elapsed().as_secs_f64();
        writeln!(console, "{seconds:8.2} {text}")?;
        if let Some(at) = text.find("STEP ") {
            say(&format!("{seconds:6.1} s {title}: {}", &text[at..]));
        }
        line.clear();
    }
    Ok(())
}

/// True if it is a set-up step, which `--only` keeps.
fn is_setup_step(step: &str) -> bool {
    let number = step.split('-').next().unwrap_or_default();
    number.parse::<u32>().is_ok_and(|number| number < SETUP_STEPS_END)
}
