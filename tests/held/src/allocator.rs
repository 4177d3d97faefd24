//! The allocator of a program that uses this crate: the system's, with a count of the bytes that
//! the store holds.
//!
//! Only what is allocated or freed within [`within_store`] is counted, as the size of the block that the C library
//! gives out on 64-bit machines: 8 bytes more than were asked for, in steps of 16, and at least 32.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// Bytes that calls within the store have allocated in this thread and not freed.
#[must_use]
pub fn held() -> i64 {
    HELD.get()
}

/// Runs `body`, which only calls the store, and counts what it allocates and frees.
pub fn within_store<R>(body: impl FnOnce() -> R) -> R {
    COUNTING.set(true);
    let result = body();
    COUNTING.set(false);
    result
}

/// Returns the size of the block that the C library gives out for `bytes`.
fn block_size(bytes: usize) -> i64 {
    i64::try_from((bytes + 8).next_multiple_of(16).max(32)).unwrap_or(i64::MAX)
}

fn count(bytes: i64) {
    if COUNTING.get() {
        HELD.set(HELD.get() + bytes);
    }
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

// SAFETY: every call goes to the system's allocator unchanged. Counting touches no memory of the
// caller's, and thread-local cells without a destructor allocate nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(block_size(layout.size()));
        // SAFETY: the caller keeps to the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(-block_size(layout.size()));
        // SAFETY: as above; `start` came from the same allocator with the same layout.
        unsafe { System.dealloc(start, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_store_has_is_counted() {
        let before = held();
        let outside = vec![0u8; 100];
        assert_eq!(held(), before);
        let within = within_store(|| vec![0u8; 100]);
        assert_eq!(held() - before, 112);
        within_store(|| drop(within));
        assert_eq!(held(), before);
        drop(outside);
        assert_eq!(held(), before);
        assert_eq!((block_size(1), block_size(24), block_size(25)), (32, 32, 48));
    }

    #[test]
    fn what_grows_is_counted_as_what_it_has_become() {
        let before = held();
        let mut bytes = within_store(|| Vec::<u8>::with_capacity(10));
        within_store(|| bytes.reserve_exact(1000));
        assert_eq!(held() - before, 1008);
        within_store(|| drop(bytes));
        assert_eq!(held(), before);
    }
}
