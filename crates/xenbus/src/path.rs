//! The paths of devices in the store.
//!
//! Source: `docs/misc/xenstore-paths.pandoc`, libxl's `libxl_device.c`.

use crate::side::Side;
use std::fmt;
use xen::DomId;

/// The id of a device among those of a kind: its frontend's domain and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id {
    /// The domain that uses it.
    pub frontend: DomId,
    /// Its number (`devid`): for a vbd its `virtual-device`, for a vif its index.
    pub devid: u32,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frontend, self.devid)
    }
}

/// A domain's nodes: `/local/domain/3`.
#[must_use]
pub fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// The frontend's nodes: `/local/domain/3/device/vbd/51712`.
#[must_use]
pub fn frontend(kind: &str, id: Id) -> String {
    format!("/local/domain/{}/device/{kind}/{}", id.frontend, id.devid)
}

/// The backend's nodes: `/local/domain/0/backend/vbd/3/51712`.
#[must_use]
pub fn backend(backend: DomId, kind: &str, id: Id) -> String {
    format!("/local/domain/{backend}/backend/{kind}/{id}")
}

/// The toolstack's own nodes: `/libxl/3/device/vbd/51712`.
#[must_use]
pub fn libxl(kind: &str, id: Id) -> String {
    format!("/libxl/{}/device/{kind}/{}", id.frontend, id.devid)
}

/// Returns the path that a bus watches: all devices of a kind at one end in a domain.
#[must_use]
pub fn root(side: Side, domid: DomId, kind: &str) -> String {
    match side {
        Side::Frontend => format!("/local/domain/{domid}/device/{kind}"),
        Side::Backend => format!("/local/domain/{domid}/backend/{kind}"),
    }
}

/// Returns the path for the error of an end besides its own `error`, as Linux has it:
/// `/local/domain/0/error/backend/vbd/3/51712/error`.
#[must_use]
pub fn error(domid: DomId, device: &str) -> String {
    let home = format!("/local/domain/{domid}/");
    let below = device.strip_prefix(&home).unwrap_or(device);
    format!("{home}error/{}/error", below.trim_start_matches('/'))
}

/// Returns the path above a node; empty for one without any.
#[must_use]
pub fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// The device below `root` that a path belongs to; `None` for `root` itself and whatever is no device.
#[must_use]
pub fn device_at(side: Side, domid: DomId, root: &str, path: &[u8]) -> Option<Id> {
    let below = path.strip_prefix(root.as_bytes())?.strip_prefix(b"/")?;
    let mut names = below.split(|byte| *byte == b'/');
    let frontend = match side {
        Side::Frontend => domid,
        Side::Backend => DomId(number(names.next()?)?),
    };
    Some(Id { frontend, devid: number(names.next()?)? })
}

/// A decimal number as these names have it: digits alone, no zeroes before them.
pub(crate) fn number<T: std::str::FromStr + fmt::Display>(text: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 20)?;
    let number: T = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_libxl_makes_them() {
        let id = Id { frontend: DomId(3), devid: 51712 };
        assert_eq!(frontend("vbd", id), "/local/domain/3/device/vbd/51712");
        let path = backend(DomId(1), "vbd", id);
        assert_eq!(path, "/local/domain/1/backend/vbd/3/51712");
        assert_eq!(libxl("vbd", id), "/libxl/3/device/vbd/51712");
        let node = "/local/domain/1/error/backend/vbd/3/51712/error";
        assert_eq!(error(DomId(1), &path), node);
    }

    #[test]
    fn paths_of_devices_are_known() {
        let at = |path: &str| {
            let root = root(Side::Backend, DomId::DOM0, "vbd");
            device_at(Side::Backend, DomId::DOM0, &root, path.as_bytes())
        };
        let id = Some(Id { frontend: DomId(3), devid: 768 });
        assert_eq!(at("/local/domain/0/backend/vbd/3/768"), id);
        assert_eq!(at("/local/domain/0/backend/vbd/3/768/state"), id);
        for no in ["", "/3", "/3/", "/3/x", "/x/1", "/03/1", "/3/-1", "/3/4294967296", "/70000/1"] {
            assert_eq!(at(&format!("/local/domain/0/backend/vbd{no}")), None, "{no}");
        }
        assert_eq!(at("/local/domain/0/backend/vbd2/3/768"), None);
        let root = root(Side::Frontend, DomId(3), "vif");
        let path = b"/local/domain/3/device/vif/0/state";
        let id = Some(Id { frontend: DomId(3), devid: 0 });
        assert_eq!(device_at(Side::Frontend, DomId(3), &root, path), id);
    }
}
