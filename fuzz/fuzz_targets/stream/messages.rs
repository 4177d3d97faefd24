//! The messages of the clients of a run: payloads from a dictionary, well formed for their type or
//! not.

use xenstore_core::wire::{MsgType, TYPES};

/// The bytes of a run, taken one by one. When they are used up, it returns `None`.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn below(&mut self, below: usize) -> Option<usize> {
        self.byte().map(|byte| usize::from(byte) % below)
    }

    pub(crate) fn word(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    /// Returns as many bytes as the next byte states.
    fn raw(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?);
        let (first, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(first)
    }
}

const PATHS: [&str; 32] = [
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/a/b/c/d",
    "/b",
    "/b/x",
    "/tool",
    "/tool/xenstored",
    "/local",
    "/local/domain",
    "/local/domain/0",
    "/local/domain/1",
    "/local/domain/1/d",
    "/local/domain/1/d/e",
    "/local/domain/2",
    "/local/domain/2/d",
    "/local/domain/3/d/e/f",
    "d",
    "d/e",
    "d/e/f",
    "x",
    "@introduceDomain",
    "@releaseDomain",
    "@releaseDomain/1",
    "@introduceDomain/2",
    "@other",
    "",
    "/a/",
    "//a",
    "/a b",
    "@",
];
const TOKENS: [&str; 4] = ["t", "u", "", "a-longer-token"];
const DOMIDS: [&str; 14] =
    ["0", "1", "2", "3", "1", "2", "4", "32752", "32757", "65535", "65536", "-1", "", "x"];
const LETTERS: [&str; 6] = ["n", "r", "w", "b", "x", ""];
const QUOTAS: [&str; 13] = [
    "nodes",
    "watches",
    "outstanding",
    "memory",
    "transactions",
    "transaction-nodes",
    "node-permissions",
    "path-max",
    "node-size",
    "soft-memory",
    "soft-nodes",
    "path-length",
    "none",
];
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "2",
    "3",
    "5",
    "15",
    "20",
    "100",
    "300",
    "1000",
    "-1",
    "4294967295",
    "4294967296",
    "18446744073709551615",
];

/// A payload that is being built.
struct Payload<'b, 'a> {
    bytes: Vec<u8>,
    from: &'b mut Bytes<'a>,
}

