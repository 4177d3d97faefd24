//! The program of the guests in these tests: the frontends, their files and sockets, and shell
//! commands.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;
use xen_block::front::{Options, disks::Disks, fuse::Fuse};
use xen_block::vbd;
use xen_driver::process::guest::GuestConnections;
use xenbus::bus::{DeviceEvent, DeviceNews};

/// Serves until the test ends it.
pub(crate) fn play() {
    let mut open = GuestConnections::open().unwrap();
    let platform = open.platform.clone();
    let options = Options { buffers: 160, ..Options::default() };
    let mut disks = Disks::start(&mut open.store, open.domid, platform, options).unwrap();
    let mut guest = open.guest();
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

fn tell(news: &DeviceNews) {
    let name = vbd::name(news.id.devid);
    match &news.event {
        DeviceEvent::State(state) => println!("> {} {name}", format!("{state:?}").to_lowercase()),
        DeviceEvent::Removed => println!("> removed {name}"),
        DeviceEvent::Error(error) => println!("> error {name} {error}"),
        _ => {}
    }
}

/// Runs a shell command while the devices are served.
fn run(line: &str) {
    let (number, command) = line.split_once(' ').unwrap();
    let (number, command) = (number.to_owned(), command.to_owned());
    std::thread::spawn(move || {
        let mut shell = Command::new("/bin/sh");
        // The guest may have no /dev/null.
        let (nothing, _) = std::io::pipe().unwrap();
        shell.arg("-c").arg(&command).stdin(nothing);
        // `output` is not possible, as it needs ioctl(2).
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
