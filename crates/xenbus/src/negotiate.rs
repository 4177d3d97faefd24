//! Rings, event channels and queues, as both ends name them in the store.
//!
//! Source: the notes on multi-page rings and multiple queues in `xen/include/public/io/blkif.h`.

use crate::device::Device;
use crate::error::Error;
use xen::{GrantRef, Port};

/// The backend's node: largest ring, as the logarithm of its pages.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// The backend's node of old: the same in pages.
pub const MAX_RING_PAGES: &str = "max-ring-pages";
/// The frontend's node: logarithm of its rings' pages.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// The frontend's node of old: the same in pages.
pub const NUM_RING_PAGES: &str = "num-ring-pages";
/// The backend's node: most queues.
pub const MAX_QUEUES: &str = "multi-queue-max-queues";
/// The frontend's node: how many it uses.
pub const NUM_QUEUES: &str = "multi-queue-num-queues";

/// What a backend takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Logarithm of the most pages of a ring; at most 4.
    pub order_max: u32,
    /// Most queues; at least 1.
    pub queues_max: u32,
}

impl Limits {
    /// A ring of one page, one queue: what every peer knows, and what is meant where nothing is said.
    pub const PLAIN: Self = Self { order_max: 0, queues_max: 1 };

    /// Tells the frontend, for [`Driver::open`](crate::Driver::open) of a backend.
    pub fn put(self, device: &mut Device<'_>) {
        device.put(MAX_RING_PAGE_ORDER, self.order_max);
        device.put(MAX_RING_PAGES, 1_u32 << self.order_max.min(31));
        device.put(MAX_QUEUES, self.queues_max);
    }

    /// What the backend takes, cut down to `self`; for a frontend. What the backend claims beyond that
    /// does not matter.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn within_theirs(self, device: &mut Device<'_>) -> Result<Self, Error> {
        let pages = device.their_setting(MAX_RING_PAGES, 1)?.max(1);
        let order = device.their_setting(MAX_RING_PAGE_ORDER, 0)?;
        let queues = device.their_setting(MAX_QUEUES, 1)?.max(1);
        Ok(Self {
            order_max: self.order_max.min(order.max(pages.ilog2())),
            queues_max: self.queues_max.min(queues),
        })
    }
}

/// One ring: its pages and the event channel beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Its pages, in order; a power of two of them.
    pub pages: Vec<GrantRef>,
    /// The frontend's port.
    pub port: Port,
}

/// Tells the backend where the rings are, for [`Driver::open`](crate::Driver::open) of a frontend. All rings
/// have the same number of pages.
pub fn put_rings(device: &mut Device<'_>, rings: &[Ring]) {
    let pages = rings.first().map_or(1, |ring| ring.pages.len());
    if pages > 1 {
        device.put(RING_PAGE_ORDER, pages.ilog2());
        device.put(NUM_RING_PAGES, pages);
    }
    if rings.len() > 1 {
        device.put(NUM_QUEUES, rings.len());
    }
    for (number, ring) in rings.iter().enumerate() {
        let at = if rings.len() > 1 { format!("queue-{number}/") } else { String::new() };
        match &ring.pages[..] {
            [page] => device.put(format!("{at}ring-ref"), page),
            pages => {
                for (number, page) in pages.iter().enumerate() {
                    device.put(format!("{at}ring-ref{number}"), page);
                }
            }
        }
        device.put(format!("{at}event-channel"), ring.port);
    }
}

/// Where the frontend's rings are: one for each queue, none of them beyond `limits`.
///
/// # Errors
/// [`Error::Missing`], [`Error::Bad`]: not what was offered.
pub fn rings(device: &mut Device<'_>, limits: Limits) -> Result<Vec<Ring>, Error> {
    let queues = device.their_number::<u32>(NUM_QUEUES)?;
    let count = queues.unwrap_or(1);
    if count == 0 || count > limits.queues_max {
        let wanted = "a number from 1 to what multi-queue-max-queues says";
        return Err(device.bad(NUM_QUEUES, count.to_string().as_bytes(), wanted));
    }
    let pages = ring_pages(device, limits)?;
    (0..count)
        .map(|number| {
            let at = if count > 1 { format!("queue-{number}/") } else { String::new() };
            let pages = ring_refs(device, &at, pages)?;
            let port = Port(device.their_needed(&format!("{at}event-channel"))?);
            Ok(Ring { pages, port })
        })
        .collect()
}

/// How many pages each ring has.
fn ring_pages(device: &mut Device<'_>, limits: Limits) -> Result<Pages, Error> {
    let wanted = "a power of two of pages, at most what max-ring-page-order says";
    let most = 1_u32 << limits.order_max.min(31);
    let (name, pages) = match device.their_number::<u32>(RING_PAGE_ORDER)? {
        Some(order) => (RING_PAGE_ORDER, 1_u32.checked_shl(order)),
        None => match device.their_number::<u32>(NUM_RING_PAGES)? {
            Some(pages) => (NUM_RING_PAGES, Some(pages)),
            None => return Ok(Pages::Unsaid),
        },
    };
    match pages {
        Some(pages) if pages.is_power_of_two() && pages <= most => Ok(Pages::Said(pages)),
        _ => {
            let value = device.theirs(name)?.unwrap_or_default();
            Err(device.bad(name, &value, wanted))
        }
    }
}

/// What the frontend says of its rings' size.
#[derive(Clone, Copy)]
enum Pages {
    /// Nothing: one page, and its name has no number.
    Unsaid,
    /// So many; where it is one, its name may have a number.
    Said(u32),
}

fn ring_refs(device: &mut Device<'_>, at: &str, pages: Pages) -> Result<Vec<GrantRef>, Error> {
    let plain = format!("{at}ring-ref");
    let count = match pages {
        Pages::Unsaid => return Ok(vec![GrantRef(device.their_needed(&plain)?)]),
        Pages::Said(count) => count,
    };
    if count == 1
        && let Some(grant) = device.their_number(&plain)?
    {
        return Ok(vec![GrantRef(grant)]);
    }
    (0..count)
        .map(|number| Ok(GrantRef(device.their_needed(&format!("{at}ring-ref{number}"))?)))
        .collect()
}
