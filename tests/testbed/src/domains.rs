//! The files that stand for domains: their creation, death and shutdown.

use crate::page;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use xen::domwatch::{DomainEvent, DomainWatch, OwnRing, ShutdownReason};
use xen::gnttab::{GrantMap, Mapping, PageAccess};
use xen::shared::SharedPage;
use xen::{DomId, Error, GrantRef, Port};

/// The identity of a file among all of its name: inode, and time of creation where it is known.
type Identity = (u64, Option<std::time::SystemTime>);

/// The directory, and the domains that were last seen alive in it.
pub struct DomainLives {
    directory: Option<PathBuf>,
    alive: BTreeMap<u16, Identity>,
    changes: VecDeque<DomainEvent>,
    /// True if `changes` holds all the changes since the last interrupt.
    has_scanned: bool,
    own_ring_given: bool,
}

impl DomainLives {
    /// Makes the record of the domains in `directory`.
    #[must_use]
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            alive: BTreeMap::new(),
            changes: VecDeque::new(),
            has_scanned: false,
            own_ring_given: false,
        }
    }

    fn file(&self, domid: u16, kind: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{domid}.{kind}")))
    }

    fn identity(&self, domid: u16) -> Option<Identity> {
        let found: Metadata = std::fs::metadata(self.file(domid, "page")?).ok()?;
        Some((found.ino(), found.created().ok()))
    }

    /// Returns the identity of domain `domid`, which no earlier domain of that number had; `None`
    /// if there is none now.
    pub fn find(&mut self, domid: DomId) -> Option<u64> {
        if domid.0 == 0 || self.directory.is_none() {
            return domid.is_real().then_some(0);
        }
        let identity = self.identity(domid.0)?;
        // If it replaced another file, the death of that domain is still to be reported.
        self.alive.entry(domid.0).or_insert(identity);
        let (inode, created) = identity;
        let since = created.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let nanoseconds = since.map_or(0, |since| since.as_nanos() as u64);
        Some(inode.rotate_left(40) ^ nanoseconds)
    }

    /// True if domain `domid` exists now.
    pub fn exists(&mut self, domid: DomId) -> bool {
        self.find(domid).is_some()
    }

    fn look(&mut self) {
        let known: Vec<(u16, Identity)> = self.alive.iter().map(|(at, id)| (*at, *id)).collect();
        for (domid, identity) in known {
            let now = self.identity(domid);
            if now != Some(identity) {
                self.alive.remove(&domid);
                self.changes.push_back(DomainEvent::Died(DomId(domid)));
                continue;
            }
            // Reported at every interrupt, as a hypervisor reports states. The store knows which
            // are news, and RESUME makes it forget them.
            if self.file(domid, "shutdown").is_some_and(|file| file.exists()) {
                self.changes
                    .push_back(DomainEvent::Shutdown(DomId(domid), ShutdownReason::Poweroff));
            }
        }
        let Some(directory) = &self.directory else { return };
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let domids: Vec<u16> =
            names.filter_map(|name| name.strip_suffix(".page")?.parse().ok()).collect();
        for domid in domids {
            self.exists(DomId(domid));
        }
    }
}

/// The ring pages of the domains.
pub struct DomainPages(pub Rc<RefCell<DomainLives>>);

impl GrantMap for DomainPages {
    fn map(&mut self, domid: DomId, grant: GrantRef, _: PageAccess) -> Result<Mapping, Error> {
        if grant != GrantRef::XENSTORE {
            return Err(Error::Inval);
        }
        if !self.0.borrow_mut().exists(domid) {
            return Err(Error::Srch);
        }
        let path = self.0.borrow().file(domid.0, "page");
        let page = match path {
            None => SharedPage::private(),
            Some(_) if domid.0 == 0 => return Err(Error::Inval),
            Some(path) => {
                let file: File = OpenOptions::new().read(true).write(true).open(path)?;
                page::map(&file)?
            }
        };
        Ok(Mapping::new(domid, grant, page))
    }
}

/// The watch over the life and death of domains.
pub struct LifeWatch(pub Rc<RefCell<DomainLives>>);

impl DomainWatch for LifeWatch {
    fn identity(&mut self, domid: DomId) -> Option<u64> {
        self.0.borrow_mut().find(domid)
    }

    fn poll_change(&mut self) -> Result<Option<DomainEvent>, Error> {
        let mut life = self.0.borrow_mut();
        if !life.has_scanned {
            life.look();
        }
        let change = life.changes.pop_front();
        life.has_scanned = change.is_some();
        Ok(change)
    }

    fn own_ring(&mut self) -> Result<Option<OwnRing>, Error> {
        let mut life = self.0.borrow_mut();
        if std::mem::replace(&mut life.own_ring_given, true) {
            return Ok(None);
        }
        Ok(Some(OwnRing { page: SharedPage::private(), port: Port(1) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHUTDOWN: DomainEvent = DomainEvent::Shutdown(DomId(7), ShutdownReason::Poweroff);

    fn changes(watch: &mut LifeWatch) -> Vec<DomainEvent> {
        std::iter::from_fn(|| watch.poll_change().unwrap()).collect()
    }

    #[test]
    fn files_live_and_die() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let page = directory.join("7.page");
        let lives = DomainLives::new(Some(directory.to_owned()));
        let mut watch = LifeWatch(Rc::new(RefCell::new(lives)));
        assert!(watch.identity(DomId(0)).is_some());
        assert!(watch.identity(DomId(7)).is_none());
        std::fs::write(&page, [0; 4096]).unwrap();
        assert!(watch.identity(DomId(7)).is_some());
        assert_eq!(changes(&mut watch), []);

        std::fs::write(directory.join("7.shutdown"), []).unwrap();
        assert_eq!(changes(&mut watch), [SHUTDOWN]);
        assert_eq!(changes(&mut watch), [SHUTDOWN], "said at every look");

        // The old file is kept under another name, so the new one has another inode.
        std::fs::rename(&page, directory.join("old")).unwrap();
        std::fs::write(&page, [0; 4096]).unwrap();
        std::fs::remove_file(directory.join("7.shutdown")).unwrap();
        assert_eq!(changes(&mut watch), [DomainEvent::Died(DomId(7))], "another domain");
        assert!(watch.identity(DomId(7)).is_some());
        std::fs::remove_file(&page).unwrap();
        assert_eq!(changes(&mut watch), [DomainEvent::Died(DomId(7))]);
        assert!(watch.identity(DomId(7)).is_none());
    }
}
