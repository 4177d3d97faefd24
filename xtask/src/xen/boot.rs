//! One boot: QEMU without acceleration, Xen, dom0, and the steps that run there.

use super::packages::program;
use super::{Lab, Store, disk, say};
use crate::Result;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How dom0 is started, and with it the daemon.
pub(crate) struct Boot {
    /// Its name, and that of its folder of steps in `tests/xen`.
    pub(crate) name: &'static str,
    /// The daemons that it can start.
    stores: &'static [Store],
    /// What the kernel starts.
    init: &'static str,
    /// Whether dom0 has disks.
    disks: Disks,
    /// It is ended then, and has failed.
    bound: Duration,
}

/// The disks of dom0.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disks {
    /// Only what is in its memory.
    None,
    /// Those of [`disk`].
    Images,
}

/// Debian's `/etc/init.d/xen`, and upstream's systemd unit with `launch-xenstore`. Debian builds its daemon
/// without systemd: it does not tell when it is ready, as that unit asks. The boot `block` is as the first one, for block devices.
pub(crate) const ALL: &[Boot] = &[
    Boot {
        name: "sysv",
        stores: &[Store::C, Store::Ours],
        init: "/init",
        disks: Disks::None,
        bound: Duration::from_secs(1800),
    },
    Boot {
        name: "systemd",
        stores: &[Store::Ours],
        init: "/lib/systemd/systemd",
        disks: Disks::None,
        bound: Duration::from_secs(300),
    },
    Boot {
        name: "block",
        stores: &[Store::Ours],
        init: "/init",
        disks: Disks::Images,
        bound: Duration::from_secs(1500),
    },
];

/// Steps below this number set the stage, and run with any `--only`.
const SETTING: u32 = 20;

/// How much of a boot was wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// All its steps.
    Whole,
    /// Those that `--only` names.
    Part,
}

/// What a boot has left.
pub(crate) struct Outcome {
    /// Whose daemon it was.
    pub(crate) store: Store,
    /// The boot's name.
    pub(crate) boot: &'static str,
    /// The steps that should have run.
    pub(crate) expected: Vec<String>,
    /// Whether these are all that the boot has.
    pub(crate) extent: Extent,
    /// What dom0 wrote; the console is in there, too.
    pub(crate) results: PathBuf,
    /// How long it took.
    pub(crate) took: Duration,
    /// How QEMU ended, where it did not end well.
    pub(crate) fault: Option<String>,
    /// What is wrong with the disks that guests have used.
    pub(crate) disk_faults: Vec<String>,
}

impl Boot {
    /// Whether it can start this daemon.
    pub(crate) fn can(&self, store: Store) -> bool {
        self.stores.contains(&store)
    }

    /// The names of its steps, in order.
    pub(crate) fn steps(&self, lab: &Lab) -> Result<Vec<String>> {
        let folder = lab.recipes().join("dom0").join(self.name);
        let names = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Boots, shows progress, and waits for the end, within the bound.
    pub(crate) fn run(&self, lab: &Lab, store: Store, only: Option<&str>) -> Result<Outcome> {
        let mut expected = self.steps(lab)?;
        if let Some(only) = only {
            expected.retain(|step| step.contains(only) || is_setting(step));
        }
        let extent = if only.is_some() { Extent::Part } else { Extent::Whole };
        let results = lab.dir.join("results").join(format!("{}-{}", store.name(), self.name));
        if results.exists() {
            fs::remove_dir_all(&results)?;
        }
        fs::create_dir_all(&results)?;
        say(&format!("{}: Xen with the daemon {}, dom0 by {}", self.name, store.name(), self.init));
        if self.disks == Disks::Images {
            disk::make(lab)?;
        }
        let mut console = fs::File::create(results.join("console"))?;
        let begin = Instant::now();
        let mut command = self.qemu(lab, store, &expected, &results)?;
        // To a file: nobody reads it before the console's end, and QEMU must not wait for that.
        let errors = results.join("qemu-errors");
        command.stderr(fs::File::create(&errors)?);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child =
            child.map_err(|error| format!("timeout, of coreutils, is needed: {error}"))?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("QEMU has no output")?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            writeln!(console, "{:8.2} {text}", begin.elapsed().as_secs_f64())?;
            if let Some(at) = text.find("STEP ") {
                say(&format!("{:6.1} s {}", begin.elapsed().as_secs_f64(), &text[at..]));
            }
            line.clear();
        }
        let status = child.wait()?;
        let why = fs::read_to_string(&errors).unwrap_or_default();
        let fault = match status.code() {
            Some(0) => None,
            Some(124 | 137) => {
                Some(format!("not done within {} s, and was ended", self.bound.as_secs()))
            }
            _ => Some(format!("QEMU ended with {status}: {}", why.trim())),
        };
        let took = begin.elapsed();
        let disk_faults = if self.disks == Disks::Images { disk::check(lab) } else { Vec::new() };
        Ok(Outcome { store, boot: self.name, expected, extent, results, took, fault, disk_faults })
    }

    fn qemu(&self, lab: &Lab, store: Store, steps: &[String], results: &Path) -> Result<Command> {
        let (root, images) = (lab.root(), lab.dir.join("images"));
        if lab.dir.to_string_lossy().contains([',', ' ']) {
            return Err(format!("QEMU takes no comma or space in {}", lab.dir.display()).into());
        }
        let file = |name: &str| images.join(name).display().to_string();
        let emulator = program(&root, "usr/bin/qemu-system-x86_64");
        let mut command = Command::new("timeout");
        // In the foreground, so that Ctrl-C reaches QEMU, too.
        command.args(["--foreground", "--kill-after=5", &self.bound.as_secs().to_string()]);
        command.arg(emulator.get_program()).args(emulator.get_args());
        command.env_remove("LD_LIBRARY_PATH");
        command.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(root.join(folder));
        }
        // This processor: with it, and this QEMU, both PV and PVH guests run.
        command.args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64,+svm,+npt"]);
        command.args(["-smp", "2", "-m", "4G", "-display", "none", "-vga", "none", "-nic", "none"]);
        command.args(["-no-reboot", "-serial", "stdio", "-monitor", "none"]);
        if self.disks == Disks::Images {
            for name in disk::DRIVES {
                let drive = format!("file={},format=raw,if=virtio", file(name));
                command.args(["-drive", &drive]);
            }
        }
        let share =
            format!("local,path={},mount_tag=results,security_model=none", results.display());
        command.args(["-virtfs", &share, "-kernel", &file("xen"), "-append"]);
        command.arg(
            "console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M dom0_max_vcpus=1 loglvl=info \
             guest_loglvl=info noreboot=0 spec-ctrl=no xpti=0 cpuidle=0",
        );
        let linux = format!(
            "{} console=hvc0 rdinit={} mitigations=off quiet lab.store={} lab.boot={} lab.steps={}",
            file("vmlinux"),
            self.init,
            store.name(),
            self.name,
            steps.join(":"),
        );
        command.args(["-initrd", &format!("{linux},{}", file("dom0.cpio"))]);
        Ok(command)
    }
}

fn is_setting(step: &str) -> bool {
    let number = step.split('-').next().unwrap_or_default();
    number.parse::<u32>().is_ok_and(|number| number < SETTING)
}
