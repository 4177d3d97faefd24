//! A store with clients: requests by name, replies and events as text.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

pub mod model;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use xenstore_core::server::{
    AttachRequest, Config, ConnId, DomId, EndReason, Notice, Server, StoreHost,
};
use xenstore_core::wire::{Error, Header, MsgType, split_message};

/// The machine around the store: the existing domains, and the store's calls.
#[derive(Clone, Default)]
pub struct TestMachine {
    pub existing: BTreeSet<u16>,
    /// The number of domains of each domid that have died.
    pub lives: BTreeMap<u16, u64>,
    pub detached: Vec<u16>,
    pub refuse_attach: Option<Error>,
}

impl StoreHost for TestMachine {
    fn domain_identity(&mut self, domid: DomId) -> Option<u64> {
        let lives = self.lives.get(&domid.0).copied().unwrap_or_default();
        self.existing.contains(&domid.0).then_some(lives)
    }
    fn attach(&mut self, _at: AttachRequest) -> Result<(), Error> {
        self.refuse_attach.map_or(Ok(()), Err)
    }
    fn reattach(&mut self, _at: AttachRequest) -> Result<(), Error> {
        Ok(())
    }
    fn detach(&mut self, domid: DomId, _conn: ConnId) {
        self.detached.push(domid.0);
    }
    fn control(&mut self, command: &[u8], _args: &[&[u8]]) -> Option<Result<Vec<u8>, Error>> {
        (command == b"print").then(|| Ok(b"OK".to_vec()))
    }
}

/// A reply: its payload, or the error's name.
pub type StoreReply = Result<Vec<u8>, String>;

pub struct TestStore {
    pub server: Server,
    pub machine: TestMachine,
    pub now: u64,
    next_id: u32,
    /// The received messages that were not examined yet: connection, header, payload.
    inbox: VecDeque<(ConnId, Header, Vec<u8>)>,
    pub notices: Vec<Notice>,
}

impl TestStore {
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> Self {
        Self {
            server: Server::new(config),
            machine: TestMachine::default(),
            now: 0,
            next_id: 1,
            inbox: VecDeque::new(),
            notices: Vec::new(),
        }
    }

    pub fn socket(&mut self) -> ConnId {
        self.server.connect_socket()
    }

    /// Adds a guest that exists and is introduced.
    pub fn guest(&mut self, domid: u16) -> ConnId {
        self.machine.existing.insert(domid);
        let conn = self.server.introduce(DomId(domid), 0, 1, self.now, &mut self.machine);
        conn.expect("the machine lets every domain in")
    }

    pub fn dies(&mut self, domid: u16) {
        self.machine.existing.remove(&domid);
        *self.machine.lives.entry(domid).or_default() += 1;
        self.server.domain_died(DomId(domid), self.now, &mut self.machine);
    }

    /// Makes a transaction of the connection fail on `path`, so that its next ones take turns
    /// there.
    pub fn refuse(&mut self, conn: ConnId, path: &str) {
        self.write(conn, 0, path, "0").unwrap();
        let tx = self.start(conn);
        self.read(conn, tx, path).unwrap();
        self.write(conn, 0, path, "1").unwrap();
        self.write(conn, tx, path, "2").unwrap();
        self.commit(conn, tx).unwrap_err();
    }

    /// Sends without waiting, and returns the request's id.
    pub fn send(&mut self, conn: ConnId, kind: MsgType, tx: u32, payload: &[u8]) -> u32 {
        let req_id = self.next_id;
        self.next_id += 1;
        let header = Header { kind: kind.code(), req_id, tx_id: tx, len: payload.len() as u32 };
        self.server.request(conn, &header, payload, self.now, &mut self.machine);
        req_id
    }

    pub fn receive(&mut self, conn: ConnId) {
        if self.server.deadline() == Some(0) {
            self.server.tick(self.now, &mut self.machine);
        }
        loop {
            let output = self.server.output(conn).to_vec();
            if output.is_empty() {
                break;
            }
            let mut rest = &output[..];
            while let Some((header, payload, behind)) =
                split_message(rest).expect("no reply is too long")
            {
                self.inbox.push_back((conn, header, payload.to_vec()));
                rest = behind;
            }
            assert!(rest.is_empty(), "output ends in the middle of a message");
            self.server.consume_output(conn, output.len(), self.now);
        }
        while let Some(notice) = self.server.poll_notice() {
            self.notices.push(notice);
        }
    }

    /// Returns the reply to a request, if it has come.
    pub fn reply(&mut self, conn: ConnId, req_id: u32) -> Option<StoreReply> {
        self.receive(conn);
        let at =
            self.inbox.iter().position(|(to, header, _)| *to == conn && header.req_id == req_id)?;
        let (_, header, payload) = self.inbox.remove(at).expect("it was just seen");
        Some(if header.kind == MsgType::Error.code() {
            Err(String::from_utf8(payload)
                .expect("error names are text")
                .trim_end_matches('\0')
                .to_owned())
        } else {
            Ok(payload)
        })
    }

    /// Sends a request, whose reply must come at once.
    pub fn call(&mut self, conn: ConnId, kind: MsgType, tx: u32, payload: &[u8]) -> StoreReply {
        let id = self.send(conn, kind, tx, payload);
        self.reply(conn, id).unwrap_or_else(|| panic!("{kind:?} was delayed"))
    }

