//! Ports that have fired: read from the driver many at a time, given out one by one.

use std::collections::VecDeque;
use xen::Error;

/// Ports that one read takes.
const BATCH: usize = 64;

/// The outcome of a read from the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ReadOutcome {
    /// The number of bytes read. If they fill less than the buffer, the driver has no more.
    Bytes(usize),
    /// Interrupted by a signal before any port was read.
    Interrupted,
    /// Ports that may have fired; more may have by now.
    Ports(Vec<u32>),
}

/// Ports that were read and not yet given out.
#[derive(Debug, Default)]
pub(super) struct FiredPorts {
    ports: VecDeque<u32>,
    /// True if the driver had no more ports at the last read, and no caller was told so since: one
    /// more read would be a system call for each event. Later events make the descriptor readable.
    emptied: bool,
}

impl FiredPorts {
    /// The next port; `None` once for each time that the driver had no more. `read` asks the driver.
    pub(super) fn next(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> Result<ReadOutcome, Error>,
    ) -> Result<Option<u32>, Error> {
        loop {
            if let Some(port) = self.ports.pop_front() {
                return Ok(Some(port));
            }
            if std::mem::take(&mut self.emptied) {
                return Ok(None);
            }
            let mut bytes = [0; BATCH * 4];
            match read(&mut bytes)? {
                ReadOutcome::Bytes(len) => self.take_read(&bytes[..len], bytes.len()),
                ReadOutcome::Interrupted => {}
                ReadOutcome::Ports(ports) => self.ports.extend(ports),
            }
        }
    }

    /// Takes the bytes of a read into a buffer of `room` bytes.
    pub(super) fn take_read(&mut self, bytes: &[u8], room: usize) {
        let (words, _) = bytes.as_chunks::<4>();
        self.ports.extend(words.iter().map(|word| u32::from_ne_bytes(*word)));
        self.emptied = bytes.len() < room;
    }

    /// Forgets a port that is closed. Its number may be given out again: events left of the old
    /// port must not be taken for the new one's.
    pub(super) fn forget(&mut self, port: u32) {
        self.ports.retain(|fired| *fired != port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver in which these ports have fired; it counts how often it is asked.
    struct FiringDriver {
        fired: Vec<u32>,
        asked: u32,
    }

    impl FiringDriver {
        fn read(&mut self, into: &mut [u8]) -> Result<ReadOutcome, Error> {
            self.asked += 1;
            let count = self.fired.len().min(into.len() / 4);
            let words: Vec<u8> = self.fired.drain(..count).flat_map(u32::to_ne_bytes).collect();
            into[..words.len()].copy_from_slice(&words);
            Ok(ReadOutcome::Bytes(words.len()))
        }

        /// All ports up to `None`.
        fn all(&mut self, fired: &mut FiredPorts) -> Vec<u32> {
            std::iter::from_fn(|| fired.next(|into| self.read(into)).unwrap()).collect()
        }
    }

    #[test]
    fn a_driver_that_had_room_left_is_asked_once() {
        let mut driver = FiringDriver { fired: vec![3, 1, 2], asked: 0 };
        let mut fired = FiredPorts::default();
        assert_eq!(driver.all(&mut fired), [3, 1, 2]);
        assert_eq!(driver.asked, 1);
        // A later call finds the ports that have fired since.
        driver.fired = vec![1];
        assert_eq!(driver.all(&mut fired), [1]);
        assert_eq!(driver.all(&mut fired), []);
        assert_eq!(driver.asked, 3);
    }

    #[test]
    fn what_was_read_elsewhere_is_given_out_first() {
        let mut driver = FiringDriver { fired: vec![4], asked: 0 };
        let mut fired = FiredPorts::default();
        fired.take_read(&[3_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat(), 12);
        assert_eq!((driver.all(&mut fired), driver.asked), (vec![3, 1], 0));
        // The room was full: there may be more.
        fired.take_read(&2_u32.to_ne_bytes(), 4);
        assert_eq!((driver.all(&mut fired), driver.asked), (vec![2, 4], 1));
    }

    #[test]
    fn a_driver_that_filled_the_room_is_asked_again() {
        for count in [BATCH - 1, BATCH, BATCH + 1, 3 * BATCH] {
            let ports: Vec<u32> = (1..).take(count).collect();
            let mut driver = FiringDriver { fired: ports.clone(), asked: 0 };
            assert_eq!(driver.all(&mut FiredPorts::default()), ports);
            assert_eq!(driver.asked as usize, count / BATCH + 1, "{count}");
        }
    }

    #[test]
    fn a_port_closed_meanwhile_is_not_given_out() {
        let mut driver = FiringDriver { fired: vec![1, 2, 1, 3], asked: 0 };
        let mut fired = FiredPorts::default();
        assert_eq!(fired.next(|into| driver.read(into)), Ok(Some(1)));
        fired.forget(1);
        fired.forget(3);
        assert_eq!(driver.all(&mut fired), [2]);
        // The number 1 belongs to another port by now.
        driver.fired = vec![1];
        assert_eq!(driver.all(&mut fired), [1]);
    }

    #[test]
    fn a_signal_and_an_overflow_are_not_the_end() {
        let mut answers =
            vec![ReadOutcome::Bytes(0), ReadOutcome::Ports(vec![7, 8]), ReadOutcome::Interrupted]
                .into_iter()
                .rev();
        let mut fired = FiredPorts::default();
        let mut read = |_: &mut [u8]| Ok(answers.next().expect("asked once too often"));
        let got: Vec<_> = (0..3).map(|_| fired.next(&mut read).unwrap()).collect();
        assert_eq!(got, [Some(7), Some(8), None]);
        assert_eq!(fired.next(|_| Err(Error::NoDev)), Err(Error::NoDev));
    }
}
