//! A model of the store as a plain map of paths, and a run of random operations that compares the
//! two.

use super::{StoreReply, TestStore};
use std::collections::BTreeMap;
use xenstore_core::server::ConnId;
use xenstore_core::wire::MsgType;

/// The source of the choices of a run: a seed, or the bytes of a fuzzer. It may run out.
pub trait Choices {
    /// Returns a number less than `below`, or `None` when there are no more.
    fn below(&mut self, below: usize) -> Option<usize>;
}

/// A source of a fixed number of choices from a seed.
pub struct SeededChoices {
    state: u64,
    left: usize,
}

impl SeededChoices {
    pub fn new(seed: u64, choices: usize) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, left: choices }
    }
}

impl Choices for SeededChoices {
    fn below(&mut self, below: usize) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Some((self.state >> 33) as usize % below)
    }
}

/// The bytes of a fuzzer, one for each choice.
impl Choices for std::slice::Iter<'_, u8> {
    fn below(&mut self, below: usize) -> Option<usize> {
        self.next().map(|byte| usize::from(*byte) % below)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct ModelPerm {
    domid: u16,
    access: char,
    /// The incarnation of the domain; `None` if there was none.
    incarnation: Option<u32>,
}

#[derive(Clone, Debug)]
struct ModelNode {
    value: String,
    perms: Vec<ModelPerm>,
}

type TextReply = Result<String, String>;

#[derive(Clone, Debug)]
enum ModelOp {
    Read(String),
    List(String),
    Perms(String),
    Write(String, String),
    Mkdir(String),
    Rm(String),
    SetPerms(String, Vec<ModelPerm>),
}

/// The model of the store.
#[derive(Clone, Debug)]
struct StoreModel {
    nodes: BTreeMap<String, ModelNode>,
    alive: BTreeMap<u16, u32>,
    next_incarnation: u32,
}

fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/')? {
        ("", "") => None,
        ("", _) => Some("/"),
        (parent, _) => Some(parent),
    }
}

impl StoreModel {
    fn new() -> Self {
        let root = ModelPerm { domid: 0, access: 'n', incarnation: Some(0) };
        let node = ModelNode { value: String::new(), perms: vec![root] };
        let nodes =
            ["/", "/tool", "/tool/xenstored"].map(|path| (path.to_owned(), node.clone())).into();
        Self { nodes, alive: BTreeMap::from([(0, 0)]), next_incarnation: 1 }
    }

    fn nearest(&self, path: &str) -> &ModelNode {
        let mut path = path;
        while !self.nodes.contains_key(path) {
            path = parent(path).expect("the root is always there");
        }
        &self.nodes[path]
    }

    fn may(&self, who: u16, node: &ModelNode, wanted: char) -> bool {
        let owner = &node.perms[0];
        if who == 0 || owner.domid == who {
            return true;
        }
        let incarnation = self.alive.get(&who).copied();
        let own = node.perms[1..]
            .iter()
            .find(|entry| entry.domid == who && entry.incarnation == incarnation);
        let access = own.unwrap_or(owner).access;
        access == wanted || access == 'b'
    }

    fn find(&self, who: u16, path: &str, wanted: char) -> Result<&ModelNode, String> {
        if !self.may(who, self.nearest(path), wanted) {
            return Err("EACCES".to_owned());
        }
        self.nodes.get(path).ok_or_else(|| "ENOENT".to_owned())
    }

