//! Runs tables against a daemon and compares every answer.

use crate::daemon::{Daemon, DaemonKind};
use crate::host::{Host, Mark};
use crate::notation;
use crate::peer::{Message, Peer, ReceiveFailure, type_code, type_name};
use crate::table::{self, Speaker, StepAction, TableCase, TableStep};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use xenstore_core::wire::Error;

/// The longest wait for an event that has a cause outside the store.
const EVENT_WITHIN: Duration = Duration::from_secs(5);
/// The time without a message after which a peer counts as silent.
const SILENCE: Duration = Duration::from_millis(100);

/// The number of repeated requests that a guest sends ahead of the answers; daemons allow 20.
const AHEAD: usize = 16;

/// Runs every case of a file of tables against one daemon.
///
/// # Panics
/// If an answer differs from its line; the message lists all such lines.
pub fn run_file(kind: DaemonKind, file: &str, text: &str) {
    let cases = table::parse(text).unwrap_or_else(|why| panic!("tables/{file}.txt: {why}"));
    let mut failures = Vec::new();
    for case in &cases {
        let Some(mut daemon) = Daemon::start(kind) else { return };
        if left_out(case, &daemon.marks()).is_some() {
            continue;
        }
        let failed = run_case(&mut daemon, case);
        failures.extend(failed.into_iter().map(|line| format!("tables/{file}.txt:{line}")));
    }
    assert!(
        failures.is_empty(),
        "{} lines are answered otherwise by `{}`:\n{}",
        failures.len(),
        kind.name(),
        failures.join("\n")
    );
}

/// Returns the difference that excludes a case under these marks.
#[must_use]
pub fn left_out<'a>(case: &'a TableCase, marks: &[Mark]) -> Option<&'a str> {
    case.not.iter().find(|(mark, _)| marks.contains(mark)).map(|(_, id)| id.as_str())
}

/// Runs a case on a host with the initial store; returns the lines that failed.
pub fn run_case(host: &mut dyn Host, case: &TableCase) -> Vec<String> {
    CaseRun { host, peers: BTreeMap::new(), shut_down: BTreeSet::new(), kept: BTreeMap::new() }
        .run(case)
}

/// A request, ready to be sent.
struct PreparedRequest {
    code: u32,
    tx_id: u32,
    payload: Vec<u8>,
}

/// One host and all clients of its daemon.
struct CaseRun<'a> {
    host: &'a mut dyn Host,
    peers: BTreeMap<Speaker, Peer>,
    /// The domains that have shut down and do not answer.
    shut_down: BTreeSet<u16>,
    kept: BTreeMap<String, String>,
}

