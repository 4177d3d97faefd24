//! The flags and operands of a command, as getopt_long(3) of glibc finds them: in any order (unless
//! POSIXLY_CORRECT is set), and with the same messages.

use super::program::ProgramNames;
use super::table::{Command, Flag, OPTIONS};
use getopt::{GivenOption, Operands, Parser, Word};
use std::io::{self, Write};

/// The flags of a command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Flags {
    pub(super) help: bool,
    pub(super) flat: bool,
    pub(super) prefix: bool,
    pub(super) tidy: bool,
    pub(super) upto: bool,
    pub(super) recurse: bool,
    pub(super) raw: bool,
    pub(super) json: bool,
    pub(super) loose: bool,
    pub(super) replace: bool,
    /// The number of `-n`, as atoi(3) reads it.
    pub(super) number: Option<i32>,
}

/// The parts of a command line.
#[derive(Clone, Debug, Default)]
pub(super) struct ParsedArgs {
    pub(super) flags: Flags,
    /// True if a flag was given that the command does not know. A message about it is on stderr.
    pub(super) unknown: bool,
    /// True if a flag of another command was given, or help. Debian's commands then print their
    /// usage.
    pub(super) misplaced: bool,
    pub(super) operands: Vec<Vec<u8>>,
}

/// Parses `args`. Stops at the first misplaced flag, as Debian's commands do.
pub(super) fn parse(program: &ProgramNames, command: &Command, args: &[Vec<u8>]) -> ParsedArgs {
    let mut parsed = ParsedArgs::default();
    let options = OPTIONS.iter().filter(|opt| opt.known_to(command));
    let posix = std::env::var_os("POSIXLY_CORRECT").is_some();
    let operands = if posix { Operands::Last } else { Operands::Anywhere };
    for word in Parser::new(options, args.iter().cloned(), operands) {
        let found = match word {
            Word::Operand(operand) => {
                parsed.operands.push(operand);
                continue;
            }
            Word::Options(found) => found,
        };
        for option in found {
            match option {
                Ok(GivenOption { entry, argument }) => {
                    parsed.flags.set(entry.flag, &argument.unwrap_or_default());
                    parsed.misplaced |= entry.flag == Flag::Help || !entry.fits(command);
                }
                Err(fault) => {
                    parsed.unknown = true;
                    let line = [&program.getopt[..], b": ", &fault.message(), b"\n"].concat();
                    // An error of stderr has no place to be reported.
                    let _ = io::stderr().write_all(&line);
                }
            }
            if parsed.misplaced {
                return parsed;
            }
        }
    }
    parsed
}

impl Flags {
    fn set(&mut self, flag: Flag, argument: &[u8]) {
        match flag {
            Flag::Help => self.help = true,
            Flag::Flat => self.flat = true,
            Flag::Prefix => self.prefix = true,
            Flag::Tidy => self.tidy = true,
            Flag::Upto => self.upto = true,
            Flag::Recurse => self.recurse = true,
            Flag::Number => self.number = Some(atoi(argument)),
            Flag::Raw => self.raw = true,
            Flag::Socket => {}
            Flag::Json => self.json = true,
            Flag::Loose => self.loose = true,
            Flag::Replace => self.replace = true,
        }
    }
}

/// Parses a number as atoi(3) of glibc does: white space, a sign, digits; the rest is ignored. A
/// number out of range is truncated from 64 bits.
pub(super) fn atoi(text: &[u8]) -> i32 {
    let text = text.trim_ascii_start();
    // isspace(3) accepts the vertical tab too.
    let start = text.iter().position(|byte| *byte != 0x0b).unwrap_or(text.len());
    let (negative, digits) = match text.get(start..).unwrap_or_default() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let mut value: i64 = 0;
    for digit in digits.iter().take_while(|byte| byte.is_ascii_digit()) {
        let digit = i64::from(digit - b'0');
        let signed = if negative { -digit } else { digit };
        let end = if negative { i64::MIN } else { i64::MAX };
        value = value.checked_mul(10).and_then(|ten| ten.checked_add(signed)).unwrap_or(end);
        if value == end {
            break;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "atoi(3) truncates")]
    let value = value as i32;
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atoi_reads_what_there_is() {
        for (text, value) in [
            ("12", 12),
            (" -3x", -3),
            ("+7", 7),
            ("x", 0),
            ("", 0),
            ("4294967297", 1),
            ("99999999999999999999", -1),
            ("-99999999999999999999", 0),
        ] {
            assert_eq!(atoi(text.as_bytes()), value, "{text}");
        }
    }
}
