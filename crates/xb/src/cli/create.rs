//! `xb create`.

use super::console::{self, ConsoleChoices};
use super::options::GlobalOptions;
use super::out;
use crate::Error;
use crate::config::{self, Description, Setting, Syntax, Warning};
use crate::host::{Host, HostPlatform};
use crate::lifecycle::create::{self, StartMode};
use crate::lifecycle::{destroy, follow};
use crate::wait;
use clap::Args;
use std::path::{Path, PathBuf};
use xen::DomId;
use xen_console::service::wire::OutputStart;

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The configuration: xl.cfg, or TOML where it ends in .toml.
    file: PathBuf,
    /// Settings that come after those of the file, as in it: memory=128.
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Leave it paused.
    #[arg(long, conflicts_with = "wait")]
    paused: bool,
    /// Show its console, from its first byte on; ^] ends that, and the guest goes on.
    #[arg(long, short, conflicts_with_all = ["wait", "paused"])]
    console: bool,
    /// Wait until it has ended, over its reboots, and end with its exit status; Ctrl-C, or any other end of xb, destroys
    /// it. --timeout is for its disks to connect.
    #[arg(long)]
    wait: bool,
}

/// Reads a configuration; the settings in `more` follow those of the file.
pub(crate) fn read(
    file: &Path,
    more: &[String],
) -> Result<(Description, Vec<Setting>, Vec<Warning>), Error> {
    let text = config::load(file).map_err(Error::Refused)?;
    let name = file.display().to_string();
    let mut settings = config::parse(&name, &text, Syntax::of(file))?;
    for line in more {
        settings = config::xl::parse_after(settings, &format!("the argument {line:?}"), line)?;
    }
    let (description, warnings) = Description::read(&name, &settings)?;
    Ok((description, settings, warnings))
}

pub(crate) fn run(options: &GlobalOptions, create: &Create) -> Result<u8, Error> {
    let (mut description, settings, warnings) = read(&create.file, &create.settings)?;
    description.directory = super::options::current_folder();
    warnings.iter().for_each(|warning| out::tell(options, &warning.to_string()));
    let mut host = options.open()?;
    let mode = match (create.paused, create.wait) {
        (true, _) => StartMode::StayPaused,
        (false, true) => StartMode::RunHeld,
        (false, false) => StartMode::Run,
    };
    let new = create::create(&mut host, &description, &settings, mode, options.limit())?;
    // In JSON it is all there each time, for programs.
    let untold = match host.folder() {
        Some(folder) if !options.json => folder.untold(&new.lacks),
        _ => new.lacks.iter().collect(),
    };
    untold.into_iter().for_each(|lack| out::tell(options, lack));
    if options.json {
        out::json(
            &serde_json::json!({ "name": description.name, "domid": new.domid.0, "lacks": new.lacks }),
        )?;
    } else {
        out::print(&format!("{} is domain {}\n", description.name, new.domid))?;
    }
    if create.console {
        let how = ConsoleChoices::default();
        return console::show(host, new.domid, &description.name, how, OutputStart::Oldest);
    }
    if create.wait { follow(options, &mut host, &description.name, new.domid) } else { Ok(0) }
}

/// Waits until the guest ends. Returns its exit status.
fn follow(options: &GlobalOptions, host: &mut Host, name: &str, domid: DomId) -> Result<u8, Error> {
    let mut last = domid;
    let followed = follow::follow(host, name, domid, &mut |new| {
        last = new;
        out::tell(options, &format!("{name} runs again, as domain {new}"));
    });
    let ended = match followed {
        Err(Error::Interrupted) => {
            // The guest was created in the foreground, and ends with this process.
            let undone = wait::undo(|| destroy::destroy(host, last, options.limit().for_undoing()));
            return Err(Error::Interrupted.with_undoing(undone));
        }
        followed => followed?,
    };
    if let HostPlatform::Hosted { control, .. } = &mut host.platform {
        // A preserved domain stays; others are gone.
        let _ = control.keep(last);
    }
    let status = ended.status.map(|status| format!(", exit status {status}")).unwrap_or_default();
    out::tell(options, &format!("{name} has ended: {}{status}", ended.reason));
    let by_reason = u8::from(ended.reason != "shutdown");
    Ok(ended.status.unwrap_or(by_reason))
}
