//! The trait of a driver, the same for both ends.

use crate::device::Device;
use crate::error::Error;
use xen_io::xenbus::State;

/// The progress of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is done; the state changes.
    Done,
    /// It waits for something. It is tried again when one of the device's nodes or the peer's state
    /// changes, or upon [`Bus::look_again`](crate::Bus::look_again).
    Pending,
}

/// One end of one device. What a method puts ([`Device::put`]) reaches the store in one transaction with
/// the state that follows; where it is pending or fails, nothing does.
pub trait Driver {
    /// True if the device is for this driver. Asked when it is found, before anything of it is written or watched:
    /// one that is for another program is left alone, and asked about again when its nodes change.
    ///
    /// # Errors
    /// [`Error::Store`]. Unless the store is gone, the device is left alone.
    fn serves(&mut self, device: &mut Device<'_>) -> Result<bool, Error> {
        let _ = device;
        Ok(true)
    }

    /// Writes the nodes of this end: a backend's features (InitWait follows), or the rings that a
    /// frontend makes (Initialised follows).
    ///
    /// # Errors
    /// The device closes, the reason goes into its `error` node.
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error>;

    /// Connects to the peer by its nodes (Connected follows).
    ///
    /// # Errors
    /// As [`Driver::open`].
    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error>;

    /// A backend that starts while the device is Connected, because the process before it was killed:
    /// takes the rings into use where they are. Nothing is written; the frontend notices nothing.
    ///
    /// # Errors
    /// As [`Driver::open`]; drivers that cannot do so close the device.
    fn reattach(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let what = format!("{} was in use by a process that has ended", device.path());
        Err(Error::Driver(what))
    }

    /// Handles a change that the other end has made while connected.
    ///
    /// # Errors
    /// As [`Driver::open`].
    fn refresh(&mut self, device: &mut Device<'_>) -> Result<(), Error> {
        let _ = device;
        Ok(())
    }

    /// One of this end's own nodes may have changed while a backend is connected: a toolstack has set a limit
    /// anew. It may be called when nothing has.
    fn nodes_changed(&mut self, device: &mut Device<'_>) {
        let _ = device;
    }

    /// Does this end's part when the other end reconfigures; afterwards this end goes to `next`.
    ///
    /// # Errors
    /// As [`Driver::open`]; most kinds of devices know nothing of this.
    fn reconfigure(&mut self, device: &mut Device<'_>, next: State) -> Result<Progress, Error> {
        Err(Error::Driver(format!("{} cannot be reconfigured (to {next})", device.path())))
    }

    /// The backend wants to close. A frontend whose device is in use says pending, and goes on with it until
    /// [`Bus::look_again`](crate::Bus::look_again) asks again; its `error` node says so meanwhile. A backend that
    /// has failed is not to be waited for: its `online` is not 0.
    fn closing(&mut self, device: &mut Device<'_>) -> Progress {
        let _ = device;
        Progress::Done
    }

    /// Gives back all that is the peer's: rings, grants, event channels. Closed follows, unless it is
    /// done before everything begins anew. May be called when there is nothing to give back. A frontend's
    /// driver is dropped once it is Closed; what comes then has another.
    fn release(&mut self, device: &mut Device<'_>) -> Progress;
}
