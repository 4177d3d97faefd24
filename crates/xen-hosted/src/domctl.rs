//! Control of domains, over the broker's socket for it.

use crate::domain::{DomainConfig, MissingFeature};
use crate::link::{Answer, Link};
use crate::proto::BrokerRequest;
use crate::{HostDir, Platform, Role};
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use xen::domctl::{DomainControl, DomainInfo, RunState, Scheduling};
use xen::domwatch::ShutdownReason;
use xen::{DomId, Error, Gfn, Port};

/// The number of words that describe a domain.
pub(crate) const INFO_WORDS: usize = 8;

/// Encodes the state of a domain in words.
pub(crate) fn info_words(info: &DomainInfo) -> [u64; INFO_WORDS] {
    let state = match info.state {
        RunState::Running => 0,
        RunState::Paused => 1,
        RunState::Dying => 2,
        RunState::Shutdown(reason) => 3 | u64::from(reason.code()) << 8,
        // Later states of the trait are added here.
        _ => 0,
    };
    let (low, high) = info.handle.split_at(8);
    let half = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_or(0, u64::from_ne_bytes);
    [
        info.domid.0.into(),
        half(low),
        half(high),
        state,
        info.memory_kib,
        info.memory_max_kib,
        info.vcpus_online.into(),
        info.cpu_time_ns,
    ]
}

fn info_of(words: &[u64; INFO_WORDS]) -> Option<DomainInfo> {
    let [domid, low, high, state, memory_kib, memory_max_kib, vcpus_online, cpu_time_ns] = *words;
    let mut handle = [0; 16];
    handle[..8].copy_from_slice(&low.to_ne_bytes());
    handle[8..].copy_from_slice(&high.to_ne_bytes());
    let state = match state & 0xff {
        0 => RunState::Running,
        1 => RunState::Paused,
        2 => RunState::Dying,
        _ => RunState::Shutdown(ShutdownReason::from_code(u8::try_from(state >> 8).ok()?)),
    };
    Some(DomainInfo {
        domid: DomId(u16::try_from(domid).ok()?),
        handle,
        state,
        memory_kib,
        memory_max_kib,
        vcpus_online: u32::try_from(vcpus_online).ok()?,
        vcpus: u32::try_from(vcpus_online).ok()?,
        activity: None,
        ssid: None,
        cpu_time_ns,
    })
}

/// The descriptors that a program gets from its creator.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors<'a> {
    /// The program itself.
    pub program: BorrowedFd<'a>,
    /// Its standard input.
    pub input: BorrowedFd<'a>,
    /// Its standard output.
    pub output: BorrowedFd<'a>,
    /// Its standard error.
    pub error: BorrowedFd<'a>,
}

/// A new domain. It is paused: [`DomainControl::unpause`] runs its program for the first time.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CreatedDomain {
    /// Its number.
    pub domid: DomId,
    /// Its identity, which differs from that of other domains with the same number.
    pub identity: u64,
    /// The frame of its ring for the store, as INTRODUCE takes it.
    pub store_gfn: Gfn,
    /// The port at which it waits for the store.
    pub store_port: Port,
    /// The port at which it waits for its console.
    pub console_port: Port,
    /// The parts of its sandbox that it runs without.
    pub lacks: Vec<MissingFeature>,
}

/// A connection to the broker that a domain ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder(u64);

/// The resources that a domain uses now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Accounts {
    /// Processor time, in ns.
    pub cpu_time_ns: u64,
    /// Memory in KiB, with all of its arenas.
    pub memory_kib: u64,
    /// Ports.
    pub ports: u64,
    /// Arenas; each is [`ARENA_PAGES`](crate::limits::ARENA_PAGES) pages.
    pub arenas: u64,
    /// Pages that it grants, as it counts them.
    pub granted: u64,
    /// Pages of others that it has mapped, as it counts them.
    pub mapped: u64,
    /// Notifications that it has sent, as those who received them count them.
    pub notified: u64,
    /// Refusals to it: by the broker, and by the library alone, as it counts them itself.
    pub refused: u64,
}

/// Domain 0's control of domains.
#[derive(Debug)]
pub struct Control {
    link: Arc<Link>,
}

