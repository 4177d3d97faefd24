//! Opening a device's disk beside the loop that serves all others: a server of network block devices may take
//! seconds to answer, or a chain of images on a slow disk.

use crate::disk::Disk;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;
use xenbus::{Device, Error, Progress};

/// How long the loop waits for a disk that was just begun to be opened: most are open by then.
const AT_ONCE: Duration = Duration::from_millis(5);

/// Opens the disk of a device, as its nodes say.
pub type OpenDisk = dyn Fn(&mut Device<'_>) -> Result<Box<dyn Disk>, Error>;

/// Opens a disk, in whatever thread.
pub type Job = Box<dyn FnOnce() -> Result<Opened, Error> + Send>;

/// Makes the job for a device, as its nodes say.
pub type MakeJob = dyn Fn(&mut Device<'_>) -> Result<Job, Error>;

type Opened = Box<dyn Disk + Send>;

/// How disks are opened.
pub enum Open {
    /// In the loop, which serves nobody meanwhile.
    Here(Box<OpenDisk>),
    /// In a thread of its own: the job is made in the loop, from the device's nodes.
    Aside(Box<MakeJob>),
}

impl From<Box<OpenDisk>> for Open {
    fn from(open: Box<OpenDisk>) -> Self {
        Self::Here(open)
    }
}

/// The disk of one device on its way.
#[derive(Default)]
pub(super) struct Opening(Option<Receiver<Result<Opened, Error>>>);

impl Opening {
    /// The disk, once it is open; begins to open it.
    pub(super) fn disk(
        &mut self,
        open: &Open,
        device: &mut Device<'_>,
    ) -> Result<Option<Box<dyn Disk>>, Error> {
        let make = match open {
            Open::Here(open) => return open(device).map(Some),
            Open::Aside(make) => make,
        };
        let result = match &self.0 {
            Some(result) => result.try_recv(),
            None => {
                let (job, (send, result)) = (make(device)?, channel());
                let thread = std::thread::Builder::new().name("opening".into());
                // Where nobody wants the disk any more it is closed there.
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

    /// The disk is not wanted any more; pending until it is closed, as it may be locked.
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
