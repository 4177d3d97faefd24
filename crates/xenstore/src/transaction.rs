//! Transactions: all or nothing, tried again where another client got in between.

use crate::client::Client;
use crate::error::Error;
use crate::store::Store;
use std::time::Duration;
use xenstore_core::wire;
use xenstore_core::wire::MsgType;

mod id;

pub use id::{End, TransactionId};

/// How often a transaction is tried, and how long is waited in between.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Most attempts, at least 1.
    pub attempts_max: u32,
    /// Longest pause before the next attempt. The first attempts follow at once, later pauses
    /// double from 50 microseconds up to this, each shortened by a random part of it.
    pub pause_max: Duration,
}

impl Default for Retry {
    /// 100 attempts, pauses of up to 10 ms: under the fiercest contention measured (16 clients on
    /// the same nodes of C's daemon, 92 % EAGAIN) one in 4000 transactions fails.
    fn default() -> Self {
        Self { attempts_max: 100, pause_max: Duration::from_millis(10) }
    }
}

impl Retry {
    /// The pause before attempt number `attempt` (the first is 0).
    #[must_use]
    pub fn pause(&self, attempt: u32) -> Duration {
        if attempt < 3 {
            return Duration::ZERO;
        }
        let full = Duration::from_micros(50).saturating_mul(1 << (attempt - 3).min(16));
        let mut random = [0; 2];
        // Two clients in step would collide again and again; without randomness they may.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        full.min(self.pause_max).mul_f64(f64::from(u16::from_ne_bytes(random)) / 65536.0)
    }
}

/// An open transaction. Dropped without an end, it is aborted.
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    id: TransactionId,
    open: bool,
}

impl<'a> Transaction<'a> {
    /// Starts one.
    ///
    /// # Errors
    /// EBUSY or ENOSPC where too many are open; see [`Store::request`].
    pub fn start(client: &'a mut Client) -> Result<Self, Error> {
        let id = client.transaction_start()?;
        Ok(Self { client, id, open: true })
    }

    /// Requests within a transaction that the caller ends ([`Client::transaction_end`]), or with
    /// [`TransactionId::NONE`] outside any.
    pub fn within(client: &'a mut Client, id: TransactionId) -> Self {
        Self { client, id, open: false }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// The connection, for requests that are pipelined ([`Client::submit`]) or walks.
    pub fn client(&mut self) -> &mut Client {
        self.client
    }

    /// Ends it.
    ///
    /// # Errors
    /// EAGAIN where a commit met a conflict: nothing has changed then, try again from the start.
    pub fn end(mut self, end: End) -> Result<(), Error> {
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
            // Nobody is left to tell; a lost connection has ended it anyway.
            let _ = self.client.transaction_end(self.id, End::Abort);
        }
    }
}

impl Client {
    /// Runs `body` in a transaction and commits it; on EAGAIN, from the commit or from within, runs
    /// it again, as often as [`Retry::default`] says. `body` must do nothing that may not be
    /// done twice, other than through the transaction. Where it fails, the transaction is aborted.
    ///
    /// # Errors
    /// [`Error::Conflict`] after the last attempt, or what `body` returned.
    pub fn transaction<T>(
        &mut self,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        run(self, Retry::default(), body)
    }

    /// As [`Client::transaction`], with a bound of the caller's.
    ///
    /// # Errors
    /// As [`Client::transaction`].
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
            Ok(value) => tx.end(End::Commit).map(|()| value),
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
