//! All block devices of a hosted guest, and the interfaces to them for the guest's programs. The
//! guest's first program runs this besides them.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use xen_block::front::{Options, disks::Disks, fuse::Fuse};
//! use xen_driver::process::guest::GuestConnections;
//!
//! let mut open = GuestConnections::open()?;
//! let (domid, platform) = (open.domid, open.platform.clone());
//! let options = Options { buffers: 128, ..Options::default() };
//! let mut disks = Disks::start(&mut open.store, domid, platform, options)?;
//! disks.serve_files(Fuse::new(xen_hosted::guest_devices()?));
//! disks.serve_sockets("/tmp");
//! let mut guest = open.guest();
//! loop {
//!     for (_, news) in guest.turn(&mut [&mut disks], Duration::from_secs(1), &[])?.news {
//!         println!("{}: {:?}", news.id, news.event);
//!     }
//! }
//! # }
//! ```

use super::export::Export;
use super::fuse::Fuse;
use super::{BlockFrontend, FrontendContext, Info, Options};
use crate::vbd;
use rustix::event::{PollFd, PollFlags};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use xen::DomId;
use xen_driver::GuestDevices;
use xen_driver::frontend::{self, guest};
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Bus, Error, Id, Side, State};
use xenstore::{Client, Event, Store};

/// The block devices of a guest.
pub struct Disks {
    bus: Bus<BlockFrontend>,
    files: Option<Fuse>,
    sockets: Option<PathBuf>,
    exports: BTreeMap<u32, Export>,
    /// Devices whose files and sockets are there, which the store is not told yet.
    ready: Vec<u32>,
}

/// The node of a guest, below its home, that says that it writes [`READY`] for each disk. The guest's
/// first program writes it before the first disk connects.
pub const TELLS_READY: &str = "data/feature-disk-ready";
/// The node in a frontend's folder that says that the files and sockets of the disk are there.
pub const READY: &str = "ready";

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disks").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl Disks {
    /// Starts the disks of `domid`, which is the caller's own domain.
    ///
    /// # Errors
    /// The store is gone.
    pub fn start(
        store: &mut Client,
        domid: DomId,
        platform: frontend::Platform,
        options: Options,
    ) -> Result<Self, Error> {
        let frontend::Platform { evtchn, grants } = platform;
        let platform = Rc::new(FrontendContext { evtchn, grants, options });
        let make = move |_| BlockFrontend::new(Rc::clone(&platform));
        let bus = Bus::start(store, Side::Frontend, domid, "vbd", make)?;
        let (files, sockets, exports, ready) = (None, None, BTreeMap::new(), Vec::new());
        Ok(Self { bus, files, sockets, exports, ready })
    }

    /// Serves the devices to programs as files, from now on.
    pub fn serve_files(&mut self, mount: Fuse) {
        self.files = Some(mount);
    }

    /// Serves each device to programs as an NBD server, at `xvda.nbd` and so on in this folder.
    pub fn serve_sockets(&mut self, folder: impl Into<PathBuf>) {
        self.sockets = Some(folder.into());
    }

    /// Returns the connected devices: the name, and the backend's description.
    pub fn devices(&self) -> impl Iterator<Item = (String, Info)> {
        let drivers = self.bus.drivers_ref();
        drivers.filter_map(|(id, front)| Some((vbd::name(id.devid), front.info()?)))
    }

    /// Adds and removes files and sockets along with their devices. A socket that cannot be made is
    /// missing for the programs that need it, and harms nothing else.
    fn update_interfaces(&mut self, news: &DeviceNews) -> Option<DeviceNews> {
        let devid = news.id.devid;
        match news.event {
            DeviceEvent::State(State::Connected) => {
                self.ready.push(devid);
                let name = vbd::name(devid);
                if let Some(files) = &mut self.files {
                    files.add(devid, &name);
                }
                if let Some(folder) = &self.sockets
                    && !self.exports.contains_key(&devid)
                {
                    let path = folder.join(format!("{name}.nbd"));
                    match Export::listen(&path) {
                        Ok(export) => drop(self.exports.insert(devid, export)),
                        Err(error) => {
                            let why = format!("no NBD server at {}: {error}", path.display());
                            return Some(DeviceNews {
                                id: news.id,
                                event: DeviceEvent::Error(Error::Driver(why)),
                            });
                        }
                    }
                }
            }
            DeviceEvent::State(State::Closed) | DeviceEvent::Removed => {
                if let Some(files) = &mut self.files {
                    files.remove(devid);
                }
                self.exports.remove(&devid);
            }
            _ => {}
        }
        None
    }
}

