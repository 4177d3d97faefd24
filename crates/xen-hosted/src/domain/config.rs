//! The configuration of a new domain, as its creator requests it.

use crate::limits::{MEMORY_DEFAULT_KIB, MEMORY_MIN_KIB, TASKS_DEFAULT};
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use xen::DomId;

/// The folder of a domain's further programs.
pub const PROGRAMS: &str = "/opt";
/// The most further programs of a domain.
const PROGRAMS_MAX: usize = 8;

/// The files that a domain sees, all of them read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Files {
    /// None: for programs that are linked statically.
    #[default]
    None,
    /// `/usr` of the host, and the folders of the root that hold programs and libraries.
    System,
}

/// The kind of a domain's `/dev`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Devices {
    /// Nothing.
    #[default]
    None,
    /// Files that its own program serves through FUSE ([`DEVICES`](crate::descriptors::DEVICES)).
    /// The mount is made before the program runs, which cannot mount anything itself. Then `/tmp`
    /// is writable, up to 16 MiB of the domain's memory, and `/mnt` exists for mounts that domain 0
    /// makes.
    Files,
    /// As `Files`, and the host's kernel may use the files too (as a loop device's): the mount
    /// belongs to the host's user namespace. Only for a domain that is trusted with that kernel,
    /// and only where the broker is root; otherwise it is [`Devices::Files`].
    KernelFiles,
}

/// The terminal of a domain's console.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ConsoleTerminal {
    /// None.
    #[default]
    None,
    /// A pseudoterminal of 80 columns and 24 rows in an instance of devpts of the domain's own. Its
    /// program has the master ([`TERMINAL`](crate::descriptors::TERMINAL)), and opens the other end
    /// through it (`TIOCGPTPEER`). Its filter then lets the requests of terminals pass, also to a
    /// terminal that the creator gives it as standard input, output or error.
    Private,
}

/// The longest time that a domain may exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lifetime {
    /// As long as the host.
    #[default]
    OfTheHost,
    /// As long as the connection that has created it, until that connection calls
    /// [`Control::keep`](crate::domctl::Control::keep): a domain whose creator dies before it is
    /// complete does not stay.
    Held,
}

/// The description of a new domain.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DomainConfig {
    /// The handle by which its creator knows it, whatever number it gets.
    pub handle: [u8; 16],
    /// The memory that it may have, arenas included, in KiB; at least [`MEMORY_MIN_KIB`].
    pub memory_max_kib: u64,
    /// The number of processes and threads that it may have.
    pub tasks_max: u32,
    /// Its share of the processors relative to others, 256 by default.
    pub weight: u16,
    /// The limit of its processor time, in hundredths of one processor; 0 is no limit.
    pub cap: u16,
    /// The files that it sees.
    pub files: Files,
    /// The kind of its `/dev`.
    pub devices: Devices,
    /// The terminal of its console.
    pub terminal: ConsoleTerminal,
    /// The longest time that it may exist.
    pub lifetime: Lifetime,
    /// The number that it gets: that of a domain which its creator has taken down for a successor
    /// ([`Control::vacate`](crate::domctl::Control::vacate)). Without one it gets any free number.
    pub succeeds: Option<DomId>,
    /// Programs of the host, by their paths, that it finds below [`PROGRAMS`], by their names, where
    /// it sees [`Files::System`] and has namespaces. They need not lie where it sees files.
    pub programs: Vec<OsString>,
    /// The program's arguments, its name first.
    pub args: Vec<OsString>,
    /// The program's variables, `NAME=value`; those that describe its
    /// [`descriptors`](crate::descriptors) are added.
    pub env: Vec<OsString>,
}

