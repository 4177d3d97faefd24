//! Xen's interface for a paravirtual guest: hypercalls, two pages shared with domain 0, and a
//! clock.
//!
//! The domain builder maps the guest's memory linearly from address 0, writes the places of the
//! pages to `start_info`, and starts the one processor with events masked. They stay masked: a wait
//! is `SCHEDOP_poll`, and the pending bit is cleared here.
//!
//! Source: `xen/include/public/{xen,elfnote,sched,event_channel}.h`,
//! `xen/include/public/arch-x86/{xen,xen-x86_64}.h`.

#![allow(unsafe_code)]

use crate::abi::{
    EVENT_CHANNEL_OP, EVTCHNOP_SEND, NOTE_ENTRY, NOTE_GUEST_OS, NOTE_LOADER, NOTE_PADDR_OFFSET,
    NOTE_VIRT_BASE, NOTE_XEN_VERSION, PAGE_SIZE, SCHED_OP, SCHEDOP_POLL, SCHEDOP_SHUTDOWN,
    SHUTDOWN_CRASH, SchedPoll, StartInfo, UPDATE_VA_MAPPING, UVMF_INVLPG, clock, shared_info,
};
use crate::bytes::ByteBuffer;
use core::arch::{asm, global_asm};
use core::fmt::Write as _;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// Present, writable, accessed, dirty, user: a page table entry's low bits.
const MAPPED: u64 = 0x67;

// The notes that the domain builder reads, and the entry, which gets `start_info` in rsi.
global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".macro text_note type, text",
    ".balign 4; .long 4, 92f - 91f, \\type; .asciz \"Xen\"",
    "91: .asciz \"\\text\"",
    "92: .balign 4",
    ".endm",
    ".macro number_note type, value",
    ".balign 4; .long 4, 8, \\type; .asciz \"Xen\"; .quad \\value",
    ".endm",
    "number_note {entry}, _start",
    "number_note {virt_base}, 0",
    "number_note {paddr_offset}, 0",
    "text_note {xen_version}, \"xen-3.0\"",
    "text_note {guest_os}, \"ring-agent\"",
    "text_note {loader}, \"generic\"",
    ".popsection",
    ".pushsection .text._start, \"ax\"",
    ".globl _start",
    "_start:",
    "lea rsp, [rip + {stack} + {stack_size}]",
    "xor ebp, ebp",
    "mov rdi, rsi",
    "call {enter}",
    "ud2",
    ".popsection",
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    enter = sym enter,
    entry = const NOTE_ENTRY,
    virt_base = const NOTE_VIRT_BASE,
    paddr_offset = const NOTE_PADDR_OFFSET,
    xen_version = const NOTE_XEN_VERSION,
    guest_os = const NOTE_GUEST_OS,
    loader = const NOTE_LOADER,
);

const STACK_SIZE: usize = 1 << 20;

#[repr(C, align(4096))]
struct Aligned<const SIZE: usize>([u8; SIZE]);

static mut STACK: Aligned<STACK_SIZE> = Aligned([0; STACK_SIZE]);
/// The address where `struct shared_info` is mapped, in place of this page.
static mut SHARED_INFO: Aligned<4096> = Aligned([0; 4096]);

/// The pages and channels that the domain starts with.
pub(crate) struct StartOfDay {
    pub(crate) store_page: Page,
    pub(crate) store_channel: GuestChannel,
    pub(crate) console_page: Page,
    pub(crate) console_channel: GuestChannel,
    store_mfn: u64,
}

impl StartOfDay {
    /// Returns the ring as INTRODUCE takes it.
    pub(crate) fn introduction(&self) -> ByteBuffer<64> {
        let mut text = ByteBuffer::new();
        let _ = write!(text, "hello {} {}", self.store_mfn, self.store_channel.0);
        text
    }
}

extern "C" fn enter(info: *const StartInfo) -> ! {
    // SAFETY: the domain builder gives the address of a complete, mapped `start_info`, which
    // nothing writes to any more.
    let info = unsafe { &*info };
    // SAFETY: the page is this program's own and nothing but the functions below touches it; Xen
    // checks the frame and maps it there instead.
    let failed = unsafe {
        hypercall(
            UPDATE_VA_MAPPING,
            &raw const SHARED_INFO as u64,
            info.shared_info | MAPPED,
            UVMF_INVLPG,
        )
    };
    if failed != 0 {
        shut_down(SHUTDOWN_CRASH);
    }
    let (Some(store_page), Some(console_page)) =
        (page_of(info, info.store_mfn), page_of(info, info.console_mfn))
    else {
        shut_down(SHUTDOWN_CRASH)
    };
    crate::main(&StartOfDay {
        store_page,
        store_channel: GuestChannel(info.store_evtchn),
        console_page,
        console_channel: GuestChannel(info.console_evtchn),
        store_mfn: info.store_mfn,
    })
}

/// Finds a machine frame in the guest's memory.
fn page_of(info: &StartInfo, mfn: u64) -> Option<Page> {
    let list = info.mfn_list as *const u64;
    // SAFETY: the list has `nr_pages` entries and is mapped.
    let pfn = (0..info.nr_pages).find(|pfn| unsafe { *list.add(*pfn as usize) } == mfn)?;
    // The domain builder puts both rings below the end of what it maps, at their frame's number.
    Some(Page((pfn * u64::from(PAGE_SIZE)) as *mut u8))
}

