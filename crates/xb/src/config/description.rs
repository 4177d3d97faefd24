//! A domain as its configuration describes it.

use super::keys::{self, Support};
use super::{DiskSpec, Error, Place, Setting, Value, ValueKind, Warning, disk};
use std::collections::BTreeMap;
use std::path::PathBuf;
use xen::domwatch::ShutdownReason;

/// The action after a domain has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It is taken down.
    Destroy,
    /// It is taken down and created anew.
    Restart,
    /// It stays, to be examined.
    Preserve,
}

impl Action {
    /// Its name in `xl.cfg`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Destroy => "destroy",
            Self::Restart => "restart",
            Self::Preserve => "preserve",
        }
    }

    /// The action of this name.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "destroy" => Some(Self::Destroy),
            "restart" => Some(Self::Restart),
            "preserve" => Some(Self::Preserve),
            _ => None,
        }
    }
}

/// A domain to be created.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Description {
    /// Its name.
    pub name: String,
    /// The 16 bytes of its UUID, where one is given.
    pub uuid: Option<[u8; 16]>,
    /// Its program; the built-in guest init where none is named.
    pub kernel: Option<String>,
    /// Its ramdisk.
    pub ramdisk: Option<String>,
    /// Its command line.
    pub extra: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub vcpus: u32,
    /// Its share of the processors.
    pub weight: u16,
    /// The limit of its processor time, in hundredths of a processor; 0 is no limit.
    pub cap: u16,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// The folder in which names of disks without `/` in front are looked for, before `/dev`.
    pub directory: PathBuf,
    /// True if its disks may be mounted by the host's kernel.
    pub kernel_block: bool,
    /// True if it serves devices of other domains.
    pub driver_domain: bool,
    /// The action when it has shut down.
    pub on_poweroff: Action,
    /// The action when it has asked for a reboot.
    pub on_reboot: Action,
    /// The action when it has crashed.
    pub on_crash: Action,
}

/// Settings by key; those that were read are removed.
struct SettingReader<'a> {
    settings: BTreeMap<&'a str, &'a Setting>,
}

impl Description {
    /// Returns the domain that settings describe, and the warnings about them. `file` is for an
    /// error that has no place in a file.
    ///
    /// # Errors
    /// [`Error`]: the first value that cannot be.
    pub fn read(file: &str, settings: &[Setting]) -> Result<(Self, Vec<Warning>), Error> {
        let by_key = settings.iter().map(|setting| (setting.key.as_str(), setting)).collect();
        let reader = SettingReader { settings: by_key };
        let warnings = reader.warnings(settings);
        let name = reader.text("name")?.ok_or_else(|| Error {
            place: Place::start(file),
            found: "no name".into(),
            expected: "name = \"...\"".into(),
        })?;
        reader.check("name", is_name(&name), "a name of 1 to 64 letters, digits and _ - . + @")?;
        if let Some(kind) = reader.text("type")? {
            reader.check(
                "type",
                ["pv", "pvh", "hvm"].contains(&kind.as_str()),
                "pv, pvh or hvm",
            )?;
        }
        let extra = match reader.text("cmdline")? {
            Some(line) => line,
            None => {
                let root = reader.text("root")?.map(|root| format!("root={root}"));
                let parts = [root, reader.text("extra")?];
                parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
            }
        };
        let memory = reader.number("memory", 8, 1 << 40)?;
        let memory_mib = memory.or(reader.number("maxmem", 8, 1 << 40)?).unwrap_or(64);
        let short = |number: Option<u64>, default: u16| {
            number.and_then(|number| u16::try_from(number).ok()).unwrap_or(default)
        };
        let vcpus = reader.number("vcpus", 1, 4096)?.unwrap_or(1);
        let description = Self {
            uuid: reader.uuid()?,
            kernel: reader.text("kernel")?.filter(|kernel| !kernel.is_empty()),
            ramdisk: reader.text("ramdisk")?,
            extra,
            memory_mib,
            vcpus: u32::try_from(vcpus).unwrap_or(1),
            weight: short(reader.number("cpu_weight", 1, 65535)?, 256),
            cap: short(reader.number("cap", 0, 65535)?, 0),
            disks: reader.disks()?,
            directory: PathBuf::from("/dev"),
            kernel_block: reader.number("kernel_block", 0, u64::MAX)?.is_some_and(|set| set != 0),
            driver_domain: reader.number("driver_domain", 0, u64::MAX)?.is_some_and(|set| set != 0),
            on_poweroff: reader.action("on_poweroff", Action::Destroy)?,
            on_reboot: reader.action("on_reboot", Action::Restart)?,
            on_crash: reader.action("on_crash", Action::Destroy)?,
            name,
        };
        Ok((description, warnings))
    }

    /// Returns the action after the domain has ended.
    #[must_use]
    pub fn after(&self, reason: ShutdownReason) -> Action {
        match reason {
            ShutdownReason::Reboot => self.on_reboot,
            ShutdownReason::Crash | ShutdownReason::Watchdog => self.on_crash,
            _ => self.on_poweroff,
        }
    }
}

/// True for a name that can also be the name of a file.
fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.+@".contains(&byte));
    let numeric = name.bytes().all(|byte| byte.is_ascii_digit());
    letters && !numeric && name.len() <= 64 && !name.starts_with(['.', '-'])
}

/// Keys that have no effect where another one is there.
const BESIDE: [(&str, &str); 3] = [("maxmem", "memory"), ("root", "cmdline"), ("extra", "cmdline")];

/// The number of keys without effect that get a warning each; the others are only counted.
const WARNINGS_MAX: usize = 50;

