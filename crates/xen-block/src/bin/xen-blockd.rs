//! `xen-blockd`: serves the disks of guests from the domain where it runs, until it is ended. After
//! any end and a new start it continues where it was; the guests see a pause.

use std::path::PathBuf;
use std::process::ExitCode;
use xen_block::back::{self, BackendContext, OpenMethod, Options};
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::{self, qcow2, target};
use xen_block::filter;
use xen_driver::backend::throttle;
use xen_driver::process::lock::LET_GO_WITHIN;
use xen_driver::process::{BackendProgram, KernelBackend, ProgramFailure};

const USAGE: &str = "\
usage: xen-blockd [--kind KIND]... [--record-dir DIR] [--image-dir DIR]... [--limit-bytes N] [--limit-requests N]
       xen-blockd --check [--image-dir DIR]... IMAGE...
       xen-blockd --help | --version
  --kind KIND       serve backend/KIND: vbd, qdisk; both without this option
  --record-dir DIR  where requests in flight outlive this process, on tmpfs (/run/xen-blockd; hosted:
                    xen-blockd in the host's own directory)
  --image-dir DIR   a folder in which backing files may lie, besides the image's own folder and the lines of
                    /etc/xenbus/image-dirs
  --check           serve nothing: tell of each qcow2 image which files it needs, and whether it would be served
  --limit-bytes N, --limit-requests N
                    most bytes and requests a second of a disk whose backend's nodes limit-bytes-per-second and
                    limit-requests-per-second say nothing else (no limit)
On Xen, or on the hosted host that XEN_HOSTED_HOST names.";

const VERSION: &str = concat!("xen-blockd ", env!("CARGO_PKG_VERSION"));

const PROGRAM: BackendProgram = BackendProgram {
    name: "xen-blockd",
    unfiltered: "XEN_BLOCKD_UNFILTERED",
    kernel: Some(KernelBackend {
        kind: "vbd",
        path: "/sys/bus/xen-backend/drivers/vbd",
        module: "xen-blkback",
        instead: ", or attach disks as qdisk",
    }),
    confine: filter::install,
};

fn main() -> ExitCode {
    // A disk's event channel and image each take some descriptors.
    xen_hosted::limits::raise_descriptors();
    let started = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Invocation::Serve(arguments)) if !arguments.check.is_empty() => {
            return check(&arguments);
        }
        Ok(Invocation::Serve(arguments)) => serve(arguments),
        Ok(Invocation::Print(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("xen-blockd: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = started;
    eprintln!("xen-blockd: {error}");
    ExitCode::FAILURE
}

/// The action that a command line asks for.
enum Invocation {
    Serve(Arguments),
    /// Prints a text and ends.
    Print(&'static str),
}

/// The command line.
struct Arguments {
    kinds: Vec<String>,
    record_dir: Option<PathBuf>,
    image_dirs: Vec<PathBuf>,
    throttle: throttle::RateLimits,
    /// Images to check; with any, the program does nothing else.
    check: Vec<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Invocation, String> {
        let mut kinds = Vec::new();
        let (mut record_dir, mut throttle) = (None, throttle::RateLimits::default());
        let (mut image_dirs, mut looks, mut check) = (Vec::new(), false, Vec::new());
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--help" | "-h" => return Ok(Invocation::Print(USAGE)),
                "--version" => return Ok(Invocation::Print(VERSION)),
                "--kind" => match value()? {
                    kind if kind == "vbd" || kind == "qdisk" => kinds.push(kind),
                    kind => return Err(format!("{kind:?} is not served: vbd and qdisk are")),
                },
                "--limit-bytes" => throttle.bytes_per_second = Some(rate(&value()?)?),
                "--limit-requests" => throttle.requests_per_second = Some(rate(&value()?)?),
                "--record-dir" => record_dir = Some(value()?.into()),
                "--image-dir" => match PathBuf::from(value()?) {
                    dir if dir.is_absolute() => image_dirs.push(dir),
                    dir => return Err(format!("--image-dir {}: not absolute", dir.display())),
                },
                "--check" => looks = true,
                image if looks && !image.starts_with('-') => check.push(image.into()),
                _ => return Err(format!("{word:?} is no option")),
            }
        }
        if looks && check.is_empty() {
            return Err("--check needs an image".into());
        }
        if kinds.is_empty() {
            kinds = vec!["vbd".into(), "qdisk".into()];
        }
        Ok(Invocation::Serve(Self { kinds, record_dir, image_dirs, throttle, check }))
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| format!("{text:?} is no number from 1"))
}

/// Prints for each image the files that it needs, and if it would be served.
fn check(arguments: &Arguments) -> ExitCode {
    let image_dirs = ImageDirs::new(arguments.image_dirs.clone());
    let mut code = ExitCode::SUCCESS;
    for image in &arguments.check {
        let (lines, verdict) = qcow2::look(image, &image_dirs);
        for (depth, line) in lines.iter().enumerate() {
            println!("{:1$}{line}", "", 2 * depth);
        }
        match verdict {
            Ok(()) => println!("served"),
            Err(error) => {
                println!("not served: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn serve(arguments: Arguments) -> Result<std::convert::Infallible, ProgramFailure> {
    let Arguments { kinds, record_dir, image_dirs, throttle, .. } = arguments;
    PROGRAM.serve(&kinds, record_dir, |start| {
        disk::wait_for_locks(LET_GO_WITHIN);
        let options = Options { rings: start.rings(), throttle, ..Options::default() };
        let image_dirs = ImageDirs::new(image_dirs);
        let open = OpenMethod::Aside(Box::new(move |device| target::job(device, &image_dirs)));
        let (evtchn, grants) = (start.platform.evtchn, start.platform.grants);
        let platform = BackendContext { evtchn, grants, open, options };
        back::serve(start.store, start.domid, start.kinds, platform)
    })
}
