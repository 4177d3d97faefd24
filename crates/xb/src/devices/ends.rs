//! Both ends of a device in the store: reading their states, and waiting for changes.

use crate::Error;
use crate::host::Host;
use xen_io::xenbus::State;
use xenstore::{Client, Store};

/// Reads the state of an end.
pub(super) fn state(store: &mut Client, end: &str) -> Result<State, Error> {
    let text = store.try_read(format!("{end}/state"))?;
    Ok(text.map_or(State::Unknown, |text| State::parse(&text)))
}

/// Runs `body` while changes below these nodes end waits.
pub(super) fn watched<T>(
    host: &mut Host,
    paths: &[&str],
    body: impl FnOnce(&mut Host) -> Result<T, Error>,
) -> Result<T, Error> {
    const TOKEN: &str = "xb:device";
    for path in paths {
        host.store.watch(path, TOKEN)?;
    }
    let done = body(host);
    for path in paths {
        host.store.unwatch(path, TOKEN)?;
    }
    done
}