impl SettingReader<'_> {
    /// Returns the warnings about keys that have no effect.
    fn warnings(&self, settings: &[Setting]) -> Vec<Warning> {
        let mut unheeded = settings.iter().filter(|setting| self.is_unheeded(setting));
        let told = unheeded.by_ref().take(WARNINGS_MAX);
        let mut warnings: Vec<Warning> = told.filter_map(|setting| self.warning(setting)).collect();
        if let Some(next) = unheeded.next() {
            let more = unheeded.count() + 1;
            let text =
                format!("this key and those behind it, {more} in all, have no effect either");
            warnings.push(Warning { place: next.place.clone(), text });
        }
        warnings
    }

    fn is_unheeded(&self, setting: &Setting) -> bool {
        let key = &setting.key;
        let beside = |(of, other): &(&str, &str)| of == key && self.settings.contains_key(other);
        keys::support(key) != Support::Heeded || BESIDE.iter().any(beside)
    }

    /// Returns the warning about a key that has no effect.
    fn warning(&self, setting: &Setting) -> Option<Warning> {
        let key = &setting.key;
        let beside =
            BESIDE.iter().find(|(of, other)| of == key && self.settings.contains_key(other));
        let text = match (keys::support(key), beside) {
            (Support::Heeded, None) => return None,
            (Support::Heeded, Some((_, other))) => format!("{key} has no effect beside {other}"),
            (Support::NotYet, _) => format!("{key} is not supported yet and has no effect"),
            (Support::Unknown, _) => match keys::nearest(key) {
                Some(near) => format!("{key} is no key of xl.cfg and has no effect; {near} is one"),
                None => format!("{key} is no key of xl.cfg and has no effect"),
            },
        };
        Some(Warning { place: setting.place.clone(), text })
    }

    fn wrong(&self, value: &Value, expected: &str) -> Error {
        Error { place: value.place.clone(), found: value.shown(), expected: expected.into() }
    }

    fn check(&self, key: &str, right: bool, expected: &str) -> Result<(), Error> {
        match self.settings.get(key) {
            Some(setting) if !right => {
                Err(self.wrong(&setting.value, &format!("{expected} for {key}")))
            }
            _ => Ok(()),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, Error> {
        let Some(setting) = self.settings.get(key) else { return Ok(None) };
        match &setting.value.kind {
            ValueKind::Text(text) | ValueKind::Number(_, text) if !text.contains('\0') => {
                Ok(Some(text.clone()))
            }
            _ => Err(self.wrong(&setting.value, &format!("a string for {key}"))),
        }
    }

    fn number(&self, key: &str, least: u64, most: u64) -> Result<Option<u64>, Error> {
        let Some(setting) = self.settings.get(key) else { return Ok(None) };
        let number = match &setting.value.kind {
            ValueKind::Number(number, _) => Some(*number),
            ValueKind::Text(text) => super::number(text),
            ValueKind::List(_) => None,
        };
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None if most == u64::MAX => {
                Err(self.wrong(&setting.value, &format!("a number for {key}")))
            }
            None => {
                let expected = format!("a number from {least} to {most} for {key}");
                Err(self.wrong(&setting.value, &expected))
            }
        }
    }

    fn action(&self, key: &str, default: Action) -> Result<Action, Error> {
        let Some(word) = self.text(key)? else { return Ok(default) };
        let action = Action::parse(&word);
        let expected = "destroy, restart or preserve (rename-restart, soft-reset and coredump- are not supported yet)";
        self.check(key, action.is_some(), expected)?;
        Ok(action.unwrap_or(default))
    }

    fn uuid(&self) -> Result<Option<[u8; 16]>, Error> {
        let Some(text) = self.text("uuid")? else { return Ok(None) };
        let uuid = parse_uuid(&text);
        self.check("uuid", uuid.is_some(), "32 hexadecimal digits, with or without hyphens,")?;
        Ok(uuid)
    }

    fn disks(&self) -> Result<Vec<DiskSpec>, Error> {
        let Some(setting) = self.settings.get("disk") else { return Ok(Vec::new()) };
        let ValueKind::List(list) = &setting.value.kind else {
            return Err(self.wrong(&setting.value, "a list of strings for disk"));
        };
        let mut numbers = BTreeMap::new();
        let mut disks = Vec::new();
        for value in list {
            let ValueKind::Text(text) = &value.kind else {
                return Err(self.wrong(value, "a string in the list disk"));
            };
            let disk = DiskSpec::parse(text).map_err(|wrong| Error {
                place: value.place.right(wrong.at + 1),
                found: wrong.found,
                expected: wrong.expected.into(),
            })?;
            if disk.vdev.is_empty() {
                disks.push(disk);
                continue;
            }
            let number = disk::number(&disk.vdev).map_err(|found| Error {
                place: value.place.clone(),
                found,
                expected: "a virtual disk of xen-vbd-interface(7)".into(),
            })?;
            if let Some(before) = numbers.insert(number, disk.vdev.clone()) {
                return Err(self.wrong(value, &format!("another vdev: {before} is there already")));
            }
            disks.push(disk);
        }
        Ok(disks)
    }
}

/// The bytes of a UUID.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let digits: &[u8; 32] = digits.as_slice().try_into().ok()?;
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(uuid)
}

/// A UUID as it is written.
#[must_use]
pub fn write_uuid(uuid: &[u8; 16]) -> String {
    let mut out = String::new();
    for (at, byte) in uuid.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            out.push('-');
        }
        out.push_str(&format!("{byte:02x}"));
    }
    out
}
