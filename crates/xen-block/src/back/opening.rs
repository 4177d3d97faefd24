//! Opens a device's disk outside the loop that serves the other devices: a server of network block
//! devices, or a chain of images on a slow disk, may take seconds.

use crate::disk::Disk;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;
use xenbus::{Device, Error, Progress};

/// The longest time that the loop waits for a disk that has just begun to open. Most disks are open
/// by then.
const AT_ONCE: Duration = Duration::from_millis(5);

/// Opens the disk of a device, as its nodes say.
pub type OpenDisk = dyn Fn(&mut Device<'_>) -> Result<Box<dyn Disk>, Error>;

/// Opens a disk, in any thread.
pub type OpenJob = Box<dyn FnOnce() -> Result<SendDisk, Error> + Send>;

/// Makes the job for a device, as its nodes say.
pub type MakeJob = dyn Fn(&mut Device<'_>) -> Result<OpenJob, Error>;

type SendDisk = Box<dyn Disk + Send>;

/// The method of opening disks.
pub enum OpenMethod {
    /// Opens the disk in the loop, which serves no other device meanwhile.
    Here(Box<OpenDisk>),
    /// Opens the disk in a thread of its own. The job is made in the loop, from the device's nodes.
    Aside(Box<MakeJob>),
}

impl From<Box<OpenDisk>> for OpenMethod {
    fn from(open: Box<OpenDisk>) -> Self {
        Self::Here(open)
    }
}

/// The disk of one device while it is being opened.
#[derive(Default)]
pub(super) struct PendingDisk(Option<Receiver<Result<SendDisk, Error>>>);

impl PendingDisk {
    /// Returns the disk once it is open; begins to open it at the first call.
    pub(super) fn disk(
        &mut self,
        open: &OpenMethod,
        device: &mut Device<'_>,
    ) -> Result<Option<Box<dyn Disk>>, Error> {
        let make = match open {
            OpenMethod::Here(open) => return open(device).map(Some),
            OpenMethod::Aside(make) => make,
        };
        let result = match &self.0 {
            Some(result) => result.try_recv(),
            None => {
                let (job, (send, result)) = (make(device)?, channel());
                let thread = std::thread::Builder::new().name("opening".into());
                // A disk that is no longer wanted is closed in this thread.
                let started = thread.spawn(move || drop(send.send(job())));
                started.map_err(|error| Error::Driver(format!("a thread: {error}")))?;
                let first = result.recv_timeout(AT_ONCE);
                self.0 = Some(result);
                first.map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            }
        };
        if result.as_ref().is_err_and(|error| *error == TryRecvError::Empty) {
            return Ok(None);
        }
        self.0 = None;
        let ended = |_| Error::Driver("the thread that opens the disk has ended".to_owned());
        Ok(Some(result.map_err(ended)??))
    }

    /// Gives up the disk. Pending until it is closed, as it may be locked.
    pub(super) fn give_up(&mut self) -> Progress {
        match self.0.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => Progress::Pending,
            _ => {
                self.0 = None;
                Progress::Done
            }
        }
    }
}
