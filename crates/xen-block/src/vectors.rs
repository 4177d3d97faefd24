//! Memory ranges for system calls.
#![allow(unsafe_code)]

/// The addresses of the pieces of a request; made from the pieces, and valid until these change.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    list: Vec<libc::iovec>,
    /// The number of pieces that were contiguous with their neighbour when the vectors were filled.
    merged: u64,
}

// SAFETY: the pointers are only followed by system calls on behalf of the `DiskIo` that also holds the
// pages; nothing about them belongs to a thread.
unsafe impl Send for Vectors {}
// SAFETY: as above; there is no access through a shared reference.
unsafe impl Sync for Vectors {}

impl Vectors {
    /// Fills the vectors from pieces with an address and a length; neighbours in memory become one.
    pub(crate) fn fill(&mut self, pieces: impl Iterator<Item = (*mut u8, usize)>) {
        self.list.clear();
        self.merged = 0;
        for (base, len) in pieces {
            match self.list.last_mut() {
                Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
                    last.iov_len += len;
                    self.merged += 1;
                }
                _ => self.list.push(libc::iovec { iov_base: base.cast(), iov_len: len }),
            }
        }
    }

    /// Returns the vectors in the kernel's format.
    pub(crate) fn list(&self) -> &[libc::iovec] {
        &self.list
    }

    /// Returns the number of pieces that were merged, and resets it.
    pub(crate) fn take_merged(&mut self) -> u64 {
        std::mem::take(&mut self.merged)
    }

    /// Leaves out the first `count` bytes.
    pub(crate) fn advance(&mut self, mut count: usize) {
        self.list.retain_mut(|vector| {
            let part = count.min(vector.iov_len);
            vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(part).cast();
            vector.iov_len -= part;
            count -= part;
            vector.iov_len > 0
        });
    }
}