impl Payload<'_, '_> {
    fn add(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Appends one of these strings, and a NUL.
    fn one(&mut self, of: &[&str]) -> Option<()> {
        let at = self.from.below(of.len())?;
        self.add(of[at]);
        self.bytes.push(0);
        Some(())
    }

    fn path(&mut self) -> Option<()> {
        let choice = self.from.byte()?;
        match choice {
            // A big directory, a deep tree, a path at its limits.
            0xe0..=0xef => {
                let name = self.from.byte()?;
                self.add(&format!("/dir/a-child-with-a-name-of-some-length-{name}"));
            }
            0xf0..=0xf7 => self.add(&"/deep".repeat(usize::from(choice & 7) * 30 + 1)),
            0xf8..=0xfb => self.add(&format!("/{}", "n".repeat(usize::from(choice & 3) + 3069))),
            0xfc..=0xff => self.add(&"n".repeat(usize::from(choice & 3) + 2046)),
            _ => self.add(PATHS[usize::from(choice) % PATHS.len()]),
        }
        self.bytes.push(0);
        Some(())
    }

    fn value(&mut self) -> Option<()> {
        let choice = self.from.byte()?;
        match choice {
            0..=0x9f => self.bytes.extend_from_slice(&[b'v', choice & 3]),
            0xa0..=0xcf => self.bytes.resize(self.bytes.len() + usize::from(choice) * 10, choice),
            0xd0..=0xef => self.bytes.resize(4096, choice),
            _ => self.bytes.extend_from_slice(self.from.raw()?),
        }
        Some(())
    }

    fn perms(&mut self) -> Option<()> {
        for _ in 0..self.from.below(8)? {
            let letter = self.from.below(LETTERS.len())?;
            self.add(LETTERS[letter]);
            self.one(&DOMIDS)?;
        }
        Some(())
    }

    fn control(&mut self) -> Option<()> {
        let choice = self.from.below(12)?;
        self.add(
            ["check", "quota", "quota", "quota-soft", "quota", "subtree", "subtree", "help"]
                .get(choice)
                .unwrap_or(&"print"),
        );
        self.bytes.push(0);
        match choice {
            1 => self.one(&DOMIDS),
            2 | 3 => {
                self.add("set\0");
                self.one(&QUOTAS)?;
                self.one(&NUMBERS)
            }
            4 => self.one(&["max", "-r", "max\0-r", "set"]),
            5 | 6 => {
                self.path()?;
                if choice == 5 {
                    self.bytes.push(0);
                    return Some(());
                }
                self.add("+");
                self.path()
            }
            _ => Some(()),
        }
    }

    /// Appends the payload that a message of this type should hold, nearly always.
    fn of(&mut self, kind: MsgType) -> Option<()> {
        use MsgType as M;
        match kind {
            M::Control => self.control(),
            M::Directory | M::Read | M::GetPerms | M::Mkdir | M::Rm => self.path(),
            M::DirectoryPart => {
                self.path()?;
                self.one(&NUMBERS)
            }
            M::Write => {
                self.path()?;
                self.value()
            }
            M::SetPerms => {
                self.path()?;
                self.perms()
            }
            M::Watch | M::Unwatch => {
                self.path()?;
                self.one(&TOKENS)?;
                if self.from.byte()? & 3 == 0 { self.one(&NUMBERS) } else { Some(()) }
            }
            M::TransactionStart | M::ResetWatches => self.one(&[""]),
            M::TransactionEnd => self.one(&["T", "T", "T", "F", "x"]),
            M::Introduce => {
                self.one(&DOMIDS)?;
                self.one(&NUMBERS)?;
                self.one(&NUMBERS)
            }
            M::SetTarget => {
                self.one(&DOMIDS)?;
                self.one(&DOMIDS)
            }
            M::SetFeature => {
                self.one(&DOMIDS)?;
                self.one(&NUMBERS)
            }
            M::GetQuota | M::SetQuota => {
                for _ in 0..self.from.below(3)? {
                    self.one(&DOMIDS)?;
                }
                self.one(&QUOTAS)?;
                if kind == M::SetQuota { self.one(&NUMBERS) } else { Some(()) }
            }
            _ => self.one(&DOMIDS),
        }
    }
}

/// Returns a type code and a payload.
pub(crate) fn message(from: &mut Bytes<'_>) -> Option<(u32, Vec<u8>)> {
    use MsgType as M;
    // Types that change and read the tree are chosen more often than the others.
    const OFTEN: [MsgType; 13] = [
        M::Write,
        M::Write,
        M::Read,
        M::Mkdir,
        M::Rm,
        M::Directory,
        M::SetPerms,
        M::Watch,
        M::Watch,
        M::TransactionStart,
        M::TransactionEnd,
        M::Write,
        M::Read,
    ];
    let choice = from.byte()?;
    let kind = match choice {
        0..=0x7f => OFTEN[usize::from(choice) % OFTEN.len()],
        0x80..=0xef => TYPES[usize::from(choice) % TYPES.len()].0,
        _ => {
            // Any type with any bytes.
            let code = if choice & 1 == 0 { from.word()? } else { u32::from(from.byte()?) };
            return Some((code, from.raw()?.to_vec()));
        }
    };
    let how = from.byte()?;
    let mut payload = Payload { bytes: Vec::new(), from };
    payload.of(kind)?;
    match how {
        0..=3 => drop(payload.bytes.pop()),
        4..=7 => payload.bytes.push(0),
        8..=11 => payload.bytes.insert(0, 0),
        12..=15 => payload.bytes.extend_from_slice(payload.from.raw()?),
        16..=19 => payload.bytes.truncate(usize::from(how)),
        _ => {}
    }
    payload.bytes.truncate(4096);
    Some((kind.code(), payload.bytes))
}
