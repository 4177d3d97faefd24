//! The frontend's end of device types: what a guest has of them.
//!
//! A [`Guest`] takes the events of one store connection and one set of event channels to the devices of all kinds; each
//! kind is a [`GuestDevices`], in the simplest case the [`Bus`](xenbus::Bus) of a [`Frontend`]. A backend need not be
//! trusted: it can answer wrongly, late or never, and see what is granted to it; nothing else.
//!
//! | module | what it is |
//! |---|---|
//! | [`guest`] | the loop of a guest |
//! | [`rings`] | the rings and event channels of a device, offered to its backend |
//! | [`ring`] | one ring: requests put, answers taken and checked against what was asked |
//! | [`buffers`] | pages for data, granted once and used again and again |

pub mod buffers;
pub mod guest;
pub mod ring;
pub mod rings;

pub use guest::{Frontend, Guest, GuestDevices};

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use xen::evtchn::EventChannels;
use xen::gnttab::GrantOffer;

/// Event channels and grants, as a frontend's process has them from its platform.
#[derive(Clone)]
pub struct Platform {
    /// The event channels of this process.
    pub evtchn: Rc<RefCell<dyn EventChannels>>,
    /// The grants that it offers.
    pub grants: Rc<RefCell<dyn GrantOffer>>,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").finish_non_exhaustive()
    }
}
