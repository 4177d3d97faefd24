//! Disk strings: `xl-disk-configuration(5)` in full.
//!
//! A string is split at commas. A part that is `key=value`, a flag or a deprecated prefix names its
//! own meaning; the others fill target, format, vdev and access in this order, as far as they were
//! not named yet. `target=` takes the whole rest. Where the manual and `xl` differ, as in the parts
//! that may occur twice, `xl` 4.17 decides; `grant_usage` is later than that.

use std::collections::BTreeSet;
use std::fmt;
use xen_block::vbd;

/// The folder of hotplug scripts.
pub(crate) const SCRIPT_FOLDER: &str = "/etc/xen/scripts/";

/// A part of a disk string that cannot be parsed, and the text that was expected.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Error {
    /// The place in the string, in characters from 0.
    pub at: usize,
    /// The text that was found there.
    pub found: String,
    /// The text that was expected there.
    pub expected: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk, character {}: {}; expected {}", self.at + 1, self.found, self.expected)
    }
}

impl std::error::Error for Error {}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// Returns its name in a disk string.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// The format of the image.
    Format {
        /// Sectors one after the other.
        Raw = "raw",
        /// QEMU's first.
        Qcow = "qcow",
        /// QEMU's second.
        Qcow2 = "qcow2",
        /// Microsoft's.
        Vhd = "vhd",
        /// QEMU's enhanced one.
        Qed = "qed",
        /// No medium in a CD-ROM drive.
        Empty = "empty",
    }
}

words! {
    /// The kind of backend that serves the disk.
    BackendType {
        /// The kernel, or a hotplug script.
        Phy = "phy",
        /// Xen's blktap, which no longer exists.
        Tap = "tap",
        /// A process.
        Qdisk = "qdisk",
        /// A process that the toolstack does not know.
        Standalone = "standalone",
    }
}

words! {
    /// The protocol between guest and backend.
    Specification {
        /// `blkif`.
        Xen = "xen",
        /// virtio-blk.
        Virtio = "virtio",
    }
}

/// A disk as a string describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DiskSpec {
    /// The image, or the argument of the script.
    pub target: Option<String>,
    /// The format of the image; raw where none is given.
    pub format: Option<Format>,
    /// Its name in the guest; empty where none is given, and the next free one is meant.
    pub vdev: String,
    /// The access of the guest, where it is given; see [`DiskSpec::writable`].
    pub access: Option<Access>,
    /// True if it is a CD-ROM drive.
    pub cdrom: bool,
    /// The backend's domain, by name.
    pub backend: Option<String>,
    /// The kind of backend that serves it.
    pub backendtype: Option<BackendType>,
    /// The protocol between guest and backend.
    pub specification: Option<Specification>,
    /// The hotplug script.
    pub script: Option<String>,
    /// True if the workaround without `O_DIRECT` is not needed.
    pub direct_io_safe: bool,
    /// True if discards are offered.
    pub discard: Option<bool>,
    /// True if the guest trusts the backend.
    pub trusted: Option<bool>,
    /// True if memory is granted; `None` where it is not given.
    pub grant_usage: Option<bool>,
    /// COLO's parameters, as `key=value` or flags; not used here.
    pub colo: Vec<(String, String)>,
}

/// The access of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It may read only: `r`, `ro`.
    Read,
    /// It may: `w`, `rw`.
    Write,
}

/// Deprecated prefixes without effect.
const PREFIXES: [&str; 7] = ["tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy"];
/// Prefixes that name a script, without its `block-`.
const SCRIPTS: [&str; 4] = ["iscsi", "nbd", "enbd", "drbd"];
/// Keys with a value; the last ones are COLO's.
const KEYS: [&str; 13] = [
    "format",
    "devtype",
    "access",
    "backend",
    "backendtype",
    "specification",
    "vdev",
    "script",
    "colo-host",
    "colo-port",
    "colo-export",
    "active-disk",
    "hidden-disk",
];

const FORMATS: &str = "a format: raw, qcow, qcow2, vhd, qed or empty";