impl Control {
    /// Connects to the broker of `host`.
    ///
    /// # Errors
    /// [`Error::NoDev`] where none runs.
    pub fn connect(host: &HostDir) -> Result<Self, Error> {
        Ok(Self { link: Link::connect(&host.socket(Role::Control))? })
    }

    /// Connects with a bound to the time that each answer may take.
    ///
    /// # Errors
    /// [`Error::NoDev`] where none runs, [`Error::Busy`] where it has as many connections as it takes
    /// ([`PEERS_MAX`](crate::limits::PEERS_MAX)), `ETIMEDOUT` where it does not answer in time.
    pub fn connect_within(host: &HostDir, within: Duration) -> Result<Self, Error> {
        Ok(Self { link: Link::connect_within(&host.socket(Role::Control), within)? })
    }

    /// Makes the control over a connection that may not have the right to it: then each call fails.
    /// For tests of a hostile guest.
    #[must_use]
    pub fn over(platform: &Platform) -> Self {
        Self { link: Arc::clone(&platform.link) }
    }

    /// Creates a domain and waits until its sandbox is complete.
    ///
    /// # Errors
    /// [`Error::Inval`] a configuration that cannot be, [`Error::NoSpc`] no free number, for a
    /// successor [`Error::Srch`] no domain of the number waits for one, [`Error::Perm`] another
    /// connection is to create it, [`Error::Busy`] the domain is not gone yet, or what a step of the sandbox failed with, which the broker's log names.
    pub fn create(
        &mut self,
        config: &DomainConfig,
        descriptors: Descriptors<'_>,
    ) -> Result<CreatedDomain, Error> {
        let Descriptors { program, input, output, error } = descriptors;
        let fds = [program, input, output, error];
        let answer = self.link.call_with(&BrokerRequest::Create(config.encode()), &fds)?;
        Ok(CreatedDomain {
            domid: DomId(answer.number(0)?),
            identity: answer.number(1)?,
            store_gfn: Gfn(answer.number(2)?),
            store_port: Port(answer.number(3)?),
            console_port: Port(answer.number(4)?),
            lacks: MissingFeature::all_of(answer.number(5)?),
        })
    }

    /// Returns the resources that a domain uses.
    ///
    /// # Errors
    /// As [`DomainControl::info`].
    pub fn accounts(&mut self, domid: DomId) -> Result<Accounts, Error> {
        let answer = self.link.call(&BrokerRequest::Accounts { domid })?;
        Ok(Accounts {
            cpu_time_ns: answer.number(0)?,
            memory_kib: answer.number(1)?,
            ports: answer.number(2)?,
            arenas: answer.number(3)?,
            granted: answer.number(4)?,
            mapped: answer.number(5)?,
            notified: answer.number(6)?,
            refused: answer.number(7)?,
        })
    }

    /// Returns a pidfd of a domain's first process: domain 0 enters its namespaces through it, and
    /// sees its end.
    ///
    /// # Errors
    /// As [`DomainControl::info`].
    pub fn process(&mut self, domid: DomId) -> Result<OwnedFd, Error> {
        self.link.call(&BrokerRequest::Process { domid })?.fd()
    }

    /// Returns the connection that a domain ends with
    /// ([`Lifetime::Held`](crate::domain::Lifetime::Held)); `None` where there is none.
    ///
    /// # Errors
    /// As [`DomainControl::info`]; [`Error::Inval`] of domain 0.
    pub fn holder(&mut self, domid: DomId) -> Result<Option<Holder>, Error> {
        let word = self.link.call(&BrokerRequest::Holder { domid })?.number(0)?;
        Ok((word != 0).then_some(Holder(word)))
    }

    /// Makes a domain that this connection holds end with another connection, and at once where
    /// that is gone.
    ///
    /// # Errors
    /// As [`DomainControl::info`]; [`Error::Inval`] of a domain that this connection does not hold.
    pub fn hand_over(&mut self, domid: DomId, holder: Holder) -> Result<(), Error> {
        self.done(&BrokerRequest::HandOver { domid, holder: holder.0 })
    }

