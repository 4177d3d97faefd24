//! Watch events, as an iterator.

use super::Event;
use crate::client::Client;
use crate::error::Error;
use std::time::Duration;

/// An iterator over watch events. It ends after the timeout without an event, or after an error.
#[derive(Debug)]
pub struct Events<'a> {
    client: &'a mut Client,
    timeout: Option<Duration>,
    failed: bool,
}

impl Iterator for Events<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.client.next_event(self.timeout).transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

impl Client {
    /// Returns an iterator over the events. It waits at most `timeout` for each.
    pub fn events(&mut self, timeout: Option<Duration>) -> Events<'_> {
        Events { client: self, timeout, failed: false }
    }
}