impl CaseRun<'_> {
    fn run(&mut self, case: &TableCase) -> Vec<String> {
        let mut failed = Vec::new();
        for step in &case.steps {
            if let Err(why) = self.turns(step) {
                failed.push(format!("{}: [{}] {why}", step.line, case.name));
            }
            if let Some(how) = self.host.ended() {
                failed.push(format!("{}: [{}] the daemon is gone: {how}", step.line, case.name));
                break;
            }
        }
        failed
    }

    fn turns(&mut self, step: &TableStep) -> Result<(), String> {
        self.make(&step.who);
        if let (StepAction::Request { .. }, Speaker::Guest(_), 2..) =
            (&step.action, &step.who, step.times)
        {
            return self.ahead(step);
        }
        for turn in 1..=step.times {
            self.kept.insert("i".to_owned(), turn.to_string());
            self.step(step)?;
        }
        Ok(())
    }

    /// Sends the repeated requests of a guest together, ahead of the answers: on Xen each line to
    /// the guest, and each answer, goes over its slow console.
    fn ahead(&mut self, step: &TableStep) -> Result<(), String> {
        let StepAction::Request { kind, tx, payload, expect } = &step.action else { return Ok(()) };
        let other = self.differs(step);
        let mut turn = 0;
        while turn < step.times {
            let mut sent = Vec::new();
            let mut bytes = Vec::new();
            while turn < step.times && sent.len() < AHEAD {
                turn += 1;
                self.kept.insert("i".to_owned(), turn.to_string());
                let asked = self.asked(kind, tx, payload)?;
                let peer = self.peer(&step.who);
                let req_id = peer.frame(asked.code, asked.tx_id, &asked.payload, &mut bytes);
                sent.push((req_id, asked));
            }
            let peer = self.peer(&step.who);
            peer.send(&bytes).map_err(|lost| lost.to_string())?;
            peer.await_replies(sent.len());
            // All replies are taken, right or wrong: the next line has replies of its own.
            let mut wrong = None;
            while !sent.is_empty() {
                let reply = self.peer(&step.who).reply_in_time();
                let reply = reply.map_err(|lost| lost.to_string())?;
                let at = sent.iter().position(|(req_id, _)| *req_id == reply.header.req_id);
                let (_, asked) = sent.remove(at.ok_or("a reply carries a wrong req_id")?);
                wrong = wrong.or(self.judge(&asked, expect, Ok(reply), other).err());
            }
            if let Some(why) = wrong {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Returns the listed difference for this host and this step: its id and its answer.
    fn differs<'b>(&self, step: &'b TableStep) -> Option<(&'b str, &'b str)> {
        let marks = self.marks(&step.who);
        let of = |mark: Mark| step.differs.iter().find(move |(where_, ..)| *where_ == mark);
        let differs = marks.into_iter().find_map(of);
        differs.map(|(_, id, answer)| (id.as_str(), answer.as_str()))
    }

    /// Returns the marks whose differences apply to a client: the device's only for one that uses
    /// it.
    fn marks(&self, who: &Speaker) -> Vec<Mark> {
        let mut marks = self.host.marks();
        marks.retain(|mark| *mark != Mark::Xenbus || matches!(who, Speaker::Dom0(_)));
        marks
    }

    fn step(&mut self, step: &TableStep) -> Result<(), String> {
        let other = self.differs(step);
        match &step.action {
            StepAction::Request { kind, tx, payload, expect } => {
                self.request(&step.who, kind, tx, payload, expect, other)
            }
            StepAction::Event(expect) => self.event(&step.who, expect, other),
            StepAction::Quiet => self.quiet(&step.who, other),
            StepAction::Introduce(expect) => self.introduce(&step.who, expect, other),
            StepAction::Home => self.home(&step.who),
            action => self.happen(&step.who, action),
        }
    }

    fn peer(&mut self, who: &Speaker) -> &mut Peer {
        let host = &mut *self.host;
        self.peers.entry(who.clone()).or_insert_with(|| match who {
            Speaker::Dom0(_) => host.connect(),
            Speaker::Guest(domid) => host.guest(*domid),
        })
    }

    /// Makes a domain before it is needed. A toolstack that makes it changes the store; the events
    /// that others get from this are not part of the case.
    fn make(&mut self, who: &Speaker) {
        let Speaker::Guest(domid) = who else { return };
        if self.peers.contains_key(who) || !self.host.disturbs(*domid) {
            return;
        }
        let shut_down = &self.shut_down;
        let answers =
            |who: &Speaker| !matches!(who, Speaker::Guest(domid) if shut_down.contains(domid));
        let mut heard = Vec::new();
        for (who, peer) in self.peers.iter_mut().filter(|(who, _)| answers(who)) {
            heard.push((who.clone(), peer.pending().unwrap_or(0)));
        }
        let guest = self.host.guest(*domid);
        for (who, count) in heard {
            let Some(peer) = self.peers.get_mut(&who) else { continue };
            if peer.pending().is_ok() {
                peer.forget_after(count);
            }
        }
        self.peers.insert(who.clone(), guest);
    }

    /// Replaces `$name` by the value that was kept under it.
    fn fill(&self, text: &str) -> String {
        let mut filled = text.to_owned();
        for (name, value) in &self.kept {
            filled = filled.replace(&format!("${name}"), value);
        }
        filled
    }

    fn request(
        &mut self,
        who: &Speaker,
        kind: &str,
        tx: &str,
        payload: &str,
        expect: &str,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let asked = self.asked(kind, tx, payload)?;
        let silent = other.map_or(expect, |(_, answer)| answer) == "silent";
        let peer = self.peer(who);
        let got = if silent {
            peer.request(asked.code, asked.tx_id, &asked.payload).and_then(|req_id| {
                let reply = peer.reply(Instant::now() + SILENCE);
                peer.abandon(req_id);
                reply
            })
        } else {
            peer.call(asked.code, asked.tx_id, &asked.payload)
        };
        self.judge(&asked, expect, got, other)
    }

    fn asked(&self, kind: &str, tx: &str, payload: &str) -> Result<PreparedRequest, String> {
        let tx = self.fill(tx);
        let tx_id =
            if tx.is_empty() { 0 } else { tx.parse().map_err(|_| format!("no tx {tx}"))? };
        let payload = notation::parse(&self.fill(payload))?;
        Ok(PreparedRequest { code: type_code(kind).unwrap_or(u32::MAX), tx_id, payload })
    }

    fn judge(
        &mut self,
        asked: &PreparedRequest,
        expect: &str,
        got: Result<Message, ReceiveFailure>,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let expect = other.map_or(expect, |(_, answer)| answer);
        let expected = self.fill(expect);
        let shown = answer(asked.code, asked.tx_id, got)?;
        if let Some(name) = expect.strip_prefix('$') {
            let is_error = Error::from_name(shown.as_bytes()).is_some();
            self.kept.insert(name.to_owned(), shown.trim_end_matches('|').to_owned());
            return if is_error { Err(wrong("a value", &shown, other)) } else { Ok(()) };
        }
        let wanted = match expected.as_str() {
            "OK" => "OK|".to_owned(),
            "*" if !is_refusal(&shown) => shown.clone(),
            "refused" if is_refusal(&shown) && shown != "silent" => shown.clone(),
            "" => String::new(),
            name if is_refusal(name) || name.starts_with("tx=") => name.to_owned(),
            text => notation::show(&notation::parse(text)?),
        };
        if wanted == shown { Ok(()) } else { Err(wrong(&wanted, &shown, other)) }
    }

    fn event(
        &mut self,
        who: &Speaker,
        expect: &str,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let expect = self.fill(other.map_or(expect, |(_, answer)| answer));
        if expect == "nothing" {
            // The event that is missing here may be followed by others, so none is taken.
            return Ok(());
        }
        let got = self.peer(who).event(EVENT_WITHIN).unwrap_or_else(|| "no event".to_owned());
        let wanted = notation::show(&notation::parse(&expect)?);
        if got == wanted { Ok(()) } else { Err(wrong(&wanted, &got, other)) }
    }

    fn quiet(&mut self, who: &Speaker, other: Option<(&str, &str)>) -> Result<(), String> {
        let wanted = other.map_or("", |(_, answer)| answer).to_owned();
        let got = self.peer(who).events().map_err(|lost| lost.to_string())?.join(" ");
        if got == wanted { Ok(()) } else { Err(wrong("no event", &got, other)) }
    }

    fn introduce(
        &mut self,
        who: &Speaker,
        expect: &str,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let Speaker::Guest(domid) = who else {
            return Err("only a guest is introduced".to_owned());
        };
        self.peer(who);
        let payload = self.host.introduction(*domid);
        self.request(&dom0(), "INTRODUCE", "", &payload, expect, other)?;
        let guest = self.peer(who);
        guest.forget();
        guest.ring().adopt_indices().map_err(|error| error.to_string())
    }

    fn home(&mut self, who: &Speaker) -> Result<(), String> {
        self.introduce(who, "OK", None)?;
        let Speaker::Guest(domid) = who else { return Err("only a guest has a home".to_owned()) };
        let dom0 = self.peer(&dom0());
        dom0.expect_ok("MKDIR", format!("/local/domain/{domid}|"));
        dom0.expect_ok("SET_PERMS", format!("/local/domain/{domid}|n{domid}|"));
        Ok(())
    }

    fn happen(&mut self, who: &Speaker, action: &StepAction) -> Result<(), String> {
        match (who, action) {
            (Speaker::Dom0(_), StepAction::Closes) => drop(self.peers.remove(who)),
            (Speaker::Guest(_), StepAction::Created) => {
                self.peer(who);
            }
            (Speaker::Guest(domid), StepAction::Dies) => {
                self.peers.remove(who);
                self.host.destroy(*domid);
                self.shut_down.remove(domid);
                return self.wait_until_gone(*domid);
            }
            (Speaker::Guest(domid), StepAction::ShutsDown) => {
                self.host.shut_down(*domid);
                self.shut_down.insert(*domid);
            }
            (Speaker::Guest(domid), StepAction::RunsAgain) => {
                self.host.run_again(*domid);
                self.shut_down.remove(domid);
            }
            _ => return Err(format!("{who:?} cannot do {action:?}")),
        }
        Ok(())
    }

    /// Waits until the daemon has acted on a death, which is signalled to it.
    fn wait_until_gone(&mut self, domid: u16) -> Result<(), String> {
        let end = Instant::now() + EVENT_WITHIN;
        while self.peer(&dom0()).ask("IS_DOMAIN_INTRODUCED", format!("{domid}|")) == "T|" {
            if Instant::now() > end {
                return Err(format!("domain {domid} died and is introduced still"));
            }
        }
        Ok(())
    }
}

fn dom0() -> Speaker {
    Speaker::Dom0("dom0".to_owned())
}

fn is_refusal(text: &str) -> bool {
    matches!(text, "closed" | "silent" | "refused" | "EQUOTA")
        || Error::from_name(text.as_bytes()).is_some()
}

/// Returns an answer in the notation of the tables.
fn answer(asked: u32, tx_id: u32, got: Result<Message, ReceiveFailure>) -> Result<String, String> {
    match got {
        Err(lost) => Ok(lost.to_string()),
        Ok(reply) if reply.header.tx_id != tx_id => Ok(format!("tx={}", reply.header.tx_id)),
        Ok(reply) => match reply.error() {
            Some(name) => Ok(name),
            None if reply.header.kind == asked => Ok(notation::show(&reply.payload)),
            None => Err(format!("a reply of type {}", type_name(reply.header.kind))),
        },
    }
}

fn wrong(wanted: &str, got: &str, other: Option<(&str, &str)>) -> String {
    let listed = other.map_or_else(String::new, |(id, _)| {
        format!(" (listed as `{id}`; where that is gone, remove the entry)")
    });
    format!("expected `{wanted}`, got `{got}`{listed}")
}
