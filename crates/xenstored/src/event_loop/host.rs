//! Answers the core's questions to the machine: domains, their rings, commands to the daemon.

use super::io::DaemonIo;
use crate::connection::{AttachedRing, Connection, Transport};
use crate::control;
use crate::fairness::Demand;
use daemon::Level;
use xen::Port;
use xen_io::xs_ring::{ErrorWord, RingError, ServerRing};
use xenstore_core::server::{AttachRequest, ConnId, DomId, EndReason, StoreHost};
use xenstore_core::wire;

/// Returns the error for the caller of INTRODUCE: the same name if the protocol has it.
fn to_wire(error: xen::Error) -> wire::Error {
    let number = error.errno();
    let known = wire::ERRORS.iter().find(|(_, _, errno)| *errno == number);
    known.map_or(wire::Error::Inval, |(error, ..)| *error)
}

/// Writes the fields that a guest checks before it uses its ring.
fn begin(ring: &ServerRing, features: u32) -> Result<(), RingError> {
    ring.set_features(features)?;
    ring.set_error(ErrorWord::None)?;
    // This field is written last: a guest that was set up before the store waits only for it.
    ring.set_connected()
}

impl DaemonIo {
    /// Maps the page, binds the port, and makes the ring ready for its first request.
    fn try_attach(&mut self, at: AttachRequest) -> Result<AttachedRing, xen::Error> {
        let own = at.domid == self.store_domain;
        let domains = self.domains.as_mut().ok_or(xen::Error::NoDev)?;
        let (page, offered) = if own {
            let own = domains.own_ring.take().ok_or(xen::Error::Inval)?;
            (own.page, own.port)
        } else {
            (domains.map(at.domid)?, Port(at.port))
        };
        let ring = ServerRing::new(page);
        let page_error = |_: RingError| xen::Error::Inval;
        let port = ring.evtchn_port().map_err(page_error)?.map_or(offered, Port);
        let port = domains.bind(at.domid, port, at.conn)?;
        let prepared =
            ring.set_features(at.features).and_then(|()| ring.set_error(ErrorWord::None));
        if prepared.is_err() {
            domains.unbind(port);
            return Err(xen::Error::Inval);
        }
        if own {
            // A guest's kernel looks for devices from the first event on.
            domains.notify(port).inspect_err(|_| domains.unbind(port))?;
        }
        Ok(AttachedRing { ring, port, masked: false, ended: false })
    }

    fn try_reattach(&mut self, at: AttachRequest) -> Result<(), xen::Error> {
        let own = at.domid == self.store_domain;
        let domains = self.domains.as_mut().ok_or(xen::Error::NoDev)?;
        let connection = self.connections.get(at.conn).ok_or(xen::Error::NoEnt)?;
        let Transport::Ring(ring) = &mut connection.transport else {
            return Err(xen::Error::Inval);
        };
        // The domid may have passed to a new domain, with another page.
        if !own {
            ring.ring = ServerRing::new(domains.map(at.domid)?);
        }
        // Xen binds to a guest's port only if it is unbound. This daemon may still be bound to it.
        domains.unbind(ring.port);
        ring.port = Port::NONE;
        ring.ended = true;
        let port = domains.bind(at.domid, Port(at.port), at.conn).inspect_err(|_| {
            // The guest can read the reason in its page. Its toolstack may try again.
            let _ = ring.ring.set_error(ErrorWord::Communication);
        })?;
        ring.port = port;
        ring.masked = false;
        ring.ended = false;
        let ready = ring.ring.reset().and_then(|()| begin(&ring.ring, at.features));
        connection.pending = Vec::new();
        connection.accounted_out = 0;
        connection.parked = false;
        let _ = domains.notify(port);
        ready.map_err(|_| xen::Error::Inval)
    }

    /// Tells the domain why it is no longer served.
    pub(crate) fn end_ring(&mut self, id: ConnId, why: EndReason) {
        let Some(connection) = self.connections.get(id) else { return };
        let Transport::Ring(ring) = &mut connection.transport else { return };
        let word = match why {
            EndReason::RingIndex => ErrorWord::RingIndex,
            EndReason::Protocol => ErrorWord::Protocol,
            EndReason::Unread | EndReason::Communication => ErrorWord::Communication,
        };
        ring.ended = true;
        connection.pending = Vec::new();
        connection.accounted_out = 0;
        let port = ring.port;
        let _ = ring.ring.set_error(word);
        if let Some(domains) = &self.domains {
            let _ = domains.notify(port);
        }
    }
}

impl StoreHost for DaemonIo {
    fn domain_identity(&mut self, domid: DomId) -> Option<u64> {
        match &mut self.domains {
            Some(domains) => domains.platform.domains.identity(xen::DomId(domid.0)),
            // Without Xen there is only the domain that runs the store.
            None => (domid == self.store_domain).then_some(0),
        }
    }

    fn attach(&mut self, at: AttachRequest) -> Result<(), wire::Error> {
        let domid = at.domid.0;
        match self.try_attach(at) {
            Ok(ring) => {
                let class = self.class_of(at.domid);
                self.connections
                    .insert(at.conn, Connection::new(Transport::Ring(ring), domid, class));
                self.stats.admit(domid);
                self.stats.rings += 1;
                // Input that the guest wrote before it was introduced raises no event any more.
                self.enqueue(at.conn, Demand::New);
                self.trace_object("ATTACH", at.conn, "");
                Ok(())
            }
            Err(error) => {
                let text = format!("domain {domid} cannot be introduced: {error}");
                self.log.line(Level::Warn, &format!("domid={domid}"), &text);
                Err(to_wire(error))
            }
        }
    }

    fn reattach(&mut self, at: AttachRequest) -> Result<(), wire::Error> {
        self.try_reattach(at).map_err(|error| {
            let domid = at.domid.0;
            let text = format!("domain {domid} cannot be introduced again: {error}");
            self.log.line(Level::Warn, &format!("domid={domid}"), &text);
            to_wire(error)
        })?;
        self.enqueue(at.conn, Demand::New);
        self.trace_object("REATTACH", at.conn, "");
        Ok(())
    }

    fn detach(&mut self, domid: DomId, conn: ConnId) {
        self.trace_object("DETACH", conn, "");
        let Some(connection) = self.connections.remove(conn) else { return };
        let Transport::Ring(ring) = connection.transport else { return };
        self.stats.rings = self.stats.rings.saturating_sub(1);
        self.stats.forget(domid.0);
        if let Some(domains) = &mut self.domains {
            domains.unbind(ring.port);
        }
    }

    fn control(&mut self, command: &[u8], args: &[&[u8]]) -> Option<Result<Vec<u8>, wire::Error>> {
        control::answer(self, command, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_name_where_the_protocol_has_it() {
        assert_eq!(to_wire(xen::Error::NoSpc), wire::Error::NoSpc);
        assert_eq!(to_wire(xen::Error::Srch), wire::Error::Inval);
    }
}