    /// Destroys a domain, and keeps its number for a successor that this connection creates
    /// ([`DomainConfig::succeeds`]). The successor finds the grants and ports that other domains
    /// have for that number, and the memory of [`Platform::keepsake`]. They end, and the number is
    /// free, with this connection and by [`DomainControl::destroy`].
    ///
    /// # Errors
    /// As [`DomainControl::destroy`].
    pub fn vacate(&mut self, domid: DomId) -> Result<(), Error> {
        self.done(&BrokerRequest::Vacate { domid })
    }

    /// Makes a domain no longer end with this connection. If another connection holds the domain by
    /// then, that one still does.
    ///
    /// # Errors
    /// As [`DomainControl::info`]; [`Error::Inval`] of domain 0.
    pub fn keep(&mut self, domid: DomId) -> Result<(), Error> {
        self.done(&BrokerRequest::Keep { domid })
    }

    fn done(&mut self, request: &BrokerRequest) -> Result<(), Error> {
        self.link.call(request).map(drop)
    }
}

/// Decodes the domains in an answer.
fn infos(answer: &Answer) -> Result<Vec<DomainInfo>, Error> {
    let (infos, rest) = answer.words.as_chunks::<INFO_WORDS>();
    if !rest.is_empty() {
        return Err(Error::Inval);
    }
    infos.iter().map(|words| info_of(words).ok_or(Error::Inval)).collect()
}

impl DomainControl for Control {
    fn list(&mut self) -> Result<Vec<DomainInfo>, Error> {
        let mut all: Vec<DomainInfo> = Vec::new();
        let mut from = DomId(0);
        loop {
            let some = infos(&self.link.call(&BrokerRequest::List { from })?)?;
            let Some(last) = some.last() else { return Ok(all) };
            from = DomId(last.domid.0 + 1);
            all.extend(some);
        }
    }

    fn info(&mut self, domid: DomId) -> Result<DomainInfo, Error> {
        let answer = self.link.call(&BrokerRequest::Info { domid })?;
        infos(&answer)?.pop().ok_or(Error::Srch)
    }

    fn pause(&mut self, domid: DomId) -> Result<(), Error> {
        self.done(&BrokerRequest::Pause { domid })
    }

    fn unpause(&mut self, domid: DomId) -> Result<(), Error> {
        self.done(&BrokerRequest::Unpause { domid })
    }

    fn shutdown(&mut self, domid: DomId, reason: ShutdownReason) -> Result<(), Error> {
        self.done(&BrokerRequest::Shutdown { domid, reason: reason.code() })
    }

    fn destroy(&mut self, domid: DomId) -> Result<(), Error> {
        self.done(&BrokerRequest::Destroy { domid })
    }

    fn set_memory_max(&mut self, domid: DomId, memory_max_kib: u64) -> Result<(), Error> {
        self.done(&BrokerRequest::SetMemoryMax { domid, kib: memory_max_kib })
    }

    fn scheduling(&mut self, domid: DomId) -> Result<Scheduling, Error> {
        let answer = self.link.call(&BrokerRequest::Scheduling { domid })?;
        Ok(Scheduling { weight: answer.number(0)?, cap: answer.number(1)? })
    }

    fn set_scheduling(&mut self, domid: DomId, scheduling: Scheduling) -> Result<(), Error> {
        let Scheduling { weight, cap } = scheduling;
        self.done(&BrokerRequest::SetScheduling { domid, weight, cap })
    }
}

/// Returns the number that a process has here, by its pidfd ([`Control::process`]).
///
/// # Errors
/// `ESRCH` where it has ended, or has no number here.
pub fn process_number(process: BorrowedFd<'_>) -> Result<Pid, Errno> {
    // proc_pid_fdinfo(5).
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()));
    let info = info.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|number| *number > 0).and_then(Pid::from_raw).ok_or(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infos_round_trip() {
        let mut info = DomainInfo {
            domid: DomId(7),
            handle: *b"0123456789abcdef",
            state: RunState::Running,
            memory_kib: 1,
            memory_max_kib: u64::MAX,
            vcpus_online: 1,
            vcpus: 1,
            activity: None,
            ssid: None,
            cpu_time_ns: 3,
        };
        for state in [
            RunState::Running,
            RunState::Paused,
            RunState::Dying,
            RunState::Shutdown(ShutdownReason::Crash),
        ] {
            info.state = state;
            assert_eq!(info_of(&info_words(&info)), Some(info));
        }
    }
}
