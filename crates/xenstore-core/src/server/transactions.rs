//! The open transactions of one connection.

use crate::transaction::Transaction;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;

/// The transactions by number. A request takes its transaction out, so that the rest of the store
/// is free meanwhile; the transaction stays open.
#[derive(Default)]
pub(super) struct Transactions(BTreeMap<u32, Option<Box<Transaction>>>);

impl Transactions {
    /// True if this transaction is open.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.0.contains_key(&id)
    }

    /// Returns an open transaction that is not taken out.
    pub(super) fn get(&self, id: u32) -> Option<&Transaction> {
        self.0.get(&id)?.as_deref()
    }

    /// Opens a transaction. Returns true if the number was free.
    pub(super) fn open(&mut self, id: u32, transaction: Transaction) -> bool {
        self.0.insert(id, Some(Box::new(transaction))).is_none()
    }

    /// Takes a transaction out, to be put back.
    pub(super) fn take_out(&mut self, id: u32) -> Option<Box<Transaction>> {
        self.0.get_mut(&id)?.take()
    }

    /// Puts back a transaction, unless it was closed meanwhile.
    pub(super) fn give_back(&mut self, id: u32, transaction: Box<Transaction>) {
        if let Some(place) = self.0.get_mut(&id) {
            *place = Some(transaction);
        }
    }

    /// Closes a transaction, taken out or not.
    pub(super) fn close(&mut self, id: u32) {
        self.0.remove(&id);
    }

    /// Returns the numbers of all transactions.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    /// Returns all transactions. None may be taken out.
    pub(super) fn into_all(self) -> impl Iterator<Item = (u32, Box<Transaction>)> {
        self.0.into_iter().filter_map(|(id, transaction)| Some((id, transaction?)))
    }

    /// Returns all transactions that are not taken out.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Transaction)> {
        self.0.iter().filter_map(|(id, transaction)| Some((*id, transaction.as_deref()?)))
    }
}