impl DiskSpec {
    /// The disk that a string describes.
    ///
    /// # Errors
    /// [`Error`] at the first part that makes no sense.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut reader =
            DiskSpecReader { text, at: 0, disk: Self::default(), ..DiskSpecReader::default() };
        while reader.step()? {}
        reader.finish()
    }

    /// True if the guest may write.
    #[must_use]
    pub fn writable(&self) -> bool {
        !self.cdrom && self.access != Some(Access::Read)
    }

    /// Returns the format of the image.
    #[must_use]
    pub fn format(&self) -> Format {
        if self.cdrom && self.target.as_deref().unwrap_or_default().is_empty() {
            return Format::Empty;
        }
        self.format.unwrap_or(Format::Raw)
    }

    /// Returns the hotplug script, without the path of the folder where all are.
    #[must_use]
    pub fn script_name(&self) -> Option<&str> {
        let script = self.script.as_deref().filter(|script| !script.is_empty())?;
        Some(script.strip_prefix(SCRIPT_FOLDER).unwrap_or(script))
    }

    /// Returns its virtual device number.
    ///
    /// # Errors
    /// Where `vdev` is none.
    pub fn number(&self) -> Result<u32, String> {
        number(&self.vdev)
    }
}

/// Returns the number of a virtual device, given by its name, or as a decimal, octal or hexadecimal
/// number.
///
/// # Errors
/// Where it is neither. Source: `xen-vbd-interface(7)`.
pub fn number(vdev: &str) -> Result<u32, String> {
    if vdev.starts_with(|first: char| first.is_ascii_digit()) {
        let number = super::number(vdev).and_then(|number| u32::try_from(number).ok());
        let reserved = |number: &u32| *number < 2 << 28;
        return number
            .filter(reserved)
            .ok_or_else(|| format!("{vdev:?} is no number of a virtual disk (below 0x20000000)"));
    }
    vbd::number(vdev)
}

/// Returns the first name from `xvda` on whose number is not taken.
#[must_use]
pub fn next_free(taken: impl Fn(u32) -> bool) -> String {
    // Beyond the sixteenth, numbers have another form.
    let numbers = (0..16)
        .map(|disk| 202 << 8 | disk << 4)
        .chain((16..1 << 20).map(|disk| 1 << 28 | disk << 8));
    let mut free = numbers.filter(|number| !taken(*number));
    free.next().map(vbd::name).unwrap_or_default()
}

/// Gives each disk without a name the next free one.
pub fn name_all(disks: &mut [DiskSpec]) {
    let mut taken: BTreeSet<u32> = disks.iter().filter_map(|disk| disk.number().ok()).collect();
    for disk in disks.iter_mut().filter(|disk| disk.vdev.is_empty()) {
        disk.vdev = next_free(|number| taken.contains(&number));
        taken.extend(disk.number());
    }
}

/// A part of the string: its text, and its place.
type DiskSpecPart<'a> = (&'a str, usize);

#[derive(Default)]
struct DiskSpecReader<'a> {
    text: &'a str,
    at: usize,
    disk: DiskSpec,
    has_prefix: bool,
    has_format: bool,
    has_vdev: bool,
    has_access: bool,
}

impl<'a> DiskSpecReader<'a> {
    fn error(&self, (text, at): DiskSpecPart<'a>, expected: &'static str) -> Error {
        let at = self.text.get(..at).map_or(0, |before| before.chars().count());
        let found = if text.is_empty() { "nothing".into() } else { format!("{text:?}") };
        Error { at, found, expected }
    }

