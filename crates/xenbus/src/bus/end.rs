//! One end of all devices of a kind in a domain: its place in the store, and its watches.

use crate::error::Error;
use crate::path::{self, Id};
use crate::side::Side;
use xen::DomId;
use xenstore::{Client, Event, Store};
use xenstore_core::wire;

/// One end of all devices of one kind in one domain.
pub(super) struct BusEnd {
    side: Side,
    domid: DomId,
    kind: String,
    root: String,
}

/// The part of an end that a watch event is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WatchSubject {
    /// All devices: some may have come or gone.
    All,
    /// One device.
    Device(Id),
}

impl BusEnd {
    pub(super) fn new(side: Side, domid: DomId, kind: &str) -> Self {
        Self { side, domid, kind: kind.into(), root: path::root(side, domid, kind) }
    }

    pub(super) fn side(&self) -> Side {
        self.side
    }

    pub(super) fn domid(&self) -> DomId {
        self.domid
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// The node with all devices below it.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// This end's nodes of a device.
    pub(super) fn device_path(&self, id: Id) -> String {
        match self.side {
            Side::Frontend => path::frontend(&self.kind, id),
            Side::Backend => path::backend(self.domid, &self.kind, id),
        }
    }

    /// The device that a path belongs to.
    fn device_at(&self, path: &[u8]) -> Option<Id> {
        path::device_at(self.side, self.domid, &self.root, path)
    }

    /// The devices that the store lists.
    pub(super) fn listed(&self, store: &mut Client) -> Result<Vec<Id>, Error> {
        let mut found = Vec::new();
        for name in store.list(&self.root)? {
            let first = format!("{}/{name}", self.root);
            let below = match self.side {
                Side::Frontend => vec![first],
                Side::Backend => {
                    let names = store.list(&first)?;
                    names.into_iter().map(|name| format!("{first}/{name}")).collect()
                }
            };
            found.extend(below.iter().filter_map(|path| self.device_at(path.as_bytes())));
        }
        Ok(found)
    }

    /// Watches all its devices; it is an error that it does so already.
    pub(super) fn watch(&self, store: &mut Client) -> Result<(), xenstore::Error> {
        store.watch(&self.root, self.token(None))
    }

    /// Watches all its devices, unless it does so already.
    pub(super) fn watch_again(&self, store: &mut Client) -> Result<(), xenstore::Error> {
        self.watch(store).or_else(already)
    }

    /// Watches the state of a device's peer, unless it does so already.
    pub(super) fn watch_peer(
        &self,
        store: &mut Client,
        id: Id,
        peer_path: &str,
    ) -> Result<(), xenstore::Error> {
        store.watch(format!("{peer_path}/state"), self.token(Some(id))).or_else(already)
    }

    /// Watches it no longer. The watch is gone already where the daemon has forgotten this domain, or this domain
    /// has come to another host.
    pub(super) fn unwatch_peer(&self, store: &mut Client, id: Id, peer_path: &str) {
        let _ = store.unwatch(format!("{peer_path}/state"), self.token(Some(id)));
    }

    /// The subject of a watch event; `None` where the watch is not this end's.
    pub(super) fn subject(&self, event: &Event) -> Option<WatchSubject> {
        let rest = event.token.strip_prefix(self.token(None).as_bytes())?;
        if rest.is_empty() {
            let device = self.device_at(&event.path);
            return Some(device.map_or(WatchSubject::All, WatchSubject::Device));
        }
        let mut numbers = rest.strip_prefix(b":")?.split(|byte| *byte == b'/');
        let frontend = DomId(path::number(numbers.next()?)?);
        Some(WatchSubject::Device(Id { frontend, devid: path::number(numbers.next()?)? }))
    }

    /// `xenbus:backend/vbd`, with `:3/51712` behind it for the watch of one peer.
    fn token(&self, id: Option<Id>) -> String {
        let (side, kind) = (self.side, &self.kind);
        match id {
            None => format!("xenbus:{side}/{kind}"),
            Some(id) => format!("xenbus:{side}/{kind}:{id}"),
        }
    }
}

/// Treats a watch that is set already as set.
fn already(error: xenstore::Error) -> Result<(), xenstore::Error> {
    if error.refusal() == Some(wire::Error::Exist) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { frontend: DomId(3), devid: 51712 };

    fn subject(end: &BusEnd, token: &str, path: &str) -> Option<WatchSubject> {
        end.subject(&Event { path: path.into(), token: token.into() })
    }

    #[test]
    fn an_event_is_about_a_device_or_about_all() {
        let end = BusEnd::new(Side::Backend, DomId::DOM0, "vbd");
        let root = "/local/domain/0/backend/vbd";
        let own = |path: &str| subject(&end, "xenbus:backend/vbd", &format!("{root}{path}"));
        assert_eq!(own(""), Some(WatchSubject::All));
        assert_eq!(own("/3"), Some(WatchSubject::All));
        assert_eq!(own("/3/51712/state"), Some(WatchSubject::Device(ID)));
        let peer = |token: &str| subject(&end, token, "/local/domain/3/device/vbd/51712/state");
        assert_eq!(peer(&end.token(Some(ID))), Some(WatchSubject::Device(ID)));
        for not_ours in [
            "",
            "xenbus:frontend/vbd",
            "xenbus:backend/vbd2",
            "xenbus:backend/vbd:3",
            "xenbus:backend/vbd:3/x",
        ] {
            assert_eq!(peer(not_ours), None, "{not_ours}");
        }
    }

    #[test]
    fn each_side_has_its_own_paths() {
        let backend = BusEnd::new(Side::Backend, DomId(1), "vbd");
        assert_eq!(backend.device_path(ID), "/local/domain/1/backend/vbd/3/51712");
        let frontend = BusEnd::new(Side::Frontend, DomId(3), "vbd");
        assert_eq!(frontend.device_path(ID), "/local/domain/3/device/vbd/51712");
        assert_eq!(frontend.root(), "/local/domain/3/device/vbd");
    }
}
