//! What runs in the guests of these tests: the frontends, their files and sockets, and shell commands.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;
use xen::evtchn::Shared;
use xen_block::front::{Options, Platform, disks::Disks, fuse::Fuse};
use xen_block::vbd;
use xen_driver::Guest;
use xenbus::bus::{News, What};
use xenstore::Client;

/// The variable that makes this program the guest's.
pub(crate) const ROLE: &str = "XEN_BLOCK_TEST_GUEST";

/// Serves until it is told to end.
pub(crate) fn play() {
    // The test runner has begun a line of its own.
    println!();
    let hosted = xen_hosted::Platform::guest().unwrap();
    let evtchn = Shared::new(hosted.channels().unwrap()).unwrap();
    let mut grants = hosted.offers();
    let (page, port) = hosted.store_ring(&mut grants).unwrap();
    let mut store = Client::over_ring(page, port, Box::new(evtchn.clone()));
    let (evtchn, grants) = (Rc::new(RefCell::new(evtchn)), Rc::new(RefCell::new(grants)));
    let options = Options { buffers: 160, ..Options::default() };
    let platform = Platform { evtchn: Rc::clone(&evtchn) as _, grants, options };
    let mut disks = Disks::start(&mut store, hosted.domid(), platform).unwrap();
    let mut guest = Guest::new(store, evtchn);
    if let Ok(fuse) = xen_hosted::guest_devices() {
        disks.serve_files(Fuse::new(fuse));
    }
    if std::path::Path::new("/tmp").exists() {
        disks.serve_sockets("/tmp");
    }
    let stdin = std::io::stdin();
    rustix::fs::fcntl_setfl(&stdin, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut input = Vec::new();
    loop {
        let turn =
            guest.turn(&mut [&mut disks], Duration::from_secs(10), &[stdin.as_fd()]).unwrap();
        turn.news.iter().for_each(|(_, news)| tell(news));
        let mut buffer = [0; 4096];
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(count) => input.extend_from_slice(&buffer[..count]),
            Err(_) => {}
        }
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = input.drain(..=end).collect();
            let line = String::from_utf8(line).unwrap();
            match line.trim_end().split_once(' ') {
                Some(("run", rest)) => run(rest),
                _ => return,
            }
        }
    }
}

fn tell(news: &News) {
    let name = vbd::name(news.id.devid);
    match &news.what {
        What::State(state) => println!("> {} {name}", format!("{state:?}").to_lowercase()),
        What::Removed => println!("> removed {name}"),
        What::Error(error) => println!("> error {name} {error}"),
        _ => {}
    }
}

/// Runs a shell command beside the devices.
fn run(line: &str) {
    let (number, command) = line.split_once(' ').unwrap();
    let (number, command) = (number.to_owned(), command.to_owned());
    std::thread::spawn(move || {
        let mut shell = Command::new("/bin/sh");
        // There may be no /dev/null.
        let (nothing, _) = std::io::pipe().unwrap();
        shell.arg("-c").arg(&command).stdin(nothing);
        // Not `output`, which needs ioctl(2).
        let path = format!("/tmp/ran.{number}");
        let file = File::create(&path).unwrap();
        shell.stdout(file.try_clone().unwrap()).stderr(file);
        let well = shell.status().is_ok_and(|status| status.success());
        let how = if well { "well" } else { "badly" };
        let wrote = std::fs::read(&path).unwrap();
        let wrote = String::from_utf8_lossy(&wrote).trim_end().replace('\n', "\u{1}");
        std::fs::remove_file(&path).unwrap();
        println!("> ran {number} {how} {wrote}");
    });
}
