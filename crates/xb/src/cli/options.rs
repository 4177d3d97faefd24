//! The options that every command takes.

use crate::Error;
use crate::devd::BackendPlace;
use crate::host::{Host, HostChoice};
use crate::wait::Limit;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// The longest wait by default.
const WITHIN: Duration = Duration::from_secs(30);
/// The shortest limit of the store's answers, however short `--timeout` is.
const ANSWERS_WITHIN_MIN: Duration = Duration::from_secs(1);

/// The options that every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct GlobalOptions {
    /// The folder of the hosted host (else $XB_HOST; else Xen, where this is its domain 0; else /run/xb or a folder of
    /// the user's own).
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) host: Option<PathBuf>,
    /// Print JSON; an error is an object on standard error then.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// The longest wait for anything: 30 seconds without it. Undoing what was begun may take as long
    /// again, at most 10 seconds.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,
}

/// Parses a number of seconds, which may have a fraction.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "a number of seconds is needed".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Returns the folder that relative names start from; `/dev` where there is none.
pub(super) fn current_folder() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| "/dev".into())
}

impl GlobalOptions {
    pub(super) fn choice(&self) -> HostChoice {
        HostChoice::of(self.named().as_deref())
    }

    /// Returns the folder of the hosted host that is named, by the option or the environment.
    fn named(&self) -> Option<PathBuf> {
        let named = || std::env::var_os(crate::host::folder::VARIABLE).map(PathBuf::from);
        self.host.clone().or_else(named)
    }

    /// Returns the place whose backends this machine's supervisor has.
    pub(super) fn place(&self) -> Result<BackendPlace, Error> {
        Ok(BackendPlace::of(self.named().as_deref(), xen_linux::machine())?)
    }

    pub(super) fn open(&self) -> Result<Host, Error> {
        let within = self.within().max(ANSWERS_WITHIN_MIN);
        let mut host = Host::open_within(self.choice(), within)?;
        host.store.set_timeout(Some(within));
        Ok(host)
    }

    pub(super) fn within(&self) -> Duration {
        self.timeout.unwrap_or(WITHIN)
    }

    pub(super) fn limit(&self) -> Limit {
        Limit::new(self.within())
    }
}