    pub fn read(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, String> {
        let reply = self.call(conn, MsgType::Read, tx, format!("{path}\0").as_bytes());
        reply.map(|value| String::from_utf8(value).expect("the tests write text"))
    }

    pub fn write(&mut self, conn: ConnId, tx: u32, path: &str, value: &str) -> Result<(), String> {
        self.call(conn, MsgType::Write, tx, format!("{path}\0{value}").as_bytes()).map(drop)
    }

    pub fn mkdir(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), String> {
        self.call(conn, MsgType::Mkdir, tx, format!("{path}\0").as_bytes()).map(drop)
    }

    pub fn rm(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<(), String> {
        self.call(conn, MsgType::Rm, tx, format!("{path}\0").as_bytes()).map(drop)
    }

    pub fn list(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<Vec<String>, String> {
        let reply = self.call(conn, MsgType::Directory, tx, format!("{path}\0").as_bytes())?;
        Ok(String::from_utf8(reply)
            .expect("names are text")
            .split_terminator('\0')
            .map(String::from)
            .collect())
    }

    pub fn set_perms(
        &mut self,
        conn: ConnId,
        tx: u32,
        path: &str,
        perms: &[&str],
    ) -> Result<(), String> {
        let payload = format!("{path}\0{}\0", perms.join("\0"));
        self.call(conn, MsgType::SetPerms, tx, payload.as_bytes()).map(drop)
    }

    pub fn perms(&mut self, conn: ConnId, tx: u32, path: &str) -> Result<String, String> {
        let reply = self.call(conn, MsgType::GetPerms, tx, format!("{path}\0").as_bytes())?;
        Ok(String::from_utf8(reply)
            .expect("permissions are text")
            .trim_end_matches('\0')
            .replace('\0', " "))
    }

    pub fn watch(&mut self, conn: ConnId, path: &str, token: &str) -> Result<(), String> {
        self.call(conn, MsgType::Watch, 0, format!("{path}\0{token}\0").as_bytes()).map(drop)
    }

    pub fn start(&mut self, conn: ConnId) -> u32 {
        let reply =
            self.call(conn, MsgType::TransactionStart, 0, b"\0").expect("a transaction starts");
        String::from_utf8(reply)
            .expect("ids are text")
            .trim_end_matches('\0')
            .parse()
            .expect("a number")
    }

    pub fn commit(&mut self, conn: ConnId, tx: u32) -> Result<(), String> {
        self.call(conn, MsgType::TransactionEnd, tx, b"T\0").map(drop)
    }

    pub fn abort(&mut self, conn: ConnId, tx: u32) -> Result<(), String> {
        self.call(conn, MsgType::TransactionEnd, tx, b"F\0").map(drop)
    }

    /// Returns the events that have come, as `path token`.
    pub fn events(&mut self, conn: ConnId) -> Vec<String> {
        self.receive(conn);
        let mut events = Vec::new();
        self.inbox.retain(|(to, header, payload)| {
            let event = *to == conn && header.kind == MsgType::WatchEvent.code();
            if event {
                let text = String::from_utf8(payload.clone()).expect("events are text");
                events.push(text.trim_end_matches('\0').replace('\0', " "));
            }
            !event
        });
        events
    }

    /// Returns a domain's usage of a quota, as `quota <domid>` reports it to `dom0`.
    pub fn usage(&mut self, dom0: ConnId, domid: u16, quota: &str) -> i64 {
        let text = self.call(dom0, MsgType::Control, 0, format!("quota\0{domid}\0").as_bytes());
        let text = String::from_utf8(text.expect("a known domain")).expect("text");
        let line = text.lines().find(|line| line.starts_with(quota));
        let line = line.unwrap_or_else(|| panic!("no {quota} in {text}"));
        let now = line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next());
        now.expect("a number").parse().expect("a number")
    }

    /// Advances the clock.
    pub fn pass(&mut self, microseconds: u64) {
        self.now += microseconds;
        self.server.tick(self.now, &mut self.machine);
    }

    /// Makes the store do its deferred work. Returns the number of rounds.
    pub fn settle(&mut self) -> usize {
        let mut rounds = 0;
        while self.server.deadline() == Some(0) {
            self.server.tick(self.now, &mut self.machine);
            rounds += 1;
        }
        rounds
    }

    pub fn ended(&mut self) -> Vec<(ConnId, EndReason)> {
        while let Some(notice) = self.server.poll_notice() {
            self.notices.push(notice);
        }
        let ended = |notice: &Notice| match notice {
            Notice::Ended { conn, why } => Some((*conn, *why)),
            _ => None,
        };
        self.notices.iter().filter_map(ended).collect()
    }

    /// Returns the lines logged as warnings.
    pub fn warnings(&mut self) -> Vec<String> {
        while let Some(notice) = self.server.poll_notice() {
            self.notices.push(notice);
        }
        let warned = |notice: &Notice| match notice {
            Notice::Warn { text, .. } => Some(text.clone()),
            _ => None,
        };
        self.notices.iter().filter_map(warned).collect()
    }

    /// Asserts that the store's own check finds no fault.
    pub fn check(&mut self) {
        let conn = self.socket();
        self.call(conn, MsgType::Control, 0, b"check\0").expect("check is a command");
        self.settle();
        self.server.disconnect(conn, self.now, &mut self.machine);
        let wrong: Vec<String> =
            self.warnings().into_iter().filter(|line| line.starts_with("check:")).collect();
        assert_eq!(wrong, Vec::<String>::new());
    }
}