    fn apply(&mut self, who: u16, op: &ModelOp) -> TextReply {
        match op {
            ModelOp::Read(path) => self.find(who, path, 'r').map(|node| node.value.clone()),
            ModelOp::List(path) => {
                self.find(who, path, 'r')?;
                let children = self.nodes.keys().filter(|child| parent(child) == Some(path));
                let mut names: Vec<&str> =
                    children.map(|child| child.rsplit('/').next().unwrap()).collect();
                names.sort_unstable();
                Ok(names.iter().map(|name| format!("{name}\0")).collect())
            }
            ModelOp::Perms(path) => {
                let node = self.find(who, path, 'r')?;
                let shown = |entry: &&ModelPerm| {
                    entry
                        .incarnation
                        .is_none_or(|known| self.alive.get(&entry.domid) == Some(&known))
                };
                let entries = node.perms[..1].iter().chain(node.perms[1..].iter().filter(shown));
                Ok(entries.map(|entry| format!("{}{}\0", entry.access, entry.domid)).collect())
            }
            ModelOp::Write(path, value) => self.put(who, path, Some(value)),
            ModelOp::Mkdir(path) => self.put(who, path, None),
            ModelOp::Rm(path) => self.rm(who, path),
            ModelOp::SetPerms(path, perms) => self.set_perms(who, path, perms),
        }
    }

    fn put(&mut self, who: u16, path: &str, value: Option<&String>) -> TextReply {
        match self.find(who, path, 'w') {
            Err(error) if error != "ENOENT" => return Err(error),
            Err(_) => {
                let mut perms = self.nearest(path).perms.clone();
                if who != 0 {
                    perms[0].domid = who;
                    perms[0].incarnation = self.alive.get(&who).copied();
                }
                let mut missing = path;
                while !self.nodes.contains_key(missing) {
                    self.nodes.insert(
                        missing.to_owned(),
                        ModelNode { value: String::new(), perms: perms.clone() },
                    );
                    missing = parent(missing).expect("the root is always there");
                }
            }
            Ok(_) => {}
        }
        if let Some(value) = value {
            self.nodes.get_mut(path).expect("just made").value.clone_from(value);
        }
        Ok("OK\0".to_owned())
    }

    fn rm(&mut self, who: u16, path: &str) -> TextReply {
        match self.find(who, path, 'w') {
            Err(error) if error == "ENOENT" => {
                let above = parent(path).is_some_and(|parent| self.nodes.contains_key(parent));
                return if above { Ok("OK\0".to_owned()) } else { Err(error) };
            }
            Err(error) => return Err(error),
            Ok(_) if path == "/" => return Err("EINVAL".to_owned()),
            Ok(_) => {}
        }
        self.prune(path);
        Ok("OK\0".to_owned())
    }

    fn prune(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|known, _| known != path && !known.starts_with(&below));
    }

    /// Returns an entry for the domain of this number that lives now.
    fn entry(&self, access: char, domid: u16) -> ModelPerm {
        ModelPerm { domid, access, incarnation: self.alive.get(&domid).copied() }
    }

    fn set_perms(&mut self, who: u16, path: &str, perms: &[ModelPerm]) -> TextReply {
        let owner = &perms[0];
        if owner.incarnation.is_none() || self.alive.get(&owner.domid).copied() != owner.incarnation
        {
            return Err("ENOENT".to_owned());
        }
        let owner = self.find(who, path, 'w')?.perms[0].domid;
        if who != 0 && owner != who {
            return Err("EACCES".to_owned());
        }
        if who != 0 && perms[0].domid != who {
            return Err("EPERM".to_owned());
        }
        self.nodes.get_mut(path).expect("just found").perms = perms.to_vec();
        Ok("OK\0".to_owned())
    }

    fn dies(&mut self, domid: u16) {
        self.alive.remove(&domid);
        while let Some((path, _)) = self.nodes.iter().find(|(_, node)| node.perms[0].domid == domid)
        {
            let path = path.clone();
            if path == "/" {
                // The root stays, and then belongs to the privileged domain.
                let owner = ModelPerm {
                    domid: 0,
                    access: self.nodes["/"].perms[0].access,
                    incarnation: Some(0),
                };
                self.nodes.get_mut("/").expect("the root is always there").perms[0] = owner;
            } else {
                self.prune(&path);
            }
        }
    }
}

fn text(reply: StoreReply) -> TextReply {
    reply.map(|payload| String::from_utf8(payload).expect("the run writes text"))
}

