//! Reads and writes nodes, inside and outside a transaction alike.

use crate::error::Error;
use crate::perms::Perm;
use xenstore_core::client::ErrorName;
use xenstore_core::wire::{self, MsgType, Strings};

/// The most times that the listing of a directory over 4096 bytes is restarted after a change.
const LISTINGS_MAX: u32 = 16;

/// Requests about nodes: [`crate::Client`] sends them on their own, [`crate::Transaction`] within
/// its transaction.
///
/// Paths are absolute, or relative to the caller's own `/local/domain/<domid>` if the caller is a
/// domain (`/dev/xen/xenbus`). They are bytes. The store allows ASCII letters, digits and `-/_@` in
/// them, and refuses others with EINVAL.
pub trait Store {
    /// Sends one request, waits for its reply and returns its payload unchanged. The request's
    /// payload is `parts` concatenated; the caller adds the NULs.
    ///
    /// # Errors
    /// [`Error::Refused`] if the daemon answers with an error, or any other [`Error`].
    fn request(&mut self, kind: MsgType, parts: &[&[u8]]) -> Result<Vec<u8>, Error>;

    /// Returns the value of a node.
    ///
    /// # Errors
    /// ENOENT, EACCES; see [`Store::request`].
    fn read(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<u8>, Error>
    where
        Self: Sized,
    {
        self.request(MsgType::Read, &[text(MsgType::Read, path.as_ref())?, b"\0"])
    }

    /// Returns the value of a node; `None` if the node does not exist.
    ///
    /// # Errors
    /// EACCES; see [`Store::request`].
    fn try_read(&mut self, path: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, Error>
    where
        Self: Sized,
    {
        if_there(self.read(path))
    }

    /// Sets the value of a node; creates it and its missing parents.
    ///
    /// # Errors
    /// EACCES, ENOSPC (quota), E2BIG (value over the node-size quota); see [`Store::request`].
    fn write(&mut self, path: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        let path = text(MsgType::Write, path.as_ref())?;
        self.request(MsgType::Write, &[path, b"\0", value.as_ref()]).map(drop)
    }

    /// Creates a node with an empty value, and its missing parents, if it does not exist.
    ///
    /// # Errors
    /// EACCES, ENOSPC (quota); see [`Store::request`].
    fn mkdir(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        self.request(MsgType::Mkdir, &[text(MsgType::Mkdir, path.as_ref())?, b"\0"]).map(drop)
    }

    /// Removes a node with everything below it. A missing node is no error if its parent exists.
    ///
    /// # Errors
    /// ENOENT (no parent either), EACCES, EINVAL for `/`; see [`Store::request`].
    fn rm(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        self.request(MsgType::Rm, &[text(MsgType::Rm, path.as_ref())?, b"\0"]).map(drop)
    }

    /// Removes a node with everything below it. A node that does not exist is no error, even if its
    /// parent does not exist either.
    ///
    /// # Errors
    /// EACCES, EINVAL for `/`; see [`Store::request`].
    fn remove(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        if_there(self.rm(path)).map(drop)
    }

    /// True if a node exists and may be read.
    ///
    /// # Errors
    /// All but ENOENT and EACCES; see [`Store::request`].
    fn exists(&mut self, path: impl AsRef<[u8]>) -> Result<bool, Error>
    where
        Self: Sized,
    {
        match self.read(path) {
            Ok(_) => Ok(true),
            Err(error) => match error.refusal() {
                Some(wire::Error::NoEnt | wire::Error::Access) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Returns the names of a node's children, without their path, in the daemon's order.
    ///
    /// A listing over 4096 bytes is read in parts (DIRECTORY_PART), and restarted if the directory
    /// changes meanwhile. The result is the listing at one moment.
    ///
    /// # Errors
    /// ENOENT, EACCES, E2BIG if the daemon has no DIRECTORY_PART, [`Error::Unsteady`]; see
    /// [`Store::request`].
    fn directory(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, Error>
    where
        Self: Sized,
    {
        Ok(split(&directory_bytes(self, path.as_ref())?))
    }

    /// Returns the names of a node's children as text, as [`Store::directory`] does; none if the
    /// node does not exist.
    ///
    /// # Errors
    /// Those of [`Store::directory`], except ENOENT.
    fn list(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<String>, Error>
    where
        Self: Sized,
    {
        let names = if_there(self.directory(path))?.unwrap_or_default();
        Ok(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// Returns the permissions of a node. The first entry names its owner.
    ///
    /// # Errors
    /// ENOENT, EACCES; see [`Store::request`].
    fn get_perms(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<Perm>, Error>
    where
        Self: Sized,
    {
        let path = text(MsgType::GetPerms, path.as_ref())?;
        parse_perms(path, self.request(MsgType::GetPerms, &[path, b"\0"])?)
    }

    /// Sets the permissions of a node. The first entry names its owner.
    ///
    /// # Errors
    /// EACCES, EPERM, EINVAL without any entry; see [`Store::request`].
    fn set_perms(&mut self, path: impl AsRef<[u8]>, perms: &[Perm]) -> Result<(), Error>
    where
        Self: Sized,
    {
        let entries: String = perms.iter().map(|perm| format!("{perm}\0")).collect();
        let path = text(MsgType::SetPerms, path.as_ref())?;
        self.request(MsgType::SetPerms, &[path, b"\0", entries.as_bytes()]).map(drop)
    }
}

/// Converts the answer about a node that does not exist to `None`.
fn if_there<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if error.refusal() == Some(wire::Error::NoEnt) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Checks that the protocol can carry a string, and returns it.
pub(crate) fn text(request: MsgType, text: &[u8]) -> Result<&[u8], Error> {
    if text.contains(&0) { Err(Error::NulByte { request }) } else { Ok(text) }
}

/// Returns the strings of a reply.
pub(crate) fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    Strings::new(bytes).map(<[u8]>::to_vec).collect()
}

/// Parses the entries of a GET_PERMS reply.
pub(crate) fn parse_perms(path: &[u8], reply: Vec<u8>) -> Result<Vec<Perm>, Error> {
    let perms: Option<Vec<Perm>> = Strings::new(&reply).map(Perm::parse).collect();
    perms.filter(|perms| !perms.is_empty()).ok_or_else(|| Error::BadReply {
        request: MsgType::GetPerms,
        subject: path.to_vec(),
        reply,
    })
}

/// Returns a node's children as the daemon sends them: each name with a NUL after it.
pub(crate) fn directory_bytes(store: &mut impl Store, path: &[u8]) -> Result<Vec<u8>, Error> {
    let path = text(MsgType::Directory, path)?;
    match store.request(MsgType::Directory, &[path, b"\0"]) {
        Err(error) if error.refusal() == Some(wire::Error::TooBig) => directory_parts(store, path)
            .map_err(|part| match part.refusal() {
                Some(wire::Error::NoSys) => error,
                _ => part,
            }),
        result => result,
    }
}

/// Reads a listing over 4096 bytes. The daemon marks the end by one more NUL after the last name.
pub(crate) fn directory_parts(store: &mut impl Store, path: &[u8]) -> Result<Vec<u8>, Error> {
    for _ in 0..LISTINGS_MAX {
        if let Some(names) = directory_attempt(store, path)? {
            return Ok(names);
        }
    }
    Err(Error::Unsteady { path: path.to_vec(), attempts: LISTINGS_MAX })
}

/// Reads the listing once; `None` if the directory changed meanwhile.
fn directory_attempt(store: &mut impl Store, path: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let mut generation: Option<Vec<u8>> = None;
    let mut names = Vec::new();
    loop {
        let offset = format!("{}\0", names.len());
        let parts = [path, b"\0", offset.as_bytes()];
        let reply = match store.request(MsgType::DirectoryPart, &parts) {
            Ok(reply) => reply,
            // The offset may be beyond the end of a listing that has become shorter.
            Err(Error::Refused { name: ErrorName::Known(wire::Error::Inval), .. })
                if generation.is_some() =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut strings = Strings::new(&reply);
        let now = strings.next().map(<[u8]>::to_vec);
        let part = strings.rest();
        let (Some(now), false) = (now, part.is_empty()) else {
            let (request, subject) = (MsgType::DirectoryPart, path.to_vec());
            return Err(Error::BadReply { request, subject, reply });
        };
        if generation.get_or_insert_with(|| now.clone()) != &now {
            return Ok(None);
        }
        names.extend_from_slice(part);
        if names.len() == 1 || names.ends_with(b"\0\0") {
            names.pop();
            return Ok(Some(names));
        }
    }
}