impl GuestDevices for Disks {
    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        self.bus.note(store, event)
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        self.bus.look_next(store)
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        let mut all = Vec::new();
        for news in self.bus.take_news() {
            let failed = self.update_interfaces(&news);
            all.push(news);
            all.extend(failed);
        }
        all
    }

    fn work(&mut self, store: &mut Client) -> Result<usize, Error> {
        for devid in std::mem::take(&mut self.ready) {
            let state = format!("device/vbd/{devid}/state");
            store.transaction(|tx| {
                // A device that was taken away meanwhile gets no nodes.
                if tx.exists(&state)? {
                    tx.write(format!("device/vbd/{devid}/{READY}"), "1")?;
                }
                Ok(())
            })?;
        }
        let mut moved = match &mut self.files {
            Some(files) => files.turn()?,
            None => 0,
        };
        let (mut failed, mut unused) = (Vec::new(), Vec::new());
        for (id, front) in self.bus.drivers() {
            let (files, export) = (self.files.as_mut(), self.exports.get_mut(&id.devid));
            let users = files.as_ref().map_or(0, |files| files.users(id.devid))
                + export.as_ref().map_or(0, |export| export.clients());
            front.set_users(users);
            if users == 0 {
                unused.push(id);
            }
            match serve(id, front, files, export) {
                Ok(count) => moved += count,
                Err(error) => failed.push((id, error)),
            }
        }
        for id in unused {
            // The device may have been asked to close, and have waited for its users.
            if self.bus.waits(id) {
                self.bus.look_again(store, id)?;
                moved += 1;
            }
        }
        for (id, error) in failed {
            self.bus.fail(store, id, error)?;
        }
        Ok(moved)
    }

    fn final_check(&mut self, store: &mut Client) -> Result<bool, Error> {
        let mut more = false;
        let failed = guest::each(&mut self.bus, store, |front| {
            more |= front.final_check()?;
            Ok(())
        })?;
        Ok(more || failed)
    }

    fn polled(&self) -> Vec<PollFd<'_>> {
        let files = self.files.as_ref().filter(|files| files.is_mounted());
        let files = files.map(|files| PollFd::from_borrowed_fd(files.as_fd(), PollFlags::IN));
        let exports = self.exports.values().flat_map(Export::polled);
        let exports = exports.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
        files.into_iter().chain(exports).collect()
    }
}

/// Moves requests of programs to one device, and its answers back; returns the number of both.
fn serve(
    id: Id,
    front: &mut BlockFrontend,
    mut files: Option<&mut Fuse>,
    mut export: Option<&mut Export>,
) -> Result<usize, Error> {
    let mut done = Vec::new();
    let mut moved = front.take(|completion| done.push(completion))?;
    for completion in done {
        let of_a_file = match &mut files {
            Some(files) => files.complete(id.devid, front, completion),
            None => false,
        };
        if let Some(export) = export.as_mut().filter(|_| !of_a_file) {
            export.complete(front, completion);
        }
    }
    if let Some(files) = files {
        files.ask(id.devid, front)?;
    }
    if let Some(export) = export {
        moved += export.serve(front)?;
    }
    Ok(moved)
}
