//! `xb log`.

use super::options::GlobalOptions;
use crate::host::{Host, HostChoice};
use crate::wait::Limit;
use crate::{Error, domain, text};
use clap::Args;
use std::fs::File;
use std::io::{IsTerminal, Read, StdoutLock, Write};
use std::os::unix::fs::MetadataExt;

#[derive(Args, Debug)]
pub(crate) struct LogArguments {
    /// The guest's name, also of one that has ended, or its number.
    domain: String,
    /// Show what comes, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
}

/// The destination of a log. A terminal obeys control characters, so there nothing in the log moves
/// its cursor.
struct LogOutput {
    out: StdoutLock<'static>,
    is_terminal: bool,
    last: u8,
}

impl LogOutput {
    /// Prints the rest of a file.
    fn rest(&mut self, file: &mut File) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            let Some(bytes) = buffer.get_mut(..count).filter(|bytes| !bytes.is_empty()) else {
                return self.out.flush();
            };
            if self.is_terminal {
                text::clean_lines(bytes, &mut self.last);
            }
            self.out.write_all(bytes)?;
        }
    }
}

pub(crate) fn run(options: &GlobalOptions, log: &LogArguments) -> Result<u8, Error> {
    let folder = options.choice().hosted("xb log")?;
    folder.look()?;
    let mut name = log.domain.clone();
    if name.parse::<u16>().is_ok() {
        name = domain::find(&mut Host::open(HostChoice::Hosted(folder.clone()))?, &name)?.name;
    }
    let plain = !name.contains('/') && !name.starts_with('.');
    let guest = folder.guest(&name);
    let path = guest.log();
    let missing = |_| {
        Error::NotFound(format!("there is no log of a guest {name}; xb list shows who is there"))
    };
    let mut file = File::open(&path).ok().filter(|_| plain).ok_or(()).map_err(missing)?;
    let out = std::io::stdout().lock();
    let mut shown = LogOutput { is_terminal: out.is_terminal(), out, last: 0 };
    // Before the first look: changes after it are seen.
    let watch = guest.watch().map_err(Error::io(path.display()))?;
    let for_ever = Limit::never();
    loop {
        // A log is not written to after it was set aside: the new one is looked for first, so that
        // all of the old one is shown.
        let next = File::open(&path).ok().filter(|next| is_other(next, &file));
        match shown.rest(&mut file) {
            // A closed pipe is not an error.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(0),
            done => done.map_err(Error::io(path.display()))?,
        }
        match next {
            Some(next) => file = next,
            None if log.follow => {
                watch.wait(for_ever, &|| format!("{name} prints"))?;
            }
            None => return Ok(0),
        }
    }
}

fn is_other(one: &File, other: &File) -> bool {
    let number = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
    number(one) != number(other)
}
