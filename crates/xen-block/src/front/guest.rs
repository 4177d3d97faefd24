//! All block devices of a hosted guest, and the ways in which its programs use them: what the guest's
//! first program runs beside them.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::cell::RefCell;
//! use std::rc::Rc;
//! use std::time::Duration;
//! use xen::evtchn::Shared;
//! use xen_block::front::{Options, Platform, fuse::Fuse, guest::Guest};
//! use xenstore::Client;
//!
//! let hosted = xen_hosted::Platform::guest()?;
//! let evtchn = Shared::new(hosted.channels()?)?;
//! let mut grants = hosted.offers();
//! let (page, port) = hosted.store_ring(&mut grants)?;
//! let store = Client::over_ring(page, port, Box::new(evtchn.clone()));
//! let (evtchn, grants) = (Rc::new(RefCell::new(evtchn)), Rc::new(RefCell::new(grants)));
//! let platform = Platform { evtchn, grants, options: Options { buffers: 128, ..Options::default() } };
//!
//! let mut guest = Guest::start(store, hosted.domid(), platform)?;
//! guest.serve_files(Fuse::new(xen_hosted::guest_devices()?));
//! guest.serve_sockets("/tmp");
//! loop {
//!     for news in guest.turn(Duration::from_secs(1), &[])?.news {
//!         println!("{}: {:?}", news.id, news.what);
//!     }
//! }
//! # }
//! ```

use super::export::Export;
use super::fuse::Fuse;
use super::{Front, Info, Platform};
use crate::vbd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use xen::DomId;
use xen::evtchn::EventChannels;
use xenbus::bus::{News, What};
use xenbus::{Bus, Error, Id, Side, State};
use xenstore::{Client, Event};

/// Most events of the store that are taken in a turn.
const EVENTS_MAX: u32 = 64;

/// The block devices of a guest.
pub struct Guest {
    store: Client,
    bus: Bus<Front>,
    evtchn: Rc<RefCell<dyn EventChannels>>,
    files: Option<Fuse>,
    sockets: Option<PathBuf>,
    exports: BTreeMap<u32, Export>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("bus", &self.bus).finish_non_exhaustive()
    }
}

/// What one turn has brought.
#[derive(Debug, Default)]
pub struct Turn {
    /// What has happened to the devices.
    pub news: Vec<News>,
    /// Watch events that are not of the devices.
    pub events: Vec<Event>,
}

impl Guest {
    /// The devices of `domid`, which is the caller's own domain. `platform`'s event channels may be those
    /// that the store's client uses ([`xen::evtchn::Shared`]).
    ///
    /// # Errors
    /// The store is gone.
    pub fn start(mut store: Client, domid: DomId, platform: Platform) -> Result<Self, Error> {
        let evtchn = Rc::clone(&platform.evtchn);
        let platform = Rc::new(platform);
        let make = move |_| Front::new(Rc::clone(&platform));
        let bus = Bus::start(&mut store, Side::Frontend, domid, "vbd", make)?;
        let (files, sockets, exports) = (None, None, BTreeMap::new());
        Ok(Self { store, bus, evtchn, files, sockets, exports })
    }

    /// Gives programs the devices as files, from now on.
    pub fn serve_files(&mut self, mount: Fuse) {
        self.files = Some(mount);
    }

    /// Gives programs each device as an NBD server, at `xvda.nbd` and so on in this folder.
    pub fn serve_sockets(&mut self, folder: impl Into<PathBuf>) {
        self.sockets = Some(folder.into());
    }

    /// The store, for what else the guest does with it. [`Guest::turn`] is to be called afterwards, before
    /// the process sleeps in another way.
    pub fn store(&mut self) -> &mut Client {
        &mut self.store
    }

    /// The devices that are connected: name, and what the backend says of it.
    pub fn devices(&self) -> impl Iterator<Item = (String, Info)> {
        let drivers = self.bus.drivers_ref();
        drivers.filter_map(|(id, front)| Some((vbd::name(id.devid), front.info()?)))
    }

