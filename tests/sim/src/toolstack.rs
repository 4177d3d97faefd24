//! Domain 0's client. It introduces, releases and resumes domains, writes the nodes that all may
//! read, and runs the daemon's own check.

use crate::caller::{QueuedClient, ReceivedMessage, ReplyOrder};
use crate::guest::Common;
use crate::link::DaemonLink;
use crate::rng::Rng;
use xen::Port;
use xenstore_core::client::Reply;
use xenstore_core::wire::MsgType;

/// One request. Those about a domain carry its identity, because the number may be another's
/// meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ToolstackRequest {
    Introduce { domid: u16, identity: u64, port: Port },
    Release { domid: u16, identity: u64 },
    Resume { domid: u16, identity: u64 },
    MakeHome { domid: u16, identity: u64 },
    GiveHome { domid: u16, identity: u64 },
    WriteShared { which: usize, value: u64 },
    OpenShared { which: usize },
    MakeCounter { which: usize },
    OpenCounter { which: usize },
    ReadCounter { which: usize },
    Quota { domid: u16 },
    Watch(&'static str),
    Check,
    IsIntroduced { domid: u16 },
    ListHomes,
}

impl ToolstackRequest {
    /// True if the request acts on the domain of this number.
    pub(crate) fn is_about(&self, number: u16) -> bool {
        match self {
            Self::Introduce { domid, .. }
            | Self::Release { domid, .. }
            | Self::Resume { domid, .. }
            | Self::MakeHome { domid, .. }
            | Self::GiveHome { domid, .. } => *domid == number,
            _ => false,
        }
    }

    fn message(&self) -> (MsgType, String) {
        match self {
            Self::Introduce { domid, port, .. } => {
                (MsgType::Introduce, format!("{domid}\x001\0{port}\0"))
            }
            Self::Release { domid, .. } => (MsgType::Release, format!("{domid}\0")),
            Self::Resume { domid, .. } => (MsgType::Resume, format!("{domid}\0")),
            Self::MakeHome { domid, .. } => (MsgType::Write, format!("/local/domain/{domid}\0")),
            Self::GiveHome { domid, .. } => {
                (MsgType::SetPerms, format!("/local/domain/{domid}\0n{domid}\0"))
            }
            Self::WriteShared { which, value } => {
                (MsgType::Write, format!("/shared/{which}\0{value}"))
            }
            Self::OpenShared { which } => (MsgType::SetPerms, format!("/shared/{which}\0r0\0")),
            Self::MakeCounter { which } => (MsgType::Write, format!("/counters/{which}\x000")),
            Self::OpenCounter { which } => (MsgType::SetPerms, format!("/counters/{which}\0b0\0")),
            Self::ReadCounter { which } => (MsgType::Read, format!("/counters/{which}\0")),
            Self::Quota { domid } => (MsgType::Control, format!("quota\0{domid}\0")),
            Self::Watch(path) => (MsgType::Watch, format!("{path}\0toolstack\0")),
            Self::Check => (MsgType::Control, "check\0".to_owned()),
            Self::IsIntroduced { domid } => (MsgType::IsDomainIntroduced, format!("{domid}\0")),
            Self::ListHomes => (MsgType::Directory, "/local/domain\0".to_owned()),
        }
    }
}

/// A request in flight, the tick at which it was sent, and the number of calls refused before it.
#[derive(Debug)]
pub(crate) struct ToolstackPending {
    pub(crate) ask: ToolstackRequest,
    pub(crate) at: u64,
    pub(crate) refused: u64,
}

/// A message to the toolstack.
#[derive(Debug)]
pub(crate) enum ToolstackMessage {
    Answer(ToolstackPending, Result<String, String>),
    /// A special watch has fired.
    Event(String),
}

/// Domain 0's client.
pub(crate) struct Toolstack {
    link: DaemonLink,
    caller: QueuedClient<ToolstackPending>,
}

impl Toolstack {
    pub(crate) fn new(link: DaemonLink, order: ReplyOrder) -> Self {
        Self { link, caller: QueuedClient::new(order) }
    }

    pub(crate) fn ask(&mut self, ask: ToolstackRequest, common: &mut Common, refused: u64) {
        common.tick += 1;
        common.requests += 1;
        let (kind, payload) = ask.message();
        self.caller.send(kind, 0, &payload, ToolstackPending { ask, at: common.tick, refused });
    }

    /// Returns the number of requests in flight.
    pub(crate) fn in_flight_count(&self) -> usize {
        self.caller.in_flight_count()
    }

    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &ToolstackRequest> {
        self.caller.in_flight().map(|sent| &sent.ask)
    }

    /// True if the toolstack uses the ring of domain 0's kernel.
    pub(crate) fn uses_ring(&self) -> bool {
        matches!(self.link, DaemonLink::Ring(_))
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.caller.in_flight_count() == 0 && self.caller.output().is_empty()
    }

    /// Reads the messages that have come, and sends at most `max` bytes of its requests.
    pub(crate) fn pump(
        &mut self,
        rng: &mut Rng,
        max: usize,
    ) -> Result<(bool, Vec<ToolstackMessage>), String> {
        let bytes = self.link.read(1 + rng.index(2000))?;
        let mut told = Vec::new();
        let messages =
            self.caller.receive(&bytes).map_err(|why| format!("the toolstack: {why}"))?;
        for message in messages {
            told.push(match message {
                ReceivedMessage::Event(event) => {
                    ToolstackMessage::Event(String::from_utf8_lossy(&event.path).into_owned())
                }
                ReceivedMessage::Reply(sent, Reply::Done(payload)) => ToolstackMessage::Answer(
                    sent,
                    Ok(String::from_utf8_lossy(&payload).into_owned()),
                ),
                ReceivedMessage::Reply(sent, Reply::Refused(name)) => {
                    ToolstackMessage::Answer(sent, Err(name.to_string()))
                }
            });
        }
        let output = self.caller.output();
        let count = match output {
            [] => 0,
            output => self.link.write(&output[..max.min(output.len())])?,
        };
        self.caller.consume_output(count);
        Ok((count > 0 || !bytes.is_empty(), told))
    }
}
