//! Runs tables against a daemon and compares every answer.

use crate::daemon::{Daemon, Kind};
use crate::notation;
use crate::peer::{Lost, Message, Peer, type_code, type_name};
use crate::table::{self, Action, Case, Step, Who};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use xenstore_core::wire::Error;

/// How long an event may take that something outside the store causes.
const EVENT_WITHIN: Duration = Duration::from_secs(5);
/// How long a peer must say nothing to count as silent.
const SILENCE: Duration = Duration::from_millis(100);

/// Runs every case of a file of tables against one daemon.
///
/// # Panics
/// If a line is answered otherwise than it says; the message lists all such lines.
pub fn run_file(kind: Kind, file: &str, text: &str) {
    let cases = table::parse(text).unwrap_or_else(|why| panic!("tables/{file}.txt: {why}"));
    let mut failures = Vec::new();
    for case in &cases {
        if case.not.iter().any(|(peer, _)| *peer == kind) {
            continue;
        }
        let Some(daemon) = Daemon::start(kind) else { return };
        let mut world = World::new(daemon);
        if let Some(failed) = world.run(case) {
            failures.extend(failed.into_iter().map(|line| format!("tables/{file}.txt:{line}")));
        }
    }
    assert!(
        failures.is_empty(),
        "{} lines are answered otherwise by `{}`:\n{}",
        failures.len(),
        kind.name(),
        failures.join("\n")
    );
}

/// One daemon and everyone who speaks to it.
struct World {
    daemon: Daemon,
    peers: BTreeMap<Who, Peer>,
    kept: BTreeMap<String, String>,
}

impl World {
    fn new(daemon: Daemon) -> Self {
        Self { daemon, peers: BTreeMap::new(), kept: BTreeMap::new() }
    }

    /// Runs a case; gives the lines that went otherwise.
    fn run(&mut self, case: &Case) -> Option<Vec<String>> {
        let mut failed = Vec::new();
        for step in &case.steps {
            for turn in 1..=step.times {
                self.kept.insert("i".to_owned(), turn.to_string());
                if let Err(why) = self.step(step) {
                    failed.push(format!("{}: [{}] {why}", step.line, case.name));
                    break;
                }
            }
            if !self.daemon.runs() {
                let how = self.daemon.exit();
                failed.push(format!("{}: [{}] the daemon is gone: {how}", step.line, case.name));
                break;
            }
        }
        (!failed.is_empty()).then_some(failed)
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let kind = self.daemon.kind();
        let differs = step.differs.iter().find(|(peer, ..)| *peer == kind);
        let other = differs.map(|(_, id, answer)| (id.as_str(), answer.as_str()));
        match &step.action {
            Action::Request { kind, tx, payload, expect } => {
                self.request(&step.who, kind, tx, payload, expect, other)
            }
            Action::Event(expect) => self.event(&step.who, expect, other),
            Action::Quiet => self.quiet(&step.who, other),
            Action::Introduce(expect) => self.introduce(&step.who, expect, other),
            Action::Home => self.home(&step.who),
            action => self.happen(&step.who, action),
        }
    }

    fn peer(&mut self, who: &Who) -> &mut Peer {
        let daemon = &self.daemon;
        self.peers.entry(who.clone()).or_insert_with(|| match who {
            Who::Dom0(_) => daemon.connect(),
            Who::Guest(domid) => daemon.guest(*domid),
        })
    }

    /// Replaces `$name` by what was kept under it.
    fn fill(&self, text: &str) -> String {
        let mut filled = text.to_owned();
        for (name, value) in &self.kept {
            filled = filled.replace(&format!("${name}"), value);
        }
        filled
    }

    fn request(
        &mut self,
        who: &Who,
        kind: &str,
        tx: &str,
        payload: &str,
        expect: &str,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let tx = self.fill(tx);
        let tx_id =
            if tx.is_empty() { 0_u32 } else { tx.parse().map_err(|_| format!("no tx {tx}"))? };
        let payload = notation::parse(&self.fill(payload))?;
        let expect = other.map_or(expect, |(_, answer)| answer);
        let expected = self.fill(expect);
        let code = type_code(kind).unwrap_or(u32::MAX);
        let peer = self.peer(who);
        let got = if expected == "silent" {
            peer.request(code, tx_id, &payload).and_then(|req_id| {
                let reply = peer.reply(Instant::now() + SILENCE);
                peer.abandon(req_id);
                reply
            })
        } else {
            peer.call(code, tx_id, &payload)
        };
        let shown = answer(code, tx_id, got)?;
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
        who: &Who,
        expect: &str,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let expect = self.fill(other.map_or(expect, |(_, answer)| answer));
        if expect == "nothing" {
            // The event that is missing here may be followed by others, so nothing is consumed.
            return Ok(());
        }
        let got = self.peer(who).event(EVENT_WITHIN).unwrap_or_else(|| "no event".to_owned());
        let wanted = notation::show(&notation::parse(&expect)?);
        if got == wanted { Ok(()) } else { Err(wrong(&wanted, &got, other)) }
    }

    fn quiet(&mut self, who: &Who, other: Option<(&str, &str)>) -> Result<(), String> {
        let wanted = other.map_or("", |(_, answer)| answer).to_owned();
        let got = self.peer(who).events().map_err(|lost| lost.to_string())?.join(" ");
        if got == wanted { Ok(()) } else { Err(wrong("no event", &got, other)) }
    }

    fn introduce(
        &mut self,
        who: &Who,
        expect: &str,
        other: Option<(&str, &str)>,
    ) -> Result<(), String> {
        let Who::Guest(domid) = who else { return Err("only a guest is introduced".to_owned()) };
        self.peer(who);
        let payload = format!("{domid}|1|1|");
        self.request(&dom0(), "INTRODUCE", "", &payload, expect, other)?;
        let guest = self.peer(who);
        guest.forget();
        guest.ring().adopt_indices().map_err(|error| error.to_string())
    }

    fn home(&mut self, who: &Who) -> Result<(), String> {
        self.introduce(who, "OK", None)?;
        let Who::Guest(domid) = who else { return Err("only a guest has a home".to_owned()) };
        let dom0 = self.peer(&dom0());
        dom0.expect_ok("MKDIR", format!("/local/domain/{domid}|"));
        dom0.expect_ok("SET_PERMS", format!("/local/domain/{domid}|n{domid}|"));
        Ok(())
    }

    fn happen(&mut self, who: &Who, action: &Action) -> Result<(), String> {
        match (who, action) {
            (Who::Dom0(_), Action::Closes) => drop(self.peers.remove(who)),
            (Who::Guest(_), Action::Created) => {
                self.peer(who);
            }
            (Who::Guest(domid), Action::Dies) => {
                self.peers.remove(who);
                self.daemon.destroy(*domid);
                return self.wait_until_gone(*domid);
            }
            (Who::Guest(domid), Action::ShutsDown) => self.daemon.shut_down(*domid),
            (Who::Guest(domid), Action::RunsAgain) => self.daemon.run_again(*domid),
            _ => return Err(format!("{who:?} cannot do {action:?}")),
        }
        Ok(())
    }

    /// The daemon learns of a death by a signal; this waits until it has acted on it.
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

fn dom0() -> Who {
    Who::Dom0("dom0".to_owned())
}

fn is_refusal(text: &str) -> bool {
    matches!(text, "closed" | "silent" | "refused" | "EQUOTA")
        || Error::from_name(text.as_bytes()).is_some()
}

/// An answer as the tables write it.
fn answer(asked: u32, tx_id: u32, got: Result<Message, Lost>) -> Result<String, String> {
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
