//! The rules of glibc's getopt_long(3) over a table of options that belongs to the program. It
//! understands every command line that getopt_long understands, does no I/O, and cannot panic.
//!
//! A program implements [`Entry`] for a row of its table, and reads the words of its command line
//! from a [`Parser`].
//!
//! | module | contents |
//! |---|---|
//! | `parser` | [`Parser`]: the words of a command line, as options and operands |
//! | `fault` | [`Fault`]: the reason why an option is refused, with glibc's text |
//!
//! Source: getopt_long(3), glibc's manual (Using Getopt).

mod fault;
mod parser;

pub use fault::{Fault, LongWord, Spelling};
pub use parser::{GivenOption, Operands, ParsedOption, Parser, Word};

/// The choice between options that take an argument and options that do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// The option takes none.
    None,
    /// The option takes one: the rest of its word, or the next word whatever it is.
    Required,
    /// The option takes one that stands in its word, as in `-ofile` and `--output=file`. The next
    /// word is its argument only if it is one of these, of which getopt_long has none.
    Optional(&'static [&'static str]),
}

/// An entry of a program's table of options.
pub trait Entry {
    /// The letter of the short option.
    fn short(&self) -> Option<u8>;

    /// The name of the long option, without dashes.
    fn long(&self) -> Option<&str>;

    /// True if a beginning of the long name means the option, as for getopt_long. An entry that a
    /// program adds to another's table takes no abbreviation away if it asks for its whole name.
    fn may_be_abbreviated(&self) -> bool {
        true
    }

    /// The option's argument.
    fn argument(&self) -> Argument;
}

/// The example of the README, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
