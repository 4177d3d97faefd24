//! The open transactions of one connection.

use crate::transaction::Transaction;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;

/// By number. A request that works in one has it lent, so that the rest of the store is free meanwhile; it
/// stays open.
#[derive(Default)]
pub(super) struct Transactions(BTreeMap<u32, Option<Box<Transaction>>>);

impl Transactions {
    /// True where this one is open.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.0.contains_key(&id)
    }

    /// An open one that is not lent.
    pub(super) fn get(&self, id: u32) -> Option<&Transaction> {
        self.0.get(&id)?.as_deref()
    }

    /// Opens one; whether the number was free.
    pub(super) fn open(&mut self, id: u32, transaction: Transaction) -> bool {
        self.0.insert(id, Some(Box::new(transaction))).is_none()
    }

    /// Lends one out, to be given back.
    pub(super) fn lend(&mut self, id: u32) -> Option<Box<Transaction>> {
        self.0.get_mut(&id)?.take()
    }

    /// Takes back what was lent, unless it was closed meanwhile.
    pub(super) fn give_back(&mut self, id: u32, transaction: Box<Transaction>) {
        if let Some(place) = self.0.get_mut(&id) {
            *place = Some(transaction);
        }
    }

    /// Closes one, lent or not.
    pub(super) fn close(&mut self, id: u32) {
        self.0.remove(&id);
    }

    /// The numbers of all.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    /// All of them, none of which is lent.
    pub(super) fn into_all(self) -> impl Iterator<Item = (u32, Box<Transaction>)> {
        self.0.into_iter().filter_map(|(id, transaction)| Some((id, transaction?)))
    }

    /// All that are not lent.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Transaction)> {
        self.0.iter().filter_map(|(id, transaction)| Some((*id, transaction.as_deref()?)))
    }
}
