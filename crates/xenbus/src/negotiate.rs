//! Rings, event channels and queues, as both ends name them in the store.
//!
//! Source: the notes on multi-page rings and multiple queues in `xen/include/public/io/blkif.h`, those on queues and
//! split event channels in `io/netif.h`.

use crate::device::Device;
use crate::error::Error;
use xen::{GrantRef, Port};

/// The backend's node: largest ring, as the logarithm of its pages.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// The backend's older node: largest ring in pages.
pub const MAX_RING_PAGES: &str = "max-ring-pages";
/// The frontend's node: logarithm of its rings' pages.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// The frontend's older node: its rings' size in pages.
pub const NUM_RING_PAGES: &str = "num-ring-pages";
/// The backend's node: most queues.
pub const MAX_QUEUES: &str = "multi-queue-max-queues";
/// The frontend's node: the number of queues that it uses.
pub const NUM_QUEUES: &str = "multi-queue-num-queues";

/// The limits of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    /// Logarithm of the most pages of a ring; at most 4.
    pub order_max: u32,
    /// Most queues; at least 1.
    pub queues_max: u32,
}

impl QueueLimits {
    /// One ring of one page and one queue, which every peer supports and which holds if no node
    /// says more.
    pub const PLAIN: Self = Self { order_max: 0, queues_max: 1 };

    /// Tells the frontend, for [`Driver::open`](crate::Driver::open) of a backend.
    pub fn put(self, device: &mut Device<'_>) {
        device.put(MAX_RING_PAGE_ORDER, self.order_max);
        device.put(MAX_RING_PAGES, 1_u32 << self.order_max.min(31));
        device.put(MAX_QUEUES, self.queues_max);
    }

    /// Returns the backend's limits, reduced to those of `self`; for a frontend. Any claim of the
    /// backend beyond them has no effect.
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

/// The names that a device type has for the rings and event channels of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueNames<const RINGS: usize, const CHANNELS: usize> {
    /// The node of each ring's grants: `ring-ref`; of a vif `tx-ring-ref` and `rx-ring-ref`. A ring of several pages
    /// has the number of each behind its name.
    pub rings: [&'static str; RINGS],
    /// The node of each port: `event-channel`; of a vif that has two of them `event-channel-tx` and
    /// `event-channel-rx`.
    pub channels: [&'static str; CHANNELS],
}

impl QueueNames<1, 1> {
    /// One ring and one event channel, as a vbd has them.
    pub const PLAIN: Self = Self { rings: ["ring-ref"], channels: ["event-channel"] };
}

/// One queue of a device: its rings, and the event channels beside them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queue<const RINGS: usize, const CHANNELS: usize> {
    /// The pages of each ring, in order; a power of two of them.
    pub rings: [Vec<GrantRef>; RINGS],
    /// The frontend's ports.
    pub ports: [Port; CHANNELS],
}

/// The path of a queue's nodes: `queue-1/`; nothing where there is no other.
fn place(number: u32, count: u32) -> String {
    if count > 1 { format!("queue-{number}/") } else { String::new() }
}

impl<const RINGS: usize, const CHANNELS: usize> QueueNames<RINGS, CHANNELS> {
    /// Writes the frontend's rings and ports of all queues, for
    /// [`Driver::open`](crate::Driver::open). All rings have the same number of pages.
    pub fn put(&self, device: &mut Device<'_>, queues: &[Queue<RINGS, CHANNELS>]) {
        let pages = queues.first().and_then(|queue| queue.rings.first()).map_or(1, Vec::len);
        if pages > 1 {
            device.put(RING_PAGE_ORDER, pages.ilog2());
            device.put(NUM_RING_PAGES, pages);
        }
        let count = u32::try_from(queues.len()).unwrap_or(u32::MAX);
        if count > 1 {
            device.put(NUM_QUEUES, count);
        }
        for (number, queue) in (0..count).zip(queues) {
            self.put_one(device, &place(number, count), queue);
        }
    }

    /// Writes the rings and ports that belong to no queue, such as those for the control of a vif.
    pub fn put_shared(&self, device: &mut Device<'_>, queue: &Queue<RINGS, CHANNELS>) {
        self.put_one(device, "", queue);
    }

