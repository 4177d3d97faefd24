//! The errors of the client, with advice for the reader on the next step.

use rustix::io::Errno;
use std::fmt;
use std::path::{Path, PathBuf};
use xenstore_core::client::{ErrorName, ProtocolError};
use xenstore_core::limits::PAYLOAD_MAX;
use xenstore_core::wire;
use xenstore_core::wire::MsgType;

/// The failure of a request or of the whole connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// No daemon could be reached.
    NoDaemon {
        /// Each place that was tried, with the errno(3) number of its error.
        tried: Vec<(PathBuf, i32)>,
    },
    /// The daemon answered with an error.
    Refused {
        /// The type of the request.
        request: MsgType,
        /// The path, domid or command of the request; empty if there is none.
        subject: Vec<u8>,
        /// The error in the daemon's reply.
        name: ErrorName,
    },
    /// A request over 4096 bytes. It was not sent, and the connection can still be used.
    TooLong {
        /// The type of the request.
        request: MsgType,
        /// The path, domid or command of the request.
        subject: Vec<u8>,
        /// Length of its payload in bytes.
        len: usize,
    },
    /// A NUL byte at a place where the protocol cannot carry one. Nothing was sent.
    NulByte {
        /// The type of the request.
        request: MsgType,
    },
    /// A transaction met a conflict in each attempt.
    Conflict {
        /// The number of attempts.
        attempts: u32,
    },
    /// A directory over 4096 bytes changed during every attempt to list it in parts.
    Unsteady {
        /// The directory.
        path: Vec<u8>,
        /// The number of attempts.
        attempts: u32,
    },
    /// The connection ended. A request in flight may have been executed or not.
    Gone {
        /// The type of the request whose reply was awaited, if there was one.
        request: Option<MsgType>,
        /// The path, domid or command of the request.
        subject: Vec<u8>,
        /// The path of the socket or device.
        endpoint: PathBuf,
    },
    /// The daemon broke the protocol. The connection cannot be used any more.
    Protocol(ProtocolError),
    /// A reply of the right type whose contents are malformed.
    BadReply {
        /// The type of the request.
        request: MsgType,
        /// The path, domid or command of the request.
        subject: Vec<u8>,
        /// The payload of the reply.
        reply: Vec<u8>,
    },
    /// The system refused to read, write or wait.
    Io {
        /// The operation that failed.
        what: &'static str,
        /// The errno(3) number of the system's error.
        errno: i32,
    },
}

impl Error {
    /// Returns the error that the daemon named, if it did and `xs_wire.h` knows the name.
    #[must_use]
    pub fn refusal(&self) -> Option<wire::Error> {
        match self {
            Self::Refused { name, .. } => name.known(),
            _ => None,
        }
    }

    /// Returns the errno(3) number that libxenstore gives its callers in this case.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let error = match self {
            Self::NoDaemon { tried } => match tried.last() {
                Some((_, errno)) => return *errno,
                None => Errno::NOENT,
            },
            Self::Refused { name, .. } => match name.known() {
                Some(known) => return known.errno(),
                None => Errno::INVAL,
            },
            Self::TooLong { .. } | Self::Protocol(ProtocolError::ReplyTooLong { .. }) => {
                Errno::TOOBIG
            }
            Self::Conflict { .. } | Self::Unsteady { .. } => Errno::AGAIN,
            Self::Gone { .. } | Self::Protocol(_) => Errno::BADF,
            Self::NulByte { .. } | Self::BadReply { .. } => Errno::INVAL,
            Self::Io { errno, .. } => return *errno,
        };
        error.raw_os_error()
    }

    /// Returns the usual cause and the next step; `None` if the message already says all.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NoDaemon { .. } => Some(
                "is a store running? `systemctl start xenstored` or `/etc/init.d/xen start` starts \
                 one on a Xen host; XENSTORED_PATH names another socket",
            ),
            Self::Refused { request, name, .. } => advice_on(*request, name),
            Self::Conflict { .. } => Some(
                "other clients change the same nodes all the time: read less in the transaction, \
                 or keep it shorter",
            ),
            _ => None,
        }
    }
}

