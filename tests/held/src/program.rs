//! Programs of a guest: loops of requests, reads of its ring, and time that passes.

use sim::rng::Rng;

/// The number of slots for open transactions, as many as the quota allows.
pub const SLOTS: usize = 10;

/// The program of a guest, from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchProgram(pub Vec<ProgramLoop>);

/// A list of steps, and the number of its rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramLoop {
    /// The number of rounds.
    pub count: u16,
    /// The steps.
    pub body: Vec<ProgramStep>,
}

/// One step of a guest, or of domain 0 beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramStep {
    /// A request that names a path, within the transaction of a slot or without one.
    Ask(PathRequest, PathPattern, Option<u8>),
    /// WATCH with a token of this many bytes, and a depth.
    Watch(PathPattern, u16, Option<u8>),
    /// UNWATCH.
    Unwatch(PathPattern, u16),
    /// RESET_WATCHES.
    ResetWatches,
    /// TRANSACTION_START, whose number goes to the slot.
    Start(u8),
    /// TRANSACTION_END of the slot's transaction; true for a commit.
    End(u8, bool),
    /// A message of any other type with this many bytes of payload.
    Other(u8, u16),
    /// The guest reads this many bytes from its ring.
    Take(u16),
    /// This many milliseconds pass.
    Pass(u8),
    /// The guest resets its ring.
    Reconnect,
    /// A transaction of domain 0's takes the turn and reads the guest's home. Requests that would
    /// change the home wait.
    Hold,
    /// The transaction of `Hold` ends.
    Release,
}

/// A request that names a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathRequest {
    /// READ
    Read,
    /// DIRECTORY
    Directory,
    /// DIRECTORY_PART
    Part,
    /// GET_PERMS
    Perms,
    /// MKDIR
    Mkdir,
    /// RM
    Rm,
    /// WRITE of this many bytes.
    Write(u16),
    /// SET_PERMS with this many entries.
    SetPerms(u8),
}

/// A path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The node below which the path lies.
    pub below: PathRoot,
    /// The number of one-letter names.
    pub names: u16,
    /// The letter of these names.
    pub letter: u8,
    /// The length of one more name in bytes; 0 for none.
    pub last: u16,
    /// If not 0, the last name is the number of the round modulo this.
    pub modulo: u16,
}

/// The beginning of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathRoot {
    /// The guest's home, relative.
    Home,
    /// The guest's home, absolute.
    HomeAbsolute,
    /// A node of domain 0's that everybody may read.
    Public,
    /// A path that does not exist.
    Nowhere,
}

/// The guest's domain number.
pub const GUEST: u16 = 7;

impl PathPattern {
    /// Returns the path in the round of this number.
    #[must_use]
    pub fn path(&self, round: usize) -> String {
        let mut path = match self.below {
            PathRoot::Home => String::new(),
            PathRoot::HomeAbsolute => format!("/local/domain/{GUEST}/"),
            PathRoot::Public => "/public/".to_owned(),
            PathRoot::Nowhere => "/nowhere/".to_owned(),
        };
        let letter = char::from(b'a' + self.letter % 26);
        for _ in 0..self.names {
            path.push(letter);
            path.push('/');
        }
        match self.modulo {
            _ if self.last == 0 => {}
            0 => path.extend(std::iter::repeat_n('x', self.last.into())),
            modulo => {
                let number = round % usize::from(modulo);
                path.push_str(&format!("{number:0width$}", width = usize::from(self.last)));
            }
        }
        if path.len() > 1 && path.ends_with('/') {
            path.pop();
        }
        path
    }

    fn random(rng: &mut Rng) -> Self {
        Self {
            below: *rng.pick(&[
                PathRoot::Home,
                PathRoot::HomeAbsolute,
                PathRoot::HomeAbsolute,
                PathRoot::Public,
                PathRoot::Nowhere,
            ]),
            names: size(rng, 1000),
            letter: u8::try_from(rng.below(3)).unwrap_or(0),
            last: size(rng, 2000),
            modulo: if rng.chance(500) { 0 } else { size(rng, 2000) },
        }
    }
}

/// Draws a number below `bound`: small ones and the largest more often than others.
fn size(rng: &mut Rng, bound: u16) -> u16 {
    let bound = match rng.below(4) {
        0 => 2,
        1 => bound.min(16),
        2 => bound.min(128),
        _ => bound,
    };
    u16::try_from(rng.below(u64::from(bound))).unwrap_or(0)
}

