//! The expected contents of a guest's part of the store: naive maps of paths, one for each state
//! that no reply has ruled out so far.

use std::collections::BTreeMap;
use xen::DomId;
use xenstore_core::wire::MsgType;

/// The reply to a request: its payload, or the name of its error.
pub(crate) type ModelReply = Result<String, String>;

/// One request. Paths are below the guest's home, whose own path is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Read(String),
    List(String),
    Perms(String),
    Write(String, String),
    Mkdir(String),
    Remove(String),
    SetPerms(String, String),
    Start,
    /// The end of the open transaction: a commit or an abort.
    End(TransactionOutcome),
    Watch(String),
    Unwatch(String),
    /// The read of a private node of another domain.
    ReadOther(DomId),
    ReadShared(usize),
    WriteShared(usize),
    ReadCounter(usize),
    WriteCounter(usize, u64),
}

/// The requested end of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TransactionOutcome {
    Commit,
    Abort,
}

/// A change of the guest's nodes that watches are told of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NodeChange {
    pub(crate) path: String,
    /// The paths that were removed with the node.
    pub(crate) removed_below: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    value: String,
    perms: String,
}

type Nodes = BTreeMap<String, Node>;

#[derive(Clone, PartialEq, Eq, Debug)]
struct ModelState {
    nodes: Nodes,
    /// The open transaction's nodes, and the paths that it has touched.
    transaction: Option<(Nodes, Vec<String>)>,
}

/// The model of the guest's nodes, as far as they are known.
#[derive(Debug)]
pub(crate) struct Model {
    fresh: ModelState,
    states: Vec<ModelState>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub(crate) fn is_below(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above);
    rest.is_some_and(|rest| (above.is_empty() && !rest.is_empty()) || rest.starts_with('/'))
}

fn ok() -> ModelReply {
    Ok("OK\0".to_owned())
}

/// Applies a request that reads, changes or lists the guest's own nodes.
fn apply(nodes: &mut Nodes, op: &Op) -> (ModelReply, Option<NodeChange>) {
    let absent = || Err("ENOENT".to_owned());
    let told = |path: &str| Some(NodeChange { path: path.to_owned(), removed_below: Vec::new() });
    match op {
        Op::Read(path) => {
            (nodes.get(path).map_or_else(absent, |node| Ok(node.value.clone())), None)
        }
        Op::Perms(path) => {
            (nodes.get(path).map_or_else(absent, |node| Ok(node.perms.clone())), None)
        }
        Op::List(path) => {
            if !nodes.contains_key(path) {
                return (absent(), None);
            }
            let children = nodes.keys().filter(|at| is_below(at, path) && parent(at) == path);
            let names = children.map(|at| at.rsplit('/').next().unwrap_or_default());
            (Ok(names.map(|name| format!("{name}\0")).collect()), None)
        }
        Op::Write(path, value) => {
            make(nodes, path);
            if let Some(node) = nodes.get_mut(path) {
                node.value.clone_from(value);
            }
            (ok(), told(path))
        }
        Op::Mkdir(path) if nodes.contains_key(path) => (ok(), None),
        Op::Mkdir(path) => {
            make(nodes, path);
            (ok(), told(path))
        }
        Op::Remove(path) if nodes.contains_key(path) => {
            let removed_below = nodes.keys().filter(|at| is_below(at, path)).cloned().collect();
            nodes.retain(|at, _| at != path && !is_below(at, path));
            (ok(), Some(NodeChange { path: path.clone(), removed_below }))
        }
        Op::Remove(path) if nodes.contains_key(parent(path)) => (ok(), None),
        Op::Remove(_) => (absent(), None),
        Op::SetPerms(path, perms) => match nodes.get_mut(path) {
            Some(node) => {
                node.perms.clone_from(perms);
                (ok(), told(path))
            }
            None => (absent(), None),
        },
        Op::Watch(_) | Op::Unwatch(_) => (ok(), None),
        Op::ReadOther(_) | Op::WriteShared(_) => (Err("EACCES".to_owned()), None),
        Op::Start | Op::End(_) | Op::ReadShared(_) | Op::ReadCounter(_) | Op::WriteCounter(..) => {
            (ok(), None)
        }
    }
}

