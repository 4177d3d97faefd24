//! The handing over of a guest's output to the keeper: the creator of a guest sends the reading end
//! with the guest's name, and continues once the keeper has confirmed that it has a log for it.

use super::folder::Folder;
use crate::Error;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The time in which the keeper has to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// The time in which a connection to the keeper has to bring its message.
const SAID_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of a guest's name at most.
const NAME_MAX: usize = 64;

/// Makes the keeper write a new log of a guest. Returns the descriptor whose input goes there.
///
/// # Errors
/// A sentence where no keeper answers.
pub(crate) fn hand_over(folder: &Folder, name: &str) -> Result<OwnedFd, Error> {
    let path = folder.keeper();
    let said = |error: std::io::Error| {
        let cause = crate::text::cause(&error);
        let dir = folder.path().display();
        Error::Refused(format!(
            "the keeper at {} does not answer: {cause}; xb --host {dir} host up starts it",
            path.display()
        ))
    };
    let (read, write) = folder.guest(name).new_output()?;
    let mut stream = UnixStream::connect(&path).map_err(said)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN)).map_err(said)?;
    let fds = [read.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(
        &stream,
        &[IoSlice::new(name.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    sent.map_err(|errno| said(errno.into()))?;
    stream.read_exact(&mut [0]).map_err(said)?;
    Ok(write)
}

/// The output of a guest, as the keeper gets it.
#[derive(Debug)]
pub(crate) struct Output {
    /// The guest's name.
    pub(crate) name: String,
    /// The reading end.
    pub(crate) pipe: OwnedFd,
}

impl Output {
    /// Receives the message of a connection to the keeper.
    pub(crate) fn receive(stream: &UnixStream) -> std::io::Result<Self> {
        // The client is of this user and sends at once.
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SAID_WITHIN))?;
        let mut name = [0; NAME_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let parts = &mut [IoSliceMut::new(&mut name)];
        let got = rustix::net::recvmsg(stream, parts, &mut ancillary, flags)?;
        let mut pipe = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                pipe = fds.next();
            }
        }
        let wrong = || std::io::Error::other("a name and a pipe are needed");
        let name = name.get(..got.bytes).unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| wrong())?;
        let is_name = Path::new(name).components().count() == 1 && !name.starts_with('.');
        let pipe = pipe.filter(|_| is_name).ok_or_else(wrong)?;
        Ok(Self { name: name.into(), pipe })
    }
}

/// Tells the creator of a guest that there is a log for it.
pub(crate) fn confirm(mut stream: &UnixStream) -> std::io::Result<()> {
    stream.write_all(b".")
}
