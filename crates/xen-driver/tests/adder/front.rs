//! The frontend of an adder: asks for the sums that its user wants, as many at a time as the ring holds.

use super::wire::{ENTRY, decode, encode};
use std::collections::VecDeque;
use xen_driver::Channel;
use xen_driver::frontend::rings::{Queue, offer};
use xen_driver::frontend::{Frontend, Platform, ring};
use xenbus::negotiate::{QueueLimits, QueueNames};
use xenbus::{Device, Driver, Error, Progress};

pub(crate) struct AdderFrontend {
    platform: Platform,
    queue: Option<(ring::Ring<(u32, u32)>, Channel)>,
    /// Numbers to be added.
    pub(crate) wanted: VecDeque<(u32, u32)>,
    /// Numbers and their sum, as answered.
    pub(crate) sums: Vec<((u32, u32), u64)>,
}

impl AdderFrontend {
    pub(crate) fn new(platform: Platform) -> Self {
        Self { platform, queue: None, wanted: VecDeque::new(), sums: Vec::new() }
    }
}

impl Driver for AdderFrontend {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let sizes = [ENTRY.bytes];
        let queues = offer(&self.platform, device, &QueueNames::PLAIN, QueueLimits::PLAIN, sizes)?;
        let ends = |Queue { rings: [ring], channels: [channel] }| (ring::Ring::new(ring), channel);
        self.queue = queues.into_iter().map(ends).next();
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        // Requests without an answer are made to the next backend.
        self.wanted.extend(self.queue.take().iter_mut().flat_map(|(ring, _)| ring.take_open()));
        Progress::Done
    }
}

impl Frontend for AdderFrontend {
    fn work(&mut self) -> Result<usize, Error> {
        let (mut moved, mut answer) = (0, [0; 16]);
        let Some((ring, channel)) = &mut self.queue else { return Ok(0) };
        while ring.take(&mut answer)? {
            let (id, sum) = decode(answer);
            let id = ring::RingRequestId::from_wire(id);
            self.sums.push((*ring.asked(id)?, sum));
            ring.end(id);
            moved += 1;
        }
        while let Some((a, b)) = if ring.free() > 0 { self.wanted.pop_front() } else { None } {
            let id = ring.next_id()?.wire();
            let request = encode(id, u64::from(a) << 32 | u64::from(b));
            *ring.put(&request)? = (a, b);
            moved += 1;
        }
        if ring.push()? {
            channel.notify()?;
        }
        Ok(moved)
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        self.queue.as_mut().map_or(Ok(false), |(ring, _)| Ok(ring.final_check()?))
    }
}
