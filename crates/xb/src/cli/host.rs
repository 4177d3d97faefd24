//! `xb host`.

mod log;

use super::options::GlobalOptions;
use super::out;
use crate::host::bring::{self, Startup};
use crate::host::daemons::{self, DAEMONS, HostDaemon, KEEPER};
use crate::host::folder::{Folder, FolderContent};
use crate::host::{Host, HostChoice, programs};
use crate::lifecycle::destroy;
use crate::wait::Limit;
use crate::{Error, devices, domain};
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use xen::DomId;

#[derive(Subcommand, Debug)]
pub(crate) enum HostCommand {
    #[command(about = up_about(), after_help = "Example: xb host up --host /tmp/h")]
    Up {
        /// Let the backing files of images lie in DIR, too; one with each use of the option. It stays so for this host
        #[arg(long = "image-dir", value_name = "DIR")]
        image_dirs: Vec<PathBuf>,
    },
    /// Destroy all guests, end the daemons and remove the folder.
    #[command(after_help = "Example: xb host down")]
    Down,
    /// Tell which daemons run.
    #[command(after_help = "Example: xb host status --json")]
    Status,
    /// Show what the daemons have written.
    #[command(after_help = "Example: xb host log xen-blockd --tail 20")]
    Log(log::HostLogArguments),
}

/// Returns the help of `xb host up`.
fn up_about() -> String {
    format!("Start the daemons that do not run: {}", daemons::words(HostDaemon::part))
}

pub(crate) fn run(options: &GlobalOptions, command: &HostCommand) -> Result<u8, Error> {
    match command {
        HostCommand::Up { image_dirs } => up(options, &hosted(options)?, image_dirs),
        HostCommand::Down => {
            let folder = hosted(options)?;
            down(&folder, options.within())?;
            if options.json {
                return out::json(&json!({ "host": folder.path(), "up": false }));
            }
            out::print(&format!("the host in {} is down\n", folder.path().display()))
        }
        HostCommand::Status => status(options, &hosted(options)?),
        HostCommand::Log(which) => log::run(options, which),
    }
}

fn hosted(options: &GlobalOptions) -> Result<Folder, Error> {
    let folder = options.choice().hosted("xb host")?;
    folder.look()?;
    Ok(folder)
}

fn up(options: &GlobalOptions, folder: &Folder, image_dirs: &[PathBuf]) -> Result<u8, Error> {
    programs::make()?;
    let startup = bring::up(folder, image_dirs, options.limit())?;
    if options.json {
        let was_up = startup == Startup::WasUp;
        return out::json(&json!({ "host": folder.path(), "up": true, "was_up": was_up }));
    }
    let so = if startup == Startup::WasUp { "was up already" } else { "is up" };
    out::print(&format!("the host in {} {so}\n", folder.path().display()))
}

/// Takes down the whole host. Parts that do not run are no error. It waits for guests' disks for
/// `within` at most.
pub(crate) fn down(folder: &Folder, within: Duration) -> Result<(), Error> {
    if folder.look()? != FolderContent::Host {
        return Ok(());
    }
    // Guests that end now are not to be started again.
    KEEPER.stop(folder)?;
    match destroy_guests(folder, within) {
        // Without a store that answers the guests end with the broker.
        Ok(()) | Err(Error::Store(_)) => bring::down(folder),
        Err(error) => Err(error),
    }
}

/// Destroys all guests of a host, where its store and broker are there.
fn destroy_guests(folder: &Folder, within: Duration) -> Result<(), Error> {
    let Ok(mut host) = Host::open(HostChoice::Hosted(folder.clone())) else { return Ok(()) };
    host.store.set_timeout(Some(devices::CLOSES_WITHIN));
    // Without a backend there is nothing to wait for.
    let is_backend = |daemon: &&HostDaemon| !daemon.kinds().is_empty();
    let serves = DAEMONS.iter().filter(is_backend).any(|daemon| daemon.running(folder).is_some());
    let within = if serves { within.min(devices::CLOSES_WITHIN) } else { Duration::ZERO };
    let mut guests: Vec<DomId> =
        domain::list(&mut host)?.iter().map(|domain| domain.info.domid).collect();
    guests.retain(|domid| *domid != DomId::DOM0);
    destroy::take_down(&mut host, &guests, Limit::new(within))
}

fn status(options: &GlobalOptions, folder: &Folder) -> Result<u8, Error> {
    let running: Vec<_> = DAEMONS.iter().map(|daemon| (daemon, daemon.running(folder))).collect();
    let up = running.iter().all(|(_, process)| process.is_some());
    if options.json {
        let daemons = running.iter().map(|(daemon, process)| {
            let pid = process.as_ref().map(|process| process.pid.as_raw_nonzero().get());
            (daemon.name().to_owned(), json!({ "pid": pid, "log": daemon.log(folder) }))
        });
        let daemons: serde_json::Map<String, serde_json::Value> = daemons.collect();
        out::json(&json!({ "host": folder.path(), "up": up, "daemons": daemons }))?;
    } else {
        let mut rows = vec![["DAEMON", "PID", "LOG"].map(str::to_owned).to_vec()];
        for (daemon, process) in &running {
            let pid = process.as_ref().map(|process| process.pid.as_raw_nonzero().to_string());
            let log = daemon.log(folder).display().to_string();
            rows.push(vec![daemon.name().into(), pid.unwrap_or_else(|| "down".into()), log]);
        }
        out::table(&rows)?;
    }
    Ok(if up { 0 } else { 4 })
}
