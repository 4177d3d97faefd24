//! The parser of a command line.

use crate::{Argument, Entry, Fault, LongWord, Spelling};
use std::iter::Peekable;

#[cfg(test)]
mod tests;

/// The places of operands on a command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operands {
    /// Operands and options come in any order, as getopt_long has it by default.
    Anywhere,
    /// All words from the first operand on are operands, as getopt_long has it if the environment
    /// has POSIXLY_CORRECT.
    Last,
}

/// An option of the table as a command line gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GivenOption<'t, E> {
    /// The option.
    pub entry: &'t E,
    /// Its argument.
    pub argument: Option<Vec<u8>>,
}

/// An option, or the reason why it is refused.
pub type ParsedOption<'t, E> = Result<GivenOption<'t, E>, Fault<'t, E>>;

/// A word of a command line. The words `--` and those that are arguments of options do not count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word<'t, E> {
    /// A long option, or the short options in one word. A fault does not end the word's options
    /// nor the command line: it is for the program to stop, or to go on as getopt_long does.
    Options(Vec<ParsedOption<'t, E>>),
    /// A word that is no option.
    Operand(Vec<u8>),
}

/// The words of a command line, parsed one by one.
#[derive(Clone, Debug)]
pub struct Parser<'t, E, I: Iterator<Item = Vec<u8>>> {
    table: Vec<&'t E>,
    words: Peekable<I>,
    operands: Operands,
    /// True if all further words are operands.
    options_ended: bool,
}

impl<'t, E: Entry, I: Iterator<Item = Vec<u8>>> Parser<'t, E, I> {
    /// Returns the parser of these words, which are those behind the program's name.
    pub fn new(
        table: impl IntoIterator<Item = &'t E>,
        words: impl IntoIterator<IntoIter = I>,
        operands: Operands,
    ) -> Self {
        Self {
            table: table.into_iter().collect(),
            words: words.into_iter().peekable(),
            operands,
            options_ended: false,
        }
    }

    /// Parses the letters of a word.
    fn short_options(&mut self, mut letters: &[u8]) -> Vec<ParsedOption<'t, E>> {
        let mut options = Vec::new();
        while let [letter, rest @ ..] = letters {
            letters = rest;
            let known = self.table.iter().find(|entry| entry.short() == Some(*letter));
            options.push(match known.copied() {
                None => Err(Fault::UnknownLetter(*letter)),
                Some(entry) => {
                    let mut attached = None;
                    if entry.argument() != Argument::None && !rest.is_empty() {
                        attached = Some(rest);
                        letters = &[];
                    }
                    self.with_argument(entry, attached, Spelling::Short(*letter))
                }
            });
        }
        options
    }

    fn long_option(&mut self, text: &[u8]) -> ParsedOption<'t, E> {
        let word = LongWord::new(text);
        let has = |entry: &E, test: fn(&[u8], &[u8]) -> bool| {
            entry.long().is_some_and(|long| test(long.as_bytes(), word.name()))
        };
        let is_whole = |entry: &E| has(entry, |long, name| long == name);
        let candidates = self.table.iter().copied().filter(|entry| {
            has(entry, <[u8]>::starts_with) && (entry.may_be_abbreviated() || is_whole(entry))
        });
        let candidates: Vec<&'t E> = candidates.collect();
        let exact = candidates.iter().find(|entry| is_whole(entry));
        let entry = match (exact, candidates.as_slice()) {
            (Some(entry), _) | (None, [entry]) => *entry,
            (None, []) => return Err(Fault::UnknownName(word)),
            (None, _) => return Err(Fault::Ambiguous { word, candidates }),
        };
        self.with_argument(entry, word.argument(), Spelling::Long)
    }

    /// Returns the option with its argument: the attached one, or a word of its own.
    fn with_argument(
        &mut self,
        entry: &'t E,
        attached: Option<&[u8]>,
        spelling: Spelling,
    ) -> ParsedOption<'t, E> {
        let argument = match (entry.argument(), attached) {
            (Argument::None, Some(_)) => return Err(Fault::UnwantedArgument(entry)),
            (Argument::None, None) => None,
            (_, Some(attached)) => Some(attached.to_vec()),
            (Argument::Required, None) => match self.words.next() {
                None => return Err(Fault::MissingArgument { entry, spelling }),
                word => word,
            },
            (Argument::Optional(separate), None) => {
                self.words.next_if(|word| separate.iter().any(|one| one.as_bytes() == word))
            }
        };
        Ok(GivenOption { entry, argument })
    }
}

impl<'t, E: Entry, I: Iterator<Item = Vec<u8>>> Iterator for Parser<'t, E, I> {
    type Item = Word<'t, E>;

    fn next(&mut self) -> Option<Word<'t, E>> {
        if !self.options_ended && self.words.next_if(|word| word == b"--").is_some() {
            self.options_ended = true;
        }
        let word = self.words.next()?;
        match word.as_slice() {
            _ if self.options_ended => Some(Word::Operand(word)),
            [b'-', b'-', text @ ..] => Some(Word::Options(vec![self.long_option(text)])),
            [b'-', letters @ ..] if !letters.is_empty() => {
                Some(Word::Options(self.short_options(letters)))
            }
            _ => {
                self.options_ended = self.operands == Operands::Last;
                Some(Word::Operand(word))
            }
        }
    }
}
