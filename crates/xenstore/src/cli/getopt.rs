//! Parses flags and operands as getopt_long(3) of glibc does: operands and flags in any order
//! (unless POSIXLY_CORRECT is set), abbreviated long flags, and the same messages.

use super::program::ProgramNames;
use super::table::{Command, Flag, OPTIONS, Opt};
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
    let options: Vec<&Opt> = OPTIONS.iter().filter(|opt| opt.known_to(command)).collect();
    let posix = std::env::var_os("POSIXLY_CORRECT").is_some();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == b"--" {
            parsed.operands.extend(args.cloned());
            break;
        }
        let found = if let Some(long) = arg.strip_prefix(b"--") {
            vec![long_option(&options, long, &mut args)]
        } else if arg.len() > 1 && arg.starts_with(b"-") {
            short_options(&options, &arg[1..], &mut args)
        } else {
            parsed.operands.push(arg.clone());
            if posix {
                parsed.operands.extend(args.cloned());
                break;
            }
            continue;
        };
        for found in found {
            match found {
                Ok((opt, argument)) => {
                    parsed.flags.set(opt.flag, &argument);
                    parsed.misplaced |= opt.flag == Flag::Help || !opt.fits(command);
                }
                Err(message) => {
                    parsed.unknown = true;
                    let line = [&program.getopt[..], b": ", &message, b"\n"].concat();
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

/// A flag with its argument, or getopt's message about it.
type ParsedFlag<'a> = Result<(&'a Opt, Vec<u8>), Vec<u8>>;

fn short_options<'a>(
    options: &[&'a Opt],
    letters: &[u8],
    args: &mut std::slice::Iter<'_, Vec<u8>>,
) -> Vec<ParsedFlag<'a>> {
    let mut found = Vec::new();
    for (at, letter) in letters.iter().enumerate() {
        let quoted = |text: &str| [text.as_bytes(), b" -- '", &[*letter], b"'"].concat();
        match options.iter().find(|opt| opt.short == Some(*letter)) {
            None => found.push(Err(quoted("invalid option"))),
            Some(opt) if opt.arg.is_none() => found.push(Ok((*opt, Vec::new()))),
            Some(opt) => {
                let rest = letters.get(at + 1..).unwrap_or_default();
                found.push(match rest {
                    [] => match args.next() {
                        Some(arg) => Ok((*opt, arg.clone())),
                        None => Err(quoted("option requires an argument")),
                    },
                    rest => Ok((*opt, rest.to_vec())),
                });
                break;
            }
        }
    }
    found
}

fn long_option<'a>(
    options: &[&'a Opt],
    text: &[u8],
    args: &mut std::slice::Iter<'_, Vec<u8>>,
) -> ParsedFlag<'a> {
    let equals = text.iter().position(|byte| *byte == b'=');
    let name = text.get(..equals.unwrap_or(text.len())).unwrap_or_default();
    let given = equals.and_then(|at| text.get(at + 1..));
    let long = |opt: &Opt| opt.long.unwrap_or_default().as_bytes();
    let begins =
        options.iter().filter(|opt| opt.long.is_some_and(|at| at.as_bytes().starts_with(name)));
    let candidates: Vec<&&Opt> = begins.collect();
    let opt = match candidates.iter().find(|opt| long(opt) == name) {
        Some(exact) => exact,
        None => match candidates[..] {
            [] => return Err([b"unrecognized option '--", text, b"'"].concat()),
            [one] => one,
            _ => {
                let mut message = [b"option '--", text, b"' is ambiguous; possibilities:"].concat();
                for opt in candidates {
                    message.extend([b" '--", long(opt), b"'"].concat());
                }
                return Err(message);
            }
        },
    };
    let quoted = |rest: &str| [b"option '--", long(opt), b"'", rest.as_bytes()].concat();
    match (opt.arg, given) {
        (None, Some(_)) => Err(quoted(" doesn't allow an argument")),
        (None, None) => Ok((opt, Vec::new())),
        (Some(_), Some(given)) => Ok((opt, given.to_vec())),
        (Some(_), None) => match args.next() {
            Some(arg) => Ok((opt, arg.clone())),
            None => Err(quoted(" requires an argument")),
        },
    }
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
