//! A platform for tests, made of files and datagram sockets in one directory.
//!
//! The promise: a process that keeps these conventions is a guest of the whole, unchanged daemon.
//!
//! - Domain N exists while `DIR/N.page` does: 4096 bytes, mapped shared, the domain's ring page. A
//!   file that was removed and created again is another domain with the same number. Domain 0
//!   always exists.
//! - Event channels are datagrams of one native 32-bit number: guest N signals the daemon by sending
//!   N to `DIR/evtchn`, and the daemon signals guest N by sending N to `DIR/N.evt`.
//! - 0xffffffff to `DIR/evtchn` raises `VIRQ_DOM_EXC`: then domains whose page is gone have
//!   died, and those for which `DIR/N.shutdown` exists have shut down.
//! - Domain 0's own ring is a page that nobody fills.
//!
//! Without a directory every domain exists, with a page that nobody fills, and nothing happens.
//!
//! | module | what it is |
//! |---|---|
//! | [`evtchn`] | the datagrams |
//! | [`domains`] | the files, and the changes of them |
//! | [`guest`] | a guest's end of the ring and of the event channel |
//! | [`page`] | mapping a file's page; the only module with `unsafe` |

pub mod domains;
pub mod evtchn;
pub mod guest;
pub mod page;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use xenstored::{Error, Platform};

/// The variable that names the directory.
pub const DIRECTORY: &str = "XENSHIM_GUESTS";

/// Makes the platform of the domains in `directory`.
///
/// # Errors
/// The error of binding the socket `DIR/evtchn`.
pub fn platform(directory: Option<&Path>) -> Result<Platform, Error> {
    let directory: Option<PathBuf> = directory.map(Path::to_owned);
    let life = Rc::new(RefCell::new(domains::DomainLives::new(directory.clone())));
    let evtchn = evtchn::Datagrams::bind(directory, Rc::clone(&life))
        .map_err(|error| Error::start(format!("test bed: evtchn: {error}")))?;
    Ok(Platform {
        evtchn: Box::new(evtchn),
        grants: Box::new(domains::DomainPages(Rc::clone(&life))),
        domains: Box::new(domains::LifeWatch(life)),
        ioctls: &[],
        name: "the testbed".to_owned(),
    })
}