impl ModelOp {
    fn message(&self) -> (MsgType, String) {
        match self {
            Self::Read(path) => (MsgType::Read, format!("{path}\0")),
            Self::List(path) => (MsgType::Directory, format!("{path}\0")),
            Self::Perms(path) => (MsgType::GetPerms, format!("{path}\0")),
            Self::Write(path, value) => (MsgType::Write, format!("{path}\0{value}")),
            Self::Mkdir(path) => (MsgType::Mkdir, format!("{path}\0")),
            Self::Rm(path) => (MsgType::Rm, format!("{path}\0")),
            Self::SetPerms(path, perms) => {
                let perms: String = perms
                    .iter()
                    .map(|entry| format!("{}{}\0", entry.access, entry.domid))
                    .collect();
                (MsgType::SetPerms, format!("{path}\0{perms}"))
            }
        }
    }

    /// Returns the event that a watch of everything gets if this operation is done in the store's
    /// present state.
    fn tells(&self, model: &StoreModel) -> Option<String> {
        let (told, path) = match self {
            Self::Read(path) | Self::List(path) | Self::Perms(path) => (false, path),
            Self::Mkdir(path) => (!model.nodes.contains_key(path), path),
            Self::Rm(path) => (model.nodes.contains_key(path), path),
            Self::Write(path, _) | Self::SetPerms(path, _) => (true, path),
        };
        told.then(|| format!("{path} t"))
    }

    fn is_change(&self) -> bool {
        !matches!(self, Self::Read(_) | Self::List(_) | Self::Perms(_))
    }
}

fn choose_op(choices: &mut dyn Choices, model: &StoreModel) -> Option<ModelOp> {
    const PATHS: [&str; 12] = [
        "/a",
        "/a/b",
        "/a/b/c",
        "/a/x",
        "/b",
        "/b/y/z",
        "/local/domain/1",
        "/local/domain/1/d",
        "/local/domain/2",
        "/local/domain/2/d/e",
        "/",
        "/tool",
    ];
    let path = PATHS[choices.below(PATHS.len())?].to_owned();
    Some(match choices.below(12)? {
        0..=2 => ModelOp::Read(path),
        3 => ModelOp::List(path),
        4 => ModelOp::Perms(path),
        5..=7 => ModelOp::Write(path, format!("v{}", choices.below(4)?)),
        8 => ModelOp::Mkdir(path),
        9 => ModelOp::Rm(path),
        _ => {
            let mut perms = Vec::new();
            for _ in 0..=choices.below(3)? {
                perms.push(
                    model.entry(['n', 'r', 'w', 'b'][choices.below(4)?], choices.below(4)? as u16),
                );
            }
            ModelOp::SetPerms(path, perms)
        }
    })
}

/// A transaction of the run: its client, its requests and the answers.
struct OpenTransaction {
    conn: ConnId,
    who: u16,
    tx: u32,
    /// The states that the transaction may see: the state after its log, on each state since its
    /// start on which the log gets the answers that it got.
    states: Vec<StoreModel>,
    /// The number of domains that had died before.
    deaths: usize,
    log: Vec<(ModelOp, TextReply)>,
}

/// The clients of a run: two sockets of domain 0, and the guests 1 and 2, which come and go.
struct ModelRun {
    store: TestStore,
    model: StoreModel,
    watcher: ConnId,
    conns: BTreeMap<(u16, usize), ConnId>,
    open: Vec<OpenTransaction>,
    deaths: usize,
}

/// The state at the end of a run.
pub struct FinalState {
    pub store: TestStore,
    pub conns: Vec<ConnId>,
    /// The open transactions.
    pub open: Vec<(ConnId, u32)>,
}

/// Makes the operations of `choices` on the store and on the map, and compares every answer.
pub fn run(choices: impl Choices) {
    reach(choices).store.check();
}

