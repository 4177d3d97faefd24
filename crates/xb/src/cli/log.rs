//! `xb log`.

use super::All;
use crate::host::{Choice, Host};
use crate::wait::Limit;
use crate::{Error, domain, keeper};
use clap::Args;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct Log {
    /// The guest's name, also of one that has ended, or its number.
    domain: String,
    /// Show what comes, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
}

pub(crate) fn run(all: &All, log: &Log) -> Result<u8, Error> {
    let folder = all.choice().hosted("xb log")?;
    folder.look()?;
    let mut name = log.domain.clone();
    if name.parse::<u16>().is_ok() {
        name = domain::find(&mut Host::open(Choice::Hosted(folder.clone()))?, &name)?.name;
    }
    let plain = !name.contains('/') && !name.starts_with('.');
    let path = keeper::log_of(&folder, &name);
    let missing = |_| {
        Error::NotFound(format!("there is no log of a guest {name}; xb list shows who is there"))
    };
    let mut file = File::open(&path).ok().filter(|_| plain).ok_or(()).map_err(missing)?;
    let mut out = std::io::stdout().lock();
    std::io::copy(&mut file, &mut out).map_err(Error::io(path.display()))?;
    if !log.follow {
        return Ok(0);
    }
    let failed = |errno: rustix::io::Errno| Error::io(path.display())(errno.into());
    let watch = keeper::watch_log(&folder, &name).map_err(failed)?;
    let for_ever = Limit::new(Duration::MAX);
    loop {
        keeper::await_log(&watch, for_ever, &|| format!("{name} prints"))?;
        // A log that was set aside leaves a shorter one behind.
        let at = file.stream_position().map_err(Error::io(path.display()))?;
        let now = std::fs::metadata(&path).map_or(at, |data| data.len());
        if now < at {
            file = File::open(&path).map_err(Error::io(path.display()))?;
            file.seek(SeekFrom::Start(0)).map_err(Error::io(path.display()))?;
        }
        let mut more = Vec::new();
        file.read_to_end(&mut more).map_err(Error::io(path.display()))?;
        if out.write_all(&more).and_then(|()| out.flush()).is_err() {
            return Ok(0);
        }
    }
}
