//! The devices that are to be looked at.

use crate::path::Id;
use std::collections::VecDeque;

/// Devices with an event since the last look at them, each once.
#[derive(Default)]
pub(super) struct DueDevices(VecDeque<Id>);

impl DueDevices {
    /// Puts a device behind the others, unless it waits already.
    pub(super) fn add(&mut self, id: Id) {
        if !self.0.contains(&id) {
            self.0.push_back(id);
        }
    }

    /// Takes the device whose turn it is.
    pub(super) fn take(&mut self) -> Option<Id> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::DomId;

    #[test]
    fn a_device_waits_once_and_in_its_turn() {
        let [one, other] = [1, 2].map(|devid| Id { frontend: DomId(3), devid });
        let mut due = DueDevices::default();
        [one, other, one].into_iter().for_each(|id| due.add(id));
        assert_eq!((due.take(), due.take(), due.take()), (Some(one), Some(other), None));
        assert!(due.is_empty());
        due.add(one);
        assert!(!due.is_empty(), "what was looked at may be due again");
    }
}