/// Does the same as [`run`], and returns the state at the end.
pub fn reach(mut choices: impl Choices) -> FinalState {
    let mut store = TestStore::new();
    let watcher = store.socket();
    store.watch(watcher, "/", "t").unwrap();
    store.events(watcher);
    let conns = BTreeMap::from([((0, 0), store.socket()), ((0, 1), store.socket())]);
    let mut run =
        ModelRun { store, model: StoreModel::new(), watcher, conns, open: Vec::new(), deaths: 0 };
    while run.step(&mut choices).is_some() {}
    let open = run.open.iter().map(|open| (open.conn, open.tx)).collect();
    let conns = run.conns.values().copied().chain([watcher]).collect();
    FinalState { store: run.store, conns, open }
}

/// Returns any request about a node.
pub fn request(choices: &mut dyn Choices) -> Option<(MsgType, String)> {
    Some(choose_op(choices, &StoreModel::new())?.message())
}

impl ModelRun {
    fn step(&mut self, choices: &mut dyn Choices) -> Option<()> {
        self.store.now += 50;
        match choices.below(20)? {
            0 => self.toggle(1 + choices.below(2)? as u16),
            1 | 2 => self.start(choices)?,
            3 | 4 if !self.open.is_empty() => {
                let at = choices.below(self.open.len())?;
                self.finish(at, choices.below(5)? > 0);
            }
            5..=10 if !self.open.is_empty() => {
                let at = choices.below(self.open.len())?;
                self.within(at, choose_op(choices, &self.model)?);
            }
            _ => {
                let (who, conn) = self.client(choices)?;
                self.directly(who, conn, &choose_op(choices, &self.model)?);
            }
        }
        Some(())
    }

    fn client(&self, choices: &mut dyn Choices) -> Option<(u16, ConnId)> {
        let ((who, _), conn) = self.conns.iter().nth(choices.below(self.conns.len())?)?;
        Some((*who, *conn))
    }

    /// Makes a guest start, or die with all its nodes.
    fn toggle(&mut self, domid: u16) {
        if self.conns.remove(&(domid, 0)).is_some() {
            self.open.retain(|open| open.who != domid);
            self.store.dies(domid);
            self.model.dies(domid);
            self.deaths += 1;
            self.alive_changed();
        } else {
            let conn = self.store.guest(domid);
            self.conns.insert((domid, 0), conn);
            self.model.alive.insert(domid, self.model.next_incarnation);
            self.model.next_incarnation += 1;
            self.alive_changed();
            let home = format!("/local/domain/{domid}");
            let (_, dom0) = self.conns.first_key_value().map(|(key, conn)| (*key, *conn)).unwrap();
            self.directly(0, dom0, &ModelOp::Mkdir(home.clone()));
            let owner = self.model.entry('n', domid);
            self.directly(0, dom0, &ModelOp::SetPerms(home, vec![owner]));
        }
        self.store.events(self.watcher);
        self.changed();
    }

    /// Sends a request. Advances the clock if it has to wait for the end of another's turn.
    fn ask(&mut self, conn: ConnId, kind: MsgType, tx: u32, payload: &str) -> TextReply {
        let id = self.store.send(conn, kind, tx, payload.as_bytes());
        for _ in 0..=8 {
            if let Some(reply) = self.store.reply(conn, id) {
                return text(reply);
            }
            self.store.pass(10_000);
        }
        panic!("{kind:?} was never answered");
    }

    fn directly(&mut self, who: u16, conn: ConnId, op: &ModelOp) {
        self.store.events(self.watcher);
        let (kind, payload) = op.message();
        let got = self.ask(conn, kind, 0, &payload);
        let told = op.tells(&self.model);
        let expected = self.model.apply(who, op);
        assert_eq!(got, expected, "domain {who}: {op:?}");
        let events = self.store.events(self.watcher);
        let told: Vec<String> = told.filter(|_| got.is_ok()).into_iter().collect();
        assert_eq!(events, told, "domain {who}: {op:?}");
        if op.is_change() {
            self.changed();
        }
    }

