//! The state of a daemon, told to its service manager.

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

/// Sends `state` to the service manager that `NOTIFY_SOCKET` names. Does nothing if it is not set.
/// Source: sd_notify(3).
///
/// # Errors
/// The error of the socket.
pub fn sd_notify(state: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(to) if !to.is_empty() => notify(&to, state),
        _ => Ok(()),
    }
}

/// Sends `state` as one datagram to a path, or to an abstract address if it begins with `@`.
fn notify(to: &OsStr, state: &str) -> io::Result<()> {
    let address = match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(to)?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, state.as_bytes(), SendFlags::NOSIGNAL, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_service_manager_hears_at_an_abstract_address() {
        let name = format!("daemon-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify(OsStr::new(&format!("@{name}")), "READY=1\nMAINPID=7").unwrap();
        let mut word = [0; 64];
        let len = manager.recv(&mut word).unwrap();
        assert_eq!(&word[..len], b"READY=1\nMAINPID=7");
    }
}