    /// Takes one part; false at the end.
    fn step(&mut self) -> Result<bool, Error> {
        let rest = &self.text[self.at..];
        let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n']).len();
        self.at += blank;
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return Ok(false);
        }
        if let Some(target) = rest.strip_prefix("target=") {
            let target = target.strip_suffix(',').unwrap_or(target);
            let part = (target, self.at + "target=".len());
            self.at = self.text.len();
            self.target(part)?;
            return Ok(false);
        }
        if self.prefix(rest)? {
            return Ok(true);
        }
        let end = rest.find(',').unwrap_or(rest.len());
        let part = (&rest[..end], self.at);
        self.at += (end + 1).min(rest.len());
        match part.0.split_once('=') {
            Some((key, value)) => self.named(part, key, value)?,
            None if self.flag(part.0) => {}
            None => self.positional(part)?,
        }
        Ok(true)
    }

    /// Removes a deprecated prefix. Returns true if there was one.
    fn prefix(&mut self, rest: &'a str) -> Result<bool, Error> {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
        let Some((name, after)) =
            end.and_then(|end| Some((&rest[..end], rest[end..].strip_prefix(':')?)))
        else {
            return Ok(false);
        };
        let part = (name, self.at);
        if let Some(format) =
            Format::parse(name).filter(|_| matches!(name, "raw" | "qcow" | "qcow2" | "vhd"))
        {
            self.format(part, format)?;
        } else if SCRIPTS.contains(&name) {
            self.once(part, &format!("block-{name}"), |disk| &mut disk.script)?;
        } else if !PREFIXES.contains(&name) {
            let unknown = name.starts_with(|first: char| first.is_ascii_lowercase())
                && !after
                    .starts_with(|next: char| next.is_ascii_lowercase() || next.is_ascii_digit());
            let expected = "one of the deprecated prefixes raw: qcow: qcow2: vhd: iscsi: nbd: enbd: drbd: tapdisk: tap: tap2: \
                            aio: ioemu: file: phy:, or target= before what is none";
            return if unknown { Err(self.error(part, expected)) } else { Ok(false) };
        }
        self.has_prefix = true;
        self.at += name.len() + 1;
        Ok(true)
    }

    fn flag(&mut self, word: &str) -> bool {
        let disk = &mut self.disk;
        match word {
            "cdrom" => disk.cdrom = true,
            "direct-io-safe" => disk.direct_io_safe = true,
            "discard" => disk.discard = Some(true),
            "no-discard" => disk.discard = Some(false),
            "trusted" => disk.trusted = Some(true),
            "untrusted" => disk.trusted = Some(false),
            "colo" | "no-colo" => disk.colo.push((word.into(), String::new())),
            _ => return false,
        }
        true
    }

    fn named(&mut self, part: DiskSpecPart<'a>, key: &str, value: &'a str) -> Result<(), Error> {
        let place = (value, part.1 + key.len() + 1);
        match key {
            "format" => self.format_word(place)?,
            "devtype" => match value {
                "cdrom" => self.disk.cdrom = true,
                "disk" => self.disk.cdrom = false,
                _ => return Err(self.error(place, "cdrom or disk")),
            },
            "access" => self.access(place)?,
            "backend" => self.once(place, value, |disk| &mut disk.backend)?,
            "script" => self.once(place, value, |disk| &mut disk.script)?,
            "vdev" => self.vdev(place)?,
            "grant_usage" => {
                self.disk.grant_usage = match value {
                    "0" => Some(false),
                    "1" => Some(true),
                    _ => return Err(self.error(place, "0 or 1")),
                };
            }
            "backendtype" => {
                let kind = BackendType::parse(value)
                    .filter(|kind| self.disk.backendtype.is_none_or(|before| before == *kind));
                let kind =
                    kind.ok_or_else(|| self.error(place, "phy, qdisk or standalone, once"))?;
                self.disk.backendtype = Some(kind);
            }
            "specification" => {
                let kind = Specification::parse(value)
                    .filter(|kind| self.disk.specification.is_none_or(|before| before == *kind));
                let kind = kind.ok_or_else(|| self.error(place, "xen or virtio, once"))?;
                self.disk.specification = Some(kind);
            }
            key if KEYS.contains(&key) => self.colo(place, key, value)?,
            _ => {
                let expected = "one of format= vdev= access= devtype= backend= backendtype= script= specification= grant_usage= target=, \
                                a COLO parameter, or target= before a path with = in it";
                return Err(self.error(part, expected));
            }
        }
        Ok(())
    }

    fn colo(&mut self, place: DiskSpecPart<'a>, key: &str, value: &str) -> Result<(), Error> {
        let before =
            self.disk.colo.iter().any(|(before, value)| before == key && !value.is_empty());
        if key == "colo-port" {
            if !value.parse().is_ok_and(|port: u32| port > 0) {
                return Err(self.error(place, "the number of a port"));
            }
        } else if before {
            return Err(self.error(place, "this parameter once"));
        }
        self.disk.colo.push((key.into(), value.into()));
        Ok(())
    }

    fn positional(&mut self, part: DiskSpecPart<'a>) -> Result<(), Error> {
        if self.disk.target.is_none() {
            self.target(part)
        } else if !self.has_prefix && !self.has_format {
            if self.disk.target.as_deref() == Some("") && self.vdev_and_devtype(part)? {
                self.disk.format = Some(Format::Empty);
                self.has_format = true;
                return Ok(());
            }
            self.format_word(part)
        } else if !self.has_vdev {
            if self.vdev_and_devtype(part)? { Ok(()) } else { self.vdev(part) }
        } else if !self.has_access {
            self.has_access = true;
            self.access(part)
        } else {
            Err(self.error(part, "the end: target, format, vdev and access are there"))
        }
    }

    fn target(&mut self, part: DiskSpecPart<'a>) -> Result<(), Error> {
        self.once(part, part.0, |disk| &mut disk.target)
    }

    /// Sets a value that may be set once; an empty value does not count.
    fn once(
        &mut self,
        part: DiskSpecPart<'a>,
        value: &str,
        field: impl FnOnce(&mut DiskSpec) -> &mut Option<String>,
    ) -> Result<(), Error> {
        let wrong = self.error(part, "this parameter once");
        let field = field(&mut self.disk);
        if field.as_ref().is_some_and(|before| !before.is_empty()) {
            return Err(wrong);
        }
        *field = Some(value.into());
        Ok(())
    }

    fn vdev(&mut self, part: DiskSpecPart<'a>) -> Result<(), Error> {
        if !self.disk.vdev.is_empty() {
            return Err(self.error(part, "vdev once"));
        }
        self.disk.vdev = part.0.into();
        self.has_vdev = true;
        Ok(())
    }

    /// Parses `hdc:cdrom`, which is deprecated. Returns true if the part has that form.
    fn vdev_and_devtype(&mut self, part: DiskSpecPart<'a>) -> Result<bool, Error> {
        let Some((vdev, kind)) = part.0.rsplit_once(':') else { return Ok(false) };
        self.vdev((vdev, part.1))?;
        self.disk.cdrom = match kind {
            "cdrom" => true,
            "disk" => false,
            _ => {
                return Err(
                    self.error((kind, part.1 + vdev.len() + 1), "cdrom or disk after the colon")
                );
            }
        };
        Ok(true)
    }

    fn format_word(&mut self, part: DiskSpecPart<'a>) -> Result<(), Error> {
        let format = if part.0.is_empty() { Some(Format::Raw) } else { Format::parse(part.0) };
        let format = format.ok_or_else(|| self.error(part, FORMATS))?;
        self.format(part, format)
    }

    fn format(&mut self, part: DiskSpecPart<'a>, format: Format) -> Result<(), Error> {
        if self.disk.format.is_some_and(|before| before != format) {
            return Err(self.error(part, "one format, not two"));
        }
        self.disk.format = Some(format);
        self.has_format = true;
        Ok(())
    }

    fn access(&mut self, part: DiskSpecPart<'a>) -> Result<(), Error> {
        self.disk.access = match part.0 {
            "r" | "ro" => Some(Access::Read),
            "w" | "rw" => Some(Access::Write),
            "" => None,
            _ => return Err(self.error(part, "an access: r, ro, w or rw")),
        };
        Ok(())
    }

    fn finish(self) -> Result<DiskSpec, Error> {
        let end = (&self.text[self.text.len()..], self.text.len());
        if self.disk.target.is_none() && !self.disk.cdrom {
            return Err(
                self.error(end, "a target (TARGET,FORMAT,VDEV,ACCESS or target=/path at the end)")
            );
        }
        Ok(self.disk)
    }
}

