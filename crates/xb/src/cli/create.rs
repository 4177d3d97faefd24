//! `xb create`.

use super::{All, out};
use crate::config::{self, Description, Setting, Syntax, Warning};
use crate::domain::create::{self, Then};
use crate::host::Host;
use crate::keeper::Ended;
use crate::{Error, domain};
use clap::Args;
use std::path::{Path, PathBuf};

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
    /// Wait until it has ended, and end with its exit status (--timeout is for its disks to connect).
    #[arg(long)]
    wait: bool,
}

/// Reads a configuration; `more` comes behind it.
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

pub(crate) fn run(all: &All, create: &Create) -> Result<u8, Error> {
    let (description, settings, warnings) = read(&create.file, &create.settings)?;
    for warning in warnings {
        eprintln!("xb: {warning}");
    }
    let mut host = all.open()?;
    let then = if create.paused { Then::StayPaused } else { Then::Run };
    let new = create::create(&mut host, &description, &settings, then, all.limit())?;
    for lack in &new.lacks {
        eprintln!("xb: {lack}");
    }
    if all.json {
        out::json(
            &serde_json::json!({ "name": description.name, "domid": new.domid.0, "lacks": new.lacks }),
        )?;
    } else {
        out::print(&format!("{} is domain {}\n", description.name, new.domid))?;
    }
    if create.wait { wait(&mut host, &description.name, new.domid) } else { Ok(0) }
}

/// Waits for as long as the guest runs; what it ended with.
fn wait(host: &mut Host, name: &str, domid: xen::DomId) -> Result<u8, Error> {
    let Some(folder) = host.folder().cloned() else { return Ok(0) };
    host.store.watch(format!("/libxl/{domid}"), "ended")?;
    host.store.watch("@releaseDomain", "ended")?;
    let for_ever = crate::wait::Limit::new(std::time::Duration::MAX);
    let home = domain::home(domid);
    let ended = for_ever.until(&mut host.store, &|| format!("{name} ends"), |store| {
        if let Some(ended) = Ended::of(&folder, name).filter(|ended| ended.domid == domid) {
            return Ok(Some(ended));
        }
        match domain::read(store, &format!("{home}/domid"))? {
            Some(_) => Ok(None),
            None => Err(Error::Refused(format!("{name} was destroyed"))),
        }
    })?;
    let status = ended.status.map(|status| format!(", exit status {status}")).unwrap_or_default();
    eprintln!("xb: {name} has ended: {}{status}", ended.reason);
    let by_reason = u8::from(ended.reason != "shutdown");
    Ok(ended.status.unwrap_or(by_reason))
}
