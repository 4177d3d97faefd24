//! The facilities that this machine gives the broker for its domains, found once.

use super::connections::FuseConnections;
use super::directory::Directory;
use super::namespaces::Namespaces;
use super::remains::Holdings;
use super::users::Users;
use crate::domain::MissingFeature;
use std::io;
use xen::DomId;

/// The facilities that this machine gives the broker, found once.
pub(super) struct HostFacilities {
    /// The name of the host's control groups and mounts.
    pub(super) name: String,
    pub(super) namespaces: Namespaces,
    pub(super) connections: FuseConnections,
    /// The users that its domains run as, where the broker can give them any.
    pub(super) users: Option<Users>,
}

impl HostFacilities {
    pub(super) fn find(directory: &Directory, before: &Holdings) -> io::Result<Self> {
        let take = || Users::take(before.first_id, directory.inode);
        let users = Users::are_there().then(take).transpose()?;
        let first = users.as_ref().map(|users| users.first);
        let namespaces = Namespaces::find(first)?;
        let connections = FuseConnections::find(namespaces, first);
        Ok(Self { name: directory.name.clone(), namespaces, connections, users })
    }

    /// Returns the first id of its users.
    pub(super) fn first_id(&self) -> Option<u32> {
        self.users.as_ref().map(|users| users.first)
    }

    /// Returns the id of the host that a domain runs as, where it is not the broker's.
    pub(super) fn id_of(&self, domid: DomId) -> Option<u32> {
        Some(self.first_id()? + u32::from(domid.0))
    }

    /// Returns the bits of the parts that domains run without.
    pub(super) fn lacks(&self) -> u64 {
        let bit = |lacks: bool, lack: MissingFeature| if lacks { lack.bit() } else { 0 };
        let no_devices = self.namespaces != Namespaces::None && self.connections.cannot_end();
        self.namespaces.lacks()
            | bit(no_devices, MissingFeature::Devices)
            | bit(self.users.is_none(), MissingFeature::OwnUser)
    }
}
