//! Arbitrary acts of both ends of a console ring, and of a guest that changes the page behind their
//! backs: first the indices of both streams, then one act after the other. Each act is answered as
//! a model says that moves single bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loopback::Host;
use std::collections::VecDeque;
use xen::gnttab::{GrantMap, GrantOffer, OfferedPage, PageAccess};
use xen::shared::{PAGE_SIZE, SharedPage};
use xen::{DomId, GrantRef};
use xen_io::console::{
    ConsoleBackRing, ConsoleFrontRing, INPUT_SIZE, OUTPUT_SIZE, RingError, StreamChunk, offset,
};

const BACKEND: DomId = DomId(0);
const GUEST: DomId = DomId(1);

fuzz_target!(|data: &[u8]| {
    let mut acts = Acts(data);
    let mut scene = Scene::new(acts.word(), acts.word());
    while let Some(act) = acts.byte() {
        scene.play(act, &mut acts);
        scene.compare();
    }
});

/// The bytes of the fuzzer that are not used yet.
struct Acts<'d>(&'d [u8]);

impl<'d> Acts<'d> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Returns the next word; missing bytes are 0.
    fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte().unwrap_or(0)))
    }

    /// Returns a length of up to twice the larger stream.
    fn len(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0)) * 16 + usize::from(self.byte().unwrap_or(0) % 16)
    }

    /// Returns the next bytes of the fuzzer, at most `len`.
    fn bytes(&mut self, len: usize) -> &'d [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// A console's page with both of its ends, and the models of its streams.
struct Scene {
    front: ConsoleFrontRing,
    back: ConsoleBackRing,
    page: OfferedPage,
    input: StreamModel,
    output: StreamModel,
    /// Output that the backend has copied and not released.
    chunk: Option<StreamChunk>,
    /// The number of bytes written, which gives each byte its value.
    written: usize,
}

impl Scene {
    /// A ring in which nothing waits, at these indices.
    fn new(input: u32, output: u32) -> Self {
        let host = Host::new();
        let page = host.gnttab(GUEST).offer(BACKEND, PageAccess::ReadWrite).expect("a page");
        let front = ConsoleFrontRing::new(map(&host, page.grant()));
        let back = ConsoleBackRing::new(map(&host, page.grant()));
        let scene = Self {
            front,
            back,
            page,
            input: StreamModel::new(INPUT_SIZE, input),
            output: StreamModel::new(OUTPUT_SIZE, output),
            chunk: None,
            written: 0,
        };
        for (at, index) in [
            (offset::IN_CONS, input),
            (offset::IN_PROD, input),
            (offset::OUT_CONS, output),
            (offset::OUT_PROD, output),
        ] {
            scene.page().store_u32(at, index).expect("inside the page");
        }
        scene.back.set_connected().expect("inside the page");
        assert_eq!(scene.front.connected(), Ok(true));
        scene
    }

    fn page(&self) -> &SharedPage {
        self.page.page()
    }

    fn play(&mut self, act: u8, acts: &mut Acts<'_>) {
        match act % 8 {
            0 => {
                let bytes = self.fresh_bytes(acts.len());
                assert_eq!(self.front.write(&bytes), self.output.write(&bytes));
            }
            1 => {
                let bytes = self.fresh_bytes(acts.len());
                let room = self.back.input_room();
                let put = self.back.write_input(&bytes);
                assert_eq!(room.map(|room| room.min(bytes.len())), put);
                assert_eq!(put, self.input.write(&bytes));
            }
            2 => {
                let mut bytes = vec![0; acts.len()];
                let taken = self.front.read(&mut bytes).map(|count| bytes[..count].to_vec());
                assert_eq!(taken, self.input.read(bytes.len()));
            }
            3 => self.peek(acts.len()),
            4 => {
                if let Some(chunk) = self.chunk.take() {
                    self.back.release_output(chunk).expect("inside the page");
                    self.output.release(chunk);
                }
            }
            5 => self.change_index(acts.byte().unwrap_or(0), acts.word()),
            6 => self.change_bytes(acts),
            _ => {
                assert_eq!(self.back.input_room(), self.input.room());
                let _ = self.front.connected();
            }
        }
    }

    /// Copies output, which stays in the ring.
    fn peek(&mut self, len: usize) {
        let mut bytes = vec![0; len];
        let chunk = self.back.peek_output(&mut bytes);
        let expected = self.output.peek(len);
        match chunk {
            Ok(chunk) => {
                assert_eq!(Ok(bytes[..chunk.len].to_vec()), expected);
                assert_eq!(chunk.start, self.output.cons);
                assert_eq!(chunk.end(), chunk.start.wrapping_add(chunk.len as u32));
                self.chunk = Some(chunk);
            }
            Err(error) => assert_eq!(Err(error), expected),
        }
    }

