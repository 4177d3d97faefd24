//! `xb top`.

use super::options::{GlobalOptions, seconds};
use super::out::{self, Printed};
use crate::Error;
use crate::top::live::{self, TopEnd};
use crate::top::read::TopReader;
use crate::top::xentop::NameLength;
use crate::top::{json, rates, xentop};
use clap::Args;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

/// The time between two turns where none is named, and with xentop's columns, which is xentop's.
const DELAY: Duration = Duration::from_secs(1);
const BATCH_DELAY: Duration = Duration::from_secs(3);
/// The least time between two turns.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// The exit status after Ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Args, Debug)]
pub(crate) struct TopArguments {
    /// Print the columns of xentop -b each turn, and no screen.
    #[arg(long, short)]
    batch: bool,
    /// The time between two turns: a second; three with --batch, as with xentop.
    #[arg(long, short, value_name = "SECONDS", value_parser = delay)]
    delay: Option<Duration>,
    /// The number of turns with --batch or --json; without it they have no end.
    #[arg(long, short = 'n', short_alias = 'i', value_name = "COUNT")]
    iterations: Option<u64>,
    /// Print whole names with --batch, not ten characters of each.
    #[arg(long, short, requires = "batch")]
    full_name: bool,
}

fn delay(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        delay if delay < DELAY_MIN => Err("at least 0.1 seconds are needed".into()),
        delay => Ok(delay),
    }
}

pub(crate) fn run(options: &GlobalOptions, top: &TopArguments) -> Result<u8, Error> {
    if top.batch || options.json { print(options, top) } else { show(options, top) }
}

/// Shows a screen.
fn show(options: &GlobalOptions, top: &TopArguments) -> Result<u8, Error> {
    if top.iterations.is_some() {
        return Err(Error::Refused(
            "a number of turns is for xb top --batch and --json; a screen ends with q".into(),
        ));
    }
    for (is_terminal, what) in
        [(std::io::stdout().is_terminal(), "output"), (std::io::stdin().is_terminal(), "input")]
    {
        if !is_terminal {
            return Err(live::no_terminal(what));
        }
    }
    let own = options.clone();
    let ended = live::show(Box::new(move || own.open()), top.delay.unwrap_or(DELAY))?;
    Ok(match ended {
        TopEnd::Quit => 0,
        TopEnd::Interrupted => INTERRUPTED,
        TopEnd::Signal(number) => 128_u8.saturating_add(number),
    })
}

/// Prints turn after turn.
fn print(options: &GlobalOptions, top: &TopArguments) -> Result<u8, Error> {
    let delay = top.delay.unwrap_or(if top.batch { BATCH_DELAY } else { DELAY });
    let mut reader = TopReader::new(options.open()?)?;
    let mut before = None;
    let mut turn = 0;
    while top.iterations.is_none_or(|iterations| turn < iterations) {
        if turn > 0 {
            reader.wait(delay, None)?;
        }
        turn += 1;
        let now = reader.take()?;
        let rows = rates::rows(before.as_ref(), &now);
        let printed = if options.json {
            out::json_line(&json::object(SystemTime::now(), &now, &rows))
        } else {
            let names = if top.full_name { NameLength::Full } else { NameLength::Cut };
            out::print_while_read(&xentop::lines(&now, &rows, names))
        }?;
        if printed == Printed::ReaderGone {
            break;
        }
        before = Some(now);
    }
    Ok(0)
}
