//! The answers to requests.

use std::os::fd::OwnedFd;
use xen::Error;

/// An answer of words and descriptors; `None` where the answer comes later, or never.
pub(super) type AnswerResult = Result<Option<(Vec<u64>, Vec<OwnedFd>)>, Error>;

/// Makes an answer of words alone.
pub(super) fn words<const N: usize>(words: [u64; N]) -> AnswerResult {
    Ok(Some((words.to_vec(), Vec::new())))
}