impl Default for DomainConfig {
    fn default() -> Self {
        Self {
            handle: [0; 16],
            memory_max_kib: MEMORY_DEFAULT_KIB,
            tasks_max: TASKS_DEFAULT,
            weight: 256,
            cap: 0,
            files: Files::None,
            devices: Devices::None,
            terminal: ConsoleTerminal::None,
            lifetime: Lifetime::OfTheHost,
            succeeds: None,
            programs: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}

impl DomainConfig {
    /// Returns the words and strings of a request to create the domain.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.handle.to_vec();
        let files = match self.files {
            Files::None => 0,
            Files::System => 1,
        };
        let devices = match self.devices {
            Devices::None => 0,
            Devices::Files => 1,
            Devices::KernelFiles => 2,
        };
        let terminal = match self.terminal {
            ConsoleTerminal::None => 0,
            ConsoleTerminal::Private => 1,
        };
        let lifetime = match self.lifetime {
            Lifetime::OfTheHost => 0,
            Lifetime::Held => 1,
        };
        for word in [
            self.memory_max_kib,
            self.tasks_max.into(),
            self.weight.into(),
            self.cap.into(),
            files,
            devices,
            terminal,
            lifetime,
            // Domain 0 has no successor.
            self.succeeds.map_or(0, |domid| domid.0.into()),
            self.args.len() as u64,
            self.env.len() as u64,
            self.programs.len() as u64,
        ] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for string in self.args.iter().chain(&self.env).chain(&self.programs) {
            bytes.extend_from_slice(string.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    /// Returns the configuration in a request; `None` where it cannot be decoded, or requests what
    /// is impossible.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (handle, rest) = bytes.split_first_chunk::<16>()?;
        let (head, strings) = rest.split_first_chunk::<96>()?;
        let (words, _) = head.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
        let mut config = Self { handle: *handle, ..Self::default() };
        config.memory_max_kib = words.next()?;
        config.tasks_max = u32::try_from(words.next()?).ok()?;
        config.weight = u16::try_from(words.next()?).ok()?;
        config.cap = u16::try_from(words.next()?).ok()?;
        config.files = match words.next()? {
            0 => Files::None,
            1 => Files::System,
            _ => return None,
        };
        config.devices = match words.next()? {
            0 => Devices::None,
            1 => Devices::Files,
            2 => Devices::KernelFiles,
            _ => return None,
        };
        config.terminal = match words.next()? {
            0 => ConsoleTerminal::None,
            1 => ConsoleTerminal::Private,
            _ => return None,
        };
        config.lifetime = match words.next()? {
            0 => Lifetime::OfTheHost,
            1 => Lifetime::Held,
            _ => return None,
        };
        config.succeeds = match words.next()? {
            0 => None,
            number => Some(DomId(u16::try_from(number).ok()?)),
        };
        let mut count = || usize::try_from(words.next()?).ok();
        let (args, env, programs) = (count()?, count()?, count()?);
        let mut strings = strings.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let mut take = |count: usize| -> Option<Vec<OsString>> {
            let list: Vec<OsString> =
                strings.by_ref().take(count).map(|text| OsStr::from_bytes(text).into()).collect();
            (list.len() == count).then_some(list)
        };
        config.args = take(args)?;
        config.env = take(env)?;
        config.programs = take(programs)?;
        let bounded = config.memory_max_kib >= MEMORY_MIN_KIB
            && config.memory_max_kib <= u64::MAX / 1024
            && config.tasks_max > 0
            && config.weight > 0
            && config.programs.len() <= PROGRAMS_MAX
            && !config.args.is_empty();
        bounded.then_some(config)
    }

    /// Returns arguments and variables as a program is given them, without those for its
    /// descriptors.
    pub(crate) fn program_strings(&self) -> Option<(Vec<CString>, Vec<CString>)> {
        let strings = |list: &[OsString]| -> Option<Vec<CString>> {
            list.iter().map(|text| CString::new(text.as_bytes()).ok()).collect()
        };
        Some((strings(&self.args)?, strings(&self.env)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_round_trip() {
        let mut config = DomainConfig { args: vec!["program".into()], ..DomainConfig::default() };
        assert_eq!(DomainConfig::decode(&config.encode()), Some(config.clone()));
        config.args.push("".into());
        config.env.push("A=1".into());
        config.files = Files::System;
        config.devices = Devices::Files;
        config.terminal = ConsoleTerminal::Private;
        config.lifetime = Lifetime::Held;
        config.succeeds = Some(DomId(7));
        config.cap = 50;
        config.programs.push("/usr/bin/true".into());
        assert_eq!(DomainConfig::decode(&config.encode()), Some(config.clone()));
        config.weight = 0;
        assert_eq!(DomainConfig::decode(&config.encode()), None);
        let bytes = DomainConfig { args: vec!["x".into()], ..DomainConfig::default() }.encode();
        for len in 0..bytes.len() - 1 {
            assert_eq!(DomainConfig::decode(&bytes[..len]), None, "{len} bytes");
        }
    }
}
