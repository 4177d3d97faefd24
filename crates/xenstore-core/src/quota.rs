//! Quotas: the limits of a domain, its usage, and its refusals.
//!
//! Names and defaults are the C daemon's (`tools/xenstored/domain.c` of Xen 4.23). Privileged
//! domains are counted, but never refused. Every refusal is counted with its time, and logged at
//! most once in [`REFUSAL_LOG_US`] for one quota of one domain.

use crate::id::DomId;
use crate::limits::REFUSAL_LOG_US;
use crate::wire::Error;
use alloc::format;
use alloc::string::String;

/// A limited resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Quota {
    /// The nodes that the domain owns.
    Nodes,
    /// The watches that the domain has set.
    Watches,
    /// The requests whose replies the domain has not read yet.
    Outstanding,
    /// The bytes of nodes, watches and transactions, and separately those of unread output.
    Memory,
    /// The transactions open at the same time.
    Transactions,
    /// The nodes accessed in one transaction.
    TransactionNodes,
    /// The permission entries of one node.
    NodePermissions,
    /// The bytes of a path.
    PathMax,
    /// The bytes of one node: its value, permissions and the names of its children.
    NodeSize,
}

/// The number of quotas.
pub const COUNT: usize = 9;

/// A quota's name, description and defaults.
#[derive(Clone, Copy, Debug)]
pub struct QuotaInfo {
    /// The quota.
    pub quota: Quota,
    /// Its name in CONTROL, GET_QUOTA and on the command line.
    pub name: &'static str,
    /// A description of the resource.
    pub what: &'static str,
    /// The default of the hard limit; 0 is no limit.
    pub hard: u32,
    /// The default of the soft limit, if the quota has one: a warning is logged above it.
    pub soft: Option<u32>,
}

const fn info(quota: Quota, name: &'static str, what: &'static str, hard: u32) -> QuotaInfo {
    QuotaInfo { quota, name, what, hard, soft: None }
}

/// All quotas, in the C daemon's order.
pub const ALL: [QuotaInfo; COUNT] = [
    info(Quota::Nodes, "nodes", "Nodes per domain", 1000),
    info(Quota::Watches, "watches", "Watches per domain", 128),
    info(Quota::Outstanding, "outstanding", "Outstanding requests per domain", 20),
    QuotaInfo {
        quota: Quota::Memory,
        name: "memory",
        what: "Total Xenstore memory per domain",
        hard: 2_621_440,
        soft: Some(2_097_152),
    },
    info(Quota::Transactions, "transactions", "Active transactions per domain", 10),
    info(
        Quota::TransactionNodes,
        "transaction-nodes",
        "Max. number of accessed nodes per transaction",
        1024,
    ),
    info(Quota::NodePermissions, "node-permissions", "Max. number of permissions per node", 5),
    info(Quota::PathMax, "path-max", "Max. length of a node path", 2048),
    info(Quota::NodeSize, "node-size", "Max. size of a node", 2048),
];

/// Alternative names of quotas.
const ALIASES: [(&str, Quota); 2] =
    [("path-length", Quota::PathMax), ("permissions", Quota::NodePermissions)];

impl Quota {
    /// Returns the quota of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let known = ALL.iter().find(|info| info.name == name).map(|info| info.quota);
        known.or_else(|| ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, quota)| *quota))
    }

    /// Parses a quota's name in GET_QUOTA and SET_QUOTA, in which `soft-` precedes a soft quota's
    /// name.
    pub(crate) fn named(name: &[u8]) -> Result<(Self, LimitKind), Error> {
        let name = core::str::from_utf8(name).map_err(|_| Error::Inval)?;
        let (name, kind) = match name.strip_prefix("soft-") {
            Some(name) => (name, LimitKind::Soft),
            None => (name, LimitKind::Hard),
        };
        let quota = Self::from_name(name).ok_or(Error::Inval)?;
        if kind == LimitKind::Soft && quota.info().soft.is_none() {
            Err(Error::Inval)
        } else {
            Ok((quota, kind))
        }
    }

    /// True if the limit applies to each item separately, such as the size of a node. Otherwise it
    /// applies to the total.
    #[must_use]
    pub fn is_a_size(self) -> bool {
        matches!(
            self,
            Self::TransactionNodes | Self::NodePermissions | Self::PathMax | Self::NodeSize
        )
    }

    /// Returns the name, description and defaults.
    #[must_use]
    pub fn info(self) -> &'static QuotaInfo {
        const NODES: &QuotaInfo = &ALL[0];
        ALL.get(self as usize).unwrap_or(NODES)
    }
}

/// The kind of a limit: hard or soft.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitKind {
    /// A request beyond the limit is refused.
    Hard,
    /// A usage beyond the limit is logged as a warning.
    Soft,
}

/// A value for every quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Values<T>([T; COUNT]);

impl<T: Copy + Default> Values<T> {
    /// Returns the value of one quota.
    #[must_use]
    pub fn get(&self, quota: Quota) -> T {
        self.0.get(quota as usize).copied().unwrap_or_default()
    }

    /// Sets the value of one quota.
    pub fn set(&mut self, quota: Quota, value: T) {
        if let Some(at) = self.0.get_mut(quota as usize) {
            *at = value;
        }
    }
}

impl<T: Copy + Default> Default for Values<T> {
    fn default() -> Self {
        Self([T::default(); COUNT])
    }
}

/// The limits of a domain, or the defaults for new domains.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLimits {
    hard: Values<u32>,
    soft: Values<u32>,
}

