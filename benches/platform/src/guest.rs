//! The roles of this program as the program of a domain.

use crate::host::WITHIN;
use crate::result::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io::Write;
use std::time::Instant;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantOffer, PageAccess};
use xen::{DomId, Port};
use xen_hosted::Platform;
use xen_io::xs_ring::ClientRing;
use xenstore_core::wire::{MsgType, split_message};

/// The store, over the domain's ring.
pub(crate) struct RingStore {
    pub(crate) platform: Platform,
    pub(crate) channels: xen_hosted::evtchn::Channels,
    ring: ClientRing,
    pub(crate) port: Port,
}

impl RingStore {
    pub(crate) fn open() -> Result<Self> {
        let platform = Platform::guest()?;
        let channels = platform.channels()?;
        let mut offers = platform.offers();
        let (page, port) = platform.store_ring(&mut offers)?;
        Ok(Self { platform, channels, ring: ClientRing::new(page), port })
    }

    /// Returns the path of the domain's name.
    pub(crate) fn name(&self) -> Vec<u8> {
        format!("/local/domain/{}/name", self.platform.domid()).into_bytes()
    }

    /// Makes `count` requests to read `path`, `depth` of them in flight.
    pub(crate) fn read_many(&mut self, path: &[u8], count: usize, depth: usize) -> Result<()> {
        let mut request = Vec::new();
        for word in [MsgType::Read as usize, 1, 0, path.len() + 1] {
            request.extend_from_slice(&u32::try_from(word)?.to_ne_bytes());
        }
        request.extend_from_slice(path);
        request.push(0);
        let (mut begun, mut done) = (0, 0);
        let mut to_send: Vec<u8> = Vec::new();
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = [0; 1024];
        while done < count {
            while begun < count && begun < done + depth {
                to_send.extend_from_slice(&request);
                begun += 1;
            }
            let sent = self.ring.write(&to_send)?;
            to_send.drain(..sent);
            if sent > 0 {
                self.channels.notify(self.port)?;
            }
            let read = self.ring.read(&mut buffer)?;
            if read == 0 {
                let port = self.channels.wait(Some(WITHIN))?.ok_or("the store does not answer")?;
                self.channels.unmask(port)?;
                continue;
            }
            if !to_send.is_empty() {
                self.channels.notify(self.port)?;
            }
            got.extend_from_slice(&buffer[..read]);
            let mut rest = got.as_slice();
            while let Ok(Some((header, _, next))) = split_message(rest) {
                if header.kind != MsgType::Read as u32 {
                    return Err("the store refuses".into());
                }
                done += 1;
                rest = next;
            }
            let left = rest.len();
            got.drain(..got.len() - left);
        }
        Ok(())
    }
}

/// Reads the domain's name `count` times, `depth` requests in flight, for each line of its input;
/// prints the time that this took, in ns.
pub(crate) fn requests(count: &str, depth: &str) -> Result<()> {
    let mut store = RingStore::open()?;
    let name = store.name();
    for line in std::io::stdin().lines() {
        line?;
        let begin = Instant::now();
        store.read_many(&name, count.parse()?, depth.parse()?)?;
        println!("{}", begin.elapsed().as_nanos());
    }
    Ok(())
}

/// Answers every notification of `peer`.
pub(crate) fn pong(peer: &str) -> Result<()> {
    pin()?;
    let platform = Platform::guest()?;
    let mut channels = platform.channels()?;
    let port = channels.alloc_unbound(DomId(peer.parse()?))?;
    println!("{port}");
    loop {
        let Some(port) = channels.wait(None)? else { return Ok(()) };
        channels.unmask(port)?;
        channels.notify(port)?;
    }
}

/// Notifies `peer` and waits for the answer, `count` times for each line of its input; prints the
/// time that this took, in ns.
pub(crate) fn ping(peer: &str, count: &str) -> Result<()> {
    pin()?;
    let platform = Platform::guest()?;
    let mut channels = platform.channels()?;
    let mut lines = std::io::stdin().lines();
    let port = Port(lines.next().ok_or("no port")??.parse()?);
    let port = channels.bind_interdomain(DomId(peer.parse()?), port)?;
    // Every binding begins with an event.
    let first = channels.wait(Some(WITHIN))?.ok_or("no first event")?;
    channels.unmask(first)?;
    let count: u32 = count.parse()?;
    for line in lines {
        line?;
        let begin = Instant::now();
        for _ in 0..count {
            channels.notify(port)?;
            let port = channels.wait(None)?.ok_or("no answer")?;
            channels.unmask(port)?;
        }
        println!("{}", begin.elapsed().as_nanos());
    }
    Ok(())
}

/// Offers pages to domain 0, prints the first reference, and waits for the end of its input.
pub(crate) fn offer(count: &str) -> Result<()> {
    let platform = Platform::guest()?;
    let mut offers = platform.offers();
    let mut offered = Vec::new();
    offers.offer_batch(DomId::DOM0, PageAccess::ReadWrite, count.parse()?, &mut offered)?;
    println!("{}", offered.first().ok_or("no page")?.grant());
    for line in std::io::stdin().lines() {
        line?;
    }
    Ok(())
}

/// Ties this process to the last CPU that it may use.
pub(crate) fn pin() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cpu = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).ok_or("no CPU")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    Ok(sched_setaffinity(None, &one)?)
}

/// Sends the store one request and reports the reply at its output. Then it stays until it is
/// destroyed, or ends.
pub(crate) fn first(then: &str) -> Result<()> {
    let mut store = RingStore::open()?;
    let name = store.name();
    store.read_many(&name, 1, 1)?;
    let mut output = std::io::stdout();
    output.write_all(b"!")?;
    output.flush()?;
    if then == "stay" {
        loop {
            // No peer notifies it: this sleeps until the domain is destroyed.
            store.channels.wait(None)?;
        }
    }
    Ok(())
}
