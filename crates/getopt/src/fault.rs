//! The faults of options.

use crate::Entry;

/// A word with a long option: `--name` or `--name=argument`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LongWord {
    /// The word without its dashes.
    text: Vec<u8>,
}

impl LongWord {
    pub(crate) fn new(text: &[u8]) -> Self {
        Self { text: text.to_vec() }
    }

    /// Returns the word without its dashes.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns the name as it was written: whole, abbreviated, or unknown.
    pub fn name(&self) -> &[u8] {
        self.text.split(|byte| *byte == b'=').next().unwrap_or_default()
    }

    /// Returns the argument behind the first `=`.
    pub fn argument(&self) -> Option<&[u8]> {
        self.text.splitn(2, |byte| *byte == b'=').nth(1)
    }
}

/// The spelling of an option that the table has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spelling {
    /// The option's letter.
    Short(u8),
    /// The option's name or an abbreviation of it.
    Long,
}

/// The reason why an option is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault<'t, E> {
    /// No short option has this letter.
    UnknownLetter(u8),
    /// No long option begins with the name in this word.
    UnknownName(LongWord),
    /// Several long options begin with the name in this word, and none has this name. Unlike for
    /// getopt_long, two entries are two options, even if the program treats them alike.
    Ambiguous {
        /// The word.
        word: LongWord,
        /// The options that begin with the name, in the order of the table: two at least.
        candidates: Vec<&'t E>,
    },
    /// The command line ends where an argument must follow.
    MissingArgument {
        /// The option.
        entry: &'t E,
        /// The spelling of the option.
        spelling: Spelling,
    },
    /// A long option has an argument and takes none.
    UnwantedArgument(&'t E),
}

impl<E: Entry> Fault<'_, E> {
    /// Returns the text that glibc's getopt_long prints, without the program's name and the end of
    /// the line.
    pub fn message(&self) -> Vec<u8> {
        match self {
            Self::UnknownLetter(letter) => [b"invalid option -- '", &[*letter][..], b"'"].concat(),
            Self::UnknownName(word) => [b"unrecognized option '--", word.text(), b"'"].concat(),
            Self::Ambiguous { word, candidates } => {
                let mut message =
                    [b"option '--", word.text(), b"' is ambiguous; possibilities:"].concat();
                for entry in candidates {
                    message.extend([b" '--", Self::name(entry), b"'"].concat());
                }
                message
            }
            Self::MissingArgument { spelling: Spelling::Short(letter), .. } => {
                [b"option requires an argument -- '", &[*letter][..], b"'"].concat()
            }
            Self::MissingArgument { entry, spelling: Spelling::Long } => {
                [b"option '--", Self::name(entry), b"' requires an argument"].concat()
            }
            Self::UnwantedArgument(entry) => {
                [b"option '--", Self::name(entry), b"' doesn't allow an argument"].concat()
            }
        }
    }

    /// Returns the long name of an option that was found by it.
    fn name(entry: &E) -> &[u8] {
        entry.long().unwrap_or_default().as_bytes()
    }
}