/// Makes a node and its missing parents, with the permissions of the nearest one that exists.
fn make(nodes: &mut Nodes, path: &str) {
    let mut above = path;
    while !nodes.contains_key(above) && !above.is_empty() {
        above = parent(above);
    }
    let perms = nodes.get(above).map_or_else(String::new, |node| node.perms.clone());
    let mut missing = path;
    while !nodes.contains_key(missing) {
        nodes.insert(missing.to_owned(), Node { value: String::new(), perms: perms.clone() });
        missing = parent(missing);
    }
}

impl ModelState {
    /// Applies a request. Returns the expected reply, and the changes that fire watches.
    fn apply(&mut self, op: &Op) -> (ModelReply, Vec<NodeChange>) {
        match op {
            Op::Start => {
                self.transaction = Some((self.nodes.clone(), Vec::new()));
                (ok(), Vec::new())
            }
            Op::End(outcome) => {
                let mut fired = Vec::new();
                if let Some((nodes, touched)) = self.transaction.take()
                    && *outcome == TransactionOutcome::Commit
                {
                    for path in touched {
                        if nodes.contains_key(&path) && nodes.get(&path) != self.nodes.get(&path) {
                            fired.push(NodeChange { path, removed_below: Vec::new() });
                        }
                    }
                    self.nodes = nodes;
                }
                (ok(), fired)
            }
            op => match &mut self.transaction {
                Some((nodes, touched)) => {
                    let (answer, fired) = apply(nodes, op);
                    touched.extend(fired.into_iter().map(|fired| fired.path));
                    (answer, Vec::new())
                }
                None => {
                    let (answer, fired) = apply(&mut self.nodes, op);
                    (answer, fired.into_iter().collect())
                }
            },
        }
    }
}

impl Model {
    /// Makes the model of a home that the toolstack has just made.
    pub(crate) fn new(domid: DomId) -> Self {
        let home = Node { value: String::new(), perms: format!("n{domid}\0") };
        let fresh =
            ModelState { nodes: BTreeMap::from([(String::new(), home)]), transaction: None };
        Self { states: vec![fresh.clone()], fresh }
    }

    /// Starts over after the home was removed and made again.
    pub(crate) fn restart(&mut self) {
        self.states = vec![self.fresh.clone()];
    }

    /// Handles a reply: rules out every state that would have given another. Returns the changes
    /// that all states fired.
    pub(crate) fn answered(
        &mut self,
        op: &Op,
        answer: &ModelReply,
    ) -> Result<Vec<NodeChange>, String> {
        let mut expected = Vec::new();
        let mut fired: Option<Vec<NodeChange>> = None;
        self.states.retain_mut(|state| {
            let (would, told) = state.apply(op);
            if would != *answer {
                expected.push(would);
                return false;
            }
            match &mut fired {
                None => fired = Some(told),
                Some(known) => known.retain(|one| told.contains(one)),
            }
            true
        });
        self.states.dedup();
        let answers = || format!("{op:?} was answered {answer:?}, and had to be {expected:?}");
        fired.ok_or_else(answers)
    }

    /// Ends the open transaction, whose commit was refused.
    pub(crate) fn refused(&mut self) {
        for state in &mut self.states {
            state.transaction = None;
        }
        self.states.dedup();
    }

    /// Handles a cut of the connection with `unanswered` in flight: a first part of them was done
    /// and the rest was not, or, where they may overtake each other, any of them were.
    pub(crate) fn cut(&mut self, unanswered: &[Op], in_order: bool) {
        let mut possible = Vec::new();
        for state in &self.states {
            let mut reached = vec![state.clone()];
            for op in unanswered {
                let from = if in_order { reached.len() - 1 } else { 0 };
                let mut further = reached[from..].to_vec();
                further.iter_mut().for_each(|state| drop(state.apply(op)));
                reached.extend(further);
            }
            possible.extend(reached);
        }
        for mut state in possible.into_iter() {
            state.transaction = None;
            if !self.states.contains(&state) {
                self.states.push(state);
            }
        }
        self.states.retain(|state| state.transaction.is_none());
    }

    /// Returns the number of possible states.
    pub(crate) fn state_count(&self) -> usize {
        self.states.len()
    }

