//! Drops privileges once the daemon serves: every capability, every system call that it does not
//! need, and the right to regain any of them.

use crate::Error;
use crate::seccomp;
use crate::switch::Switch;
use rustix::thread::{CapabilitySet, set_no_new_privs};

/// Drops the privileges for good. `ioctls` are the requests that the platform still makes.
///
/// # Errors
/// [`Error::Start`] if the kernel refuses. The daemon would then face guests with more privileges
/// than it needs, so it does not serve, unless `filter` is off.
pub(crate) fn drop_all(ioctls: &[u32], filter: Switch) -> Result<(), Error> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Error::start(format!(
            "{what}: {error}; XENSTORED_UNFILTERED=1 in the environment serves without"
        ))
    };
    if filter == Switch::Off {
        return Ok(());
    }
    set_no_new_privs(true).map_err(|error| failed("no-new-privileges", &error))?;
    confine::capabilities::keep(CapabilitySet::empty())
        .map_err(|error| failed("capabilities cannot be given up", &error))?;
    seccomp::install(ioctls).map_err(|error| failed("system calls cannot be filtered", &error))
}