impl Default for QuotaLimits {
    fn default() -> Self {
        let (mut hard, mut soft) = (Values::default(), Values::default());
        for info in ALL {
            hard.set(info.quota, info.hard);
            soft.set(info.quota, info.soft.unwrap_or(0));
        }
        Self { hard, soft }
    }
}

impl QuotaLimits {
    /// Returns the limit; 0 for none.
    #[must_use]
    pub fn get(&self, quota: Quota, kind: LimitKind) -> u32 {
        match kind {
            LimitKind::Hard => self.hard.get(quota),
            LimitKind::Soft => self.soft.get(quota),
        }
    }

    /// Sets a limit.
    ///
    /// # Errors
    /// EINVAL for a soft limit that does not exist.
    pub fn set(&mut self, quota: Quota, kind: LimitKind, value: u32) -> Result<(), Error> {
        match kind {
            LimitKind::Hard => self.hard.set(quota, value),
            LimitKind::Soft if quota.info().soft.is_none() => return Err(Error::Inval),
            LimitKind::Soft => self.soft.set(quota, value),
        }
        Ok(())
    }
}

/// The refusals of one quota to a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuotaRefusals {
    /// The number of refusals.
    pub count: u64,
    /// The time of the last refusal, in microseconds.
    pub last: u64,
    logged: Option<u64>,
}

/// The usage of one domain.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    now: Values<i64>,
    max: Values<i64>,
    refusals: Values<QuotaRefusals>,
    soft_warned: Option<u64>,
}

impl Usage {
    /// Returns the current usage.
    #[must_use]
    pub fn now(&self, quota: Quota) -> i64 {
        self.now.get(quota)
    }

    /// Returns the highest usage so far.
    #[must_use]
    pub fn max(&self, quota: Quota) -> i64 {
        self.max.get(quota)
    }

    /// Resets the highest usage.
    pub fn reset_max(&mut self) {
        self.max = self.now;
    }

    /// Returns the refusals of one quota.
    #[must_use]
    pub fn refusal(&self, quota: Quota) -> QuotaRefusals {
        self.refusals.get(quota)
    }

    /// Adds to (or subtracts from) the current usage.
    pub fn add(&mut self, quota: Quota, more: i64) {
        let value = self.now.get(quota).saturating_add(more);
        self.now.set(quota, value);
        self.record_size(quota, value);
    }

    /// Records the size of an item that is limited separately (a node, a path).
    pub fn record_size(&mut self, quota: Quota, value: i64) {
        if value > self.max.get(quota) {
            self.max.set(quota, value);
        }
    }

    /// Counts a refusal, and returns the line to log if one is due.
    pub fn refuse(
        &mut self,
        domid: DomId,
        quota: Quota,
        wanted: i64,
        limit: u32,
        now: u64,
    ) -> Option<String> {
        let mut refusal = self.refusals.get(quota);
        refusal.count = refusal.count.saturating_add(1);
        refusal.last = now;
        let quiet = refusal.logged.is_some_and(|at| now < at.saturating_add(REFUSAL_LOG_US));
        if !quiet {
            refusal.logged = Some(now);
        }
        self.refusals.set(quota, refusal);
        let name = quota.info().name;
        // A size is limited for each item: a refused item has no current usage.
        let value = match quota.is_a_size() {
            true => format!("{wanted} wanted, {} the largest until now", self.max.get(quota)),
            false => format!("{} in use, {wanted} wanted", self.now.get(quota)),
        };
        (!quiet).then(|| {
            format!(
                "domain {domid} was refused: quota {name} is {limit}, {value} ({count} refusals so far); \
                 `xenstore-control quota {domid}` shows all, `xenstore-control quota set {name} <n>` raises it",
                domid = domid.0,
                count = refusal.count,
            )
        })
    }

    /// Returns the warning about the soft limit, if one is due.
    pub fn warn_soft(
        &mut self,
        domid: DomId,
        quota: Quota,
        limit: u32,
        now: u64,
    ) -> Option<String> {
        let in_use = self.now.get(quota);
        let quiet = self.soft_warned.is_some_and(|at| now < at.saturating_add(REFUSAL_LOG_US));
        if limit == 0 || in_use <= i64::from(limit) || quiet {
            return None;
        }
        self.soft_warned = Some(now);
        let name = quota.info().name;
        Some(format!(
            "domain {} is above its soft quota: {name} is {limit}, {in_use} in use",
            domid.0
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, info) in ALL.iter().enumerate() {
            assert_eq!(info.quota as usize, at);
            assert_eq!(Quota::from_name(info.name), Some(info.quota));
        }
    }

    #[test]
    fn refusals_are_logged_once_in_a_while() {
        let mut usage = Usage::default();
        usage.add(Quota::Nodes, 1000);
        let line = usage.refuse(DomId(7), Quota::Nodes, 1001, 1000, 5).unwrap();
        for part in ["domain 7", "nodes is 1000", "1000 in use", "1001 wanted"] {
            assert!(line.contains(part), "{line}");
        }
        usage.record_size(Quota::NodeSize, 300);
        let line = usage.refuse(DomId(7), Quota::NodeSize, 3000, 2048, 5).unwrap();
        for part in ["node-size is 2048", "3000 wanted, 300 the largest until now"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(usage.refuse(DomId(7), Quota::Nodes, 1001, 1000, 6), None);
        assert!(usage.refuse(DomId(7), Quota::Nodes, 1001, 1000, 5 + REFUSAL_LOG_US).is_some());
        assert_eq!(
            (usage.refusal(Quota::Nodes).count, usage.refusal(Quota::Nodes).last),
            (3, 5 + REFUSAL_LOG_US)
        );
    }
}
