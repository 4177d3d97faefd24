//! Counters per message type and per domain, in plain arrays.

use std::fmt::Write as _;
use xenstore_core::limits::PAYLOAD_MAX;
use xenstore_core::wire::{MsgType, TYPE_COUNT, TYPES};

/// The counters of one message type.
#[derive(Clone, Copy, Default)]
struct TypeCounters {
    requests: u64,
    errors: u64,
    delayed: u64,
    bytes: u64,
}

/// The counters of one domain.
#[derive(Clone, Copy, Default)]
pub(crate) struct DomainCounters {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) delayed: u64,
    pub(crate) events: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl DomainCounters {
    fn fields(&self) -> [(&'static str, u64); 6] {
        [
            ("requests", self.requests),
            ("errors", self.errors),
            ("delayed", self.delayed),
            ("events", self.events),
            ("bytes_in", self.bytes_in),
            ("bytes_out", self.bytes_out),
        ]
    }
}

/// The counters of a daemon since its start.
pub(crate) struct Stats {
    /// The counters by type code. The last entry is for codes that no type has.
    types: [TypeCounters; TYPE_COUNT + 1],
    /// The counters by domid, up to the highest one seen.
    domains: Vec<DomainCounters>,
    /// The number of socket clients accepted so far.
    pub(crate) accepted: u64,
    /// The number of socket clients connected now.
    pub(crate) sockets: u64,
    /// The number of attached rings.
    pub(crate) rings: u64,
    /// The number of rounds of the event loop.
    pub(crate) rounds: u64,
}

fn slot(kind: u32) -> usize {
    (kind as usize).min(TYPE_COUNT)
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            types: [TypeCounters::default(); TYPE_COUNT + 1],
            domains: Vec::new(),
            accepted: 0,
            sockets: 0,
            rings: 0,
            rounds: 0,
        }
    }

    /// Makes room for a domain, so that counting needs no check of its own.
    pub(crate) fn admit(&mut self, domid: u16) {
        let wanted = usize::from(domid) + 1;
        if self.domains.len() < wanted {
            self.domains.resize(wanted, DomainCounters::default());
        }
    }

    /// Resets the counters of a domid that now belongs to another domain.
    pub(crate) fn forget(&mut self, domid: u16) {
        if let Some(domain) = self.domains.get_mut(usize::from(domid)) {
            *domain = DomainCounters::default();
        }
    }

    /// Counts one request of `bytes` bytes, header included.
    pub(crate) fn request(&mut self, domid: u16, kind: u32, bytes: usize) {
        let of_type = &mut self.types[slot(kind)];
        of_type.requests += 1;
        of_type.bytes += bytes as u64;
        if let Some(domain) = self.domains.get_mut(usize::from(domid)) {
            domain.requests += 1;
            domain.bytes_in += bytes as u64;
        }
    }

    /// Counts a request of type `kind` that was not answered at once.
    pub(crate) fn delayed(&mut self, domid: u16, kind: u32) {
        self.types[slot(kind)].delayed += 1;
        if let Some(domain) = self.domains.get_mut(usize::from(domid)) {
            domain.delayed += 1;
        }
    }

    /// Counts one message that was sent. `sent` is its type, `answers` the type of the request that
    /// it answers if that is known.
    pub(crate) fn sent(&mut self, domid: u16, sent: u32, answers: Option<u32>, bytes: usize) {
        let failed = sent == MsgType::Error as u32;
        if failed {
            self.types[answers.map_or(TYPE_COUNT, slot)].errors += 1;
        }
        if sent == MsgType::WatchEvent as u32 {
            self.types[slot(sent)].requests += 1;
            self.types[slot(sent)].bytes += bytes as u64;
        }
        if let Some(domain) = self.domains.get_mut(usize::from(domid)) {
            domain.bytes_out += bytes as u64;
            domain.errors += u64::from(failed);
            domain.events += u64::from(sent == MsgType::WatchEvent as u32);
        }
    }

    fn total(&self) -> DomainCounters {
        self.domains.iter().fold(DomainCounters::default(), |sum, one| DomainCounters {
            requests: sum.requests + one.requests,
            errors: sum.errors + one.errors,
            delayed: sum.delayed + one.delayed,
            events: sum.events + one.events,
            bytes_in: sum.bytes_in + one.bytes_in,
            bytes_out: sum.bytes_out + one.bytes_out,
        })
    }

    fn loop_fields(&self) -> [(&'static str, u64); 4] {
        [
            ("accepted", self.accepted),
            ("sockets", self.sockets),
            ("rings", self.rings),
            ("rounds", self.rounds),
        ]
    }

    /// Returns the used rows of the table by type. Delayed errors, whose request is not known any
    /// more, are counted with the codes that no type has.
    fn rows(&self) -> impl Iterator<Item = (&'static str, &TypeCounters)> {
        let named = TYPES.iter().map(|(kind, name)| (*name, &self.types[slot(kind.code())]));
        named
            .chain(std::iter::once(("other", &self.types[TYPE_COUNT])))
            .filter(|(_, row)| row.requests + row.errors > 0)
    }

    /// Returns totals and types as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.loop_fields().into_iter().chain(self.total().fields()) {
            let _ = writeln!(text, "{name:<20} {value}");
        }
        let _ = writeln!(text, "{:<20} requests errors delayed bytes", "type");
        for (name, row) in self.rows() {
            let TypeCounters { requests, errors, delayed, bytes } = row;
            let _ = writeln!(text, "{name:<20} {requests} {errors} {delayed} {bytes}");
        }
        text
    }

    /// Returns totals and types as one JSON object.
    pub(crate) fn json(&self) -> String {
        let mut json = String::from("{");
        for (name, value) in self.loop_fields().into_iter().chain(self.total().fields()) {
            let _ = write!(json, "\"{name}\":{value},");
        }
        json.push_str("\"types\":{");
        for (at, (name, row)) in self.rows().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let TypeCounters { requests, errors, delayed, bytes } = row;
            let _ = write!(
                json,
                "{comma}\"{name}\":{{\"requests\":{requests},\"errors\":{errors},\
                 \"delayed\":{delayed},\"bytes\":{bytes}}}"
            );
        }
        json.push_str("}}");
        json
    }

    /// Returns one domain's counters as text; `None` if it has done nothing.
    pub(crate) fn domain_text(&self, domid: u16) -> Option<String> {
        let mut text = format!("Domain {domid}:\n");
        for (name, value) in self.active(domid)?.fields() {
            let _ = writeln!(text, "{name:<20} {value}");
        }
        Some(text)
    }

    /// Returns one domain's counters as a JSON object; `None` if it has done nothing.
    pub(crate) fn domain_json(&self, domid: u16) -> Option<String> {
        let mut json = format!("{{\"domid\":{domid}");
        for (name, value) in self.active(domid)?.fields() {
            let _ = write!(json, ",\"{name}\":{value}");
        }
        json.push('}');
        Some(json)
    }

    /// Returns the domains from `from` on that have done something, one JSON object a line, as many
    /// as fit in one reply. The next page begins after the last domid.
    pub(crate) fn domains_json(&self, from: u16) -> String {
        let mut lines = String::new();
        for domid in from..=u16::MAX {
            if usize::from(domid) >= self.domains.len() {
                break;
            }
            let Some(json) = self.domain_json(domid) else { continue };
            if lines.len() + json.len() + 2 > PAYLOAD_MAX {
                break;
            }
            lines.push_str(&json);
            lines.push('\n');
        }
        lines
    }

    fn active(&self, domid: u16) -> Option<&DomainCounters> {
        let domain = self.domains.get(usize::from(domid))?;
        (domain.requests + domain.bytes_out > 0).then_some(domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let mut stats = Stats::new();
        stats.admit(7);
        stats.request(7, 2, 20);
        stats.sent(7, 16, Some(2), 23);
        stats.request(7, 99, 16);
        stats.delayed(7, 99);
        assert!(stats.text().contains("READ                 1 1 0 20"), "{}", stats.text());
        assert!(
            stats.json().contains(r#""READ":{"requests":1,"errors":1,"delayed":0,"bytes":20}"#)
        );
        assert!(stats.json().contains(r#""other":{"requests":1,"#));
        assert_eq!(
            stats.domain_json(7).unwrap(),
            r#"{"domid":7,"requests":2,"errors":1,"delayed":1,"events":0,"bytes_in":36,"bytes_out":23}"#
        );
        assert!(stats.domain_text(3).is_none(), "a domain that did nothing");
        stats.forget(7);
        assert!(stats.domain_text(7).is_none());
    }

    #[test]
    fn every_page_of_domains_fits_a_reply() {
        let mut stats = Stats::new();
        stats.admit(999);
        for domid in 0..1000 {
            stats.request(domid, 2, 4096);
        }
        let (mut from, mut seen) = (0, 0);
        loop {
            let page = stats.domains_json(from);
            assert!(page.len() < PAYLOAD_MAX);
            let Some(last) = page.lines().last() else { break };
            seen += page.lines().count();
            let domid = last.trim_start_matches("{\"domid\":").split(',').next().unwrap();
            from = domid.parse::<u16>().unwrap() + 1;
        }
        assert_eq!(seen, 1000);
    }
}