    fn put_one(&self, device: &mut Device<'_>, at: &str, queue: &Queue<RINGS, CHANNELS>) {
        for (name, ring) in self.rings.iter().zip(&queue.rings) {
            match &ring[..] {
                [page] => device.put(format!("{at}{name}"), page),
                pages => {
                    for (number, page) in pages.iter().enumerate() {
                        device.put(format!("{at}{name}{number}"), page);
                    }
                }
            }
        }
        for (name, port) in self.channels.iter().zip(&queue.ports) {
            device.put(format!("{at}{name}"), port);
        }
    }

    /// The queues of the frontend, none of them beyond `limits`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Bad`]: not what was offered.
    pub fn queues(
        &self,
        device: &mut Device<'_>,
        limits: QueueLimits,
    ) -> Result<Vec<Queue<RINGS, CHANNELS>>, Error> {
        let count = device.their_number::<u32>(NUM_QUEUES)?.unwrap_or(1);
        if count == 0 || count > limits.queues_max {
            let wanted = "a number from 1 to what multi-queue-max-queues says";
            return Err(device.bad(NUM_QUEUES, count.to_string().as_bytes(), wanted));
        }
        let pages = ring_pages(device, limits)?;
        (0..count).map(|number| self.one(device, &place(number, count), pages)).collect()
    }

    /// The rings, of one page each, and the ports that belong to no queue.
    ///
    /// # Errors
    /// As [`QueueNames::queues`].
    pub fn shared(&self, device: &mut Device<'_>) -> Result<Queue<RINGS, CHANNELS>, Error> {
        self.one(device, "", RingSize::Unsaid)
    }

    fn one(
        &self,
        device: &mut Device<'_>,
        at: &str,
        pages: RingSize,
    ) -> Result<Queue<RINGS, CHANNELS>, Error> {
        let (mut rings, mut ports) = ([const { Vec::new() }; RINGS], [Port(0); CHANNELS]);
        for (ring, name) in rings.iter_mut().zip(self.rings) {
            *ring = ring_refs(device, &format!("{at}{name}"), pages)?;
        }
        for (port, name) in ports.iter_mut().zip(self.channels) {
            *port = Port(device.their_needed(&format!("{at}{name}"))?);
        }
        Ok(Queue { rings, ports })
    }
}

/// Returns the number of pages of each ring.
fn ring_pages(device: &mut Device<'_>, limits: QueueLimits) -> Result<RingSize, Error> {
    let wanted = "a power of two of pages, at most what max-ring-page-order says";
    let most = 1_u32 << limits.order_max.min(31);
    let (name, pages) = match device.their_number::<u32>(RING_PAGE_ORDER)? {
        Some(order) => (RING_PAGE_ORDER, 1_u32.checked_shl(order)),
        None => match device.their_number::<u32>(NUM_RING_PAGES)? {
            Some(pages) => (NUM_RING_PAGES, Some(pages)),
            None => return Ok(RingSize::Unsaid),
        },
    };
    match pages {
        Some(pages) if pages.is_power_of_two() && pages <= most => Ok(RingSize::Said(pages)),
        _ => {
            let value = device.theirs(name)?.unwrap_or_default();
            Err(device.bad(name, &value, wanted))
        }
    }
}

/// The size of the rings in the frontend's nodes.
#[derive(Clone, Copy)]
enum RingSize {
    /// No such node: one page, and the name of its node has no number.
    Unsaid,
    /// The number of pages. If it is one, the name of its node may have a number.
    Said(u32),
}

fn ring_refs(device: &mut Device<'_>, name: &str, pages: RingSize) -> Result<Vec<GrantRef>, Error> {
    let count = match pages {
        RingSize::Unsaid => return Ok(vec![GrantRef(device.their_needed(name)?)]),
        RingSize::Said(count) => count,
    };
    if count == 1
        && let Some(grant) = device.their_number(name)?
    {
        return Ok(vec![GrantRef(grant)]);
    }
    (0..count)
        .map(|number| Ok(GrantRef(device.their_needed(&format!("{name}{number}"))?)))
        .collect()
}