impl fmt::Display for DiskSpec {
    /// In key=value form, which [`DiskSpec::parse`] reads again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without one it is empty here as well, which means the same.
        write!(f, "vdev={}", self.vdev)?;
        let mut key = |name: &str, value: Option<&str>| match value {
            Some(value) => write!(f, ",{name}={value}"),
            None => Ok(()),
        };
        key("format", self.format.map(Format::word))?;
        let access = self.access.map(|access| if access == Access::Read { "r" } else { "w" });
        key("access", access)?;
        key("backend", self.backend.as_deref())?;
        key("backendtype", self.backendtype.map(BackendType::word))?;
        key("specification", self.specification.map(Specification::word))?;
        key("script", self.script.as_deref())?;
        key("grant_usage", self.grant_usage.map(|set| if set { "1" } else { "0" }))?;
        let either = |set: Option<bool>, yes: &'static str, no: &'static str| {
            set.map(|set| if set { yes } else { no })
        };
        let flags = [
            self.cdrom.then_some("cdrom"),
            self.direct_io_safe.then_some("direct-io-safe"),
            either(self.discard, "discard", "no-discard"),
            either(self.trusted, "trusted", "untrusted"),
        ];
        for flag in flags.into_iter().flatten() {
            write!(f, ",{flag}")?;
        }
        for (name, value) in &self.colo {
            let sign = if value.is_empty() { "" } else { "=" };
            write!(f, ",{name}{sign}{value}")?;
        }
        match &self.target {
            Some(target) => write!(f, ",target={target}"),
            None => Ok(()),
        }
    }
}
