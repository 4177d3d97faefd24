//! A driver's view of its device: its own nodes, and the peer's.

use crate::error::{Error, VALUE_MAX};
use crate::path::{self, Id};
use crate::side::Side;
use std::fmt::Display;
use std::str::FromStr;
use xen::DomId;
use xen_io::xenbus::number;
use xenstore::{Client, NodeAccess, Perm, Store};

/// Most nodes that a driver puts with one step.
const PUTS_MAX: usize = 1024;

/// One device, while its driver is called.
#[derive(Debug)]
pub struct Device<'a> {
    pub(crate) store: &'a mut Client,
    pub(crate) side: Side,
    pub(crate) id: Id,
    pub(crate) domid: DomId,
    pub(crate) path: &'a str,
    pub(crate) peer: DomId,
    pub(crate) peer_path: &'a str,
    pub(crate) puts: Vec<(String, Vec<u8>)>,
}

impl Device<'_> {
    /// Returns the device's id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Returns the side of this end.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// The domain of this end.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// The domain of the other end.
    #[must_use]
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// Returns the path of this end's nodes.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path
    }

    /// Returns the path of the other end's nodes.
    #[must_use]
    pub fn peer_path(&self) -> &str {
        self.peer_path
    }

    /// Writes one of this end's nodes, together with the state that follows; `name` may have parts
    /// (`queue-0/ring-ref`).
    pub fn put(&mut self, name: impl Into<String>, value: impl Display) {
        debug_assert!(self.puts.len() < PUTS_MAX);
        self.puts.push((name.into(), value.to_string().into_bytes()));
    }

    /// One of this end's nodes.
    ///
    /// # Errors
    /// [`Error::Store`], not for a node that is not there.
    pub fn own(&mut self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.store.try_read(format!("{}/{name}", self.path))?)
    }

    /// Returns one of the other end's nodes, whose value is unchecked.
    ///
    /// # Errors
    /// As [`Device::own`].
    pub fn theirs(&mut self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.store.try_read(format!("{}/{name}", self.peer_path))?)
    }

    /// Returns a node of the other end's domain, such as its `name`. Its value is unchecked.
    ///
    /// # Errors
    /// As [`Device::own`].
    pub fn of_their_domain(&mut self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.store.try_read(format!("{}/{name}", path::home(self.peer)))?)
    }

    /// True if one of this end's nodes is there, and nobody may write it but this end's domain and domain 0.
    ///
    /// # Errors
    /// As [`Device::own`].
    pub fn own_is_guarded(&mut self, name: &str) -> Result<bool, Error> {
        let (path, domid) = (format!("{}/{name}", self.path), self.domid);
        Ok(guarded(self.store, &path, domid)? == Guard::Kept)
    }

    /// Writes a node among the other end's that it may read and not change, as libxl keeps some there: at once, and
    /// nothing where the other end has no nodes any more. Permissions that let the other end change it are replaced.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn show(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        let Self { store, peer_path, peer, domid, .. } = self;
        let (path, domid) = (format!("{peer_path}/{name}"), *domid);
        let perms = [(NodeAccess::None, domid), (NodeAccess::Read, *peer)];
        let perms = perms.map(|(access, DomId(id))| Perm { access, domid: id.into() });
        store.transaction(|tx| {
            if !tx.exists(*peer_path)? {
                return Ok(());
            }
            let before = guarded(tx, &path, domid)?;
            tx.write(&path, value.as_ref())?;
            if before == Guard::Kept { Ok(()) } else { tx.set_perms(&path, &perms) }
        })?;
        Ok(())
    }

    /// Returns a number in one of this end's nodes.
    ///
    /// # Errors
    /// As [`Device::own`]; [`Error::Bad`] where it is no number that `T` holds.
    pub fn own_number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Error> {
        let path = format!("{}/{name}", self.path);
        parse(self.store, path)
    }

    /// Returns a number in one of the other end's nodes.
    ///
    /// # Errors
    /// As [`Device::own_number`].
    pub fn their_number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Error> {
        let path = format!("{}/{name}", self.peer_path);
        parse(self.store, path)
    }

    /// Returns a number that the other end must have written.
    ///
    /// # Errors
    /// As [`Device::their_number`]; [`Error::Missing`].
    pub fn their_needed<T: FromStr>(&mut self, name: &str) -> Result<T, Error> {
        let path = format!("{}/{name}", self.peer_path);
        self.their_number(name)?.ok_or(Error::Missing { path })
    }

    /// True if the other end has set a feature: its node is a number other than 0.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn their_feature(&mut self, name: &str) -> Result<bool, Error> {
        Ok(self.their_setting(name, 0)? != 0)
    }

    /// A number that the other end may have written; `otherwise` where it has not, or has written none: as Linux's
    /// `xenbus_read_unsigned` reads settings.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn their_setting(&mut self, name: &str, otherwise: u32) -> Result<u32, Error> {
        match self.their_number(name) {
            Err(Error::Bad { .. }) => Ok(otherwise),
            number => Ok(number?.unwrap_or(otherwise)),
        }
    }

    /// [`Error::Bad`] about one of the other end's nodes.
    #[must_use]
    pub fn bad(&self, name: &str, value: &[u8], wanted: &'static str) -> Error {
        bad(format!("{}/{name}", self.peer_path), value, wanted)
    }

    /// True if the hotplug script of this backend is done (`hotplug-status`, `hotplug-error`), and
    /// also if there is no script to wait for.
    ///
    /// # Errors
    /// As [`Device::own`]; [`Error::Hotplug`].
    pub fn hotplug_done(&mut self) -> Result<bool, Error> {
        let status = self.own("hotplug-status")?;
        match (status.as_deref(), self.own("script")?) {
            (Some(b"connected"), _) | (None, None) => Ok(true),
            (Some(b"error"), _) => {
                let why = self.own("hotplug-error")?.unwrap_or_default();
                let why = String::from_utf8_lossy(&why).into_owned();
                Err(Error::Hotplug(why))
            }
            _ => Ok(false),
        }
    }
}

/// The state of a node that other domains should not write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guard {
    /// Nobody else may write it.
    Kept,
    /// Others may write it, or it is not there.
    Open,
}

/// Returns the guard of a node of `domid`. The first of its permissions names its owner, who may do all, and says what
/// those may do that no other one names.
fn guarded(store: &mut impl Store, path: &str, domid: DomId) -> Result<Guard, xenstore::Error> {
    if !store.exists(path)? {
        return Ok(Guard::Open);
    }
    let is_own = |perm: &Perm| [DomId::DOM0, domid].iter().any(|own| perm.domid == own.0.into());
    let writes = |perm: &Perm| matches!(perm.access, NodeAccess::Write | NodeAccess::Both);
    let perms = store.get_perms(path)?;
    let Some((owner, others)) = perms.split_first() else { return Ok(Guard::Open) };
    let kept =
        is_own(owner) && !writes(owner) && others.iter().all(|perm| is_own(perm) || !writes(perm));
    Ok(if kept { Guard::Kept } else { Guard::Open })
}

fn bad(path: String, value: &[u8], wanted: &'static str) -> Error {
    Error::Bad { path, value: value[..value.len().min(VALUE_MAX)].to_vec(), wanted }
}

fn parse<T: FromStr>(store: &mut Client, path: String) -> Result<Option<T>, Error> {
    let Some(value) = store.try_read(&path)? else { return Ok(None) };
    match number(&value) {
        Some(number) => Ok(Some(number)),
        None => Err(bad(path, &value, "a decimal number in range")),
    }
}
