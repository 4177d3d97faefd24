//! Event channels.
//!
//! Source: `xen/include/public/event_channel.h`, and Xen's behaviour where that is silent: the side
//! that binds to a port gets one event at once, because events may have been lost before.

use super::case::{
    CaseResult, PATIENCE_S, Party, PartyCase, done, expect, readable, refused, refused_with,
};
use xen::evtchn::{PortStatus, Virq};
use xen::{DomId, Error, Port};

/// The cases.
pub const CASES: &[(&str, PartyCase)] = &[
    ("evtchn/both ways", both_ways),
    ("evtchn/masked until unmasked", masked_until_unmasked),
    ("evtchn/events of one port are one", events_of_one_port_are_one),
    ("evtchn/bind once", bind_once),
    ("evtchn/bind to what is not there", bind_to_what_is_not_there),
    ("evtchn/for the peer alone", for_the_peer_alone),
    ("evtchn/closed", closed),
    ("evtchn/the other side closes", the_other_side_closes),
    ("evtchn/status", status),
    ("evtchn/many ports", many_ports),
    ("evtchn/a port that comes back is a new one", a_port_that_comes_back_is_a_new_one),
    ("evtchn/one holder of a virtual interrupt", one_holder_of_a_virq),
];

/// Waits for the next event.
fn next(party: &mut Party, what: &str) -> Result<Port, String> {
    loop {
        if let Some(port) = done("pending", party.evtchn.pending())? {
            return Ok(port);
        }
        if !readable(&*party.evtchn, PATIENCE_S)? {
            return Err(format!("{what}: no event in {PATIENCE_S} s"));
        }
    }
}

/// Checks that there is no event. Notifying is synchronous, so an earlier event has arrived.
fn nothing(party: &mut Party, what: &str) -> CaseResult {
    let came = done("pending", party.evtchn.pending())?;
    expect(came.is_none(), || format!("{what}: an event at port {}", came.map_or(0, |port| port.0)))
}

/// Takes and unmasks the one event at `port`.
fn take(party: &mut Party, port: Port, what: &str) -> CaseResult {
    let came = next(party, what)?;
    expect(came == port, || format!("{what}: expected an event at port {port}, got {came}"))?;
    done("unmask", party.evtchn.unmask(port))
}

/// Makes a channel; returns `a`'s port and `b`'s. The event that binding raises has been taken.
fn channel(a: &mut Party, b: &mut Party) -> Result<(Port, Port), String> {
    let at_a = done("alloc_unbound", a.evtchn.alloc_unbound(b.domid))?;
    let at_b = done("bind_interdomain", b.evtchn.bind_interdomain(a.domid, at_a))?;
    take(b, at_b, "the event of binding")?;
    Ok((at_a, at_b))
}

fn close(party: &mut Party, port: Port) -> CaseResult {
    done("close", party.evtchn.close(port))
}

fn both_ways(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    for _ in 0..3 {
        done("notify", b.evtchn.notify(at_b))?;
        take(a, at_a, "b notifies a")?;
        done("notify", a.evtchn.notify(at_a))?;
        take(b, at_b, "a notifies b")?;
    }
    nothing(a, "after all were taken")?;
    nothing(b, "after all were taken")?;
    close(a, at_a)?;
    close(b, at_b)
}

fn masked_until_unmasked(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    done("notify", b.evtchn.notify(at_b))?;
    let came = next(a, "the first")?;
    expect(came == at_a, || format!("expected port {at_a}, got {came}"))?;
    done("notify", b.evtchn.notify(at_b))?;
    nothing(a, "while it is masked")?;
    done("unmask", a.evtchn.unmask(at_a))?;
    take(a, at_a, "kept while it was masked")?;
    nothing(a, "kept once")?;
    close(a, at_a)?;
    close(b, at_b)
}

fn events_of_one_port_are_one(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    for _ in 0..100 {
        done("notify", b.evtchn.notify(at_b))?;
    }
    let came = next(a, "a hundred notifications")?;
    expect(came == at_a, || format!("expected port {at_a}, got {came}"))?;
    nothing(a, "one event for all of them")?;
    close(a, at_a)?;
    close(b, at_b)
}

fn bind_once(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    let again = b.evtchn.bind_interdomain(a.domid, at_a);
    refused_with("binding to a port that is bound", &again, Error::Inval)?;
    close(a, at_a)?;
    close(b, at_b)
}

fn bind_to_what_is_not_there(a: &mut Party, b: &mut Party) -> CaseResult {
    let beyond = Port(1 << 20);
    let nobody = DomId(DomId::FIRST_RESERVED.0 - 1);
    refused_with("a port beyond all", &b.evtchn.bind_interdomain(a.domid, beyond), Error::Inval)?;
    refused_with("no such domain", &b.evtchn.bind_interdomain(nobody, Port(1)), Error::Srch)?;
    // A port for another domain.
    let other = if b.domid == DomId(1) { DomId(2) } else { DomId(1) };
    let port = match a.evtchn.alloc_unbound(other) {
        Ok(port) => port,
        Err(Error::Srch) => return Ok(()), // No third domain here.
        Err(error) => return Err(format!("alloc_unbound for another: {error}")),
    };
    refused_with("another's port", &b.evtchn.bind_interdomain(a.domid, port), Error::Inval)?;
    close(a, port)
}

/// Returns a port of `a` for `b`, whose number is not that of a port of `b`.
fn port_of_a_alone(a: &mut Party, b: &mut Party) -> Result<Port, String> {
    let mut of_both = Vec::new();
    let at_a = loop {
        let port = done("alloc_unbound", a.evtchn.alloc_unbound(b.domid))?;
        // Refused if `b` has no such port, and without effect on a port that has no event.
        if b.evtchn.unmask(port).is_err() {
            break port;
        }
        of_both.push(port);
    };
    for port in of_both {
        close(a, port)?;
    }
    Ok(at_a)
}

