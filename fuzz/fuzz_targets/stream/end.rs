//! The conditions that must hold at the end of a run.

use crate::run::Run;
use xenstore_core::limits::HOLD_MAX_US;
use xenstore_core::server::DomId;
use xenstore_core::wire::{MsgType, split_message};

/// The account of a domain, by quota.
type Account = Vec<(String, i64)>;

/// More turns than there can be transactions that take a turn, one after the other.
const TURNS_MAX: usize = 4096;

impl Run {
    /// Ends a run: every request is answered, the store is consistent, and every account is at 0
    /// once its connections, domains and nodes are gone.
    pub(crate) fn finish(&mut self) {
        self.answer_all();
        self.check_consistency();
        while let Some(at) = self.peers.iter().position(|peer| peer.domid.is_none()) {
            self.close(at);
        }
        (0..self.peers.len()).for_each(|at| self.close(at));
        self.remove_nodes();
        self.free_all();
        let known: Vec<DomId> = self.server.domains().collect();
        for domid in known.iter().filter(|domid| domid.0 != 0) {
            self.check_account_is_empty(domid.0);
        }
        let mut fresh = Run::new();
        fresh.remove_nodes();
        assert_eq!(self.account(0), fresh.account(0), "domain 0's account");
        known.iter().filter(|domid| domid.0 != 0).for_each(|domid| self.destroy_domain(domid.0));
        self.check_consistency();
        assert_eq!(self.server.domains().collect::<Vec<_>>(), [DomId(0)]);
    }

    /// Reads all output until every delayed request has been answered.
    fn answer_all(&mut self) {
        for _ in 0..TURNS_MAX {
            (0..self.peers.len()).for_each(|at| self.drain(at));
            if !self.is_waiting() {
                return;
            }
            self.now += HOLD_MAX_US;
            self.server.tick(self.now, &mut self.machine);
            self.settle();
        }
        panic!("some requests are never answered");
    }

    /// Lets the store free, in slices, all released data, which stays charged until then.
    fn free_all(&mut self) {
        for _ in 0..TURNS_MAX {
            if self.server.deadline().is_none_or(|at| at > self.now) {
                return;
            }
            self.server.tick(self.now, &mut self.machine);
            self.settle();
        }
        panic!("the store never comes to rest");
    }

    /// Checks that the store's own check finds nothing wrong.
    fn check_consistency(&mut self) {
        self.warnings.clear();
        self.admin(MsgType::Control, b"check\0");
        let wrong: Vec<&String> =
            self.warnings.iter().filter(|line| line.starts_with("check:")).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Reduces the tree to its minimum: the root and the special nodes, which belong to domain 0.
    fn remove_nodes(&mut self) {
        let names: Vec<Vec<u8>> =
            self.server.tree().root().children().map(|child| child.name().to_vec()).collect();
        for name in names {
            self.admin(MsgType::Rm, &[b"/", &name[..], b"\0"].concat());
        }
        self.admin(MsgType::Write, b"/\0");
        for node in ["/", "@introduceDomain", "@releaseDomain"] {
            self.admin(MsgType::SetPerms, format!("{node}\0n0\0").as_bytes());
        }
    }

    /// Checks that this domain's account is at 0.
    pub(crate) fn check_account_is_empty(&mut self, domid: u16) {
        let account = self.account(domid);
        assert!(account.iter().all(|(_, used)| *used == 0), "domain {domid}: {account:?}");
    }

    fn account(&mut self, domid: u16) -> Account {
        let text = self.admin(MsgType::Control, format!("quota\0{domid}\0").as_bytes());
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let account: Account = lines
            .filter_map(|(name, rest)| Some((name, rest.split_whitespace().next()?)))
            .map(|(name, used)| (name.trim().to_owned(), used.parse().expect("a number")))
            .collect();
        assert_eq!(account.len(), xenstore_core::quota::COUNT, "{text}");
        account
    }

    /// Sends a request on a socket of its own, which must be answered at once and not refused.
    fn admin(&mut self, kind: MsgType, payload: &[u8]) -> String {
        let at = self.socket();
        let conn = self.peers[at].conn;
        self.ask(at, kind.code(), 0, payload);
        let (header, reply, _) = split_message(self.server.output(conn))
            .expect("no reply is too long")
            .expect("an answer at once");
        let text = String::from_utf8_lossy(reply).into_owned();
        assert_eq!(header.kind, kind.code(), "{kind:?} {}: {text}", payload.escape_ascii());
        let at = self.peers.iter().position(|peer| peer.conn == conn).expect("it was just there");
        self.close(at);
        text
    }
}
