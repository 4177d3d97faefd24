//! A paravirtual guest without a kernel, which changes its XenStore ring by commands of domain 0.
//!
//! The promise: nothing stands between a test in domain 0 and this domain's ring page and event
//! channel, so a test reaches the store as an unprivileged domain does, and as a hostile one may.
//!
//! A command is a line on the console; numbers are decimal, bytes are hexadecimal, one word each.
//!
//! | command | what it does | answer |
//! |---|---|---|
//! | `hello` | | `hello MFN PORT` of the ring, as INTRODUCE takes them |
//! | `put HEX` | puts bytes into the ring, waiting for room up to 10 s, and notifies | none |
//! | `take MS LEAST` | takes what is in the ring, waiting for so many bytes | `ok HEX`, fewer where no more came |
//! | `read OFFSET COUNT` | reads the page | `ok HEX` |
//! | `write OFFSET HEX` | writes into the page | none |
//! | `notify` | signals the event channel | none |
//! | `flip OFFSET HEX HEX TIMES` | writes the one and the other in turn, notifying each time | `ok` |
//! | `shutdown REASON` | shuts the domain down, by a number of `sched.h` | none |
//!
//! The error of a command without an answer is the answer of the next: `error WHY`.
//!
//! | module | what it is |
//! |---|---|
//! | `abi` | numbers and layouts of Xen's headers |
//! | `xen` | hypercalls, the start of day, the shared pages |
//! | `memory` | the functions that the compiler calls to copy and compare bytes |
//! | `bytes` | lines and hexadecimal digits in fixed buffers |

#![no_std]
#![no_main]

#[allow(missing_docs)] // Each item has the name that its header gives it.
mod abi;
mod bytes;
mod memory;
mod xen;

use abi::PAGE_SIZE;
use abi::console::{IN, IN_CONS, IN_PROD, OUT, OUT_CONS, OUT_PROD};
use abi::store::{CONNECTION, ERROR, REQ_CONS, REQ_PROD, RESPONSES, RING, RSP_CONS, RSP_PROD};
use bytes::{ByteBuffer, hex, number, words};
use xen::{GuestChannel, Page};

/// The longest time that `put` waits for room.
const ROOM_WITHIN_MS: u64 = 10_000;

/// The reason why a command has failed.
type CommandError = &'static str;

/// The console, line by line.
struct Console {
    page: Page,
    channel: GuestChannel,
}

impl Console {
    /// Returns the next line, without its end.
    fn line(&self, into: &mut ByteBuffer<8192>) {
        into.clear();
        loop {
            self.channel.clear();
            let (cons, prod) = (self.page.word(IN_CONS), self.page.word(IN_PROD));
            let mut at = cons;
            let mut ended = false;
            while at != prod && !ended {
                let byte = self.page.byte(at % IN);
                at = at.wrapping_add(1);
                ended = byte == b'\n';
                if !ended {
                    into.push(byte);
                }
            }
            self.page.set_word(IN_CONS, at);
            // A sender that has found the ring full waits for this signal. No other sender does,
            // and xenconsoled, which puts 80 bytes at a time, lets a domain signal 30 times in 200
            // ms.
            if self.page.word(IN_PROD).wrapping_sub(cons) >= IN {
                self.channel.notify();
            }
            if ended {
                return;
            }
            if at == prod {
                self.channel.wait(None);
            }
        }
    }

    /// Writes a line that begins with `start`, with `bytes` in hexadecimal digits.
    fn answer(&self, start: &str, bytes: &[u8]) {
        self.text(start.as_bytes());
        if !bytes.is_empty() {
            self.text(b" ");
        }
        for part in bytes.chunks(256) {
            let mut digits = [0; 512];
            self.text(hex(part, &mut digits));
        }
        self.text(b"\n");
        self.channel.notify();
    }

    fn text(&self, bytes: &[u8]) {
        let mut left = bytes.iter();
        let mut next = left.next();
        while let Some(byte) = next {
            self.channel.clear();
            let (cons, prod) = (self.page.word(OUT_CONS), self.page.word(OUT_PROD));
            if prod.wrapping_sub(cons) >= OUT {
                self.channel.notify();
                self.channel.wait(None);
                continue;
            }
            self.page.set_byte(IN + prod % OUT, *byte);
            self.page.set_word(OUT_PROD, prod.wrapping_add(1));
            next = left.next();
        }
    }
}

/// The XenStore ring, and the bytes that were taken from it and not yet requested.
struct StoreConnection {
    page: Page,
    channel: GuestChannel,
    taken: ByteBuffer<65536>,
}