/// A page that domain 0 reads and writes at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Page(*mut u8);

impl Page {
    fn at(self, offset: u32) -> *mut u8 {
        // SAFETY: the offset is within the page, which is mapped for the domain's life.
        unsafe { self.0.add((offset % PAGE_SIZE) as usize) }
    }

    /// Reads a byte.
    pub(crate) fn byte(self, offset: u32) -> u8 {
        // SAFETY: within the page, see `at`; volatile, as the other side writes it.
        unsafe { read_volatile(self.at(offset)) }
    }

    /// Writes a byte.
    pub(crate) fn set_byte(self, offset: u32, byte: u8) {
        // SAFETY: within the page, see `at`; volatile, as the other side reads it.
        unsafe { write_volatile(self.at(offset), byte) }
    }

    /// Reads a word; the other side's earlier writes are seen after this.
    pub(crate) fn word(self, offset: u32) -> u32 {
        // SAFETY: within the page and aligned, as the offset is; volatile, see `byte`.
        let word = unsafe { read_volatile(self.at(offset & !3).cast()) };
        fence(Ordering::SeqCst);
        word
    }

    /// Writes a word; the other side sees the earlier writes before it.
    pub(crate) fn set_word(self, offset: u32, word: u32) {
        fence(Ordering::SeqCst);
        // SAFETY: within the page and aligned, as the offset is; volatile, see `set_byte`.
        unsafe { write_volatile(self.at(offset & !3).cast(), word) }
        fence(Ordering::SeqCst);
    }
}

/// An event channel, by its port.
#[derive(Clone, Copy)]
pub(crate) struct GuestChannel(u32);

impl GuestChannel {
    /// Signals the other side.
    pub(crate) fn notify(self) {
        let port = self.0;
        // SAFETY: the argument is a `struct evtchn_send`, a port, which Xen reads.
        unsafe { hypercall(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &raw const port as u64, 0) };
    }

    /// Clears the pending signals; the caller looks at their cause after this.
    pub(crate) fn clear(self) {
        let word = shared_info::PENDING + (self.0 / 64) as usize * 8;
        // SAFETY: the word is aligned and within the shared page, which only Xen and this
        // function change, atomically; a port is below 4096.
        let pending = unsafe { AtomicU64::from_ptr(shared_page().add(word).cast()) };
        pending.fetch_and(!(1 << (self.0 % 64)), Ordering::SeqCst);
    }

    /// Waits for a signal; returns false if there is none until `end_ms`.
    pub(crate) fn wait(self, end_ms: Option<u64>) -> bool {
        if end_ms.is_some_and(|end| now_ms() >= end) {
            return false;
        }
        // In ns; 0 waits for ever.
        let timeout = end_ms.map_or(0, |end| end * 1_000_000);
        let poll = SchedPoll { ports: &raw const self.0, nr_ports: 1, timeout };
        // SAFETY: the argument is a `struct sched_poll` with one port, which Xen reads.
        unsafe { hypercall(SCHED_OP, SCHEDOP_POLL, &raw const poll as u64, 0) };
        true
    }
}

fn shared_page() -> *mut u8 {
    (&raw mut SHARED_INFO).cast()
}

/// Returns Xen's system time, in ms.
pub(crate) fn now_ms() -> u64 {
    let time = shared_page().wrapping_add(shared_info::CLOCK);
    // SAFETY: `struct vcpu_time_info` lies there, aligned; volatile, as Xen writes it.
    let word = |offset: usize| unsafe { read_volatile(time.add(offset).cast::<u32>()) };
    let long = |offset| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
    loop {
        let version = word(clock::VERSION);
        fence(Ordering::SeqCst);
        let (stamp, base, scale) = (
            long(clock::TSC_TIMESTAMP),
            long(clock::SYSTEM_TIME),
            u64::from(word(clock::TSC_TO_SYSTEM_MUL)),
        );
        let [shift, ..] = word(clock::TSC_SHIFT).to_le_bytes();
        // SAFETY: every processor of this kind has the instruction.
        let ticks = unsafe { core::arch::x86_64::_rdtsc() }.wrapping_sub(stamp);
        fence(Ordering::SeqCst);
        if version % 2 == 0 && version == word(clock::VERSION) {
            let shift = i32::from(shift.cast_signed());
            let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = base + ((u128::from(ticks) * u128::from(scale)) >> 32) as u64;
            return ns / 1_000_000;
        }
    }
}

/// Ends the domain, with a reason of `sched.h`; if Xen lets it run on, it loops here.
pub(crate) fn shut_down(reason: u32) -> ! {
    loop {
        // SAFETY: the argument is a `struct sched_shutdown`, a number, which Xen reads.
        unsafe { hypercall(SCHED_OP, SCHEDOP_SHUTDOWN, &raw const reason as u64, 0) };
    }
}

/// # Safety
/// The arguments are what the hypercall takes, and what it does to memory is allowed.
unsafe fn hypercall(number: u64, first: u64, second: u64, third: u64) -> i64 {
    let result: i64;
    // SAFETY: a guest's kernel enters Xen by `syscall`; the stack is not touched.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            inlateout("rdi") first => _,
            inlateout("rsi") second => _,
            inlateout("rdx") third => _,
            lateout("rcx") _,
            lateout("r10") _,
            lateout("r11") _,
            lateout("r8") _,
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    shut_down(SHUTDOWN_CRASH)
}
