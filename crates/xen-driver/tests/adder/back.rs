//! The backend: takes two numbers, and some time later answers with their sum.

use super::wire::{ENTRY, decode, encode};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use xen::Port;
use xen_driver::backend::rings::{Queue, Rings};
use xen_driver::backend::{Backend, TurnOutcome};
use xenbus::negotiate::QueueNames;
use xenbus::{Device, Driver, Error, Progress};

pub(crate) struct AdderBackend {
    rings: Rings,
    queue: Option<Queue<1, 1>>,
    /// Additions under way, oldest first: when each ends, its slot, its answer.
    open: VecDeque<(Option<Instant>, u16, [u8; 16])>,
    replayed: usize,
}

impl AdderBackend {
    pub(crate) fn new(rings: Rings) -> Self {
        Self { rings, queue: None, open: VecDeque::new(), replayed: 0 }
    }

    fn begin(&mut self, end: Option<Instant>, slot: u16, request: [u8; 16]) {
        let (id, numbers) = decode(request);
        let answer = encode(id, (numbers >> 32) + (numbers & u64::from(u32::MAX)));
        self.open.push_back((end, slot, answer));
    }
}

impl Driver for AdderBackend {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.rings.limits().put(device);
        Ok(Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        if !self.rings.may_connect(device)? {
            return Ok(Progress::Pending);
        }
        self.queue = self.rings.connect(device, &QueueNames::PLAIN, [ENTRY])?.pop();
        Ok(Progress::Done)
    }

    fn reattach(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let queues = self.rings.take_over(device, &QueueNames::PLAIN, [ENTRY])?;
        let Some(mut queue) = queues.into_iter().flatten().next() else {
            return Ok(Progress::Pending);
        };
        for request in queue.rings[0].unanswered()? {
            self.begin(None, request.slot, *request.request.first_chunk().unwrap());
            self.replayed += 1;
        }
        queue.channels[0].notify()?;
        self.queue = Some(queue);
        Ok(Progress::Done)
    }

    fn release(&mut self, device: &mut Device<'_>) -> Progress {
        (self.queue, self.open) = (None, VecDeque::new());
        self.rings.give_back(device)
    }
}

impl Backend for AdderBackend {
    fn work(&mut self, now: Instant, _: Option<Duration>) -> Result<TurnOutcome, Error> {
        let (mut worked, mut request) = (TurnOutcome::default(), [0; 16]);
        let Some(mut queue) = self.queue.take() else { return Ok(worked) };
        while let Some(slot) = queue.rings[0].take(&mut request)? {
            self.begin(Some(now + Duration::from_millis(5)), slot, request);
            worked.moved += 1;
        }
        while let Some((_, slot, answer)) = self.open.pop_front_if(|(end, ..)| *end <= Some(now)) {
            queue.rings[0].answer(slot, &answer)?;
        }
        queue.show(&mut worked)?;
        self.queue = Some(queue);
        Ok(worked)
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        self.queue.as_mut().map_or(Ok(false), |queue| Ok(queue.rings[0].final_check()?))
    }

    fn ports(&self) -> impl Iterator<Item = Port> {
        self.queue.iter().map(|queue| queue.channels[0].port())
    }

    fn limited_until(&self, now: Instant) -> Option<Instant> {
        self.open.front().and_then(|(end, ..)| *end).filter(|end| *end > now)
    }

    fn summary(&self) -> String {
        format!("{} additions done again", self.replayed)
    }
}