/// Returns advice on a refused request.
fn advice_on(request: MsgType, name: &ErrorName) -> Option<&'static str> {
    let ErrorName::Known(error) = name else {
        return match name {
            ErrorName::Other(other) if other == "EQUOTA" => Some(QUOTA),
            _ => None,
        };
    };
    match (error, request) {
        (wire::Error::NoEnt, MsgType::Unwatch) => Some("no watch has this path and token"),
        (wire::Error::NoEnt, MsgType::TransactionEnd) => Some("there is no such transaction"),
        (wire::Error::NoEnt, _) => {
            Some("there is no such node (`xenstore ls` shows what is there)")
        }
        (wire::Error::Access, _) => Some(
            "this domain may not do that; `xenstore ls -p` shows permissions, \
             the first entry names the owner",
        ),
        (wire::Error::NoSpc, _) => Some(QUOTA),
        (wire::Error::Exist, MsgType::Watch) => {
            Some("a watch with this path and token is set already")
        }
        (wire::Error::TooBig, MsgType::Directory) => {
            Some("the list of children is over 4096 bytes and this daemon has no DIRECTORY_PART")
        }
        (wire::Error::TooBig, _) => Some("something is larger than a quota or a message allows"),
        (wire::Error::Inval, MsgType::Control) => {
            Some("`xenstore-control help` lists what this daemon knows")
        }
        (wire::Error::Inval, MsgType::GetQuota | MsgType::SetQuota) => {
            Some("GET_QUOTA without a name lists the quotas that this daemon knows")
        }
        (wire::Error::Inval, _) => Some(
            "a path starts with / and holds no //, no / at its end and \
             nothing but A-Z a-z 0-9 - / _ @",
        ),
        (wire::Error::NoSys, _) => Some("this daemon does not know the request"),
        (wire::Error::Again, _) => Some("the transaction met a conflict; try it again"),
        (wire::Error::Busy, MsgType::TransactionStart) => Some("too many transactions are open"),
        (wire::Error::IsConn, _) => Some("the domain is introduced already"),
        _ => None,
    }
}

const QUOTA: &str =
    "a quota of the domain is used up; `xenstore-control quota <domid>` shows which";

/// The request in a message: `READ /a/b`, or `TRANSACTION_START` if there is no subject.
struct RequestLabel<'a>(MsgType, &'a [u8]);

impl fmt::Display for RequestLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())?;
        if !self.1.is_empty() {
            write!(f, " {}", self.1.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon { tried } => {
                f.write_str("no xenstore daemon can be reached")?;
                for (path, errno) in tried {
                    write!(f, "; {}: {}", path.display(), describe(*errno))?;
                }
            }
            Self::Refused { request, subject, name } => {
                write!(f, "{}: {name}", RequestLabel(*request, subject))?;
            }
            Self::TooLong { request, subject, len } => write!(
                f,
                "{}: {len} bytes of path and value; a request holds at most {PAYLOAD_MAX}",
                RequestLabel(*request, subject)
            )?,
            Self::NulByte { request } => {
                write!(f, "{}: a path or an argument holds a NUL byte", request.name())?;
            }
            Self::Conflict { attempts } => {
                write!(f, "the transaction met a conflict (EAGAIN) {attempts} times in a row")?;
            }
            Self::Unsteady { path, attempts } => write!(
                f,
                "{} changed during each of {attempts} attempts to list it",
                path.escape_ascii()
            )?,
            Self::Gone { request, subject, endpoint } => {
                write!(f, "the daemon at {} ended the connection", endpoint.display())?;
                if let Some(request) = request {
                    let what = RequestLabel(*request, subject);
                    write!(f, " while {what} waited for its reply; it may have been done or not")?;
                }
            }
            Self::Protocol(error) => write!(f, "the daemon broke the protocol: {error}")?,
            Self::BadReply { request, subject, reply } => write!(
                f,
                "{} was answered with \"{}\", which makes no sense",
                RequestLabel(*request, subject),
                reply.escape_ascii()
            )?,
            Self::Io { what, errno } => write!(f, "{what}: {}", describe(*errno))?,
        }
        match self.advice() {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Protocol(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// Returns the system's text for an errno(3) number, as strerror(3) does.
#[must_use]
pub fn describe(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

pub(crate) fn connection_lost(request: Option<(MsgType, &[u8])>, endpoint: &Path) -> Error {
    let (request, subject) = request.map_or((None, &[][..]), |(kind, on)| (Some(kind), on));
    Error::Gone { request, subject: subject.to_vec(), endpoint: endpoint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_up_quota_says_where_to_look() {
        for name in [ErrorName::Known(wire::Error::NoSpc), ErrorName::Other("EQUOTA".into())] {
            let subject = b"/local/domain/3/data".to_vec();
            let text = Error::Refused { request: MsgType::Write, subject, name }.to_string();
            assert!(text.starts_with("WRITE /local/domain/3/data: E"), "{text}");
            assert!(text.contains("xenstore-control quota"), "{text}");
        }
    }

    #[test]
    fn strerror_has_no_number() {
        assert_eq!(describe(Errno::NOENT.raw_os_error()), "No such file or directory");
        assert_eq!(describe(Errno::TOOBIG.raw_os_error()), "Argument list too long");
    }
}
