//! The creation of a guest, as the keeper knows of it: a connection that the creator holds until the
//! guest is complete, or undone. The keeper cleans up after a creator that has died.

use super::folder::Folder;
use crate::Error;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The time in which the keeper has to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// The time in which a connection to the keeper has to bring its message.
const SAID_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of a guest's name at most.
const NAME_MAX: usize = 64;

/// The creator's end of a creation; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Creation(#[expect(dead_code, reason = "held, for its end")] UnixStream);

impl Creation {
    /// Tells the keeper that a guest of this name is being created.
    ///
    /// # Errors
    /// A sentence where no keeper answers: nobody would act when the guest ends.
    pub(crate) fn begin(folder: &Folder, name: &str) -> Result<Self, Error> {
        let path = folder.keeper();
        let said = |error: std::io::Error| {
            let cause = crate::text::cause(&error);
            let dir = folder.path().display();
            Error::Refused(format!(
                "the keeper at {} does not answer: {cause}; xb --host {dir} host up starts it",
                path.display()
            ))
        };
        let mut stream = UnixStream::connect(&path).map_err(said)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).map_err(said)?;
        stream.write_all(name.as_bytes()).map_err(said)?;
        stream.read_exact(&mut [0]).map_err(said)?;
        Ok(Self(stream))
    }
}

/// The keeper's end of a creation.
#[derive(Debug)]
pub(crate) struct KnownCreation(UnixStream);

impl KnownCreation {
    /// Takes the message of a connection to the keeper, and answers it. Returns the guest's name, too.
    pub(crate) fn accept(mut stream: UnixStream) -> std::io::Result<(Self, String)> {
        // The client is of this user and sends at once.
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SAID_WITHIN))?;
        let mut name = [0; NAME_MAX];
        let count = stream.read(&mut name)?;
        let wrong = || std::io::Error::other("a guest's name is needed");
        let name = name.get(..count).unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| wrong())?;
        let is_name = Path::new(name).components().count() == 1 && !name.starts_with('.');
        let name = is_name.then(|| name.to_owned()).ok_or_else(wrong)?;
        stream.write_all(b".")?;
        stream.set_nonblocking(true)?;
        Ok((Self(stream), name))
    }

    /// True if it is over: the creator has closed its end, or has died.
    pub(crate) fn is_over(&mut self) -> bool {
        // Nothing more is sent: what can be read is the end, or bytes that are no creator's.
        let read = self.0.read_exact(&mut [0]);
        !read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

impl AsFd for KnownCreation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
