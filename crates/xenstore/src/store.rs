//! Reading and writing nodes, the same inside and outside a transaction.

use crate::error::Error;
use crate::perms::Perm;
use xenstore_core::client::ErrorName;
use xenstore_core::wire::{self, MsgType, Strings};

/// How often the listing of a directory over 4096 bytes is begun anew because it has changed.
const LISTINGS_MAX: u32 = 16;

/// Requests about nodes: [`crate::Client`] sends them on their own, [`crate::Transaction`] within
/// its transaction.
///
/// Paths are absolute, or relative to the caller's own `/local/domain/<domid>` where the caller is
/// a domain (`/dev/xen/xenbus`). They are bytes; the store allows ASCII letters, digits and
/// `-/_@` in them, and refuses others with EINVAL.
pub trait Store {
    /// Sends one request and waits for its reply; returns the payload as sent. `parts` are put
    /// one behind the other, NULs are the caller's.
    ///
    /// # Errors
    /// [`Error::Refused`] where the daemon answers with an error, or any other [`Error`].
    fn request(&mut self, kind: MsgType, parts: &[&[u8]]) -> Result<Vec<u8>, Error>;

    /// The value of a node.
    ///
    /// # Errors
    /// ENOENT, EACCES; see [`Store::request`].
    fn read(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<u8>, Error>
    where
        Self: Sized,
    {
        self.request(MsgType::Read, &[text(MsgType::Read, path.as_ref())?, b"\0"])
    }

    /// The value of a node; `None` where the node is not there.
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

    /// Creates a node with an empty value, and its missing parents, where it does not exist.
    ///
    /// # Errors
    /// EACCES, ENOSPC (quota); see [`Store::request`].
    fn mkdir(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        self.request(MsgType::Mkdir, &[text(MsgType::Mkdir, path.as_ref())?, b"\0"]).map(drop)
    }

    /// Removes a node with everything below it. A node that is not there is no error where its
    /// parent is.
    ///
    /// # Errors
    /// ENOENT (no parent either), EACCES, EINVAL for `/`; see [`Store::request`].
    fn rm(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        self.request(MsgType::Rm, &[text(MsgType::Rm, path.as_ref())?, b"\0"]).map(drop)
    }

    /// Removes a node with everything below it; one that is not there, nor its parent, is removed.
    ///
    /// # Errors
    /// EACCES, EINVAL for `/`; see [`Store::request`].
    fn remove(&mut self, path: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        if_there(self.rm(path)).map(drop)
    }

    /// Whether a node exists and may be read.
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

    /// The names of a node's children, without their path, in the daemon's order.
    ///
    /// A listing over 4096 bytes is read in parts (DIRECTORY_PART), and begun anew when the
    /// directory changes meanwhile: what is returned was the listing at one moment.
    ///
    /// # Errors
    /// ENOENT, EACCES, E2BIG where the daemon has no DIRECTORY_PART, [`Error::Unsteady`]; see
    /// [`Store::request`].
    fn directory(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, Error>
    where
        Self: Sized,
    {
        Ok(split(&directory_bytes(self, path.as_ref())?))
    }

    /// The names of a node's children as text, as [`Store::directory`] has them; none where the node is not there.
    ///
    /// # Errors
    /// As [`Store::directory`], but for ENOENT.
    fn list(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<String>, Error>
    where
        Self: Sized,
    {
        let names = if_there(self.directory(path))?.unwrap_or_default();
        Ok(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// The permissions of a node; the first entry names its owner.
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

    /// Sets the permissions of a node; the first entry names its owner.
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

/// An answer about a node; `None` where the node is not there.
fn if_there<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if error.refusal() == Some(wire::Error::NoEnt) => Ok(None),
        answer => answer.map(Some),
    }
}

/// A string that the protocol can carry.
pub(crate) fn text(request: MsgType, text: &[u8]) -> Result<&[u8], Error> {
    if text.contains(&0) { Err(Error::NulByte { request }) } else { Ok(text) }
}

/// The strings of a reply.
pub(crate) fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    Strings::new(bytes).map(<[u8]>::to_vec).collect()
}

/// The entries of a GET_PERMS reply.
pub(crate) fn parse_perms(path: &[u8], reply: Vec<u8>) -> Result<Vec<Perm>, Error> {
    let perms: Option<Vec<Perm>> = Strings::new(&reply).map(Perm::parse).collect();
    perms.filter(|perms| !perms.is_empty()).ok_or_else(|| Error::BadReply {
        request: MsgType::GetPerms,
        subject: path.to_vec(),
        reply,
    })
}

/// A node's children as the daemon sends them: each name with a NUL behind it.
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

/// A listing over 4096 bytes. The end is marked by one more NUL behind the last name.
pub(crate) fn directory_parts(store: &mut impl Store, path: &[u8]) -> Result<Vec<u8>, Error> {
    for _ in 0..LISTINGS_MAX {
        if let Some(names) = directory_attempt(store, path)? {
            return Ok(names);
        }
    }
    Err(Error::Unsteady { path: path.to_vec(), attempts: LISTINGS_MAX })
}

/// One attempt; `None` where the directory changed meanwhile.
fn directory_attempt(store: &mut impl Store, path: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let mut generation: Option<Vec<u8>> = None;
    let mut names = Vec::new();
    loop {
        let offset = format!("{}\0", names.len());
        let parts = [path, b"\0", offset.as_bytes()];
        let reply = match store.request(MsgType::DirectoryPart, &parts) {
            Ok(reply) => reply,
            // The offset may lie behind the end of what has become shorter.
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
