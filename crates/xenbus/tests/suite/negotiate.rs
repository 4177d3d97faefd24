//! The names of rings and event channels: of a device type with two of each in a queue, and some that belong to no queue.

use conformance::{Daemon, DaemonKind, Options};
use std::time::{Duration, Instant};
use xen::{DomId, GrantRef, Port};
use xenbus::negotiate::{Queue, QueueLimits, QueueNames};
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Device, Driver, Error, Id, Progress, Side, State, path};
use xenstore::{Client, Store};

/// The names of a vif (`io/netif.h`).
const VIF: QueueNames<2, 2> = QueueNames {
    rings: ["tx-ring-ref", "rx-ring-ref"],
    channels: ["event-channel-tx", "event-channel-rx"],
};
const CONTROL: QueueNames<1, 1> =
    QueueNames { rings: ["ctrl-ring-ref"], channels: ["event-channel-ctrl"] };
const LIMITS: QueueLimits = QueueLimits { order_max: 1, queues_max: 2 };

const GUEST: DomId = DomId(3);
const ID: Id = Id { frontend: GUEST, devid: 0 };

/// Two rings and two ports, all with numbers of their own.
fn queue(first: u32, pages: u32) -> Queue<2, 2> {
    let ring = |from: u32| (from..from + pages).map(GrantRef).collect();
    Queue { rings: [ring(first), ring(first + pages)], ports: [Port(first), Port(first + 1)] }
}

/// A frontend that names these rings and ports.
struct NamingFrontend(Vec<Queue<2, 2>>);

impl Driver for NamingFrontend {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        VIF.put(device, &self.0);
        let control = Queue { rings: [vec![GrantRef(99)]], ports: [Port(98)] };
        CONTROL.put_shared(device, &control);
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        Progress::Done
    }
}

/// A backend that keeps the queues that it has read.
#[derive(Default)]
struct ReadingBackend(Vec<Queue<2, 2>>);

impl Driver for ReadingBackend {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        LIMITS.put(device);
        Ok(Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.0 = VIF.queues(device, LIMITS)?;
        let control = CONTROL.shared(device)?;
        assert_eq!(control, Queue { rings: [vec![GrantRef(99)]], ports: [Port(98)] });
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        Progress::Done
    }
}

/// The outcome of a meeting of both ends of one device.
struct MeetingOutcome {
    /// The backend's state, Connected or one behind that.
    state: State,
    /// The queues that it has read.
    queues: Vec<Queue<2, 2>>,
    /// Its `error` node.
    error: Vec<u8>,
    tool: Client,
    _daemon: Daemon,
}

/// Lets both ends of a device meet on a daemon of its own.
fn meet(queues: &[Queue<2, 2>]) -> Option<MeetingOutcome> {
    let options = Options { everybody: true, ..Options::default() };
    let daemon = Daemon::start_with(DaemonKind::Ours, &options)?;
    let client = || Client::connect(daemon.socket()).unwrap();
    let (mut tool, mut front_store, mut back_store) = (client(), client(), client());
    tool.introduce(GUEST.0, 1, 1).unwrap();
    let queues = queues.to_vec();
    let make = move |_| NamingFrontend(queues.clone());
    let mut front = Bus::start(&mut front_store, Side::Frontend, GUEST, "vif", make).unwrap();
    let mut back = Bus::start(&mut back_store, Side::Backend, DomId::DOM0, "vif", |_| {
        ReadingBackend::default()
    })
    .unwrap();
    let device = NewDevice::new("vif", ID, DomId::DOM0);
    toolstack::add(&mut tool, &device).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        while let Some(event) = front_store.poll_event().unwrap() {
            front.take(&mut front_store, &event).unwrap();
        }
        while let Some(event) = back_store.poll_event().unwrap() {
            back.take(&mut back_store, &event).unwrap();
        }
        let state = back.state(ID);
        if let Some(state @ (State::Connected | State::Closing | State::Closed)) = state {
            let error = tool.try_read(format!("{}/error", device.backend_path())).unwrap();
            let queues = std::mem::take(&mut back.driver(ID).unwrap().0);
            let error = error.unwrap_or_default();
            return Some(MeetingOutcome { state, queues, error, tool, _daemon: daemon });
        }
        assert!(Instant::now() < end, "the backend is {state:?}");
    }
}

#[test]
fn both_ends_name_several_rings_and_channels_of_a_queue() {
    for (queues, node, value) in [
        (vec![queue(10, 1)], "tx-ring-ref", "10"),
        (vec![queue(10, 1)], "event-channel-rx", "11"),
        (vec![queue(10, 2)], "rx-ring-ref1", "13"),
        (vec![queue(10, 1), queue(20, 1)], "queue-1/rx-ring-ref", "21"),
        (vec![queue(10, 2), queue(20, 2)], "queue-0/event-channel-tx", "10"),
    ] {
        let Some(mut met) = meet(&queues) else { return };
        assert_eq!((met.state, &met.queues), (State::Connected, &queues));
        let front = path::frontend("vif", ID);
        let said = met.tool.read(format!("{front}/{node}")).unwrap();
        assert_eq!(String::from_utf8(said).unwrap(), value, "{node}");
        assert_eq!(met.tool.read(format!("{front}/ctrl-ring-ref")).unwrap(), b"99");
    }
}

#[test]
fn more_than_was_offered_is_refused() {
    for queues in [vec![queue(10, 1), queue(20, 1), queue(30, 1)], vec![queue(10, 4)]] {
        let Some(MeetingOutcome { state, error, .. }) = meet(&queues) else { return };
        assert_ne!(state, State::Connected);
        assert!(error.starts_with(b"22 /local/domain/3/device/vif/0/"), "{}", error.escape_ascii());
    }
}