    /// Stores an index that neither end has chosen.
    fn change_index(&mut self, which: u8, value: u32) {
        let (at, stream) = match which % 4 {
            0 => (offset::IN_CONS, &mut self.input),
            1 => (offset::IN_PROD, &mut self.input),
            2 => (offset::OUT_CONS, &mut self.output),
            _ => (offset::OUT_PROD, &mut self.output),
        };
        stream.waiting = None;
        if which.is_multiple_of(2) {
            stream.cons = value;
        } else {
            stream.prod = value;
        }
        self.page().store_u32(at, value).expect("inside the page");
    }

    /// Puts bytes of the fuzzer over those of the streams, and over the connection byte.
    fn change_bytes(&mut self, acts: &mut Acts<'_>) {
        let start = acts.word() as usize % (INPUT_SIZE + OUTPUT_SIZE);
        let len = acts.len().min(INPUT_SIZE + OUTPUT_SIZE - start);
        let bytes = acts.bytes(len);
        self.page().copy_in(start, bytes).expect("inside the page");
        for (byte, at) in bytes.iter().zip(start..) {
            let (stream, place) = match at.checked_sub(INPUT_SIZE) {
                None => (&mut self.input, at),
                Some(place) => (&mut self.output, place),
            };
            stream.bytes[place] = *byte;
            stream.waiting = None;
        }
        let connection = acts.byte().unwrap_or(0);
        self.page().copy_in(offset::CONNECTION, &[connection]).expect("inside the page");
        assert_eq!(self.front.connected(), Ok(connection == 0));
    }

    /// Returns bytes that differ from their neighbours.
    fn fresh_bytes(&mut self, len: usize) -> Vec<u8> {
        let bytes = (self.written..self.written + len).map(|at| (at % 251) as u8).collect();
        self.written += len;
        bytes
    }

    /// The page is what the models say, and nothing behind the ring was written.
    fn compare(&self) {
        let mut page = [0; PAGE_SIZE];
        self.page().copy_out(0, &mut page).expect("inside the page");
        let (input, rest) = page.split_at(INPUT_SIZE);
        let (output, rest) = rest.split_at(OUTPUT_SIZE);
        assert!(input == self.input.bytes && output == self.output.bytes);
        let indices = [self.input.cons, self.input.prod, self.output.cons, self.output.prod];
        let (words, rest) = rest.split_at(offset::CONNECTION - offset::IN_CONS);
        assert_eq!(words, indices.map(u32::to_le_bytes).as_flattened());
        assert!(rest[1..].iter().all(|byte| *byte == 0));
    }
}

fn map(host: &Host, grant: GrantRef) -> SharedPage {
    let mapping = host.gnttab(BACKEND).map(GUEST, grant, PageAccess::ReadWrite);
    mapping.expect("a page").into_page()
}

/// A stream whose bytes are moved one by one.
struct StreamModel {
    bytes: Vec<u8>,
    cons: u32,
    prod: u32,
    /// The bytes between the indices in order, as long as both ends are honest.
    waiting: Option<VecDeque<u8>>,
}

impl StreamModel {
    fn new(size: usize, index: u32) -> Self {
        Self { bytes: vec![0; size], cons: index, prod: index, waiting: Some(VecDeque::new()) }
    }

    /// Returns the number of bytes that wait.
    fn used(&self) -> Result<usize, RingError> {
        let used = self.prod.wrapping_sub(self.cons) as usize;
        if used > self.bytes.len() {
            return Err(RingError::Index { cons: self.cons, prod: self.prod });
        }
        Ok(used)
    }

    fn room(&self) -> Result<usize, RingError> {
        Ok(self.bytes.len() - self.used()?)
    }

    /// Returns the place of an index among the bytes.
    fn place(&self, index: u32) -> usize {
        index as usize % self.bytes.len()
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, RingError> {
        let count = self.room()?.min(from.len());
        for byte in &from[..count] {
            let place = self.place(self.prod);
            self.bytes[place] = *byte;
            self.prod = self.prod.wrapping_add(1);
        }
        self.waiting.iter_mut().for_each(|waiting| waiting.extend(&from[..count]));
        Ok(count)
    }

    fn peek(&self, len: usize) -> Result<Vec<u8>, RingError> {
        let count = self.used()?.min(len);
        let at = |offset: usize| self.bytes[self.place(self.cons.wrapping_add(offset as u32))];
        let bytes: Vec<u8> = (0..count).map(at).collect();
        if let Some(waiting) = &self.waiting {
            assert!(waiting.iter().take(count).eq(&bytes), "bytes in the order of their writing");
        }
        Ok(bytes)
    }

    fn read(&mut self, len: usize) -> Result<Vec<u8>, RingError> {
        let bytes = self.peek(len)?;
        self.cons = self.cons.wrapping_add(bytes.len() as u32);
        self.waiting.iter_mut().for_each(|waiting| drop(waiting.drain(..bytes.len())));
        Ok(bytes)
    }

    /// Gives the room of a chunk back, which may be older than the indices.
    fn release(&mut self, chunk: StreamChunk) {
        if self.cons == chunk.start
            && let Some(waiting) = &mut self.waiting
        {
            waiting.drain(..chunk.len);
        } else {
            self.waiting = None;
        }
        self.cons = chunk.end();
    }
}