/// This case applies if the two are different domains.
fn for_the_peer_alone(a: &mut Party, b: &mut Party) -> CaseResult {
    if a.domid == b.domid {
        return Ok(());
    }
    let at_a = port_of_a_alone(a, b)?;
    let own = a.evtchn.bind_interdomain(a.domid, at_a);
    refused_with("binding to one's own port for another", &own, Error::Inval)?;
    refused_with("notifying the other's port", &b.evtchn.notify(at_a), Error::Inval)?;
    refused_with("closing the other's port", &b.evtchn.close(at_a), Error::Inval)?;
    let at_b = done("bind_interdomain", b.evtchn.bind_interdomain(a.domid, at_a))?;
    take(b, at_b, "the event of binding")?;
    close(a, at_a)?;
    let anew = a.evtchn.bind_interdomain(a.domid, at_b);
    refused("binding to the other's port as if it were one's own", &anew)?;
    close(b, at_b)
}

fn closed(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    done("notify", b.evtchn.notify(at_b))?;
    close(a, at_a)?;
    nothing(a, "the event of a port that was closed")?;
    refused_with("notify", &a.evtchn.notify(at_a), Error::Inval)?;
    refused_with("unmask", &a.evtchn.unmask(at_a), Error::Inval)?;
    refused_with("close", &a.evtchn.close(at_a), Error::Inval)?;
    close(b, at_b)
}

fn the_other_side_closes(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    close(a, at_a)?;
    // The port waits for its peer again, and its events reach no domain.
    done("notify without a peer", b.evtchn.notify(at_b))?;
    let anew = done("binding to it anew", a.evtchn.bind_interdomain(b.domid, at_b))?;
    take(a, anew, "the event of binding anew")?;
    done("notify", b.evtchn.notify(at_b))?;
    take(a, anew, "b notifies a")?;
    close(a, anew)?;
    close(b, at_b)
}

fn status(a: &mut Party, b: &mut Party) -> CaseResult {
    let at_a = done("alloc_unbound", a.evtchn.alloc_unbound(b.domid))?;
    match a.evtchn.status(at_a) {
        // A platform may be unable to report this.
        Err(Error::NoSys | Error::NoDev) => return close(a, at_a),
        status => {
            let status = done("status", status)?;
            expect(status == PortStatus::Unbound(b.domid), || format!("unbound: {status:?}"))?;
        }
    }
    let at_b = done("bind_interdomain", b.evtchn.bind_interdomain(a.domid, at_a))?;
    take(b, at_b, "the event of binding")?;
    bound(a, at_a, (b.domid, at_b))?;
    bound(b, at_b, (a.domid, at_a))?;
    close(a, at_a)?;
    let status = done("status", b.evtchn.status(at_b))?;
    expect(status == PortStatus::Unbound(a.domid), || format!("its peer has closed: {status:?}"))?;
    close(b, at_b)
}

/// Checks that `port` is bound to that port of that domain.
fn bound(party: &mut Party, port: Port, (remote, remote_port): (DomId, Port)) -> CaseResult {
    let status = done("status", party.evtchn.status(port))?;
    let bound = PortStatus::Interdomain { remote, remote_port };
    expect(status == bound, || format!("expected {bound:?}, got {status:?}"))
}

fn many_ports(a: &mut Party, b: &mut Party) -> CaseResult {
    const PORTS: usize = 300;
    let mut pairs = Vec::new();
    for _ in 0..PORTS {
        pairs.push(channel(a, b)?);
    }
    for (_, at_b) in &pairs {
        done("notify", b.evtchn.notify(*at_b))?;
    }
    let mut came = Vec::new();
    for _ in 0..PORTS {
        came.push(next(a, "one of many")?);
    }
    nothing(a, "after each port's event")?;
    came.sort_unstable();
    came.dedup();
    expect(came.len() == PORTS, || format!("{} ports of {PORTS} have fired", came.len()))?;
    for (at_a, at_b) in pairs {
        close(a, at_a)?;
        close(b, at_b)?;
    }
    Ok(())
}

fn a_port_that_comes_back_is_a_new_one(a: &mut Party, b: &mut Party) -> CaseResult {
    let (at_a, at_b) = channel(a, b)?;
    done("notify", b.evtchn.notify(at_b))?;
    let came = next(a, "the old channel's")?;
    expect(came == at_a, || format!("expected port {at_a}, got {came}"))?;
    close(a, at_a)?;
    close(b, at_b)?;
    // The old port was masked when it was closed. A new port of that number is not masked and has
    // no event.
    let (at_a, at_b) = channel(a, b)?;
    nothing(a, "the new channel's first")?;
    done("notify", b.evtchn.notify(at_b))?;
    take(a, at_a, "the new channel's")?;
    close(a, at_a)?;
    close(b, at_b)
}

fn one_holder_of_a_virq(a: &mut Party, b: &mut Party) -> CaseResult {
    let Ok(port) = a.evtchn.bind_virq(Virq::DomExc) else {
        // Another process has it, or this domain may not: then no second process of it may either.
        return match b.evtchn.bind_virq(Virq::DomExc) {
            Ok(_) if a.domid == b.domid => Err("this domain may not, and may".to_owned()),
            Ok(port) => close(b, port),
            Err(_) => Ok(()),
        };
    };
    refused("a virtual interrupt that is held", &b.evtchn.bind_virq(Virq::DomExc))?;
    close(a, port)
}