impl PathRequest {
    fn random(rng: &mut Rng) -> Self {
        match rng.below(10) {
            0 => Self::Read,
            1 => Self::Directory,
            2 => Self::Part,
            3 => Self::Perms,
            4 => Self::Mkdir,
            5 => Self::Rm,
            6 => Self::SetPerms(u8::try_from(1 + rng.below(5)).unwrap_or(1)),
            _ => Self::Write(size(rng, 2048)),
        }
    }
}

impl ProgramStep {
    fn random(rng: &mut Rng) -> Self {
        let slot = u8::try_from(rng.below(SLOTS as u64)).unwrap_or(0);
        match rng.below(24) {
            0..=2 => Self::Watch(
                PathPattern::random(rng),
                size(rng, 2000),
                rng.chance(200).then(|| u8::try_from(rng.below(3)).unwrap_or(0)),
            ),
            3 => Self::Unwatch(PathPattern::random(rng), size(rng, 2000)),
            4 if rng.chance(200) => Self::ResetWatches,
            5 | 6 => Self::Start(slot),
            7 => Self::End(slot, rng.chance(500)),
            8 => Self::Other(u8::try_from(rng.below(32)).unwrap_or(0), size(rng, 4096)),
            9 | 10 => Self::Take(size(rng, 2000)),
            11 => Self::Take(u16::MAX),
            12 if rng.chance(300) => Self::Pass(u8::try_from(rng.below(30)).unwrap_or(0)),
            13 if rng.chance(50) => Self::Reconnect,
            14 if rng.chance(300) => Self::Hold,
            15 if rng.chance(300) => Self::Release,
            _ => {
                let slot = rng.chance(600).then_some(slot % 2);
                Self::Ask(PathRequest::random(rng), PathPattern::random(rng), slot)
            }
        }
    }
}

impl ProgramLoop {
    fn random(rng: &mut Rng) -> Self {
        let len = 1 + rng.below(4);
        Self {
            count: 1 + size(rng, 3000),
            body: (0..len).map(|_| ProgramStep::random(rng)).collect(),
        }
    }
}

impl SearchProgram {
    /// Draws a random program.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let len = 1 + rng.below(6);
        Self((0..len).map(|_| ProgramLoop::random(rng)).collect())
    }

    /// Returns this program with a step or loop changed, added, taken out or moved; or a mixture
    /// with another.
    #[must_use]
    pub fn changed(&self, other: &Self, rng: &mut Rng) -> Self {
        let mut loops = self.0.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.index(loops.len().max(1));
            match rng.below(8) {
                0 if loops.len() < 12 => loops.insert(at, ProgramLoop::random(rng)),
                1 if loops.len() > 1 => drop(loops.remove(at)),
                2 if !other.0.is_empty() && loops.len() < 12 => {
                    loops.insert(at, rng.pick(&other.0).clone());
                }
                3 if loops.len() > 1 => {
                    let with = rng.index(loops.len());
                    loops.swap(at, with);
                }
                _ => {
                    if let Some(part) = loops.get_mut(at) {
                        part.change(rng);
                    }
                }
            }
        }
        Self(loops)
    }
}

impl ProgramLoop {
    fn change(&mut self, rng: &mut Rng) {
        let at = rng.index(self.body.len().max(1));
        match rng.below(8) {
            0 => self.count = 1 + size(rng, 3000),
            1 => self.count = self.count.saturating_mul(2).min(6000),
            2 if self.body.len() < 6 => self.body.insert(at, ProgramStep::random(rng)),
            3 if self.body.len() > 1 => drop(self.body.remove(at)),
            4 => {
                if let Some(step) = self.body.get_mut(at) {
                    *step = ProgramStep::random(rng);
                }
            }
            _ => {
                if let Some(step) = self.body.get_mut(at) {
                    step.change(rng);
                }
            }
        }
    }
}

impl ProgramStep {
    fn change(&mut self, rng: &mut Rng) {
        match self {
            Self::Ask(ask, place, slot) => match rng.below(4) {
                0 => *ask = PathRequest::random(rng),
                1 => *slot = rng.chance(600).then(|| u8::try_from(rng.below(2)).unwrap_or(0)),
                _ => place.change(rng),
            },
            Self::Watch(place, token, _) | Self::Unwatch(place, token) => match rng.below(3) {
                0 => *token = size(rng, 2000),
                _ => place.change(rng),
            },
            other => *other = Self::random(rng),
        }
    }
}

impl PathPattern {
    fn change(&mut self, rng: &mut Rng) {
        let new = Self::random(rng);
        match rng.below(5) {
            0 => self.below = new.below,
            1 => self.names = new.names,
            2 => self.letter = new.letter,
            3 => self.last = new.last,
            _ => self.modulo = new.modulo,
        }
    }
}