impl StoreConnection {
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), CommandError> {
        let end = xen::now_ms() + ROOM_WITHIN_MS;
        loop {
            self.channel.clear();
            let (cons, prod) = (self.page.word(REQ_CONS), self.page.word(REQ_PROD));
            let used = prod.wrapping_sub(cons);
            if used > RING {
                return Err("put: impossible indices");
            }
            let (now, later) = bytes.split_at(bytes.len().min((RING - used) as usize));
            let mut at = prod;
            for byte in now {
                self.page.set_byte(at % RING, *byte);
                at = at.wrapping_add(1);
            }
            if !now.is_empty() {
                self.page.set_word(REQ_PROD, at);
                self.channel.notify();
            }
            bytes = later;
            if bytes.is_empty() {
                return Ok(());
            }
            // The store stops reading if its responses are not read.
            if self.take() == 0 && now.is_empty() && !self.channel.wait(Some(end)) {
                return Err("put: no room");
            }
        }
    }

    /// Moves the bytes in the ring to `taken`.
    fn take(&mut self) -> usize {
        let (cons, prod) = (self.page.word(RSP_CONS), self.page.word(RSP_PROD));
        let count = prod.wrapping_sub(cons).min(RING);
        for step in 0..count {
            self.taken.push(self.page.byte(RESPONSES + cons.wrapping_add(step) % RING));
        }
        if count > 0 {
            self.page.set_word(RSP_CONS, cons.wrapping_add(count));
            self.channel.notify();
        }
        count as usize
    }

    /// Waits until `least` bytes are taken, or the store has changed the state of the ring.
    fn take_within(&mut self, ms: u32, least: u32) {
        let end = xen::now_ms() + u64::from(ms);
        let state = (self.page.word(CONNECTION), self.page.word(ERROR));
        loop {
            self.channel.clear();
            self.take();
            let changed = state != (self.page.word(CONNECTION), self.page.word(ERROR));
            let enough = self.taken.bytes().len() >= least as usize;
            if changed || enough || !self.channel.wait(Some(end)) {
                return;
            }
        }
    }

    fn read(
        &self,
        offset: u32,
        count: u32,
        into: &mut ByteBuffer<65536>,
    ) -> Result<(), CommandError> {
        let end = offset.checked_add(count).filter(|end| *end <= PAGE_SIZE);
        let range = offset..end.ok_or("read: beyond the page")?;
        if (offset | count).is_multiple_of(4) {
            range.step_by(4).for_each(|at| into.append(&self.page.word(at).to_le_bytes()));
        } else {
            range.for_each(|at| into.push(self.page.byte(at)));
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), CommandError> {
        let count = u32::try_from(bytes.len()).map_err(|_| "write: too long")?;
        if offset.checked_add(count).is_none_or(|end| end > PAGE_SIZE) {
            return Err("write: beyond the page");
        }
        let (parts, rest) = bytes.as_chunks::<4>();
        if rest.is_empty() && offset.is_multiple_of(4) {
            // An index is written at once.
            let words = parts.iter().map(|word| u32::from_le_bytes(*word));
            (offset..).step_by(4).zip(words).for_each(|(at, word)| self.page.set_word(at, word));
        } else {
            (offset..).zip(bytes).for_each(|(at, byte)| self.page.set_byte(at, *byte));
        }
        Ok(())
    }
}

/// The kind of a command's answer.
#[derive(PartialEq, Eq)]
enum AnswerKind {
    None,
    Bytes,
}

/// The state of the commands; the buffers are kept, as clearing them costs time.
struct Agent {
    store: StoreConnection,
    bytes: ByteBuffer<65536>,
    other: ByteBuffer<4096>,
}

impl Agent {
    /// Runs one command; the answer's bytes are in `bytes`.
    fn command(&mut self, line: &[u8]) -> Result<AnswerKind, CommandError> {
        let [name, first, second, third, fourth] = words(line);
        let Self { store, bytes, other } = self;
        bytes.clear();
        match name {
            b"put" => {
                bytes.parse(first)?;
                store.put(bytes.bytes())?;
            }
            b"take" => {
                store.take_within(number(first)?, number(second)?);
                bytes.append(store.taken.bytes());
                store.taken.clear();
                return Ok(AnswerKind::Bytes);
            }
            b"read" => {
                store.read(number(first)?, number(second)?, bytes)?;
                return Ok(AnswerKind::Bytes);
            }
            b"write" => {
                bytes.parse(second)?;
                store.write(number(first)?, bytes.bytes())?;
            }
            b"notify" => store.channel.notify(),
            b"flip" => {
                bytes.parse(second)?;
                other.clear();
                other.parse(third)?;
                let offset = number(first)?;
                for _ in 0..number(fourth)? {
                    store.write(offset, bytes.bytes())?;
                    store.channel.notify();
                    store.write(offset, other.bytes())?;
                }
                bytes.clear();
                return Ok(AnswerKind::Bytes);
            }
            b"shutdown" => xen::shut_down(number(first)?),
            _ => return Err("no such command"),
        }
        Ok(AnswerKind::None)
    }
}

/// Serves the console for ever.
fn main(start: &xen::StartOfDay) -> ! {
    let console = Console { page: start.console_page, channel: start.console_channel };
    let store = StoreConnection {
        page: start.store_page,
        channel: start.store_channel,
        taken: ByteBuffer::new(),
    };
    let mut agent = Agent { store, bytes: ByteBuffer::new(), other: ByteBuffer::new() };
    let mut line = ByteBuffer::new();
    let mut wrong: Option<CommandError> = None;
    loop {
        console.line(&mut line);
        if line.bytes() == b"hello" {
            console.answer(start.introduction().text(), &[]);
            continue;
        }
        let answered = matches!(words(line.bytes()), [b"take" | b"read" | b"flip", ..]);
        let done = agent.command(line.bytes());
        wrong = wrong.or(done.as_ref().err().copied());
        match wrong.filter(|_| answered) {
            Some(why) => {
                console.text(b"error ");
                console.answer(why, &[]);
                wrong = None;
            }
            None if done == Ok(AnswerKind::Bytes) => console.answer("ok", agent.bytes.bytes()),
            None => {}
        }
    }
}
