//! The durations of `xb`: creating guests with a disk until it is connected, one after the other, and listing them; and
//! the processor time of `xb top`. Prints a table with each figure beside its aim.
//!
//! `cargo xtask bench xb` makes 200 guests; with `--quick` it makes 20, and looks at `xb top` for a shorter time.
//! `--into FILE` puts the table between the two lines `<!-- xb table -->` of FILE.

mod support;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use support::{BenchHost, Result, head, processor_time, publish, quantile, row};

/// The line before and behind the table.
const MARK: &str = "<!-- xb table -->";
/// The time over which `xb top` is looked at, at a turn each second; and a short one.
const LOOKED_FOR: Duration = Duration::from_secs(20);
const LOOKED_FOR_SHORT: Duration = Duration::from_secs(3);
/// The time that its first turns take, which read all devices.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// Creates guest `number` with a raw disk of 1 MiB.
fn create(host: &BenchHost, number: usize) -> Duration {
    let image = host.path(&format!("{number}.img"));
    let made = File::create(&image).and_then(|file| file.set_len(1 << 20));
    made.expect("an image is made");
    let disk = format!("disk = [\"{},,xvda\"]", image.display());
    host.create(&format!("g{number}"), &disk)
}

/// Returns the share of a processor that `xb top --json` takes, in hundredths.
fn printed_top(host: &BenchHost, looked_for: Duration) -> f64 {
    let mut command = host.command(&["top", "--json", "--delay", "1"]);
    let mut top = command.stdout(Stdio::null()).spawn().expect("xb runs");
    let share = share_of(&top, looked_for);
    top.kill().and_then(|()| top.wait()).expect("it ends");
    share
}

/// Returns the same of a screen on a terminal, and those of the daemons that answer it.
fn shown_top(host: &BenchHost, looked_for: Duration) -> (f64, f64) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let near = openpt(flags).expect("a pseudoterminal");
    grantpt(&near).and_then(|()| unlockpt(&near)).expect("its far end");
    let name = ptsname(&near, Vec::new()).expect("its name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let far = || rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("it opens");
    let size = Winsize { ws_row: 50, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&near, size).expect("a size");
    let mut command = host.command(&["top", "--delay", "1"]);
    let mut top = command.stdin(far()).stdout(far()).spawn().expect("xb runs");
    drop(command);
    let mut near = File::from(near);
    let mut reader = near.try_clone().expect("a descriptor");
    let drain = std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while reader.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    let daemons = ["broker", "xenstored", "xen-blockd"].map(|daemon| host.pid(daemon));
    std::thread::sleep(SETTLED_AFTER);
    let before = daemons.map(processor_time);
    let share = share_of(&top, looked_for);
    let after = daemons.map(processor_time);
    let spent: Duration = after.iter().zip(before).map(|(after, before)| *after - before).sum();
    near.write_all(b"q").expect("a key");
    top.wait().expect("it ends");
    drain.join().expect("the output ends");
    (share, as_share(spent, looked_for + SETTLED_AFTER))
}

/// Returns the share of a processor that a program takes once its first turns are over.
fn share_of(program: &Child, looked_for: Duration) -> f64 {
    std::thread::sleep(SETTLED_AFTER);
    let (before, begin) = (processor_time(program.id()), Instant::now());
    std::thread::sleep(looked_for);
    as_share(processor_time(program.id()) - before, begin.elapsed())
}

fn as_share(spent: Duration, of: Duration) -> f64 {
    spent.as_secs_f64() * 100.0 / of.as_secs_f64()
}

/// Makes the guests and lists them; the table.
fn measure(guests: usize, looked_for: Duration) -> String {
    let median = |times: &[Duration]| quantile(times, 0.5);
    let host = BenchHost::up();
    // The first pages of programs and images in, and the host's first arena.
    create(&host, guests);
    host.xb(&["destroy", &format!("g{guests}")]);
    let times: Vec<Duration> = (0..guests).map(|number| create(&host, number)).collect();
    let few = (guests / 10).max(3);
    let (first, last) = (median(&times[..few]), median(&times[guests - few..]));
    let lists: Vec<Duration> = (0..11).map(|_| host.xb(&["list"])).collect();
    let mut table = head(&format!("{guests} guests"));
    let create = "`xb create` of a guest with a disk, to Connected, median";
    table += &row(create, median(&times), 30.0, "ms");
    let growth = format!("the last {few} against the first {few}, medians");
    table += &row(&growth, last / first, 1.3, "x");
    table += &row("`xb list` with all guests, median of 11", median(&lists), 50.0, "ms");
    let printed = printed_top(&host, looked_for);
    table +=
        &row("`xb top --json` with all guests, each second, of a processor", printed, 2.0, "%");
    let (shown, daemons) = shown_top(&host, looked_for);
    table += &row("`xb top` on a terminal, the same", shown, 2.0, "%");
    // No aim is set for these.
    table += &format!("| store, broker and block backend meanwhile | | {daemons:.1} % | |\n");
    table
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let table = if quick { measure(20, LOOKED_FOR_SHORT) } else { measure(200, LOOKED_FOR) };
    publish(MARK, &table)
}