    /// Returns requests that read all nodes.
    pub(crate) fn sweep(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for path in self.states.iter().flat_map(|state| state.nodes.keys()) {
            ops.extend([Op::Read(path.clone()), Op::List(path.clone()), Op::Perms(path.clone())]);
        }
        ops.dedup();
        ops
    }
}

impl Op {
    /// Returns the message type and payload. `path` gives a path of the guest's the form in which
    /// it is sent.
    pub(crate) fn message(&self, path: impl Fn(&str) -> String) -> (MsgType, String) {
        match self {
            Self::Read(at) => (MsgType::Read, format!("{}\0", path(at))),
            Self::List(at) => (MsgType::Directory, format!("{}\0", path(at))),
            Self::Perms(at) => (MsgType::GetPerms, format!("{}\0", path(at))),
            Self::Write(at, value) => (MsgType::Write, format!("{}\0{value}", path(at))),
            Self::Mkdir(at) => (MsgType::Mkdir, format!("{}\0", path(at))),
            Self::Remove(at) => (MsgType::Rm, format!("{}\0", path(at))),
            Self::SetPerms(at, perms) => (MsgType::SetPerms, format!("{}\0{perms}", path(at))),
            Self::Start => (MsgType::TransactionStart, "\0".to_owned()),
            Self::End(TransactionOutcome::Commit) => (MsgType::TransactionEnd, "T\0".to_owned()),
            Self::End(TransactionOutcome::Abort) => (MsgType::TransactionEnd, "F\0".to_owned()),
            // The payload is the path as sent, and the token.
            Self::Watch(what) => (MsgType::Watch, what.clone()),
            Self::Unwatch(what) => (MsgType::Unwatch, what.clone()),
            Self::ReadOther(domid) => (MsgType::Read, format!("/local/domain/{domid}/secret\0")),
            Self::ReadShared(which) => (MsgType::Read, format!("/shared/{which}\0")),
            Self::ReadCounter(which) => (MsgType::Read, format!("/counters/{which}\0")),
            Self::WriteCounter(which, value) => {
                (MsgType::Write, format!("/counters/{which}\0{value}"))
            }
            Self::WriteShared(which) => (MsgType::Write, format!("/shared/{which}\0mine")),
        }
    }

    /// Returns the path that the request may change.
    pub(crate) fn changes(&self) -> Option<&str> {
        match self {
            Self::Write(path, _) | Self::Mkdir(path) | Self::Remove(path) => Some(path),
            Self::SetPerms(path, _) => Some(path),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &str, value: &str) -> Op {
        Op::Write(path.to_owned(), value.to_owned())
    }

    #[test]
    fn a_cut_leaves_doubts_that_an_answer_resolves() {
        let mut model = Model::new(DomId(3));
        model.answered(&write("a/b", "1"), &ok()).unwrap();
        model.cut(&[write("a/b", "2"), write("c", "3")], true);
        assert_eq!(model.state_count(), 3);
        let read = Op::Read("c".to_owned());
        model.answered(&read, &Err("ENOENT".to_owned())).unwrap();
        assert_eq!(model.state_count(), 2);
        model.answered(&Op::Read("a/b".to_owned()), &Ok("2".to_owned())).unwrap();
        assert_eq!(model.state_count(), 1);
        assert!(model.answered(&read, &Ok("3".to_owned())).is_err());
    }

    #[test]
    fn a_transaction_is_seen_when_it_is_committed() {
        let mut model = Model::new(DomId(3));
        let read = Op::Read("a".to_owned());
        for (outcome, after) in
            [(TransactionOutcome::Abort, "ENOENT"), (TransactionOutcome::Commit, "")]
        {
            model.answered(&Op::Start, &ok()).unwrap();
            assert_eq!(model.answered(&write("a", "1"), &ok()), Ok(Vec::new()));
            model.answered(&read, &Ok("1".to_owned())).unwrap();
            let fired = model.answered(&Op::End(outcome), &ok()).unwrap();
            assert_eq!(fired.len(), usize::from(outcome == TransactionOutcome::Commit));
            let after = if after.is_empty() { Ok("1".to_owned()) } else { Err(after.to_owned()) };
            model.answered(&read, &after).unwrap();
        }
    }
}
