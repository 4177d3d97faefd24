//! Keeps requests that a backend has not answered, for the next one. That backend may have smaller
//! rings, and take fewer segments or not take such requests at all.

use super::queue::{BufferSectors, Completion, DiskRequest, SubmittedRequest};
use std::collections::{BTreeMap, VecDeque};
use xen_io::blkif::Status;

#[derive(Default)]
pub(super) struct ResubmitQueue {
    requests: VecDeque<SubmittedRequest>,
    /// The requests that were split, by their tags: the number of missing answers, and the status
    /// so far.
    pieces: BTreeMap<u64, (usize, Status)>,
    /// The failed requests that the new backend does not take.
    failed: Vec<Completion>,
}

impl ResubmitQueue {
    pub(super) fn extend(&mut self, requests: Vec<SubmittedRequest>) {
        self.requests.extend(requests);
    }

    pub(super) fn pop(&mut self) -> Option<SubmittedRequest> {
        self.requests.pop_front()
    }

    pub(super) fn put_back(&mut self, request: SubmittedRequest) {
        self.requests.push_front(request);
    }

    /// True if there is a request to submit.
    pub(super) fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len() + self.failed.len()
    }

    /// Splits reads and writes of more than `parts_max` parts into several.
    pub(super) fn split(&mut self, parts_max: usize) {
        for request in std::mem::take(&mut self.requests) {
            let (DiskRequest::Read { tag, sector } | DiskRequest::Write { tag, sector }) =
                request.want
            else {
                self.requests.push_back(request);
                continue;
            };
            let count = request.parts.len().div_ceil(parts_max);
            if count > 1 {
                self.pieces.entry(tag).or_insert((1, Status::Okay)).0 += count - 1;
            }
            let mut sector = sector;
            for parts in request.parts.chunks(parts_max) {
                let want = match request.want {
                    DiskRequest::Read { .. } => DiskRequest::Read { tag, sector },
                    _ => DiskRequest::Write { tag, sector },
                };
                self.requests.push_back(SubmittedRequest { want, parts: parts.to_vec() });
                sector += parts.iter().map(sectors).sum::<u64>();
            }
        }
    }

    /// Takes the answer to a request; returns the answer to the whole request if that was the last
    /// of its pieces.
    pub(super) fn complete(&mut self, completion: Completion) -> Option<Completion> {
        let Completion { tag, status } = completion;
        let Some((left, worst)) = self.pieces.get_mut(&tag) else { return Some(completion) };
        *left -= 1;
        if status != Status::Okay {
            *worst = status;
        }
        if *left > 0 {
            return None;
        }
        self.pieces.remove(&tag).map(|(_, status)| Completion { tag, status })
    }

    /// Fails a request that the new backend does not take.
    pub(super) fn fail(&mut self, request: &SubmittedRequest) {
        let failed = Completion { tag: request.want.tag(), status: Status::NotSupported };
        let whole = self.complete(failed);
        self.failed.extend(whole);
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    pub(super) fn take_failed(&mut self) -> impl Iterator<Item = Completion> {
        self.failed.drain(..)
    }
}

fn sectors(part: &BufferSectors) -> u64 {
    u64::from(part.last.saturating_sub(part.first)) + 1
}
