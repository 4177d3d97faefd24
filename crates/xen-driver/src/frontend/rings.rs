//! The rings and event channels of a device, offered to its backend.

use super::Platform;
use crate::channel::Channel;
use xen::gnttab::{OfferedPage, PageAccess};
use xen_io::ring::FrontRing;
use xenbus::negotiate::{self, QueueLimits, QueueNames};
use xenbus::{Device, Error};

/// One queue of a device: its rings, and the event channels beside them.
#[derive(Debug)]
pub struct Queue<const RINGS: usize, const CHANNELS: usize> {
    /// Its rings.
    pub rings: [FrontRing; RINGS],
    /// Its event channels.
    pub channels: [Channel; CHANNELS],
}

/// Grants rings of `limits` and offers event channels to the backend, and names them in this end's nodes, for
/// [`Driver::open`](xenbus::Driver::open). `entry_bytes` are those of each ring's entries.
///
/// # Errors
/// [`Error::Platform`]: no more grants or ports.
pub fn offer<const R: usize, const C: usize>(
    platform: &Platform,
    device: &mut Device<'_>,
    names: &QueueNames<R, C>,
    limits: QueueLimits,
    entry_bytes: [usize; R],
) -> Result<Vec<Queue<R, C>>, Error> {
    let queues = (0..limits.queues_max).map(|_| queue(platform, device, limits, entry_bytes));
    let queues: Vec<Queue<R, C>> = queues.collect::<Result<_, _>>()?;
    let named = queues.iter().map(|queue| negotiate::Queue {
        rings: std::array::from_fn(|at| queue.rings[at].pages().map(OfferedPage::grant).collect()),
        ports: std::array::from_fn(|at| queue.channels[at].port()),
    });
    names.put(device, &named.collect::<Vec<_>>());
    Ok(queues)
}

fn queue<const R: usize, const C: usize>(
    platform: &Platform,
    device: &Device<'_>,
    limits: QueueLimits,
    entry_bytes: [usize; R],
) -> Result<Queue<R, C>, Error> {
    let mut rings = Vec::with_capacity(R);
    for entry_bytes in entry_bytes {
        let mut pages = Vec::new();
        let mut grants = platform.grants.borrow_mut();
        grants
            .offer_batch(device.peer(), PageAccess::ReadWrite, 1 << limits.order_max, &mut pages)
            .map_err(Error::platform("granting the ring"))?;
        rings.push(FrontRing::new(pages, entry_bytes)?);
    }
    let mut channels = Vec::with_capacity(C);
    for _ in 0..C {
        channels.push(Channel::offer(&platform.evtchn, device.peer())?);
    }
    let (Ok(rings), Ok(channels)) = (rings.try_into(), channels.try_into()) else {
        unreachable!("as many as there are names")
    };
    Ok(Queue { rings, channels })
}
