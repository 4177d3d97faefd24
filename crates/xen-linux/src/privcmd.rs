//! Hypercalls and foreign memory, through `/dev/xen/privcmd`.
#![allow(unsafe_code)]

use crate::abi;
use crate::sys::{DeviceFile, Region};
use std::cell::RefCell;
use std::rc::Rc;
use xen::foreignmem::ForeignMemory;
use xen::gnttab::PageAccess;
use xen::shared::{PAGE_SIZE, SharedPage};
use xen::{DomId, Error, Gfn};

/// Memory that the hypervisor reads and writes, in pages: one for the argument, the rest for lists.
const BUFFER_PAGES: usize = 16;
/// Bytes of the largest argument.
const ARGUMENT_MAX: usize = PAGE_SIZE;

/// Plain data of a C header: any bytes are a value of it.
///
/// # Safety
/// For `repr(C)` types of integers alone, not larger than [`ARGUMENT_MAX`].
pub(crate) unsafe trait PlainData: Copy {}

// SAFETY: structures and unions of integers, below 200 bytes.
unsafe impl PlainData for abi::evtchn_status {}
// SAFETY: as above.
unsafe impl PlainData for abi::sched_remote_shutdown {}
// SAFETY: as above.
unsafe impl PlainData for abi::xen_sysctl_getdomaininfolist {}
// SAFETY: as above.
unsafe impl PlainData for abi::xen_sysctl_readconsole {}
// SAFETY: as above.
unsafe impl PlainData for abi::xen_sysctl_physinfo {}
// SAFETY: as above.
unsafe impl PlainData for abi::gnttab_query_size {}
// SAFETY: as above.
unsafe impl PlainData for abi::xen_domctl {}
// SAFETY: as above.
unsafe impl PlainData for abi::xen_domctl_getdomaininfo {}
// SAFETY: as above.
unsafe impl PlainData for [u8; abi::XEN_EXTRAVERSION_LEN] {}

