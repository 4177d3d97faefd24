//! Transactions: all of their changes take effect or none. They are retried after a conflict with
//! another client.

use crate::client::Client;
use crate::error::Error;
use crate::store::Store;
use std::time::Duration;
use xenstore_core::wire;
use xenstore_core::wire::MsgType;

mod id;

pub use id::{TransactionEnd, TransactionId};

/// The number of attempts of a transaction, and the pauses between them.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// The most attempts, at least 1.
    pub attempts_max: u32,
    /// The longest pause before the next attempt. The first attempts follow at once. Later pauses
    /// double from 50 microseconds up to this limit. Each is shortened by a random part of it.
    pub pause_max: Duration,
}

impl Default for Retry {
    /// Returns 100 attempts and pauses of up to 10 ms. Under the heaviest contention measured (16
    /// clients on the same nodes of C's daemon, 92 % EAGAIN) one in 4000 transactions fails with
    /// these values.
    fn default() -> Self {
        Self { attempts_max: 100, pause_max: Duration::from_millis(10) }
    }
}

impl Retry {
    /// Returns the pause before attempt number `attempt` (the first is 0).
    #[must_use]
    pub fn pause(&self, attempt: u32) -> Duration {
        if attempt < 3 {
            return Duration::ZERO;
        }
        let full = Duration::from_micros(50).saturating_mul(1 << (attempt - 3).min(16));
        let mut random = [0; 2];
        // Two clients in step would collide again and again. Without randomness they may.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        full.min(self.pause_max).mul_f64(f64::from(u16::from_ne_bytes(random)) / 65536.0)
    }
}

/// An open transaction. It is aborted if it is dropped without an end.
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    id: TransactionId,
    open: bool,
}

impl<'a> Transaction<'a> {
    /// Starts a transaction.
    ///
    /// # Errors
    /// EBUSY or ENOSPC where too many are open; see [`Store::request`].
    pub fn start(client: &'a mut Client) -> Result<Self, Error> {
        let id = client.transaction_start()?;
        Ok(Self { client, id, open: true })
    }

    /// Makes a value for requests in a transaction that the caller ends
    /// ([`Client::transaction_end`]), or with [`TransactionId::NONE`] outside any.
    pub fn within(client: &'a mut Client, id: TransactionId) -> Self {
        Self { client, id, open: false }
    }

    /// Returns the transaction's id.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// Returns the connection, for pipelined requests ([`Client::submit`]) or walks.
    pub fn client(&mut self) -> &mut Client {
        self.client
    }

    /// Ends the transaction.
    ///
    /// # Errors
    /// EAGAIN if a commit met a conflict. Nothing has changed then; the caller tries again from the
    /// start.
    pub fn end(mut self, end: TransactionEnd) -> Result<(), Error> {
        self.open = false;
        self.client.transaction_end(self.id, end)
    }
}

impl Store for Transaction<'_> {
    fn request(&mut self, kind: MsgType, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.client.request_in(self.id, kind, parts)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            // Nothing can be done about an error here. A lost connection has ended the transaction
            // anyway.
            let _ = self.client.transaction_end(self.id, TransactionEnd::Abort);
        }
    }
}

impl Client {
    /// Runs `body` in a transaction and commits it. On EAGAIN, from the commit or from `body`, runs
    /// it again, as often as [`Retry::default`] allows. Apart from its requests in the transaction,
    /// `body` must do nothing that may not be done twice. If it fails, the transaction is aborted.
    ///
    /// # Errors
    /// [`Error::Conflict`] after the last attempt, or the error of `body`.
    pub fn transaction<T>(
        &mut self,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        run(self, Retry::default(), body)
    }

    /// Does the same as [`Client::transaction`], with the caller's bound on retries.
    ///
    /// # Errors
    /// Those of [`Client::transaction`].
    pub fn transaction_retrying<T>(
        &mut self,
        retry: Retry,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        run(self, retry, body)
    }
}

fn run<T>(
    client: &mut Client,
    retry: Retry,
    mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let again = |error: &Error| error.refusal() == Some(wire::Error::Again);
    let attempts = retry.attempts_max.max(1);
    for attempt in 0..attempts {
        std::thread::sleep(retry.pause(attempt));
        let mut tx = Transaction::start(client)?;
        let result = match body(&mut tx) {
            Ok(value) => tx.end(TransactionEnd::Commit).map(|()| value),
            Err(error) => {
                drop(tx);
                Err(error)
            }
        };
        match result {
            Err(error) if again(&error) => {}
            result => return result,
        }
    }
    Err(Error::Conflict { attempts })
}