    fn start(&mut self, choices: &mut dyn Choices) -> Option<()> {
        let (who, conn) = self.client(choices)?;
        if self.open.iter().filter(|open| open.who == who).count() < 8 {
            let tx = self.store.start(conn);
            self.open.push(OpenTransaction {
                conn,
                who,
                tx,
                states: vec![self.model.clone()],
                deaths: self.deaths,
                log: Vec::new(),
            });
        }
        Some(())
    }

    /// Makes a request in a transaction. Its answer may come from a later state than that of the
    /// start, if the whole log has the same answers there.
    fn within(&mut self, at: usize, op: ModelOp) {
        let (kind, payload) = op.message();
        let (conn, tx) = (self.open[at].conn, self.open[at].tx);
        let got = self.ask(conn, kind, tx, &payload);
        let open = &mut self.open[at];
        let who = open.who;
        open.states.retain_mut(|state| state.apply(who, &op) == got);
        assert!(
            !open.states.is_empty(),
            "no state of the store explains {got:?} for {op:?} behind {:?}",
            open.log
        );
        open.log.push((op, got));
    }

    /// Updates the transactions after a domain's start or death: a snapshot does not include the
    /// set of living domains.
    fn alive_changed(&mut self) {
        for state in self.open.iter_mut().flat_map(|open| &mut open.states) {
            state.alive = self.model.alive.clone();
        }
    }

    /// Updates the transactions after a change of the store: they may continue from the present
    /// state.
    fn changed(&mut self) {
        for open in &mut self.open {
            let mut later = self.model.clone();
            if open.log.iter().all(|(op, answer)| later.apply(open.who, op) == *answer) {
                open.states.push(later);
            }
            // A transaction is not moved to states that are far back.
            let excess = open.states.len().saturating_sub(400);
            open.states.drain(1..=excess);
        }
    }

    /// Ends a transaction. A commit succeeds if and only if every answer is the same on the present
    /// store, or nothing was changed.
    fn finish(&mut self, at: usize, commit: bool) {
        let open = self.open.remove(at);
        let got = self.ask(
            open.conn,
            MsgType::TransactionEnd,
            open.tx,
            if commit { "T\0" } else { "F\0" },
        );
        let events = self.store.events(self.watcher);
        if !commit {
            assert_eq!(got, Ok("OK\0".to_owned()));
            assert!(events.is_empty(), "nothing was done: {events:?}");
            return;
        }
        let mut later = self.model.clone();
        let mut told: Vec<String> = Vec::new();
        let differs = open.log.iter().find_map(|(op, answer)| {
            // Equal events are sent once.
            let event = op.tells(&later).filter(|event| answer.is_ok() && !told.contains(event));
            told.extend(event);
            let now = later.apply(open.who, op);
            (now != *answer)
                .then(|| format!("{op:?} was {answer:?} and is {now:?} for domain {}", open.who))
        });
        if got.is_err() {
            told.clear();
        }
        assert_eq!(events, told, "domain {}: {:?}", open.who, open.log);
        let stands = differs.is_none();
        let changes = open.log.iter().any(|(op, answer)| op.is_change() && answer.is_ok());
        if !changes {
            assert_eq!(got, Ok("OK\0".to_owned()), "a transaction that only read was refused");
        } else if stands && self.deaths == open.deaths {
            assert_eq!(got, Ok("OK\0".to_owned()), "refused without a conflict: {:?}", open.log);
            self.model = later;
            self.changed();
        } else if stands {
            // Equal text of permissions may mean another domain of the same number.
            match got {
                Ok(_) => self.model = later,
                Err(error) => assert_eq!(error, "EAGAIN"),
            }
            self.changed();
        } else {
            assert_eq!(
                got,
                Err("EAGAIN".to_owned()),
                "committed in spite of a conflict: {differs:?}"
            );
        }
    }
}