    /// Does what there is to do; where there is nothing, waits for it or for one of `also` to be readable,
    /// at most `timeout`.
    ///
    /// # Errors
    /// The store or the platform is gone. What goes wrong with one device ends that device.
    pub fn turn(&mut self, timeout: Duration, also: &[BorrowedFd<'_>]) -> Result<Turn, Error> {
        let mut turn = Turn::default();
        self.take_port_events()?;
        let more = self.take_store_events(&mut turn)?;
        for news in self.bus.take_news() {
            let failed = self.follow(&news);
            turn.news.push(news);
            turn.news.extend(failed);
        }
        // Whoever is told something looks at it before anybody sleeps.
        let moved = self.work()? > 0 || more || !turn.news.is_empty() || !turn.events.is_empty();
        if !moved && !self.final_check()? {
            self.sleep(timeout, also)?;
        }
        Ok(turn)
    }

    /// Takes some of what the store has to tell, and looks at one device; whether there may be more. A
    /// backend that writes without end does not keep this guest from its other devices.
    fn take_store_events(&mut self, turn: &mut Turn) -> Result<bool, Error> {
        let mut left = EVENTS_MAX;
        while left > 0
            && let Some(event) = self.store.poll_event()?
        {
            left -= 1;
            if !self.bus.note(&mut self.store, &event)? {
                turn.events.push(event);
            }
        }
        // Events may have come with the answers to what a look asks.
        Ok(self.bus.look_next(&mut self.store)? || left == 0)
    }

    fn take_port_events(&self) -> Result<(), Error> {
        let mut evtchn = self.evtchn.borrow_mut();
        while let Some(port) = evtchn.pending().map_err(Error::platform("event channels"))? {
            // It may have been closed meanwhile.
            let _ = evtchn.unmask(port);
        }
        Ok(())
    }

    /// Files and sockets come with a device and go with it. A socket that cannot be is missed by those who
    /// want it, and by nobody else.
    fn follow(&mut self, news: &News) -> Option<News> {
        let devid = news.id.devid;
        match news.what {
            What::State(State::Connected) => {
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
                            return Some(News {
                                id: news.id,
                                what: What::Error(Error::Driver(why)),
                            });
                        }
                    }
                }
            }
            What::State(State::Closed) | What::Removed => {
                if let Some(files) = &mut self.files {
                    files.remove(devid);
                }
                self.exports.remove(&devid);
            }
            _ => {}
        }
        None
    }

    fn work(&mut self) -> Result<usize, Error> {
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
            // It may be asked to close, and have waited for that.
            if self.bus.waits(id) {
                self.bus.poke(&mut self.store, id)?;
                moved += 1;
            }
        }
        for (id, error) in failed {
            self.bus.fail(&mut self.store, id, error)?;
        }
        Ok(moved)
    }

    /// Lets the backends notify again; whether there is an answer after all.
    fn final_check(&mut self) -> Result<bool, Error> {
        let (mut more, mut failed) = (false, Vec::new());
        for (id, front) in self.bus.drivers() {
            match front.final_check() {
                Ok(found) => more |= found,
                Err(error) => failed.push((id, error)),
            }
        }
        more |= !failed.is_empty();
        for (id, error) in failed {
            self.bus.fail(&mut self.store, id, error)?;
        }
        Ok(more)
    }

    fn sleep(&self, timeout: Duration, also: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let evtchn = self.evtchn.borrow();
        let mut fds = vec![PollFd::new(&self.store, PollFlags::IN)];
        fds.push(PollFd::from_borrowed_fd(evtchn.fd(), PollFlags::IN));
        fds.extend(also.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        if let Some(files) = self.files.as_ref().filter(|files| files.wants()) {
            fds.push(PollFd::from_borrowed_fd(files.as_fd(), PollFlags::IN));
        }
        for export in self.exports.values() {
            let polled = export.polled();
            fds.extend(polled.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        }
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::Driver(format!("waiting for work: {errno}"))),
        }
    }
}

/// What programs ask of one device, and what it answers; how much of either there was.
fn serve(
    id: Id,
    front: &mut Front,
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