/// The device, and memory that a hypercall may use.
#[derive(Debug)]
pub struct Privcmd {
    device: DeviceFile,
    buffer: RefCell<Region>,
}

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn open() -> Result<Rc<Self>, crate::Error> {
        let device = DeviceFile::open("/dev/xen/privcmd")?;
        let buffer = hypercall_buffer().map_err(|error| crate::Error::Device {
            path: "/dev/xen/hypercall",
            error,
            hint: "no memory for hypercalls, not even locked memory of the process (ulimit -l)",
        })?;
        Ok(Rc::new(Self { device, buffer: RefCell::new(buffer) }))
    }

    /// Makes a hypercall.
    ///
    /// # Safety
    /// Addresses among `arg` are good for what the hypercall does through them.
    unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> Result<i32, Error> {
        let mut argument = abi::privcmd_hypercall { op, arg };
        // SAFETY: the structure of the request; the caller vouches for what it points to.
        unsafe { self.device.call(abi::IOCTL_PRIVCMD_HYPERCALL, &mut argument) }
    }

    /// Makes a hypercall whose argument number `at` points to `value`, and whose others are in
    /// `arg`.
    fn call<T: PlainData>(
        &self,
        op: u64,
        mut arg: [u64; 5],
        at: usize,
        value: &mut T,
    ) -> Result<i32, Error> {
        const { assert!(size_of::<T>() <= ARGUMENT_MAX) };
        let buffer = self.buffer.borrow_mut();
        let place = buffer.base().cast::<T>();
        // SAFETY: the buffer begins on a page and is large enough, and is borrowed for this call.
        unsafe { place.write(*value) };
        arg[at] = place.as_ptr() as u64;
        // SAFETY: the one address is the buffer's, which stays until the call has returned.
        let answer = unsafe { self.hypercall(op, arg) };
        // SAFETY: as above; any bytes are a `T`.
        *value = unsafe { place.read() };
        answer
    }

    /// `EVENT_CHANNEL_OP`.
    pub(crate) fn event_channel_op<T: PlainData>(&self, op: u64, mut value: T) -> Result<T, Error> {
        self.call(abi::HYPERVISOR_EVENT_CHANNEL_OP, [op, 0, 0, 0, 0], 1, &mut value)?;
        Ok(value)
    }

    /// `SCHED_OP`.
    pub(crate) fn sched_op<T: PlainData>(&self, op: u64, mut value: T) -> Result<(), Error> {
        self.call(abi::HYPERVISOR_SCHED_OP, [op, 0, 0, 0, 0], 1, &mut value).map(drop)
    }

    /// `DOMCTL`.
    pub(crate) fn domctl(&self, call: &mut abi::xen_domctl) -> Result<(), Error> {
        self.call(abi::HYPERVISOR_DOMCTL, [0; 5], 0, call).map(drop)
    }

    /// `XEN_SYSCTL_physinfo`.
    pub(crate) fn physinfo(&self, version: u32) -> Result<abi::xen_sysctl_physinfo, Error> {
        let mut call = abi::xen_sysctl_physinfo {
            cmd: abi::XEN_SYSCTL_PHYSINFO,
            interface_version: version,
            ..Default::default()
        };
        self.call(abi::HYPERVISOR_SYSCTL, [0; 5], 0, &mut call)?;
        Ok(call)
    }

    /// `GNTTABOP_query_size`: the frames of a domain's grant table, and the most that it may have.
    pub(crate) fn grant_table_size(&self, domid: DomId) -> Result<(u32, u32), Error> {
        let mut query = abi::gnttab_query_size { dom: domid.0, ..Default::default() };
        let arg = [abi::GNTTABOP_QUERY_SIZE, 0, 1, 0, 0];
        self.call(abi::HYPERVISOR_GRANT_TABLE_OP, arg, 1, &mut query)?;
        // The call itself succeeds where only the one query in it fails.
        if query.status == 0 {
            Ok((query.nr_frames, query.max_nr_frames))
        } else {
            Err(Error::Srch)
        }
    }

    /// `XEN_SYSCTL_getdomaininfolist`: pushes the domains from number `first` on, as many as the
    /// buffer holds, onto `into`; returns their number.
    pub(crate) fn domain_list(
        &self,
        version: u32,
        first: DomId,
        into: &mut Vec<abi::xen_domctl_getdomaininfo>,
    ) -> Result<usize, Error> {
        const ENTRY: usize = size_of::<abi::xen_domctl_getdomaininfo>();
        let (list, room) = {
            let buffer = self.buffer.borrow();
            // SAFETY: the buffer has more pages than the one for the argument.
            let list = unsafe { buffer.base().add(ARGUMENT_MAX) };
            (list.cast::<abi::xen_domctl_getdomaininfo>(), (buffer.len() - ARGUMENT_MAX) / ENTRY)
        };
        let mut call = abi::xen_sysctl_getdomaininfolist {
            cmd: abi::XEN_SYSCTL_GETDOMAININFOLIST,
            interface_version: version,
            first_domain: first.0,
            max_domains: u32::try_from(room).unwrap_or(0),
            buffer: list.as_ptr() as u64,
            ..Default::default()
        };
        self.call(abi::HYPERVISOR_SYSCTL, [0; 5], 0, &mut call)?;
        let count = room.min(call.num_domains as usize);
        // SAFETY: `count` entries lie inside the buffer, which only this thread's calls use.
        into.extend((0..count).map(|at| unsafe { list.add(at).read() }));
        Ok(count)
    }

    /// `XEN_SYSCTL_readconsole`: copies what Xen has printed from `index` on into `into`, as much
    /// as the buffer holds; returns the number of bytes, and the index behind them.
    pub(crate) fn read_console(
        &self,
        version: u32,
        index: u32,
        into: &mut [u8],
    ) -> Result<(usize, u32), Error> {
        let (place, room) = {
            let buffer = self.buffer.borrow();
            // SAFETY: the buffer has more pages than the one for the argument.
            let place = unsafe { buffer.base().add(ARGUMENT_MAX) };
            (place, into.len().min(buffer.len() - ARGUMENT_MAX))
        };
        let mut call = abi::xen_sysctl_readconsole {
            cmd: abi::XEN_SYSCTL_READCONSOLE,
            interface_version: version,
            incremental: 1,
            index,
            buffer: place.as_ptr() as u64,
            count: u32::try_from(room).unwrap_or(0),
            ..Default::default()
        };
        self.call(abi::HYPERVISOR_SYSCTL, [0; 5], 0, &mut call)?;
        let count = room.min(call.count as usize);
        // SAFETY: `count` bytes lie inside the buffer, which only this thread's calls use, and inside
        // `into`, which is other memory.
        unsafe { place.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), count) };
        Ok((count, call.index))
    }

    /// Returns the version of the hypervisor in its own words, such as `4.17.5`.
    #[must_use]
    pub fn xen_version(&self) -> String {
        // SAFETY: the call takes no address.
        let version = unsafe {
            self.hypercall(abi::HYPERVISOR_XEN_VERSION, [abi::XENVER_VERSION, 0, 0, 0, 0])
        };
        let Ok(version) = version else { return "of unknown version".to_owned() };
        let mut extra = [0; abi::XEN_EXTRAVERSION_LEN];
        let arg = [abi::XENVER_EXTRAVERSION, 0, 0, 0, 0];
        let _ = self.call(abi::HYPERVISOR_XEN_VERSION, arg, 1, &mut extra);
        let len = extra.iter().position(|byte| *byte == 0).unwrap_or(extra.len());
        let extra = String::from_utf8_lossy(&extra[..len]);
        format!("{}.{}{extra}", version >> 16, version & 0xffff)
    }
}

/// Memory for hypercalls: from the kernel's own device, which keeps it in place, else locked.
fn hypercall_buffer() -> Result<Region, Error> {
    if let Ok(device) = DeviceFile::open("/dev/xen/hypercall") {
        return device.map(0, BUFFER_PAGES, PageAccess::ReadWrite);
    }
    let region = Region::anonymous(BUFFER_PAGES * PAGE_SIZE)?;
    // SAFETY: locking memory of this process changes nothing that could be seen through it.
    unsafe { rustix::mm::mlock(region.base().as_ptr().cast(), region.len()) }
        .map_err(crate::sys::errno)?;
    Ok(region)
}

/// Foreign memory through [`Privcmd`].
#[derive(Debug)]
pub struct Foreign(pub Rc<Privcmd>);

impl ForeignMemory for Foreign {
    fn map(&mut self, domid: DomId, gfn: Gfn, access: PageAccess) -> Result<SharedPage, Error> {
        let device = &self.0.device;
        let region = device.map(0, 1, access)?;
        let mut error = 0;
        let mut argument = abi::privcmd_mmapbatch_v2 {
            num: 1,
            dom: domid.0,
            addr: region.base().as_ptr() as u64,
            arr: &raw const gfn.0,
            err: &raw mut error,
        };
        // SAFETY: one page of the device's own mapping, one number in, one error out.
        unsafe { device.call(abi::IOCTL_PRIVCMD_MMAPBATCH_V2, &mut argument) }?;
        if error != 0 {
            return Err(Error::from_errno(error.saturating_neg()));
        }
        region.into_pages().next().ok_or(Error::Inval)
    }
}
