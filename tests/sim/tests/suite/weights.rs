//! The effect of a domain's weight: two guests whose rings are always full, round by round.

use sim::faults::Rates;
use sim::hypervisor::{Hypervisor, Limits, Reuse};
use sim::rng::Rng;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use xen::evtchn::EventChannels;
use xen::shared::SharedPage;
use xen::{DomId, Port};
use xen_io::xs_ring::ClientRing;
use xenstore_core::wire::{Header, MsgType, split_message};
use xenstored::step::SteppedDaemon;
use xenstored::{Level, Log};

fn message(kind: MsgType, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    let header = Header { kind: kind.code(), req_id: 1, tx_id: 0, len };
    [&header.to_bytes(), payload].concat()
}

/// A guest that keeps its ring full of requests, and takes its replies.
struct BusyGuest {
    evtchn: Box<dyn EventChannels>,
    port: Port,
    ring: ClientRing,
    unsent: Vec<u8>,
    received: Vec<u8>,
    answered: u32,
}

impl BusyGuest {
    fn pump(&mut self) {
        let request = message(MsgType::GetDomainPath, b"1\0");
        loop {
            if self.unsent.is_empty() {
                self.unsent.clone_from(&request);
            }
            let count = self.ring.write(&self.unsent).unwrap();
            self.unsent.drain(..count);
            let mut bytes = [0; 1024];
            let got = self.ring.read(&mut bytes).unwrap();
            self.received.extend_from_slice(&bytes[..got]);
            if count == 0 && got == 0 {
                break;
            }
        }
        while let Some((len, rest)) = split_message(&self.received)
            .unwrap()
            .map(|(_, payload, rest)| (payload.len() + 16, rest.len()))
        {
            assert!(len > 0 && rest < self.received.len());
            self.received.drain(..len);
            self.answered += 1;
        }
        while let Some(port) = self.evtchn.pending().unwrap() {
            self.evtchn.unmask(port).unwrap();
        }
        self.evtchn.notify(self.port).unwrap();
    }
}

/// Returns the number of requests that two guests of these weights get answered in this many
/// rounds.
fn served(weights: [u32; 2], rounds: u64) -> [u32; 2] {
    let limits = Limits::default();
    let host = Hypervisor::new(limits, Reuse::WhenUnmapped, Rng::new(0), Rates::default());
    let platform = xenstored::Platform {
        evtchn: host.event_channels(DomId::DOM0).unwrap(),
        grants: host.grant_map(DomId::DOM0).unwrap(),
        domains: host.domain_watch(None),
        ioctls: &[],
        name: "the simulated host".to_owned(),
    };
    let clock = std::rc::Rc::new(std::cell::Cell::new(1));
    let time = std::rc::Rc::clone(&clock);
    let log = Log::to("xenstored", Level::Warn, Box::new(|line| eprint!("{line}")));
    let config = sim::config(&[sim::NO_RING]).unwrap();
    let mut daemon =
        SteppedDaemon::new(&config, platform, Box::new(move || time.get()), log).unwrap();
    let (mut dom0, its) = UnixStream::pair().unwrap();
    its.set_nonblocking(true).unwrap();
    daemon.connect(its.into());
    let mut ask = |kind, payload: String| {
        dom0.write_all(&message(kind, payload.as_bytes())).unwrap();
        daemon.step().unwrap();
        let mut reply = [0; 64];
        let count = dom0.read(&mut reply).unwrap();
        assert_eq!(reply[16..count], *b"OK\0");
    };
    let mut guests = [1, 2].map(|domid| {
        let built = host.create(DomId(domid)).unwrap();
        let page: SharedPage = built.ring;
        let mut evtchn = host.event_channels(DomId(domid)).unwrap();
        let port = evtchn.alloc_unbound(DomId::DOM0).unwrap();
        ask(MsgType::Introduce, format!("{domid}\0{}\0{}\0", 1, port.0));
        let weight = weights[usize::from(domid) - 1];
        ask(MsgType::Control, format!("weight\0{domid}\0{weight}\0"));
        BusyGuest {
            evtchn,
            port,
            ring: ClientRing::new(page),
            unsent: Vec::new(),
            received: Vec::new(),
            answered: 0,
        }
    });
    for _ in 0..rounds {
        for guest in &mut guests {
            guest.pump();
        }
        daemon.step().unwrap();
        clock.set(clock.get() + 10);
    }
    guests.map(|guest| guest.answered)
}

#[test]
fn a_guest_gets_of_the_daemon_by_its_weight() {
    let [one, other] = served([256, 256], 500);
    assert!(one.abs_diff(other) * 20 < one, "{one} and {other} at equal weights");
    for times in [2, 4, 8] {
        let [light, heavy] = served([256, 256 * times], 500);
        let [low, high] = [times * 8 / 10, times * 12 / 10 + 1];
        assert!((light * low..=light * high).contains(&heavy), "{light}, {heavy} at 1:{times}");
    }
}
