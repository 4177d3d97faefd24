//! Descriptors that a domain's program is started with, found by name.
//!
//! They are passed as systemd passes sockets to a service (sd_listen_fds(3)): they are numbered
//! from [`FIRST`] on, `LISTEN_FDS` has their number, and `LISTEN_FDNAMES` their names, separated by
//! colons. `LISTEN_PID` is the domain's first process, for programs that use sd_listen_fds(3)
//! itself; this library uses the names alone, so that a script may start the program that takes
//! them.
//!
//! A program that starts other programs removes [`VARIABLES`] from their environment.

use crate::sys;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};

/// The domain's socket to the broker: [`Platform::guest`](crate::Platform::guest) takes it.
pub const BROKER: &str = "xen-broker";
/// The domain's connection to FUSE, where it has one: [`guest_devices`](crate::guest_devices) takes it.
pub const DEVICES: &str = "fuse-devices";
/// The master of its console's terminal, where it has one: [`guest_terminal`](crate::guest_terminal) takes it.
pub const TERMINAL: &str = "console-terminal";
/// The number of the first of them (`SD_LISTEN_FDS_START`).
pub const FIRST: RawFd = 3;
/// The variables that describe the descriptors: their process, their number, their names.
pub const VARIABLES: [&str; 3] = [PROCESS, COUNT, NAMES];

const PROCESS: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";

/// The error for a descriptor that cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingDescriptor {
    name: &'static str,
    cause: Cause,
}

/// The reason why a descriptor cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Cause {
    /// `LISTEN_FDNAMES` does not name it; the value is `None` where there is no such variable.
    NotNamed(Option<String>),
    /// The count or the list of names cannot be parsed, or they differ.
    Malformed,
    /// The descriptor was closed or taken before.
    NotOpen,
}

impl fmt::Display for MissingDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.cause {
            Cause::NotNamed(None) => {
                write!(f, "no descriptor is named {name:?}, as {NAMES} is not set")?;
            }
            Cause::NotNamed(Some(names)) => {
                write!(f, "no descriptor is named {name:?}; {NAMES} has {names:?}")?;
            }
            Cause::Malformed => {
                write!(f, "no descriptor {name:?}: {COUNT} is not the count of {NAMES}")?;
            }
            Cause::NotOpen => {
                write!(f, "the descriptor {name:?} is closed, or was taken before")?;
            }
        }
        f.write_str(match self.name {
            DEVICES => {
                "; the broker gives it to a domain that was created with Devices::Files, where the \
                 machine has FUSE"
            }
            TERMINAL => {
                "; the broker gives it to a domain that was created with ConsoleTerminal::Private, \
                 where the machine can make it a terminal (CreatedDomain::lacks)"
            }
            _ => "; the broker gives it to the program of a domain (Control::create, xb create)",
        })
    }
}

impl std::error::Error for MissingDescriptor {}

/// Returns the number of the descriptor `name` according to these variables.
fn number(count: Option<&str>, names: Option<&str>, name: &str) -> Result<RawFd, Cause> {
    let listed = names.ok_or(Cause::NotNamed(None))?;
    let names: Vec<&str> = listed.split(':').collect();
    if count.and_then(|count| count.parse().ok()) != Some(names.len()) {
        return Err(Cause::Malformed);
    }
    let at = names.iter().position(|named| *named == name);
    let at = at.ok_or_else(|| Cause::NotNamed(Some(listed.to_owned())))?;
    RawFd::try_from(at).map(|at| FIRST + at).map_err(|_| Cause::Malformed)
}

/// Takes the descriptor that this program was given under `name`, once.
///
/// # Errors
/// There is none, or it was taken before.
pub(crate) fn take(name: &'static str) -> Result<OwnedFd, MissingDescriptor> {
    let variable = |name: &str| std::env::var(name).ok();
    let found = number(variable(COUNT).as_deref(), variable(NAMES).as_deref(), name);
    let missing = |cause| MissingDescriptor { name, cause };
    sys::inherited(found.map_err(missing)?).map_err(|_| missing(Cause::NotOpen))
}

/// Returns the environment of a program that is given descriptors with these `names`, from
/// [`FIRST`] on. Variables in `env` that describe descriptors are replaced.
pub(crate) fn environment(mut env: Vec<CString>, names: &[&str], pid: i32) -> Option<Vec<CString>> {
    let is_ours = |variable: &CString| {
        let name = variable.as_bytes().split(|byte| *byte == b'=').next();
        VARIABLES.iter().any(|ours| Some(ours.as_bytes()) == name)
    };
    env.retain(|variable| !is_ours(variable));
    let values = [pid.to_string(), names.len().to_string(), names.join(":")];
    for (name, value) in VARIABLES.iter().zip(values) {
        env.push(CString::new(format!("{name}={value}")).ok()?);
    }
    Some(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_found_by_its_name() {
        let of = |name| number(Some("2"), Some("xen-broker:fuse-devices"), name);
        assert_eq!(of(BROKER), Ok(3));
        assert_eq!(of(DEVICES), Ok(4));
        assert_eq!(number(Some("3"), Some("a::xen-broker"), BROKER), Ok(5));
        for count in [None, Some(""), Some("3"), Some("-1"), Some("x")] {
            assert_eq!(number(count, Some("a:xen-broker"), BROKER), Err(Cause::Malformed));
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_gives_it() {
        let said = |names: Option<&str>, name| {
            let cause = number(Some("1"), names, name).unwrap_err();
            MissingDescriptor { name, cause }.to_string()
        };
        assert_eq!(
            said(None, BROKER),
            "no descriptor is named \"xen-broker\", as LISTEN_FDNAMES is not set; the broker gives it to the \
             program of a domain (Control::create, xb create)"
        );
        assert_eq!(
            said(Some("xen-broker"), DEVICES),
            "no descriptor is named \"fuse-devices\"; LISTEN_FDNAMES has \"xen-broker\"; the broker gives it \
             to a domain that was created with Devices::Files, where the machine has FUSE"
        );
        assert_eq!(
            said(Some("xen-broker"), TERMINAL),
            "no descriptor is named \"console-terminal\"; LISTEN_FDNAMES has \"xen-broker\"; the broker gives \
             it to a domain that was created with ConsoleTerminal::Private, where the machine can make it a \
             terminal (CreatedDomain::lacks)"
        );
        let closed = MissingDescriptor { name: BROKER, cause: Cause::NotOpen }.to_string();
        assert!(
            closed.starts_with("the descriptor \"xen-broker\" is closed, or was taken before; ")
        );
    }

    #[test]
    fn the_environment_tells_of_these_and_no_others() {
        let env = ["A=1", "LISTEN_FDS=9", "LISTEN_FDNAMES=x", "LISTEN_FDS_OTHER=2"];
        let env = env.map(|text| CString::new(text).unwrap()).to_vec();
        let env = environment(env, &[BROKER, DEVICES], 1).unwrap();
        let env: Vec<&str> = env.iter().map(|text| text.to_str().unwrap()).collect();
        let told = ["LISTEN_PID=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=xen-broker:fuse-devices"];
        assert_eq!(env, [&["A=1", "LISTEN_FDS_OTHER=2"][..], &told].concat());
    }
}
