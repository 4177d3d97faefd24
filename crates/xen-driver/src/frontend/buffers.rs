//! Pages for data: granted to the backend once, and used again and again.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use xen::gnttab::{GrantOffer, OfferedPage, PageAccess};
use xen::shared::{PAGE_SIZE, SharedPage};
use xen::{DomId, GrantRef};
use xenbus::Error;

/// With fewer buffers a device is not of use.
const BUFFERS_MIN: usize = 16;

/// A page for data, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Buffer(u32);

/// A page of data: granted while there is a backend.
enum BufferPage {
    Offered(OfferedPage),
    Kept(SharedPage),
}

impl BufferPage {
    fn page(&self) -> &SharedPage {
        match self {
            Self::Offered(offered) => offered.page(),
            Self::Kept(page) => page,
        }
    }
}

/// The guest's trust in the backend with the contents of its memory (`trusted`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The guest trusts the backend, which may see what a buffer held before.
    Trusted,
    /// The guest does not trust the backend: a buffer is zeroed before it is used again.
    Untrusted,
}

/// The buffers of one device.
pub struct Buffers {
    grants: Rc<RefCell<dyn GrantOffer>>,
    most: usize,
    held: Vec<BufferPage>,
    free: Vec<Buffer>,
    trust: Trust,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("count", &self.held.len()).finish_non_exhaustive()
    }
}

impl Buffers {
    /// No buffers yet; `most` are made with the first [`Buffers::offer`].
    #[must_use]
    pub fn new(grants: Rc<RefCell<dyn GrantOffer>>, most: usize) -> Self {
        Self { grants, most, held: Vec::new(), free: Vec::new(), trust: Trust::Trusted }
    }

    /// The number of buffers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Sets the trust in the backend, from now on.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
    }

    /// Grants the buffers to the backend in domain `peer`, with what is in them. There are so many grants to a peer: where
    /// they are used up, late devices get fewer buffers, down to 16. As many pages as `besides` says for a number of buffers are granted
    /// together with them, so that there is room for what the device needs as well, and returned.
    ///
    /// # Errors
    /// [`Error::Platform`].
    pub fn offer(
        &mut self,
        peer: DomId,
        besides: impl Fn(usize) -> usize,
    ) -> Result<Vec<OfferedPage>, Error> {
        let first = self.held.is_empty();
        let mut count = if first { self.most } else { self.held.len() };
        let mut offers = Vec::with_capacity(count);
        let mut grants = self.grants.borrow_mut();
        loop {
            let all = count + besides(count);
            match grants.offer_batch(peer, PageAccess::ReadWrite, all, &mut offers) {
                Ok(()) => break,
                Err(xen::Error::NoSpc | xen::Error::NoPages { .. })
                    if first && count > BUFFERS_MIN =>
                {
                    offers.clear();
                    count = (count / 2).max(BUFFERS_MIN);
                }
                Err(error) => return Err(Error::platform("granting the buffers")(error)),
            }
        }
        let others = offers.split_off(count);
        if first {
            let numbers = (0..count).rev().filter_map(|number| u32::try_from(number).ok());
            self.free = numbers.map(Buffer).collect();
        }
        for (offer, before) in offers.iter().zip(&self.held) {
            copy_page(before.page(), offer.page());
        }
        self.held = offers.into_iter().map(BufferPage::Offered).collect();
        Ok(others)
    }

    /// Takes the grants back; what is in the buffers is kept for the next backend.
    pub fn withdraw(&mut self) {
        for held in &mut self.held {
            if let BufferPage::Offered(offered) = held {
                let kept = SharedPage::private();
                copy_page(offered.page(), &kept);
                *held = BufferPage::Kept(kept);
            }
        }
    }

    /// A buffer that nobody uses. Of a backend that is not trusted it sees nothing of before.
    pub fn take(&mut self) -> Option<Buffer> {
        let buffer = self.free.pop()?;
        if self.trust == Trust::Untrusted
            && let Some(page) = self.page(buffer)
        {
            // Inside the page, which this side may write.
            let _ = page.copy_in(0, &[0; PAGE_SIZE]);
        }
        Some(buffer)
    }

    /// Gives a buffer back, which no request names any more.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.free.push(buffer);
    }

    /// The memory of a buffer. The backend may change it at any time.
    #[must_use]
    pub fn page(&self, buffer: Buffer) -> Option<&SharedPage> {
        self.held.get(buffer.0 as usize).map(BufferPage::page)
    }

    /// The grant of a buffer, while there is a backend.
    #[must_use]
    pub fn grant(&self, buffer: Buffer) -> Option<GrantRef> {
        match self.held.get(buffer.0 as usize)? {
            BufferPage::Offered(offered) => Some(offered.grant()),
            BufferPage::Kept(_) => None,
        }
    }
}

fn copy_page(from: &SharedPage, to: &SharedPage) {
    let mut bytes = [0; PAGE_SIZE];
    // Whole pages, both mapped by this side to be read and written.
    let _ = from.copy_out(0, &mut bytes);
    let _ = to.copy_in(0, &bytes);
}
